"""Artifacts whose digests are right and whose contents lie: refused, or applied; nothing else."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, load, model, random_bits, save, trained
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import deltastore
from deltastore.digest import sha256_digest
from deltastore.errors import DeltastoreError, FormatError, ManifestInvalidError
from deltastore.manifest import (
    Config,
    Descriptor,
    Manifest,
    config_bytes,
    manifest_bytes,
    parse_config,
)
from deltastore.manifest import format as fmt

LABELS = {"base": "base", "post": "post"}
SETTINGS = settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass(frozen=True, repr=False)
class Honest:
    """An honest artifact, to be falsified, and its base."""

    directory: Path
    manifest: Manifest
    config: Config


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Honest:
    directory = tmp_path_factory.mktemp("honest")
    base: Tensors = model("base", layers=1) | {
        "half": random_bits("half", "F16", 300),
        "single": random_bits("single", "F32", 300),
        "sparse": random_bits("sparse", "BF16", 900),
        "grown": random_bits("grown", "BF16", 10, 8),
        "ids": torch.arange(5),
    }
    post = trained(base, "post") | {
        "half": random_bits("other half", "F16", 300),
        "single": random_bits("other single", "F32", 300),
        "grown": random_bits("other grown", "BF16", 20, 8),
        "ids": torch.arange(7),
        "added": torch.arange(100),
    }
    post["sparse"] = base["sparse"].clone()
    post["sparse"][::50] = 0.125
    save(directory / "base", base, config={"model_type": "llama", "vocab_size": 96})
    save(directory / "post", post, files={"tokenizer.json": "{}", "LICENSE": "MIT"})
    with deltastore.open(directory / "store") as store:
        result = store.extract(directory / "base", directory / "post", name="honest", force=True)
        manifest, config = store._store.load(result.digest)
    assert result.patched
    return Honest(directory, manifest, config)


@pytest.fixture
def store(honest: Honest, tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    shutil.copytree(honest.directory / "store", tmp_path / "store")
    with deltastore.open(tmp_path / "store") as opened:
        yield opened


def published(store: deltastore.DeltaStore, manifest: Manifest, config: Config) -> str:
    data = config_bytes(config)
    descriptor = Descriptor(fmt.CONFIG_MEDIA_TYPE, sha256_digest(data), len(data))
    whole = replace(manifest, config=descriptor)
    store._store.publish(whole, config, name="evil", labels=LABELS)
    return sha256_digest(manifest_bytes(whole))


def survives(store: deltastore.DeltaStore, honest: Honest, digest: str, directory: Path) -> None:
    """Applied or refused with an error of our own; every view of it works or is refused too."""
    out = directory / "place" / "out"
    out.parent.mkdir(exist_ok=True)
    code = code_of(
        lambda: store.apply(digest, base=honest.directory / "base", out=out, partial=True)
    )
    assert code == 0 or 30 <= code < 70
    assert out.exists() is (code == 0)
    shutil.rmtree(out, ignore_errors=True)
    assert list(out.parent.iterdir()) == []
    code = code_of(lambda: store.show(digest))
    assert code == 0 or 40 <= code < 60
    store.verify(digest)


def samples_size(honest: Honest) -> int:
    return honest.manifest.layers[honest.config.samples_layer].size


def code_of(action: Callable[[], object]) -> int:
    """How it ended: 0, or the exit code of an error of our own. Others go through."""
    try:
        action()
    except DeltastoreError as error:
        return error.exit_code
    return 0


def falsified(honest: Honest, change: Callable[[Any], None]) -> Config:
    document = json.loads(config_bytes(honest.config))
    change(document)
    return parse_config(json.dumps(document).encode(), honest.manifest, where="evil")


@SETTINGS
@given(data=st.data())
def test_tables_that_lie(
    honest: Honest, store: deltastore.DeltaStore, tmp_path: Path, data: st.DataObject
) -> None:
    """Entries with another's sides, streams, names or numbers, as far as the parser lets them."""

    def change(document: Any) -> None:
        table = document["tensors"]
        for _ in range(data.draw(st.integers(1, 3))):
            one, other = (data.draw(st.sampled_from(table)) for _ in range(2))
            key = data.draw(st.sampled_from(sorted(one)))
            how = data.draw(st.sampled_from(["take", "swap", "shape", "dtype", "stream", "top"]))
            if how == "take" and key in other and key != "name":
                one[key] = copy.deepcopy(other[key])
            elif how == "swap" and key in other:
                one[key], other[key] = other[key], one[key]
            elif how == "shape" and one["base"] and one["post"]:
                shape = data.draw(st.sampled_from([[1], [7], [300], [96, 32], [32, 96], [0], []]))
                one["base"]["shape"] = one["post"]["shape"] = shape
            elif how == "dtype":
                for side in ("base", "post"):
                    if one[side] and data.draw(st.booleans()):
                        one[side]["dtype"] = data.draw(st.sampled_from(sorted(fmt.DTYPE_BYTES)))
            elif how == "stream":
                for role in ("delta", "values", "patch"):
                    if role in one:
                        _change_stream(data, one[role])
            elif how == "top":
                document["chunk"] = data.draw(st.sampled_from([1024, 2048, 1 << 24]))
        table.sort(key=lambda entry: entry["name"])

    try:
        config = falsified(honest, change)
    except ManifestInvalidError:
        return
    survives(store, honest, published(store, honest.manifest, config), tmp_path)


