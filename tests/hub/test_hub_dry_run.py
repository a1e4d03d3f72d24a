"""A dry run, and every check before an apply, fetch headers and samples alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_checkpoints import save
from hub_server import HubServer

import deltastore
from deltastore.checkpoint import open_checkpoint
from deltastore.errors import (
    CheckpointCorruptError,
    HubError,
    RestoreOnlyError,
    StructureMismatchError,
)

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
SAMPLE_BYTES = 64 << 10
RUNS = 256
POINTER = len("version https://git-lfs")


@pytest.fixture
def store(sources: Path, tmp_path: Path) -> Path:
    """A store with x, extracted from local directories."""
    place = tmp_path / "store"
    with deltastore.open(place) as opened:
        opened.extract(sources / "base", sources / "post", name="x")
    return place


def weights(directory: Path) -> int:
    return sum((directory / name).stat().st_size for name in SHARDS)


def headers(directory: Path) -> int:
    sizes = [int.from_bytes((directory / name).read_bytes()[:8], "little") for name in SHARDS]
    return sum(sizes) + POINTER * len(sizes)


def test_resolve_downloads_no_weights(models: HubServer, store: Path, cache: Path) -> None:
    with deltastore.open(store) as opened:
        (found,) = opened.resolve("org/new-base")
    assert found.compatible
    assert not list(cache.rglob("*.safetensors"))
    assert all(r.range for r in models.requests if r.kind == "cdn")


def test_headers_and_samples_alone(
    models: HubServer, sources: Path, store: Path, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with deltastore.open(store) as opened:
        expected = opened.apply("x", base=sources / "new-base", out=out, dry_run=True)
        result = opened.apply("x", base="org/new-base", out=out, dry_run=True)
    assert [figures["cosine"] for figures in result.lineage] == [
        figures["cosine"] for figures in expected.lineage
    ]
    assert (result.tensors, result.bytes) == (expected.tensors, expected.bytes)
    assert not out.exists()
    assert result.files == expected.files
    assert {"config.json", "README.md"} <= {row["name"] for row in result.files}
    # To the byte: what lies between two samples that are read as one is the gap at most.
    fetched = models.sent["cdn"] - headers(sources / "new-base")
    (lineage,) = result.lineage
    assert 0 < fetched <= SAMPLE_BYTES + (16 << 10) * lineage["tensors"]
    assert fetched < weights(sources / "new-base") / 40
    assert models.count("cdn") <= 2 * len(SHARDS) + RUNS
    # The hub is asked once for each shard's address, not for every sample.
    assert models.count("get", ".safetensors") - models.count("get", ".index") == len(SHARDS)
    assert all(r.range for r in models.requests if r.kind == "cdn")
    assert models.count("api") == 1
    assert not list(cache.rglob("*.safetensors"))


def test_a_wrapped_base_that_keeps_another_name_of_its_tied_set(
    hub: HubServer, cache: Path, tmp_path: Path
) -> None:
    """What tells the names is read in short pieces as well."""
    random = np.random.default_rng(3)
    base = {f"model.layers.{i}.w.weight": random.normal(0, 0.02, (1024, 1024)) for i in range(3)}
    base["model.embed_tokens.weight"] = random.normal(0, 0.02, (1024, 1024))
    sides = []
    for _ in range(2):
        sides.append({n: a + random.normal(0, 1e-3, a.shape) for n, a in base.items()})
    post, new = sides
    new["lm_head.weight"] = new.pop("model.embed_tokens.weight")
    for wrapped in ("module.", "_orig_mod."):
        place = tmp_path / wrapped
        save(place, {f"{wrapped}{n}": a for n, a in new.items()})
        hub.publish(f"org/{wrapped}new", place)
    with deltastore.open(tmp_path / "store") as store:
        store.extract(save(tmp_path / "base", base), save(tmp_path / "post", post), name="x")
        for wrapped in ("module.", "_orig_mod."):
            hub.reset()
            (found,) = store.resolve(f"org/{wrapped}new")
            assert found.compatible
            result = store.apply("x", base=f"org/{wrapped}new", out=tmp_path / "out", dry_run=True)
            assert result.tensors == 4
            assert hub.sent["cdn"] < weights(tmp_path / wrapped) / 20
    assert not list(cache.rglob("*.safetensors"))


def test_the_command_line(models: HubServer, store: Path, tmp_path: Path) -> None:
    """A process of its own, which learns of the hub by its environment alone."""
    models.requests.clear()
    arguments = ["--base", "org/new-base", "--out", str(tmp_path / "out"), "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-m", "deltastore", "--json", "apply", "x", *arguments],
        env=os.environ | {"DELTASTORE_STORE": str(store)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    commit = models.repositories["org/new-base"].refs["main"]
    assert result["base"] == {
        "label": "org/new-base",
        "repo": "org/new-base",
        "revision": commit,
    }
    assert result["dry_run"]
    assert done.stderr == ""
    assert models.sent["cdn"] < 200_000


def test_what_is_cached_is_read_there(
    models: HubServer, sources: Path, store: Path, tmp_path: Path
) -> None:
    with open_checkpoint("org/new-base") as checkpoint:
        checkpoint.read_into(checkpoint.shards[0].tensors[0], 0, bytearray(2))
    models.reset()
    with deltastore.open(store) as opened:
        opened.apply("x", base="org/new-base", out=tmp_path / "out", dry_run=True)
    assert models.count("cdn", SHARDS[0]) == 0
    assert models.count("cdn", SHARDS[1]) > 0
    assert models.count("head") == 0


def test_a_base_of_another_structure_is_refused_before_a_download(
    models: HubServer, sources: Path, store: Path, tmp_path: Path
) -> None:
    place = tmp_path / "other"
    place.mkdir()
    (place / "config.json").write_text("{}")
    text = json.dumps({"a": {"dtype": "BF16", "shape": [1 << 20], "data_offsets": [0, 1 << 21]}})
    data = len(text).to_bytes(8, "little") + text.encode() + bytes(1 << 21)
    (place / "model.safetensors").write_bytes(data)
    models.publish("org/other", place)
    with deltastore.open(store) as opened, pytest.raises(StructureMismatchError):
        opened.apply("x", base="org/other", out=tmp_path / "out")
    assert models.sent["cdn"] == POINTER + len(text)


def test_a_dry_run_on_the_source_base_downloads_nothing_to_recognise_it(
    models: HubServer, sources: Path, tmp_path: Path
) -> None:
    with deltastore.open(tmp_path / "store") as opened:
        opened.extract(sources / "base", sources / "post", name="r", restore_only=True)
        result = opened.apply("r", base="org/base", out=tmp_path / "out", dry_run=True)
        assert result.lineage[0]["same"]
        with pytest.raises(RestoreOnlyError):
            opened.apply("r", base="org/new-base", out=tmp_path / "out", dry_run=True)
    assert models.sent["cdn"] < 200_000


def test_look_only_never_downloads(models: HubServer) -> None:
    with open_checkpoint("org/base", look_only=True) as checkpoint:
        models.reset()
        with pytest.raises(HubError, match="dry run"):
            checkpoint.read_into("norm.weight", 0, bytearray(2))
        assert not models.requests


def samples(models: HubServer) -> bytes:
    with open_checkpoint("org/base", look_only=True) as checkpoint:
        buffers = [bytearray(100) for _ in range(20)]
        places = [("layers.0.weight", 50_000 * i, memoryview(b)) for i, b in enumerate(buffers)]
        checkpoint.read_samples(places)
        return b"".join(buffers)


def test_failures_that_pass(models: HubServer) -> None:
    """The same bytes, whatever went wrong on the way."""
    expected = samples(models)
    models.fail("api", 503)
    models.fail("api", 429, Retry_After="0")
    models.fail("get", 500)
    models.fail("cdn", 429, Retry_After="0")
    models.fail("cdn", 502)
    models.cut("cdn", after=10, times=3)
    assert samples(models) == expected
    assert not any(fault.times for fault in models.faults)


def test_a_cut_read_is_taken_up_where_it_broke(models: HubServer) -> None:
    with open_checkpoint("org/base", look_only=True) as checkpoint:
        begin = checkpoint.tensors["layers.0.weight"].offset
        models.reset()
        models.cut("cdn", after=60)
        buffer = bytearray(100)
        checkpoint.read_samples([("layers.0.weight", 0, memoryview(buffer))])
    ranges = [r.range for r in models.requests if r.kind == "cdn"]
    assert ranges == [f"bytes={begin}-{begin + 99}", f"bytes={begin + 60}-{begin + 99}"]
    assert models.sent["cdn"] == 100


def test_addresses_that_expire_are_asked_for_again(models: HubServer) -> None:
    with open_checkpoint("org/base", look_only=True) as checkpoint:
        models.expire_links()
        buffer = bytearray(100)
        checkpoint.read_samples([("layers.0.weight", 0, memoryview(buffer))])
        assert any(buffer)


def test_the_token_goes_to_the_hub_alone(
    models: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.repositories["org/base"].token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    samples(models)
    assert {r.token for r in models.requests if r.kind != "cdn"} == {"secret"}
    assert {r.token for r in models.requests if r.kind == "cdn"} == {None}


def test_neighbours_are_read_at_once(models: HubServer) -> None:
    with open_checkpoint("org/base", look_only=True) as checkpoint:
        models.reset()
        buffers = [bytearray(8) for _ in range(50)]
        places = [("layers.0.weight", 5000 * i, memoryview(b)) for i, b in enumerate(buffers)]
        checkpoint.read_samples(places)
        assert models.count("cdn") == 1
        whole = bytearray(50 * 5000)
        checkpoint.read_samples([("layers.0.weight", 0, memoryview(whole))])
        assert [bytes(whole[5000 * i : 5000 * i + 8]) for i in range(50)] == buffers


@pytest.mark.parametrize("problem", ["ranges ignored", "no size", "damaged header"])
def test_servers_that_cannot_be_read_in_part(
    models: HubServer, problem: str, tmp_path: Path
) -> None:
    if problem == "ranges ignored":
        models.ignore_ranges = True
    elif problem == "no size":
        commit = models.repositories["org/base"].refs["main"]
        models.repositories["org/base"].commits[commit][SHARDS[0]].size = None  # type: ignore[assignment]
    else:
        place = tmp_path / "damaged"
        place.mkdir()
        (place / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{" * 50)
        models.publish("org/base", place)
        with pytest.raises(CheckpointCorruptError, match="header of 1099511627776 bytes"):
            open_checkpoint("org/base")
        return
    said = {"ranges ignored": "with status 200", "no size": "how large"}[problem]
    with pytest.raises(HubError, match=said) as caught:
        open_checkpoint("org/base")
    assert "hf download org/base --revision" in caught.value.hint


def test_another_vocabulary_is_matched_before_a_download(
    hub: HubServer, cache: Path, tmp_path: Path
) -> None:
    """Tokenizers are small files: they tell rows and added tokens without weights."""
    places = [tmp_path / side for side in ("base", "post", "new")]
    for place, words, seed in zip(places, ("abcdef", "abcdefgh", "zfedcba"), range(3), strict=True):
        random = np.random.default_rng(4)
        rows = {word: random.normal(0, 0.02, 64) for word in "abcdefghz"}
        inner = random.normal(0, 0.02, (96, 64))
        moved = np.random.default_rng(seed)
        arrays = {
            "model.embed_tokens.weight": np.stack([rows[word] for word in words]),
            "model.layers.0.mlp.up_proj.weight": inner + moved.normal(0, 1e-3, inner.shape),
        }
        save(place, arrays)
        vocabulary = {word: number for number, word in enumerate(words)}
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"}
        document = {"version": "1.0", "added_tokens": [], "model": model}
        (place / "tokenizer.json").write_text(json.dumps(document))
        (place / "config.json").write_text(json.dumps({"vocab_size": len(words)}))
    hub.publish("org/new", places[2])
    with deltastore.open(tmp_path / "store") as store:
        store.extract(*places[:2], name="x")
        told = store.apply("x", base="org/new", out=tmp_path / "out", dry_run=True)
        assert not list(cache.rglob("*.safetensors"))
        assert all(r.range for r in hub.requests if r.kind == "cdn")
        done = store.apply("x", base="org/new", out=tmp_path / "out")
    (words,) = told.vocabulary
    assert (words["verdict"], words["matched"], words["own"]) == ("matched", 6, 1)
    assert words["added"]["tokens"] == ["g", "h"]
    assert (told.vocabulary, told.tensors, told.bytes) == (
        done.vocabulary,
        done.tensors,
        done.bytes,
    )
    assert told.files == done.files
    assert {row["name"] for row in told.files} == {
        str(path.relative_to(tmp_path / "out"))
        for path in (tmp_path / "out").rglob("*")
        if path.is_file() and "safetensors" not in path.name
    }
