"""A hub id is pinned to a commit first, by one request, and that commit alone is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, Request

import deltastore
from deltastore.checkpoint import locate, open_checkpoint
from deltastore.checkpoint.hub import Unwatched
from deltastore.cli.main import main
from deltastore.errors import HubError


def test_one_request_pins(models: HubServer, cache: Path) -> None:
    commit = models.repositories["org/base"].refs["main"]
    location = locate("org/base")
    assert (location.repo, location.revision) == ("org/base", commit)
    assert location.path == cache / "models--org--base" / "snapshots" / commit
    assert [r.kind for r in models.requests] == ["api"]
    assert not cache.exists()


@pytest.mark.parametrize("form", ["org/base@dev", "org/base@refs/pr/1", "org/base@{commit}"])
def test_branches_and_commits(models: HubServer, sources: Path, form: str) -> None:
    commit = models.publish("org/base", sources / "new-base", form.partition("@")[2])
    assert locate(form.format(commit=commit)).revision == commit
    models.reset()
    assert locate("org/base@main").revision != commit


def test_a_list_by_id_asks_the_hub_only_what_a_branch_is(
    models: HubServer, sources: Path, tmp_path: Path
) -> None:
    commit = models.repositories["org/base"].refs["main"]
    with deltastore.open(tmp_path / "store") as store:
        store.extract("org/base", "org/post", name="x")
        models.reset()
        for text in ("org/base", "Org/*", f"org/base@{commit}", f"org/base@{commit[:9]}"):
            assert [row.name for row in store.list(base=text)] == ["x"]
        assert models.requests == []
        assert len(store.list(base="org/base@main")) == 1
        assert [r.kind for r in models.requests] == ["api"]
        models.publish("org/base", sources / "new-base")
        assert len(store.list(base="org/base")) == 1
        assert store.list(base="org/base@main") == []
        # Here lies what the hub has, under its name.
        assert [row.name for row in store.list(base=sources / "base")] == ["x"]
        assert store.list(base=sources / "new-base") == []
        with pytest.raises(HubError):
            store.list(base="org/base@nowhere")


def test_a_branch_that_moves_between_two_reads(
    models: HubServer, sources: Path, tmp_path: Path
) -> None:
    """Everything comes from the commit that was pinned, and the artifact and output name it."""
    before = models.repositories["org/base"].refs["main"]

    def move(request: Request) -> None:
        if request.kind != "api":
            models.publish("org/base", sources / "new-base")

    models.before = move
    with deltastore.open(tmp_path / "store") as store:
        result = store.extract("org/base", "org/post", name="x")
        assert models.repositories["org/base"].refs["main"] != before
        source = store.show(result).sources["base"]
        assert (source.repo, source.revision) == ("org/base", before)
        local = store.extract(sources / "base", sources / "post", name="y")
        assert store.show(local).sources["base"].content == source.content
        models.before = lambda request: None
        after = models.repositories["org/base"].refs["main"]
        out = tmp_path / "out"
        assert store.apply("x", base="org/base", out=out).base["revision"] == after
        provenance = json.loads((out / "deltastore.json").read_text())
        assert provenance["base"]["revision"] == after
        assert provenance["deltas"][0]["source_base"] == source.content


def test_a_branch_that_moves_between_two_commands(
    models: HubServer, sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command says which commit it took; the one a dry run checked can be named afterwards."""

    def run(*argv: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["--store", str(tmp_path / "store"), "--json", *argv]) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    run("extract", "--base", "org/base", "--post", "org/post", "--name", "x")
    apply = ("apply", "x", "--out", str(tmp_path / "out"))
    checked = run(*apply, "--base", "org/base", "--dry-run")["base"]
    moved_to = models.publish("org/base", sources / "new-base")
    assert run("show", "x")["sources"]["base"]["revision"] == checked["revision"] != moved_to
    moved = run(*apply, "--base", "org/base", "--dry-run")
    assert moved["base"]["revision"] == moved_to
    assert not moved["lineage"][0]["same"]
    named = run(*apply, "--base", f"org/base@{checked['revision']}")
    assert named["base"] == checked
    assert named["restored"]


def test_without_a_connection_the_cached_commit_serves(
    models: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_checkpoint("org/base") as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read_into(name, 0, bytearray(2))
        commit = checkpoint.revision
    # The library's own note of what a branch meant, without which nothing is found offline.
    assert (cache / "models--org--base" / "refs" / "main").read_text() == commit
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    warnings: list[str] = []

    class Watcher(Unwatched):
        def warn(self, message: str) -> None:
            warnings.append(message)

    with open_checkpoint("org/base", downloads=Watcher()) as checkpoint:
        assert checkpoint.revision == commit
        checkpoint.read_into("norm.weight", 0, bytearray(2))
    assert "cannot be reached" in warnings[0]
    shutil.rmtree(cache)
    with pytest.raises(HubError, match="no local path, and the hub cannot be reached"):
        open_checkpoint("org/base")


def test_offline_with_the_cache_whole_in_part_and_empty(
    models: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_checkpoint("org/base") as checkpoint:
        checkpoint.read_into("norm.weight", 0, bytearray(2))
    models.reset()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="only a part of it") as caught:
        open_checkpoint("org/base")
    assert f"hf download org/base --revision {checkpoint.revision}" in caught.value.hint
    with pytest.raises(HubError, match="local cache"):
        open_checkpoint("org/post")
    assert not models.requests
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with open_checkpoint("org/base") as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read_into(name, 0, bytearray(2))
    models.reset()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with open_checkpoint("org/base") as checkpoint:
        checkpoint.read_into("norm.weight", 0, bytearray(2))
    assert not models.requests
