"""Makes the test vectors of format version 1. They are written once and never changed.

    python scripts/make_golden.py [DIRECTORY]

Each case is a directory with the two source checkpoints, the artifact's blobs, what its streams
decode to (``decoded.npz``) and ``case.json``: the artifact's digest, the digests of all files and
the version of the zstd library that compressed the frames. A case that is there is left alone; to
cover more of the format, add a case.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import zstandard

import deltastore
from deltastore.artifact.parts import PartBuilder
from deltastore.artifact.reader import ArtifactReader
from deltastore.blobs import BlobStore
from deltastore.manifest import Config, Manifest
from deltastore.manifest.format import DTYPE_BYTES

DIRECTORY = Path(__file__).resolve().parent.parent / "tests" / "golden" / "format-v1"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Tensor:
    """Raw elements, as unsigned integers of the dtype's width."""

    dtype: str
    bits: Array

    @property
    def raw(self) -> bytes:
        """The tensor's bytes, little-endian."""
        return self.bits.tobytes()


@dataclass(frozen=True)
class Case:
    """Two checkpoints and how they are encoded."""

    base: Mapping[str, Tensor]
    post: Mapping[str, Tensor]
    base_files: Mapping[str, str] = field(default_factory=dict)
    post_files: Mapping[str, str] = field(default_factory=dict)
    chunk: int = 1 << 19
    part_bytes: int = 64 << 20
    restore_only: bool = False


