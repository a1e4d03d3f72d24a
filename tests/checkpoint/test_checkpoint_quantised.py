"""Which checkpoints count as quantised, and which must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deltastore.checkpoint import open_checkpoint, quantisation

BYTES = {"U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1, "BF16": 2, "I32": 4, "U32": 4, "F32": 4}


def reason(directory: Path, tensors: dict[str, str], config: Any = None) -> str | None:
    """Quantisation of a file with one element per tensor of the given dtypes."""
    header, position = {}, 0
    for name, dtype in tensors.items():
        end = position + BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": [1], "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    path = directory / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(position))
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    with open_checkpoint(directory) as checkpoint:
        return quantisation(checkpoint)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"l.q.qweight": "I32", "l.q.qzeros": "I32", "l.q.scales": "BF16"}, "GPTQ or AWQ"),
        ({"l.w.weight": "U8", "l.w.weight.absmax": "F32"}, "bitsandbytes"),
        ({"l.w.weight": "U8", "l.w.weight.quant_map": "F32"}, "bitsandbytes"),
        ({"l.w.weight": "U8", "l.w.weight.quant_state.bitsandbytes__nf4": "U8"}, "bitsandbytes"),
        ({"l.w.weight": "I8", "l.w.SCB": "F32"}, "bitsandbytes"),
        ({"l.w.weight": "F8_E4M3", "l.w.weight_scale_inv": "F32"}, "F8_E4M3"),
        ({"l.w.weight": "F8_E4M3", "l.w.weight_scale": "F32"}, "F8_E4M3"),
        ({"l.w.weight": "F8_E4M3", "l.w.input_scale": "F32"}, "F8_E4M3"),
        ({"l.w.weight": "I8", "l.w.weight_scale": "BF16"}, "I8"),
        ({"l.w.weight": "U32", "l.w.scales": "BF16", "l.w.biases": "BF16"}, "U32"),
        ({"l.w.weight": "U8", "l.w.scale_e8": "F8_E8M0"}, "F8_E8M0"),
        ({"e.gate_up_proj_blocks": "U8", "e.gate_up_proj_scales": "U8"}, "_blocks"),
        ({"l.w.weight_packed": "I32"}, "compressed-tensors"),
    ],
)
def test_quantised_by_its_tensors(tmp_path: Path, tensors: dict[str, str], named: str) -> None:
    assert named in (reason(tmp_path, tensors) or "")


@pytest.mark.parametrize(
    "tensors",
    [
        {"l.w.weight": "BF16", "l.w.bias": "BF16"},
        {"l.w.weight": "F8_E4M3"},
        {"l.w.weight": "BF16", "l.w.weight_scale": "BF16"},
        {"l.w.weight": "BF16", "l.w.scale": "BF16"},
        {"l.norm.scale": "F32", "weight": "BF16"},
        {"anchors.scales": "F32", "position_ids": "I32"},
        {"l.mask": "U8", "l.w.weight": "BF16"},
        {"some_scales": "BF16"},
    ],
)
def test_not_quantised(tmp_path: Path, tensors: dict[str, str]) -> None:
    assert reason(tmp_path, tensors, {"quantization_config": None}) is None


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"text_config": {"quantization_config": {"quant_method": "gptq"}}},
        {"compression_config": {"quant_method": "gptq"}},
    ],
)
def test_a_declaration_counts_where_a_tensor_agrees(tmp_path: Path, config: Any) -> None:
    assert reason(tmp_path, {"w": "BF16"}, config) is None
    assert reason(tmp_path, {"w.weight": "BF16", "w.mask": "U8", "w.ids": "I32"}, config) is None
    found = reason(tmp_path, {"w.qweight": "I32"}, config)
    assert found is not None
    assert "config.json" in found
    assert "'gptq'" in found
    assert "w.qweight" in found


def test_a_configuration_of_another_shape(tmp_path: Path) -> None:
    assert reason(tmp_path, {"w": "BF16"}, {"quantization_config": "int8"}) is None
    assert reason(tmp_path, {"w.W_q": "U8"}, {"quantization_config": "int8"}) is not None


def test_no_configuration(tmp_path: Path) -> None:
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert quantisation(checkpoint) is None
