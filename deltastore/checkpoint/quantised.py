"""Recognising quantised checkpoints, whose numbers have no meaningful difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltastore.checkpoint.model import TensorInfo
from deltastore.checkpoint.reader import Checkpoint

_FP8 = frozenset({"F8_E4M3", "F8_E5M2"})
_NARROW = _FP8 | {"I8", "U8"}
_INTEGERS = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"})

_LAST_PARTS = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "nested_absmax": "bitsandbytes",
    "nested_quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_packed": "compressed-tensors",
    "W_q": "HQQ",
}
"""Last part of a name that no unquantised model uses."""

_SCALES = ("weight_scale", "weight_scale_inv", "input_scale", "weight_scale_2", "scales", "scale")
"""Names that tell something only beside a weight of few bits."""


def quantisation(checkpoint: Checkpoint) -> str | None:
    """Why the checkpoint counts as quantised, as the end of a sentence; None if it does not.

    Unscaled fp8 is not quantised: its values are what the model computes with.
    """
    return _declared(checkpoint.config or {}) or _by_tensors(checkpoint.tensors)


def _declared(config: Mapping[str, Any]) -> str | None:
    nested = [value for value in config.values() if isinstance(value, dict)]
    for part in (config, *nested):
        for key in ("quantization_config", "compression_config"):
            value = part.get(key)
            if value:
                method = value.get("quant_method") if isinstance(value, dict) else None
                return f"its config.json has a {key} (quant_method {method!r})"
    return None


def _by_tensors(tensors: Mapping[str, TensorInfo]) -> str | None:
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition(".")
        if last in _LAST_PARTS:
            return f"the tensor {name} is one of {_LAST_PARTS[last]}"
        if last.startswith("quant_state") or ".quant_state." in name:
            return f"the tensor {name} is one of bitsandbytes"
        if tensor.dtype == "F8_E8M0":
            return f"the tensor {name} holds block scales (F8_E8M0)"
        weight = tensors.get(f"{prefix}.weight" if prefix else "weight")
        if weight is not None and last in _SCALES:
            packed = weight.dtype in _NARROW or (
                weight.dtype in _INTEGERS and last in ("scales", "scale")
            )
            if packed:
                return f"the tensor {name} scales {weight.name}, which is {weight.dtype}"
        if name.endswith("_scales"):
            blocks = tensors.get(f"{name.removesuffix('_scales')}_blocks")
            if blocks is not None and blocks.dtype in _INTEGERS:
                return f"the tensor {name} scales {blocks.name}, which is {blocks.dtype}"
    return None
