"""Checkpoints of a few thousand weights, and what applying a delta to one must give.

The arithmetic is torch's own and shares nothing with the package: Θ_out = Θ_base + (Θ_post −
Θ_source) in float32, in float64 for float32 weights, rounded once; what base and post have in
common stays as it is, and the source base becomes post, bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

_SHAPES = {
    "model.embed_tokens.weight": ((40, 16), torch.bfloat16),
    "model.layers.0.mlp.up_proj.weight": ((48, 16), torch.bfloat16),
    "model.layers.0.self_attn.q_proj.weight": ((16, 16), torch.float16),
    "model.layers.1.mlp.up_proj.weight": ((48, 16), torch.bfloat16),
    "model.norm.weight": ((16,), torch.float32),
    "lm_head.weight": ((40, 16), torch.bfloat16),
}
_INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def make_base(seed: int) -> Tensors:
    """Weights as they are before training that matters."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=draw) * 0.02).to(dtype)
        for name, (shape, dtype) in _SHAPES.items()
    }


def trained(base: Tensors, seed: int, *, step: float = 4e-4) -> Tensors:
    """The same after some training: most weights have moved, one matrix has not."""
    draw = torch.Generator().manual_seed(seed)
    moved = {
        name: (value.float() + torch.randn(value.shape, generator=draw) * step).to(value.dtype)
        for name, value in base.items()
    }
    moved["model.layers.1.mlp.up_proj.weight"] = base["model.layers.1.mlp.up_proj.weight"].clone()
    return moved


def save(directory: Path, tensors: Tensors, **files: str) -> Path:
    """Write a checkpoint, with small files whose names have a dot for ``__``."""
    directory.mkdir(parents=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "llama", "hidden_size": 16, "vocab_size": 40, "num_hidden_layers": 2}
    (directory / "config.json").write_text(json.dumps(config))
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)
    return directory


def expected(base: Tensors, source: Tensors, post: Tensors) -> dict[str, bytes]:
    """The bytes of each tensor of the output of applying post − source to base."""
    if all(torch.equal(_bits(base[name]), _bits(source[name])) for name in base):
        return {name: _bytes(value) for name, value in post.items()}
    found = {}
    for name, value in base.items():
        real = torch.float64 if value.dtype == torch.float32 else torch.float32
        total = value.to(real) + (post[name].to(real) - source[name].to(real))
        moved = _bits(source[name]) != _bits(post[name])
        result = torch.where(moved, _bits(total.to(value.dtype)), _bits(value))
        found[name] = _bytes(result)
    return found


def read(directory: Path) -> dict[str, bytes]:
    """The bytes of each tensor of an output."""
    return {
        name: _bytes(value) for name, value in load_file(directory / "model.safetensors").items()
    }


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(_INTEGERS[tensor.dtype])


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
