"""What is fetched when: shards as they are needed, each once, and only what is not known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hub_checkpoints import save
from hub_server import HubServer
from safetensors import deserialize

import deltastore
from deltastore.checkpoint import open_checkpoint
from deltastore.checkpoint.hub import Unwatched, downloading
from deltastore.errors import HubError, IncompatibleError, LineageError, NoSpaceError
from deltastore.lineage import digests

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def header_bytes(directory: Path) -> int:
    """The bytes of all headers, with the few that are read twice to recognise LFS pointers."""
    total = 0
    for name in SHARDS:
        total += int.from_bytes((directory / name).read_bytes()[:8], "little") + len(
            "version https://git-lfs"
        )
    return total


def raw(path: Path) -> dict[str, bytes]:
    """The tensors' bytes by name, read by the safetensors library."""
    return {name: bytes(entry["data"]) for name, entry in deserialize(path.read_bytes())}


def same_weights(out: Path, expected: Path) -> None:
    for name in SHARDS:
        assert raw(out / name) == raw(expected / name)


def test_a_shard_is_downloaded_when_its_first_tensor_is_read(
    models: HubServer, sources: Path, cache: Path
) -> None:
    events: list[tuple[str, int]] = []

    class Watcher(Unwatched):
        def begin_download(self, filename: str, nbytes: int) -> None:
            events.append((filename, nbytes))

        def advance_download(self, done_bytes: int) -> None:
            events.append(("", done_bytes))

    with open_checkpoint("org/base", downloads=Watcher()) as checkpoint:
        assert models.sent["cdn"] == header_bytes(sources / "base")
        assert set(checkpoint.files) == {
            "config.json",
            "generation_config.json",
            "chat_templates/rag.jinja",
        }
        assert checkpoint.config is not None
        assert not any(name in SHARDS for name, _ in events)
        assert not checkpoint.is_local
        events.clear()
        buffer = bytearray(2)
        first = checkpoint.shards[0].tensors[0]
        for _ in range(2):
            checkpoint.read_into(first, 0, buffer)
        assert models.count("cdn", SHARDS[1]) == 2  # the header's two parts
        size = (sources / "base" / SHARDS[0]).stat().st_size
        assert events[0] == (SHARDS[0], size)
        assert sum(done for name, done in events if not name) == size
        models.reset()
        checkpoint.read_into(checkpoint.shards[1].tensors[0], 0, buffer)
        assert models.count("cdn") == 1
        assert checkpoint.is_local
        checkpoint.check_unchanged()
    models.reset()
    with open_checkpoint("org/base") as checkpoint:
        checkpoint.read_into(first, 0, buffer)
    assert [r.kind for r in models.requests] == ["api"]


def test_a_hub_pair_gives_the_artifact_of_the_local_pair(
    models: HubServer, sources: Path, tmp_path: Path
) -> None:
    with deltastore.open(tmp_path / "store") as store:
        store.extract("org/base", "org/post")
        shown = store.show("post")
        assert (shown.base, shown.post) == ("org/base", "org/post")
        size = sum((sources / n / s).stat().st_size for n in ("base", "post") for s in SHARDS)
        headers = header_bytes(sources / "base") + header_bytes(sources / "post")
        # Both are compared at the lineage samples before either is downloaded.
        assert size + headers < models.sent["cdn"] < size + headers + 2 * (96 << 10)
        assert store.apply("post", base="org/base", out=tmp_path / "restored").restored
        same_weights(tmp_path / "restored", sources / "post")
        models.reset()
        result = store.apply("post", base="org/new-base", out=tmp_path / "out")
        assert result.base["repo"] == "org/new-base"
        whole = sum((sources / "new-base" / s).stat().st_size for s in SHARDS)
        assert whole < models.sent["cdn"] < whole + header_bytes(sources / "new-base") + (96 << 10)
        store.apply("post", base=sources / "new-base", out=tmp_path / "local")
        same_weights(tmp_path / "out", tmp_path / "local")


