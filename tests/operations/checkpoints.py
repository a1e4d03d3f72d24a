"""Checkpoints for tests, written and read with torch and safetensors alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NARROW = ("BF16", "F16", "F8_E4M3", "F8_E5M2")

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def save(
    directory: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    shards: int = 1,
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, str | bytes] | None = None,
) -> Path:
    """Write a checkpoint of one or several safetensors files, tensors dealt out in turn."""
    directory.mkdir(parents=True)
    names = list(tensors)
    groups = [names[i::shards] for i in range(shards)]
    if shards == 1:
        _save_file(directory / "model.safetensors", tensors, names)
    else:
        weight_map = {}
        for i, group in enumerate(groups, 1):
            filename = f"model-{i:05d}-of-{shards:05d}.safetensors"
            _save_file(directory / filename, tensors, group)
            weight_map |= dict.fromkeys(group, filename)
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    _save_small(directory, config, files)
    return directory


def save_bin(
    directory: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    shards: int = 1,
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, str | bytes] | None = None,
) -> Path:
    """Write a checkpoint as torch's own pickles."""
    directory.mkdir(parents=True)
    names = list(tensors)
    if shards == 1:
        torch.save(dict(tensors), directory / "pytorch_model.bin")
    else:
        weight_map = {}
        for i in range(shards):
            filename = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
            torch.save({name: tensors[name] for name in names[i::shards]}, directory / filename)
            weight_map |= dict.fromkeys(names[i::shards], filename)
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    _save_small(directory, config, files)
    return directory


def load(directory: Path) -> Tensors:
    """All tensors of a safetensors checkpoint."""
    tensors: Tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            assert name not in tensors
            tensors[name] = tensor
    return tensors


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor's elements as integers of the same width."""
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8)
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])


def assert_same_bits(got: Tensors, expected: Tensors) -> None:
    """Same names, dtypes, shapes and bits."""
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert got[name].shape == tensor.shape, name
        assert torch.equal(bits(got[name]), bits(tensor)), name


def from_bytes(data: bytes, dtype: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """Raw little-endian bytes as a tensor."""
    if not data:
        return torch.empty(shape or (0,), dtype=DTYPES[dtype])
    flat = torch.frombuffer(bytearray(data), dtype=DTYPES[dtype])
    return flat if shape is None else flat.reshape(shape)


def noise(what: str, count: int) -> bytes:
    """``count`` bytes that depend on ``what`` alone."""
    return hashlib.shake_128(what.encode()).digest(count)


def random_bits(what: str, dtype: str, *shape: int) -> torch.Tensor:
    """Every bit pattern is as likely as any other: NaN, infinities, subnormals among them."""
    count = 1
    for size in shape:
        count *= size
    return from_bytes(noise(what, count * DTYPES[dtype].itemsize), dtype, shape)


def specials(dtype: str) -> torch.Tensor:
    """Values at which arithmetic goes wrong if it ever does."""
    info = torch.finfo(DTYPES[dtype])
    plain = [0.0, -0.0, 1.0, -1.0, 1.5, 3.0, 0.1, -0.3, 448.0, 464.0, 65504.0, 1e30, -1e-30]
    limits = [info.max, -info.max, info.tiny, -info.tiny, info.eps, info.tiny / 4, 2.0**100]
    width = DTYPES[dtype].itemsize
    integer = _INTEGERS[width]
    top = 1 << (8 * width - 1)
    infinity = {
        "BF16": 0x7F80,
        "F16": 0x7C00,
        "F32": 0x7F800000,
        "F64": 0x7FF0000000000000,
        "F8_E4M3": 0x7F,
        "F8_E5M2": 0x7C,
    }[dtype]
    patterns = [0, 1, 2, 3, infinity - 1, infinity]
    if dtype != "F8_E4M3":
        patterns += [infinity + 1, infinity | (top - 1 - infinity) // 2 + 1, top - 1, top - 2]
    patterns += [top | pattern for pattern in patterns]
    signed = [p - 2 * top if p >= top and integer != torch.uint8 else p for p in patterns]
    values = torch.tensor(plain + limits, dtype=torch.float64).to(DTYPES[dtype])
    return torch.cat([values, torch.tensor(signed, dtype=integer).view(DTYPES[dtype])])


def all_pairs(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every combination of two values, as two tensors."""
    count = len(values)
    raw = bits(values)
    first = raw.repeat_interleave(count).view(values.dtype)
    return first, raw.repeat(count).view(values.dtype)


def model(what: str, *, width: int = 32, layers: int = 2, vocab: int = 96) -> Tensors:
    """Weights of a small model, in bfloat16."""
    generator = torch.Generator().manual_seed(int.from_bytes(noise(what, 4), "big"))

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).bfloat16()

    tensors = {"model.embed_tokens.weight": normal(vocab, width)}
    for i in range(layers):
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"):
            tensors[f"model.layers.{i}.{part}.weight"] = normal(width, width)
        tensors[f"model.layers.{i}.input_layernorm.weight"] = torch.ones(width).bfloat16()
    tensors["model.norm.weight"] = torch.ones(width).bfloat16()
    tensors["lm_head.weight"] = normal(vocab, width)
    return tensors


def trained(tensors: Tensors, what: str, *, change: float = 2e-4) -> Tensors:
    """The same model with small changes of its matrices."""
    generator = torch.Generator().manual_seed(int.from_bytes(noise(what, 4), "big"))
    result = {}
    for name, tensor in tensors.items():
        moved = tensor.clone()
        if tensor.dim() == 2 and tensor.dtype.is_floating_point:
            step = torch.randn(tensor.shape, generator=generator) * change
            moved = (tensor.float() + step).to(tensor.dtype)
        result[name] = moved
    return result


def _save_file(path: Path, tensors: Mapping[str, torch.Tensor], names: list[str]) -> None:
    chosen = {name: tensors[name].contiguous().clone() for name in names}
    save_file(chosen, path, metadata={"format": "pt"})


def _save_small(
    directory: Path,
    config: Mapping[str, Any] | None,
    files: Mapping[str, str | bytes] | None,
) -> None:
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    for name, content in (files or {}).items():
        data = content.encode() if isinstance(content, str) else content
        (directory / name).write_bytes(data)
