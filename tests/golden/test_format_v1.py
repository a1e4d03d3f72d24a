"""Frozen artifacts of format version 1, read as the documentation says and by this version.

The files under ``format-v1`` were written by ``scripts/make_golden.py`` and never change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import zstandard
from blake3 import blake3

import deltastore
from deltastore.artifact.reader import ArtifactReader
from deltastore.blobs import LocalBlobs
from deltastore.extraction import assembling
from deltastore.manifest import parse_config, parse_manifest
from deltastore.manifest.format import DTYPE_BYTES

ROOT = Path(__file__).parent / "format-v1"
CASES = (
    "chunks",
    "forms",
    "patches",
    "restore-only",
    "structure",
    "untied-head",
    "untied-head-grown",
    "tied-set",
)
TORCH = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
KEEP, KEEP_WIDE, ESCAPE = 0x7FFF0000, 0x7FFFE00000000000, 0x7FFE0000

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, repr=False)
class Case:
    """One case's files, read with nothing but the standard library."""

    directory: Path
    about: dict[str, Any]
    manifest: dict[str, Any]
    config: dict[str, Any]
    decoded: Arrays

    def blob(self, digest: str) -> bytes:
        return (self.directory / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()

    def source(self, side: str) -> dict[str, tuple[str, list[int], bytes]]:
        """Dtype, shape and bytes of the tensors of a source checkpoint."""
        data = (self.directory / side / "model.safetensors").read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        found = {}
        for name, entry in json.loads(data[8:start]).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            raw = data[start + begin : start + end]
            found[name] = (entry["dtype"], entry["shape"], raw)
        return found


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    directory = ROOT / request.param
    about = json.loads((directory / "case.json").read_text(encoding="utf-8"))
    blobs = directory / "blobs" / "sha256"
    manifest = json.loads((blobs / about["digest"].removeprefix("sha256:")).read_bytes())
    config = (blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_bytes()
    with np.load(directory / "decoded.npz") as arrays:
        decoded = dict(arrays)
    return Case(directory, about, manifest, json.loads(config), decoded)


def test_there_is_no_other_case() -> None:
    assert sorted(path.name for path in ROOT.iterdir()) == sorted(CASES)


def test_the_files_are_what_was_written(case: Case) -> None:
    found = {
        path.relative_to(case.directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in case.directory.rglob("*")
        if path.is_file() and path.name != "case.json"
    }
    assert found == case.about["sha256"]
    for path in (case.directory / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    for blob in (case.manifest["config"], *case.manifest["layers"]):
        assert len(case.blob(blob["digest"])) == blob["size"]


# --- a reader after the documentation -------------------------------------------------------------


def inflate(frame: bytes) -> np.ndarray[Any, Any]:
    return np.frombuffer(zstandard.ZstdDecompressor().decompress(frame), np.uint8)


def unplaned(data: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(data.reshape(size, -1).T).reshape(-1).view(f"<u{size}")


def frames_of(case: Case, name: str, role: str, stream: dict[str, Any]) -> tuple[dict, Arrays]:
    """Frames by number, and the static arrays, from the parts read as safetensors files."""
    frames: dict[int, bytes] = {}
    static: Arrays = {}
    key = f"{name}/{role}"
    for number, (part, first, count) in enumerate(stream["segments"]):
        arrays = safetensors.numpy.load(case.blob(case.manifest["layers"][part]["digest"]))
        data, offsets = arrays[key].tobytes(), arrays[f"{key}.offsets"].tolist()
        assert len(offsets) == count + 1
        for i in range(count):
            frames[first + i] = data[offsets[i] : offsets[i + 1]]
        if number == 0 and f"{key}.palette" in arrays:
            static["palette"] = arrays[f"{key}.palette"]
    return frames, static


def delta_of(frame: bytes, n: int, wide: bool, params: dict[str, Any], static: Arrays) -> Any:
    """One chunk of deltas, as docs/codecs/exact.md says."""
    size, keep = (8, KEEP_WIDE) if wide else (4, KEEP)
    result = np.full(n, keep, f"u{size}")
    if not frame:
        return result
    content = inflate(frame)
    changed = np.ones(n, bool)
    if params["sparse"]:
        mask = np.unpackbits(content[: -(-n // 8)], bitorder="little")
        assert not mask[n:].any()
        changed, content = mask[:n].astype(bool), content[-(-n // 8) :]
    m = int(changed.sum())
    width = {"palette": 1, "half": 2, "single": 4}[params["form"]]
    symbols, escapes = content[: m * width], unplaned(content[m * width :], size)
    if params["form"] == "palette":
        table = np.full(256, ESCAPE, np.uint32)
        table[: static["palette"].size] = static["palette"].astype(np.uint32) << 16
        singles = table[symbols]
    elif params["form"] == "half":
        singles = unplaned(symbols, 2).astype(np.uint32) << 16
    else:
        singles = unplaned(symbols, 4).astype(np.uint32)
    some = singles.astype(f"u{size}")
    if wide:
        with np.errstate(invalid="ignore"):
            some = singles.view(np.float32).astype(np.float64).view(np.uint64)
        some = np.where(singles == KEEP, np.uint64(KEEP_WIDE), some)
    assert int((singles == ESCAPE).sum()) == escapes.size
    some[singles == ESCAPE] = escapes
    result[changed] = some
    return result


def read_as_documented(case: Case) -> Arrays:
    """Every stream of a case, decoded."""
    found: Arrays = {}
    chunk = case.config["chunk"]
    for entry in case.config["tensors"]:
        name, base, post = entry["name"], entry["base"], entry["post"]
        common = 0
        if "delta" in entry:
            common = min(int(np.prod(side["shape"])) for side in (base, post))
            wide = bool({base["dtype"], post["dtype"]} & {"F32", "F64"})
            frames, static = frames_of(case, name, "delta", entry["delta"])
            pieces = [
                delta_of(frames[i], min(chunk, common - i * chunk), wide, params, static)
                for i in range(-(-common // chunk))
                for params in (entry["delta"]["params"],)
            ]
            empty = np.empty(0, np.uint64 if wide else np.uint32)
            found[f"{name}/delta"] = np.concatenate([empty, *pieces])
        if "values" in entry:
            size = DTYPE_BYTES[post["dtype"]]
            frames, _ = frames_of(case, name, "values", entry["values"])
            parts = [unplaned(inflate(frames[i]), size).view(np.uint8) for i in sorted(frames)]
            found[f"{name}/values"] = np.concatenate([np.empty(0, np.uint8), *parts])
        if "patch" in entry:
            size = DTYPE_BYTES[post["dtype"]]
            frames, _ = frames_of(case, name, "patch", entry["patch"])
            places, patched = [], []
            for i, frame in sorted(frames.items()):
                if frame:
                    content = inflate(frame)
                    count = content.size // (4 + size)
                    places.append(content[: 4 * count].view("<u4").astype(np.int64) + i * chunk)
                    patched.append(content[4 * count :])
            found[f"{name}/patch.positions"] = np.concatenate(places)
            found[f"{name}/patch"] = np.concatenate(patched)
    return found


def same_arrays(got: Arrays, expected: Arrays) -> None:
    assert got.keys() == expected.keys()
    for key, array in expected.items():
        assert got[key].dtype == array.dtype, key
        np.testing.assert_array_equal(got[key], array, key)


def test_read_as_documented(case: Case) -> None:
    same_arrays(read_as_documented(case), case.decoded)


def test_every_form_is_covered() -> None:
    """Palette, half and single, dense and sparse, narrow and wide, and every kind of stream.

    Also bases under another name, with and without further rows and a patch.
    """
    seen = set()
    for name in CASES:
        directory = ROOT / name
        about = json.loads((directory / "case.json").read_text(encoding="utf-8"))
        blobs = directory / "blobs" / "sha256"
        manifest = json.loads((blobs / about["digest"].removeprefix("sha256:")).read_bytes())
        config = (blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_bytes()
        for entry in json.loads(config)["tensors"]:
            seen |= {entry["kind"]} | (entry.keys() & {"values", "patch"})
            if "base_name" in entry:
                seen |= {("base_name", entry["kind"])} | {
                    ("base_name", role) for role in entry.keys() & {"values", "patch"}
                }
            if "delta" in entry and entry["delta"]["segments"]:
                dtypes = {entry["base"]["dtype"], entry["post"]["dtype"]}
                params = entry["delta"]["params"]
                seen.add((params["form"], params["sparse"], bool(dtypes & {"F32", "F64"})))
    forms = {
        (form, sparse, wide)
        for form in ("palette", "half", "single")
        for sparse in (False, True)
        for wide in (False, True)
    }
    kinds = {"unchanged", "delta", "resized", "replaced", "added", "removed", "values", "patch"}
    named = {("base_name", what) for what in ("delta", "resized", "values", "patch")}
    assert seen >= forms | kinds | named


def floats(dtype: str, raw: bytes) -> torch.Tensor:
    if not raw:
        return torch.empty(0, dtype=TORCH[dtype])
    return torch.frombuffer(bytearray(raw), dtype=TORCH[dtype])


def test_decoded_is_what_the_sources_say(case: Case) -> None:
    """Deltas are plain differences, values are post's bytes, digests are those of the sources."""
    base, post = case.source("base"), case.source("post")
    for side, source in (("base", base), ("post", post)):
        table = {
            e["name"]: e[side]
            for e in case.config["tensors"]
            if e[side] is not None and (side == "post" or "base_name" not in e)
        }
        assert table == {
            name: {"dtype": dtype, "shape": shape, "blake3": blake3(raw).hexdigest()}
            for name, (dtype, shape, raw) in source.items()
        }
        rows = [[n, s["dtype"], s["shape"], s["blake3"]] for n, s in sorted(table.items())]
        text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
        assert case.config[side]["content"] == f"blake3:{blake3(text).hexdigest()}"
        shapes = [[name, shape] for name, _, shape, _ in rows]
        text = json.dumps(shapes, separators=(",", ":"), ensure_ascii=False).encode()
        assert case.config[side]["fingerprint"] == f"sha256:{hashlib.sha256(text).hexdigest()}"
        assert case.config[side]["nbytes"] == sum(len(raw) for _, _, raw in source.values())
    own = {e["name"]: e["base"] for e in case.config["tensors"] if "base_name" not in e}
    for tensor, _, _ in case.config["samples"]:
        assert case.config["tensors"][tensor]["name"] in own
    for entry in case.config["tensors"]:
        name = entry["name"]
        if "base_name" in entry:
            assert entry["kind"] in ("unchanged", "delta", "resized")
            assert entry["base"] == own[entry["base_name"]]
        before = base.get(entry.get("base_name", name), ("F32", [0], b""))
        after = post.get(name, ("F32", [0], b""))
        common = 0
        if "delta" in entry:
            delta = case.decoded[f"{name}/delta"]
            common = delta.size
            real = torch.float64 if delta.itemsize == 8 else torch.float32
            b, p = (floats(*x[::2])[:common].to(real) for x in (before, after))
            expected = (p - b).numpy().view(delta.dtype)
            keep = delta == (KEEP_WIDE if delta.itemsize == 8 else KEEP)
            number = ~np.isnan(expected.view(f"f{delta.itemsize}")) & ~keep
            np.testing.assert_array_equal(delta[number], expected[number], name)
            canonical = 0x7FF8000000000000 if delta.itemsize == 8 else 0x7FC00000
            assert (delta[~number & ~keep] == canonical).all()
            if before[0] == after[0]:
                size = DTYPE_BYTES[before[0]]
                raw = [np.frombuffer(x[2][: common * size], f"u{size}") for x in (before, after)]
                np.testing.assert_array_equal(keep, raw[0] == raw[1], name)
            else:
                assert not keep.any()
            assert entry["changed"] == int((~keep).sum())
        if "values" in entry:
            size = DTYPE_BYTES[after[0]]
            assert case.decoded[f"{name}/values"].tobytes() == after[2][common * size :], name


# --- this version ---------------------------------------------------------------------------------


def test_read_by_this_version(case: Case) -> None:
    blobs = LocalBlobs(case.directory / "blobs" / "sha256", case.directory)
    digest = case.about["digest"]
    manifest = parse_manifest(blobs.read(digest, limit=1 << 24, what="manifest"), where="M")
    data = blobs.read(manifest.config.digest, limit=1 << 24, what="config")
    config = parse_config(data, manifest, where="C")
    reader = ArtifactReader(blobs, manifest, config)
    found: Arrays = {}
    for entry in config.tensors:
        common = entry.common_elements if entry.delta is not None else 0
        if common:
            out = np.empty(common, np.uint64 if entry.wide else np.uint32)
            reader.delta(entry, 0, out)
            found[f"{entry.name}/delta"] = out
        if entry.values is not None and entry.post is not None:
            size = DTYPE_BYTES[entry.post.dtype]
            raw = np.empty((entry.post.elements - common) * size, np.uint8)
            reader.values(entry, 0, raw)
            found[f"{entry.name}/values"] = raw
    reader.close()
    expected = {
        key: array
        for key, array in case.decoded.items()
        if "/patch" not in key and (array.size or key.endswith("/values"))
    }
    same_arrays(found, expected)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as opened:
        yield opened


def test_restored_by_this_version(case: Case, store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """Post, bit for bit, from the frozen blobs and the base."""
    for path in (case.directory / "blobs" / "sha256").iterdir():
        store._store.blobs.put([path.read_bytes()])
    manifest, config = store._store.load(case.about["digest"])
    labels = {"base": "base", "post": "post"}
    published = store._store.publish(manifest, config, name="golden", labels=labels)
    assert published.digest == case.about["digest"]
    assert store.verify().problems == ()
    result = store.apply("golden", base=case.directory / "base", out=tmp_path / "out")
    assert result.restored
    assert Case(tmp_path, {}, {}, {}, {}).source("out") == case.source("post")


def test_extracted_by_this_version(
    case: Case, store: deltastore.DeltaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sources give the same deltas; with the same zstd library also the same digest."""
    about = case.about
    builder = partial(assembling.PartBuilder, part_bytes=about["part_bytes"])
    monkeypatch.setattr(assembling, "PartBuilder", builder)
    monkeypatch.setattr("deltastore.extraction.plan.CHUNK_ELEMENTS", about["chunk"])
    result = store.extract(
        case.directory / "base",
        case.directory / "post",
        name="again",
        restore_only=about["restore_only"],
        jobs=2,
        force=True,
    )
    if about["zstd"] == ".".join(map(str, zstandard.ZSTD_VERSION)):
        assert result.digest == about["digest"]
    blobs = store._store.path / "blobs" / "sha256"
    manifest = json.loads((blobs / result.digest.removeprefix("sha256:")).read_bytes())
    config = json.loads((blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_bytes())

    class Extracted(Case):
        def blob(self, digest: str) -> bytes:
            return (blobs / digest.removeprefix("sha256:")).read_bytes()

    same_arrays(
        read_as_documented(Extracted(case.directory, about, manifest, config, {})), case.decoded
    )