def test_a_pair_that_is_none_is_refused_before_a_download(
    models: HubServer, sources: Path, cache: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(8)
    weights = {f"layers.{i}.weight": random.normal(0, 0.02, (512, 1024)) for i in range(4)}
    save(tmp_path / "stranger", weights | {"norm.weight": np.ones(512)})
    models.publish("org/stranger", tmp_path / "stranger")
    with deltastore.open(tmp_path / "store") as store:
        with pytest.raises(LineageError):
            store.extract("org/base", "org/stranger")
        with pytest.raises(IncompatibleError, match="very weights"):
            store.extract("org/base", "org/base")
        assert store.list() == []
    headers = 3 * header_bytes(sources / "base") + header_bytes(tmp_path / "stranger")
    assert models.sent["cdn"] < headers + 2 * (96 << 10)
    assert not list(cache.rglob("*.safetensors"))


def test_a_known_pair_is_not_downloaded_again(
    models: HubServer, sources: Path, cache: Path, tmp_path: Path
) -> None:
    with deltastore.open(tmp_path / "store") as store:
        first = store.extract("org/base", "org/post", name="x")
        again = store.extract("org/base", "org/post", name="x")
        assert again.reused  # from the cache
        shutil.rmtree(cache)
        models.reset()
        again = store.extract("org/base", "org/post", name="y")
        assert again.reused
        assert again.digest == first.digest
        headers = header_bytes(sources / "base") + header_bytes(sources / "post")
        assert models.sent["cdn"] == headers
        assert not list(cache.rglob("*.safetensors"))
        # The same bytes under another id are the same checkpoint.
        models.publish("other/base", sources / "base")
        models.reset()
        assert store.extract("other/base", "org/post", name="z").digest == first.digest
        assert models.sent["cdn"] == headers
        # Other bytes are not.
        models.publish("org/post", sources / "new-base")
        assert store.extract("org/base", "org/post", name="x").digest != first.digest


def test_only_an_extraction_believes_the_names_in_the_cache(
    models: HubServer, tmp_path: Path
) -> None:
    """An extraction means the commit; an application adds to the very bytes that lie there."""
    with deltastore.open(tmp_path / "store") as opened:
        opened.extract("org/base", "org/post", name="x")
        store = opened._store
        with open_checkpoint("org/base") as checkpoint:
            assert digests.remembered(store, checkpoint, trust_cache=True)
            assert digests.remembered(store, checkpoint) is None
        shutil.rmtree(tmp_path / "hf" / "hub")
        with open_checkpoint("org/base") as checkpoint:
            assert digests.remembered(store, checkpoint)


def test_a_shard_that_is_not_what_the_hub_says_is_refused_and_forgotten(
    models: HubServer, cache: Path, tmp_path: Path
) -> None:
    models.corrupt = {SHARDS[1]}
    with deltastore.open(tmp_path / "store") as store:
        with pytest.raises(HubError, match="not fetched whole: expected sha256") as caught:
            store.extract("org/base", "org/post", name="x")
        assert "again" in caught.value.hint
        assert store.list() == []
        assert not list(cache.rglob(SHARDS[1]))
        models.corrupt = set()
        digest = store.extract("org/base", "org/post", name="x").digest
        shutil.rmtree(cache)
        assert store.extract("org/base", "org/post", name="x").digest == digest


def test_who_watches_can_stop_a_download(models: HubServer, cache: Path) -> None:
    class Enough(Exception):
        pass

    class Watcher(Unwatched):
        def advance_download(self, done_bytes: int) -> None:
            if done_bytes > 10_000:
                raise Enough

    with open_checkpoint("org/base", downloads=Watcher()) as checkpoint:
        with pytest.raises(Enough):
            checkpoint.read_into("norm.weight", 0, bytearray(2))
        assert not list(cache.rglob("*.safetensors"))
        assert not checkpoint.is_local


def test_a_cut_download_goes_on(models: HubServer, sources: Path, tmp_path: Path) -> None:
    with open_checkpoint("org/base") as checkpoint:
        models.cut("cdn", after=1 << 20, times=2)
        models.fail("cdn", 503)
        tensor = checkpoint.tensors["layers.0.weight"]
        data = bytearray(tensor.nbytes)
        checkpoint.read_into("layers.0.weight", 0, data)
    assert bytes(data) == raw(sources / "base" / SHARDS[0])["layers.0.weight"]


@pytest.mark.parametrize("odd", ["", "cut", "busy", "no parts", "moved"])
def test_a_large_shard_comes_in_parts(
    models: HubServer, sources: Path, monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    monkeypatch.setattr(downloading, "PART_BYTES", 100_001)
    done: list[int] = []

    class Watcher(Unwatched):
        def advance_download(self, done_bytes: int) -> None:
            done.append(done_bytes)

    with open_checkpoint("org/base", downloads=Watcher()) as checkpoint:
        done.clear()
        models.reset()
        if odd == "cut":
            models.cut("cdn", after=50_000, times=4)
        elif odd == "busy":
            models.fail("cdn", 503, times=3)
        elif odd == "moved":
            models.expire_links()
        models.ignore_ranges = odd == "no parts"
        tensor = checkpoint.tensors["layers.0.weight"]
        data = bytearray(tensor.nbytes)
        checkpoint.read_into("layers.0.weight", 0, data)
    assert bytes(data) == raw(sources / "base" / SHARDS[0])["layers.0.weight"]
    size = (sources / "base" / SHARDS[0]).stat().st_size
    assert sum(done) == size
    if odd == "no parts":
        assert models.count("cdn") == 2
    else:
        assert models.count("cdn") >= -(-size // 100_001)


def test_who_watches_can_stop_a_download_in_parts(
    models: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Enough(Exception):
        pass

    class Watcher(Unwatched):
        def advance_download(self, done_bytes: int) -> None:
            if done_bytes > 0:
                raise Enough

    with open_checkpoint("org/base") as checkpoint:
        pass
    monkeypatch.setattr(downloading, "PART_BYTES", 10_000)
    with open_checkpoint("org/base", downloads=Watcher()) as checkpoint:
        models.reset()
        with pytest.raises(Enough):
            checkpoint.read_into("norm.weight", 0, bytearray(2))
        assert models.count("cdn") < 30
        assert not list(cache.rglob("*.safetensors"))
        assert not list(cache.rglob("*.incomplete"))


def test_old_pickles_are_downloaded_whole(models: HubServer, sources: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for name in ("base", "post"):
        tensors = {}
        for shard in SHARDS:
            tensors |= {
                key: torch.frombuffer(bytearray(data), dtype=torch.bfloat16)
                for key, data in raw(sources / name / shard).items()
            }
        place = tmp_path / name
        place.mkdir()
        torch.save(tensors, place / "pytorch_model.bin")
        shutil.copy(sources / name / "config.json", place)
        models.publish(f"old/{name}", place)
    with deltastore.open(tmp_path / "store") as store:
        new = store.extract("org/base", "org/post", name="x")
        old = store.extract("old/base", "old/post", name="y")
        assert (old.raw_bytes, old.tensors) == (new.raw_bytes, new.tensors)
        shutil.rmtree(tmp_path / "hf" / "hub")
        models.reset()
        with pytest.raises(HubError, match="dry run downloads nothing") as caught:
            store.apply("y", base="old/base", out=tmp_path / "out", dry_run=True)
        assert "hf download old/base --revision" in caught.value.hint
        assert not models.sent["cdn"]


def test_the_cache_must_have_room(models: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with open_checkpoint("org/base") as checkpoint:
        models.reset()
        with pytest.raises(NoSpaceError, match="local cache") as caught:
            checkpoint.read_into("norm.weight", 0, bytearray(2))
    assert "HF_HOME" in caught.value.hint
    assert not models.requests


def test_what_the_cache_has_for_another_commit_needs_no_room(
    models: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_checkpoint("org/base") as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read_into(name, 0, bytearray(2))
    shutil.rmtree(tmp_path / "hf" / "hub" / "models--org--base" / "snapshots")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with open_checkpoint("org/base") as checkpoint:
        checkpoint.read_into("norm.weight", 0, bytearray(2))


def test_weights_in_two_forms(models: HubServer, sources: Path, tmp_path: Path) -> None:
    """Of .safetensors and .bin beside them only the former are looked at."""
    place = tmp_path / "both"
    shutil.copytree(sources / "base", place)
    (place / "pytorch_model.bin").write_bytes(b"x" * 5000)
    (place / "pytorch_model.bin.index.json").write_text("{")
    (place / "onnx").mkdir()
    (place / "onnx" / "model.safetensors").write_bytes(b"x")
    models.publish("org/both", place)
    with open_checkpoint("org/both") as checkpoint:
        assert [shard.filename for shard in checkpoint.shards] == SHARDS
        assert "pytorch_model.bin" in checkpoint.ignored
    assert models.count("get", "pytorch") == models.count("head", "pytorch") == 0
    assert json.loads((sources / "base" / "config.json").read_text()) == checkpoint.config