def bfloat16(values: Array) -> Array:
    """Nearest bfloat16 bits, ties away from zero: any choice will do here."""
    return ((values.astype(np.float32).view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    """Bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float16(values: Array) -> Array:
    """Nearest float16 bits."""
    return values.astype(np.float16).view(np.uint16)


def kept(random: np.random.Generator, base: Array, post: Array, share: float) -> Array:
    """``post`` with a share of its elements equal to ``base``."""
    return np.where(random.random(base.size) < share, base, post).astype(base.dtype)


def forms() -> Case:
    """Each form of the codec, dense and sparse, narrow and wide."""
    random = np.random.default_rng(1)
    n = 320
    base: dict[str, Tensor] = {}
    post: dict[str, Tensor] = {}
    steps = np.array([1, 1, 1, 2, -1, -1, -2, 3, 40]) / 256

    def add(name: str, dtype: str, before: Array, after: Array) -> None:
        """The tensor, and one of which two thirds are unchanged."""
        base[f"{name}.dense"], post[f"{name}.dense"] = Tensor(dtype, before), Tensor(dtype, after)
        base[f"{name}.sparse"] = Tensor(dtype, before)
        post[f"{name}.sparse"] = Tensor(dtype, kept(random, before, after, 0.66))

    ones = random.integers(128, 256, n) / 128
    few = ones + random.choice(steps, n)
    add("narrow.palette", "BF16", bfloat16(ones), bfloat16(few))
    spread = np.exp2(random.uniform(-12, 12, n)) * random.choice([-1, 1], n)
    add("narrow.half", "BF16", np.zeros(n, np.uint16), bfloat16(spread))
    weights = random.normal(0, 1, n)
    add("narrow.single", "F16", float16(weights), float16(random.normal(0, 1, n)))
    single = ones.astype(np.float32)
    add("wide.palette", "F32", single.view(np.uint32), few.astype(np.float32).view(np.uint32))
    exact = from_bfloat16(bfloat16(spread))
    add("wide.half", "F32", np.zeros(n, np.uint32), exact.view(np.uint32))
    fine = (weights * 4096).round().astype(np.float32) / 4096
    far = (fine + (random.normal(0, 1, n) * 65536).round() / 65536).astype(np.float32)
    add("wide.single", "F32", fine.view(np.uint32), far.view(np.uint32))
    escapes = far.astype(np.float64) + random.normal(0, 1e-9, n)
    add("wide.escapes", "F64", fine.astype(np.float64).view(np.uint64), escapes.view(np.uint64))
    return Case(base, post)


AROUND_INFINITY = {
    "F32": [0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFE0000, 0x7FFF0000],
    "F64": [0x7FEFFFFFFFFFFFFF, 0x7FF << 52, (0x7FF << 52) + 1, 0xFFF << 51, 0x7FFFE << 44],
}
"""The largest number, infinity, and NaNs: among them those that mark what is kept."""


def specials(dtype: str) -> Array:
    """Zeros, subnormals, ordinary and largest numbers, infinities and NaNs, in both signs."""
    bits = {
        "BF16": [0, 1, 0x80, 0x3F80, 0x3F81, 0x7F7F, 0x7F80, 0x7FC0, 0x7FFF, 0x7F81, 0x7FFE],
        "F16": [0, 1, 0x400, 0x3C00, 0x3C01, 0x7BFF, 0x7C00, 0x7E00, 0x7FFF, 0x7C01],
        "F8_E4M3": [0, 1, 8, 0x38, 0x39, 0x7E, 0x7F],
        "F8_E5M2": [0, 1, 4, 0x3C, 0x3D, 0x7B, 0x7C, 0x7E, 0x7F, 0x7D],
        "F32": [0, 1, 1 << 23, 0x3F800000, 0x3F800001, *AROUND_INFINITY["F32"]],
        "F64": [0, 1, 1 << 52, 0x3FF << 52, (0x3FF << 52) + 1, *AROUND_INFINITY["F64"]],
    }[dtype]
    width = 8 * DTYPE_BYTES[dtype]
    both = [b | sign << (width - 1) for sign in (0, 1) for b in bits]
    return np.array(both, dtype=f"u{DTYPE_BYTES[dtype]}")


def patches() -> Case:
    """Every special value before and after every other, within a dtype and across dtypes."""
    base, post = {}, {}
    dtypes = ("BF16", "F16", "F8_E4M3", "F8_E5M2", "F32", "F64")
    pairs = [(d, d) for d in dtypes] + [("F32", "BF16"), ("BF16", "F16"), ("F16", "F32")]
    for before, after in [*pairs, ("F64", "F8_E4M3"), ("F8_E5M2", "BF16")]:
        first, second = specials(before), specials(after)
        name = f"{before}.to.{after}"
        base[name] = Tensor(before, np.repeat(first, second.size))
        post[name] = Tensor(after, np.tile(second, first.size))
    return Case(base, post)


def structure() -> Case:
    """Every kind of entry, every dtype of values, empty tensors and scalars, small files."""
    random = np.random.default_rng(3)

    def bits(dtype: str, *shape: int) -> Tensor:
        size = DTYPE_BYTES[dtype]
        raw = random.integers(0, 2 if dtype == "BOOL" else 256, (*shape, size), np.uint8)
        return Tensor(dtype, raw.view(f"u{size}")[..., 0])

    def weights(*shape: int) -> Tensor:
        return Tensor("BF16", bfloat16(random.normal(0, 0.02, shape)))

    def moved(tensor: Tensor) -> Tensor:
        step = random.normal(0, 2e-4, tensor.bits.shape)
        return Tensor("BF16", bfloat16(from_bfloat16(tensor.bits) + step))

    embeddings, head, same = weights(40, 16), weights(40, 16), weights(16, 16)
    grown, shrunk = moved(embeddings), moved(head)
    others = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "C64")
    base = {
        "embed.weight": embeddings,
        "head.weight": head,
        "norm.weight": same,
        "gone.weight": weights(3),
        "empty.rows": Tensor("F32", np.zeros((0, 4), np.uint32)),
        "empty.cast": Tensor("F32", np.zeros((3, 0), np.uint32)),
        "scalar": Tensor("F32", np.array(2.5, np.float32).view(np.uint32)),
        "turned": weights(4, 6),
        **{f"values.{dtype}": bits(dtype, 9) for dtype in others},
        "values.same": bits("I64", 5),
    }
    post = {
        "embed.weight": Tensor("BF16", np.concatenate([grown.bits, weights(3, 16).bits])),
        "head.weight": Tensor("BF16", shrunk.bits[:30]),
        "norm.weight": same,
        "empty.rows": Tensor("F32", np.arange(8, dtype=np.uint32).reshape(2, 4)),
        "empty.cast": Tensor("BF16", np.zeros((3, 0), np.uint16)),
        "scalar": Tensor("F32", np.array(2.75, np.float32).view(np.uint32)),
        "turned": weights(6, 4),
        **{f"values.{dtype}": bits(dtype, 9) for dtype in others},
        "values.same": base["values.same"],
        "värde/ny": bits("F32", 7),
        "added.bool": bits("BOOL", 2, 2),
        "added.empty": Tensor("I64", np.zeros((0,), np.uint64)),
    }
    return Case(
        base,
        post,
        base_files={
            "config.json": '{"model_type": "llama", "vocab_size": 40}',
            "tokenizer.json": '{"model": {"vocab": {"a": 0}}}',
            "README.md": "not stored",
        },
        post_files={
            "config.json": '{"_name_or_path": "/home/me", "model_type": "llama", "b": 1, "a": "é"}',
            "tokenizer.json": '{"model": {"vocab": {"a": 0, "b": 1}}}',
            "chat_template.jinja": "{{ messages }}",
            "LICENSE": "Do what you like.",
        },
    )


def chunks() -> Case:
    """Tensors of several chunks in several parts, equal chunks, and patches here and there."""
    random = np.random.default_rng(4)
    n = 4 * 1024 + 77
    before = bfloat16(random.normal(0, 0.02, n))
    some = before.copy()
    some[[1024, 2047, n - 1]] = bfloat16(np.array([0.5, 0.25, 0.125]))
    nans = bfloat16(from_bfloat16(before) + random.normal(0, 1e-4, n))
    nans[[5, 3100, 3101]] = 0x7FC1
    values = random.integers(0, 1 << 32, 1100, np.uint64).astype(np.uint32)
    base = {"a.some": Tensor("BF16", before), "b.patched": Tensor("BF16", before)}
    post = {
        "a.some": Tensor("BF16", some),
        "b.patched": Tensor("BF16", nans),
        "c.values": Tensor("U32", values),
    }
    return Case(base, post, chunk=1024, part_bytes=1500)


def restore_only() -> Case:
    """A quantised pair, kept for its own base alone."""
    random = np.random.default_rng(5)
    config = '{"quantization_config": {"quant_method": "gptq", "bits": 4}}'
    base, post = (
        {
            "mlp.qweight": Tensor("I32", random.integers(0, 1 << 32, (4, 8)).astype(np.uint32)),
            "mlp.scales": Tensor("F16", float16(random.uniform(0.01, 0.02, (1, 8)))),
            "block.scales": Tensor("F8_E8M0", random.integers(0, 255, 6, np.uint8)),
        }
        for _ in range(2)
    )
    files = {"config.json": config}
    return Case(base, post, files, files, restore_only=True)


def untied_head() -> Case:
    """A head that only post has: its deltas are measured from the embeddings that base ties it to.

    It lies over several chunks, and a few of its elements need the restore patch.
    """
    random = np.random.default_rng(6)
    embeddings = bfloat16(random.normal(0, 0.02, (150, 16)))
    embeddings[7, 3:5], embeddings[149, 15] = 0x0000, 0x7F80

    def moved(share: float) -> Array:
        step = bfloat16(from_bfloat16(embeddings) + random.normal(0, 2e-4, embeddings.shape))
        return np.where(random.random(embeddings.shape) < share, embeddings, step)

    head = moved(0.5)
    head[7, 3:5], head[149, 15] = 0x8000, 0x7FC1
    norm = Tensor("F32", np.ones(16, np.float32).view(np.uint32))
    return Case(
        {"model.embed_tokens.weight": Tensor("BF16", embeddings), "model.norm.weight": norm},
        {
            "model.embed_tokens.weight": Tensor("BF16", moved(0.9)),
            "model.norm.weight": norm,
            "lm_head.weight": Tensor("BF16", head),
        },
        base_files={"config.json": '{"tie_word_embeddings": true, "vocab_size": 150}'},
        post_files={"config.json": '{"tie_word_embeddings": false, "vocab_size": 150}'},
        chunk=1024,
        part_bytes=1500,
    )


def untied_head_grown() -> Case:
    """The same where post has more rows than base, whose tied embeddings post leaves as they are.

    Nothing here says which row is which token's.
    """
    random = np.random.default_rng(7)
    embeddings = bfloat16(random.normal(0, 0.02, (40, 32)))
    step = random.normal(0, 2e-4, embeddings.shape)
    head = bfloat16(from_bfloat16(embeddings) + step)
    further = bfloat16(random.normal(0, 0.02, (5, 32)))
    base = {"transformer.wte.weight": Tensor("BF16", embeddings)}
    grown = Tensor("F16", float16(from_bfloat16(np.concatenate([head, further]))))
    return Case(
        base,
        {**base, "lm_head.weight": grown},
        base_files={"config.json": '{"vocab_size": 40}'},
        post_files={"config.json": '{"tie_word_embeddings": false, "vocab_size": 45}'},
    )


def tied_set() -> Case:
    """A tied set of which post stores two names and base a third, and files without a rule.

    What is no small file is named in the config.
    """
    random = np.random.default_rng(8)
    embeddings = bfloat16(random.normal(0, 0.02, (60, 8)))
    moved = Tensor("BF16", bfloat16(from_bfloat16(embeddings) + random.normal(0, 2e-4, (60, 8))))
    norm = Tensor("F32", np.ones(8, np.float32).view(np.uint32))
    files = {"config.json": '{"vocab_size": 60}', "normalizer.json": '{"colour": "color"}'}
    return Case(
        {"model.shared.weight": Tensor("BF16", embeddings), "model.norm.weight": norm},
        {
            "lm_head.weight": moved,
            "model.encoder.embed_tokens.weight": moved,
            "model.norm.weight": norm,
        },
        base_files=files,
        post_files={**files, "normalizer.json": "{}", "value_head.safetensors": "not read"},
    )


CASES: dict[str, Callable[[], Case]] = {
    "forms": forms,
    "patches": patches,
    "structure": structure,
    "chunks": chunks,
    "restore-only": restore_only,
    "untied-head": untied_head,
    "untied-head-grown": untied_head_grown,
    "tied-set": tied_set,
}


@contextmanager
def encoded_as(case: Case) -> Iterator[None]:
    """Chunks and parts as small as the case wants them."""
    builder = partial(PartBuilder, part_bytes=case.part_bytes)
    with (
        patch("deltastore.extraction.plan.CHUNK_ELEMENTS", case.chunk),
        patch("deltastore.extraction.assembling.PartBuilder", builder),
    ):
        yield


def write_checkpoint(
    directory: Path, tensors: Mapping[str, Tensor], files: Mapping[str, str]
) -> None:
    """One safetensors file and the small files."""
    directory.mkdir(parents=True)
    header: dict[str, Any] = {}
    data = b""
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].bits.itemsize):
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.bits.shape),
            "data_offsets": [len(data), len(data) + len(tensor.raw)],
        }
        data += tensor.raw
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    whole = len(text).to_bytes(8, "little") + text + data
    (directory / "model.safetensors").write_bytes(whole)
    for name, content in files.items():
        (directory / name).write_text(content, encoding="utf-8")


def decoded(blobs: BlobStore, manifest: Manifest, config: Config) -> dict[str, Any]:
    """Every stream, decoded: deltas as float bits, values as bytes, patches as both."""
    reader = ArtifactReader(blobs, manifest, config)
    found: dict[str, Any] = {}
    for entry in config.tensors:
        common = entry.common_elements if entry.delta is not None else 0
        post = entry.post
        if entry.delta is not None:
            out = np.empty(common, np.uint64 if entry.wide else np.uint32)
            if common:
                reader.delta(entry, 0, out)
            found[f"{entry.name}/delta"] = out
        if entry.values is not None and post is not None:
            size = DTYPE_BYTES[post.dtype]
            raw = np.empty((post.elements - common) * size, np.uint8)
            reader.values(entry, 0, raw)
            found[f"{entry.name}/values"] = raw
        if entry.patch is not None and post is not None:
            size = DTYPE_BYTES[post.dtype]
            places, patched = [], []
            for start in range(0, common, config.chunk):
                count = min(config.chunk, common - start)
                # What both a chunk of zeros and one of ones become is what was written.
                zeros, ones = np.zeros(count * size, np.uint8), np.full(count * size, 255, np.uint8)
                reader.patch(entry, start, zeros)
                reader.patch(entry, start, ones)
                same = np.flatnonzero(zeros.view(f"u{size}") == ones.view(f"u{size}"))
                places.append(same + start)
                patched.append(zeros.view(f"u{size}")[same])
            found[f"{entry.name}/patch.positions"] = np.concatenate(places)
            found[f"{entry.name}/patch"] = np.concatenate(patched).view(np.uint8)
    reader.close()
    return found


def make(name: str, directory: Path) -> None:
    """Write one case."""
    case = CASES[name]()
    write_checkpoint(directory / "base", case.base, case.base_files)
    write_checkpoint(directory / "post", case.post, case.post_files)
    with tempfile.TemporaryDirectory() as place, encoded_as(case):
        with deltastore.open(place) as store:
            result = store.extract(
                directory / "base",
                directory / "post",
                name="golden",
                restore_only=case.restore_only,
                force=True,  # numbers drawn at random are no model before and after training
            )
            manifest, config = store._store.load(result.digest)
            np.savez_compressed(
                directory / "decoded.npz", **decoded(store._store.blobs, manifest, config)
            )
        shutil.copytree(Path(place) / "blobs", directory / "blobs", copy_function=shutil.copyfile)
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    document = {
        "digest": result.digest,
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
        "chunk": case.chunk,
        "part_bytes": case.part_bytes,
        "restore_only": case.restore_only,
        "sha256": {
            path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        },
    }
    (directory / "case.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def main() -> int:
    """Make the cases that are not there yet."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY
    for name in CASES:
        directory = root / name
        if directory.exists():
            print(f"{directory} is there and stays as it is")
            continue
        make(name, directory)
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        print(f"{directory}: {size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
