"""Every refusal of the hub and failure of the network: one sentence, a hint, the exit code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import HubServer

import deltastore
from deltastore.checkpoint import open_checkpoint
from deltastore.checkpoint.hub import retrying
from deltastore.errors import HubError, NoSpaceError, NoWeightsError

SHARD = "model-00001-of-00002.safetensors"


def gated(hub: HubServer) -> None:
    hub.repositories["org/base"].token = "secret"
    hub.repositories["org/base"].gated = True


def private(hub: HubServer) -> None:
    hub.repositories["org/base"].token = "secret"


def nothing(hub: HubServer) -> None:
    pass


def broken(hub: HubServer) -> None:
    hub.fail("api", 502, times=retrying.ATTEMPTS)


def busy(hub: HubServer) -> None:
    hub.fail("api", 429, Retry_After="3600")


def limited(hub: HubServer) -> None:
    hub.fail("api", 429, RateLimit='"api";r=0;t=300')


def forbidden(hub: HubServer) -> None:
    hub.fail("api", 403)


def unreachable(hub: HubServer) -> None:
    huggingface_hub.constants.ENDPOINT = "http://127.0.0.1:9"


def offline(hub: HubServer) -> None:
    huggingface_hub.constants.HF_HUB_OFFLINE = True


@pytest.mark.parametrize(
    ("prepare", "source", "said", "hint", "requests"),
    [
        (gated, "org/base", "terms", "{endpoint}/org/base, then `hf auth login`", 1),
        (private, "org/base", "no such repository, or it is private", "hf auth login", 1),
        (nothing, "org/none", "no such repository, or it is private", "Check the id", 1),
        (nothing, "org/base@none", "no revision 'none'", "after the @", 1),
        (broken, "org/base", "out of order (502)", "later", retrying.ATTEMPTS),
        (busy, "org/base", "too many requests (429); it asks to wait 3600 s", "Wait", 1),
        (limited, "org/base", "it asks to wait 300 s", "hf auth login", 1),
        (forbidden, "org/base", "refused it (403)", "hf auth", 1),
        (unreachable, "org/base", "cannot be reached (ConnectError", "hf download org/base", 0),
        (offline, "org/base", "local cache does not hold it", "hf download org/base", 0),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_at_the_pinning(
    models: HubServer,
    prepare: Callable[[HubServer], None],
    source: str,
    said: str,
    hint: str,
    requests: int,
) -> None:
    prepare(models)
    with pytest.raises(HubError) as caught:
        open_checkpoint(source)
    message = caught.value.message
    assert message.startswith(f"{source} is no local path, and ")
    assert said in message
    assert message.endswith(".")
    assert "\n" not in message
    assert hint.format(endpoint=models.endpoint) in caught.value.hint
    assert caught.value.exit_code == 71
    assert caught.value.facts["repo"] == source.split("@")[0]
    assert [r.kind for r in models.requests] == ["api"] * requests


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("get", 403, "refused it (403)"),
        ("get", 404, "refused it (404)"),
        ("cdn", 416, "refused it (416)"),
        ("cdn", 503, "out of order (503)"),
        ("cdn", 429, "too many requests"),
    ],
)
def test_at_reading_in_part(models: HubServer, kind: str, status: int, said: str) -> None:
    open_checkpoint("org/base").close()  # the small files are there
    models.fail(kind, status, times=1000)
    with pytest.raises(HubError) as caught:
        open_checkpoint("org/base")
    assert ".safetensors of org/base@" in caught.value.message
    assert said in caught.value.message
    assert caught.value.hint
    assert models.count(kind) <= 4 * 2 * retrying.ATTEMPTS


def test_a_connection_that_is_cut_over_and_over(models: HubServer) -> None:
    with open_checkpoint("org/base") as checkpoint:
        models.reset()
        models.cut("cdn", after=10, times=1000)
        with pytest.raises(HubError, match=r"cannot be read: the hub cannot be reached") as caught:
            checkpoint.read_samples([("norm.weight", 0, memoryview(bytearray(1000)))])
        assert models.count("cdn") == retrying.ATTEMPTS
    assert "hf download org/base --revision" in caught.value.hint


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (lambda hub: hub.fail("get", 403, times=1000), "refused it (403)"),
        (lambda hub: hub.fail("cdn", 500, times=1000), "out of order (500)"),
        (lambda hub: hub.fail("get", 404, times=1000), "refused it (404)"),
    ],
    ids=["forbidden", "broken", "gone"],
)
def test_at_the_download(
    models: HubServer, cache: Path, fail: Callable[[HubServer], None], said: str
) -> None:
    with open_checkpoint("org/base") as checkpoint:
        fail(models)
        with pytest.raises(HubError) as caught:
            checkpoint.read_into("norm.weight", 0, bytearray(2))
    assert caught.value.message.startswith(f"{SHARD} of org/base@")
    assert said in caught.value.message
    assert not list(cache.rglob("*.safetensors"))


def test_a_full_cache(models: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_checkpoint("org/base") as checkpoint:
        monkeypatch.setattr("deltastore.checkpoint.hub.downloading._write_all", full)
        with pytest.raises(NoSpaceError, match="No space left") as caught:
            checkpoint.read_into("norm.weight", 0, bytearray(2))
    assert "HF_HOME" in caught.value.hint


def test_a_repository_without_weights(hub: HubServer, tmp_path: Path) -> None:
    place = tmp_path / "empty"
    place.mkdir()
    (place / "config.json").write_text("{}")
    (place / "model.gguf").write_bytes(b"GGUF")
    hub.publish("org/gguf", place)
    said = r"org/gguf@.* holds no weights .*model\.gguf"
    with pytest.raises(NoWeightsError, match=said) as caught:
        open_checkpoint("org/gguf")
    assert caught.value.exit_code == 62
    assert "top" in caught.value.hint


def test_a_refusal_is_not_hidden_by_the_cache(models: HubServer) -> None:
    """What the hub answers holds; only without an answer the cache stands in."""
    with open_checkpoint("org/base") as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read_into(name, 0, bytearray(2))
    gated(models)
    with pytest.raises(HubError, match="terms"):
        open_checkpoint("org/base")


def test_no_store_is_left_behind_by_a_refusal(models: HubServer, tmp_path: Path) -> None:
    gated(models)
    with deltastore.open(tmp_path / "store") as store:
        with pytest.raises(HubError):
            store.extract("org/base", "org/post", name="x")
        assert store.list() == []


def test_the_command_line(models: HubServer, tmp_path: Path) -> None:
    models.repositories["org/post"].token = "secret"
    arguments = ["--base", "org/base", "--post", "org/post", "--name", "x"]
    done = subprocess.run(
        [sys.executable, "-m", "deltastore", "--store", str(tmp_path / "s"), "extract", *arguments],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 71
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: org/post is no local path, and the hub has no such repository")
    assert "hf auth login" in hint