def _change_stream(data: st.DataObject, stream: Any) -> None:
    how = data.draw(st.sampled_from(["codec", "params", "bytes", "segments"]))
    if how == "codec":
        stream["codec"] = data.draw(st.sampled_from(["exact", "values", "zip"]))
    elif how == "params":
        form = data.draw(st.sampled_from(["palette", "half", "single", "later", 5, None, [], {}]))
        sparse = data.draw(st.sampled_from([True, False, None, 1, "no", []]))
        stream["params"] = data.draw(
            st.sampled_from([{}, {"form": form}, {"form": form, "sparse": sparse}])
        )
    elif how == "bytes":
        stream["bytes"] = data.draw(st.integers(0, 1 << 62))
    elif stream["segments"]:
        stream["segments"][0][1] = data.draw(st.integers(0, 3))


def signed(store: deltastore.DeltaStore, honest: Honest, layer: int, content: bytes) -> str:
    """The artifact with other bytes in one layer, under their own digest."""
    blob = store._store.blobs.put([content])
    layers = list(honest.manifest.layers)
    layers[layer] = replace(layers[layer], digest=blob.digest, size=blob.size)
    return published(store, replace(honest.manifest, layers=tuple(layers)), honest.config)


@SETTINGS
@given(data=st.data())
def test_parts_that_lie(
    honest: Honest, store: deltastore.DeltaStore, tmp_path: Path, data: st.DataObject
) -> None:
    """Any bytes of headers, offsets, palettes and frames changed, and signed anew."""
    original = honest.manifest.layers[0]
    content = bytearray(store._store.blobs.read(original.digest, limit=1 << 24, what="part"))
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        low, high = data.draw(st.sampled_from([(0, header), (header, len(content))]))
        position = data.draw(st.integers(low, high - 1))
        size = data.draw(st.integers(1, 4))
        content[position : position + size] = data.draw(st.binary(min_size=size, max_size=size))
    survives(store, honest, signed(store, honest, 0, bytes(content)), tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a":1}', b"5", b"[" * 9999])
def test_small_files_that_are_no_json(
    honest: Honest, store: deltastore.DeltaStore, tmp_path: Path, content: bytes
) -> None:
    for entry in honest.config.files:
        digest = signed(store, honest, entry.layer, content)
        out = tmp_path / f"out{entry.layer}"
        store.apply(digest, base=honest.directory / "base", out=out)
        assert json.loads((out / "deltastore.json").read_text())


@pytest.mark.parametrize("role", ["delta", "values", "patch"])
def test_a_codec_of_a_later_version(
    honest: Honest, store: deltastore.DeltaStore, tmp_path: Path, role: str
) -> None:
    """Every stream says how it is encoded; what is not known is not guessed."""

    def change(document: Any) -> None:
        for entry in document["tensors"]:
            if role in entry:
                entry[role]["codec"] = "later"

    digest = published(store, honest.manifest, falsified(honest, change))
    with pytest.raises(FormatError) as caught:
        store.apply(digest, base=honest.directory / "base", out=tmp_path / "out")
    assert caught.value.exit_code == 53
    assert "pgrade" in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["BOOL", "F8_E8M0", "I32", "C64"])
def test_samples_of_what_is_no_weight(
    honest: Honest, store: deltastore.DeltaStore, tmp_path: Path, dtype: str
) -> None:
    """A table that calls a sampled tensor something else: it tells nothing of lineage."""

    def change(document: Any) -> None:
        count = samples_size(honest) // fmt.DTYPE_BYTES[dtype]
        names = [entry["name"] for entry in document["tensors"]]
        entry = document["tensors"][names.index("model.norm.weight")]
        entry["base"] |= {"dtype": dtype, "shape": [count]}
        entry["post"] = entry["base"]
        document["samples"] = [[names.index("model.norm.weight"), 0, count]]

    digest = published(store, honest.manifest, falsified(honest, change))
    norm = torch.ones(samples_size(honest) // fmt.DTYPE_BYTES[dtype])
    base = load(honest.directory / "base") | {"model.norm.weight": norm}
    save(tmp_path / "base", base)
    code = code_of(
        lambda: store.apply(digest, base=tmp_path / "base", out=tmp_path / "out", partial=True)
    )
    assert code == 0


def test_a_post_that_is_not_what_the_table_says(
    honest: Honest, store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    """Wrong digests of post: the output is written, and is not called restored."""

    def change(document: Any) -> None:
        for entry in document["tensors"]:
            if entry["kind"] == "delta":
                entry["post"]["blake3"] = "0" * 64

    digest = published(store, honest.manifest, falsified(honest, change))
    result = store.apply(digest, base=honest.directory / "base", out=tmp_path / "out")
    assert not result.restored
    assert not json.loads((tmp_path / "out" / "deltastore.json").read_text())["restored"]


@pytest.mark.parametrize(
    "path",
    [
        "model.safetensors",
        "deltastore.json",
        "README.md",
        ".lease",
        "config.json",
        "model.safetensors.index.json",
        "chat_template/../../up",
        "LICENSE/x",
        "LICENSE" + "x" * 240,
        "modeling_evil.py",
        "chat_template.jinja/x.py",
    ],
)
def test_small_files_that_would_be_something_else(
    honest: Honest, store: deltastore.DeltaStore, tmp_path: Path, path: str
) -> None:
    """What a stranger's artifact calls its files never replaces weights, and never leaves out."""

    def change(document: Any) -> None:
        for entry in document["files"]:
            if entry["side"] == "post":
                entry["path"] = path
                return

    place = tmp_path / "place"
    place.mkdir()

    def publish_and_apply() -> None:
        digest = published(store, honest.manifest, falsified(honest, change))
        store.apply(digest, base=honest.directory / "base", out=place / "out")

    code = code_of(publish_and_apply)
    if code:
        assert 50 <= code < 70
        assert list(place.iterdir()) == []
        return
    assert [item.name for item in place.iterdir()] == ["out"]
    assert not (place / "out" / "modeling_evil.py").exists()
    assert json.loads((place / "out" / "config.json").read_text())["vocab_size"] == 96
    assert json.loads((place / "out" / "deltastore.json").read_text())["deltas"]
