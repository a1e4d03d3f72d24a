"""Which checkpoints count as quantised, and which must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deltastore.checkpoint import TensorInfo, open_checkpoint, quantisation
from deltastore.checkpoint.quantised import quantised_weights

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


# --- whatever they are called ---------------------------------------------------------------------

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape by name."""

FP8 = "F8_E4M3"


def judged(shapes: Shapes, config: Any = None) -> str | None:
    tensors = {
        name: TensorInfo(name, dtype, shape, 0, 0, 0) for name, (dtype, shape) in shapes.items()
    }
    return quantised_weights(tensors, config or {})


TOOLS: dict[str, Shapes] = {
    "quanto": {"w.weight._data": ("I8", (32, 32)), "w.weight._scale": ("BF16", (32, 1))},
    "quanto fp8": {"w.weight._data": (FP8, (32, 32)), "w.weight._scale": ("BF16", (32, 1))},
    "torchao": {"w._weight_qdata": ("I8", (32, 32)), "w._weight_scale": ("F32", (32,))},
    "torchao 0.13": {"w.weight:qdata": ("I8", (32, 32)), "w.weight:scale": ("F32", (32,))},
    "gpt-fast 8": {"w.weight": ("I8", (32, 32)), "w.scales": ("BF16", (32,))},
    "gpt-fast 4": {
        "w.weight": ("I32", (4, 2, 32, 4)),
        "w.scales_and_zeros": ("BF16", (1, 32, 2)),
    },
    "quark": {"w.weight": (FP8, (32, 32)), "w.weight_quantizer.scale": ("F32", ())},
    "mistral": {"wq.weight": (FP8, (32, 32)), "wq.qscale_weight": ("BF16", ())},
    "tensorrt": {"w.weight": (FP8, (32, 32)), "w.weights_scaling_factor": ("F32", (1,))},
    "tensorrt 8": {"w.weight": ("I8", (32, 32)), "w.per_channel_scale": ("F32", (32,))},
    "packed fp4": {"w.weight": ("I8", (32, 16)), "w.scale": ("F8_E8M0", (32, 1))},
    "mxfp8": {"w.weight": (FP8, (32, 32)), "w.weight_scale": ("U8", (32, 1))},
    "mlx mxfp4": {"w.weight": ("U32", (32, 16)), "w.scales": ("U8", (32, 4))},
    "marlin": {"w.B": ("I32", (16, 64)), "w.s": ("F16", (2, 32))},
    "hqq": {"w.W_q": ("U8", (32, 16)), "w.scale": ("BF16", (32, 1))},
    "aqlm": {"w.codes": ("I8", (32, 4, 1)), "w.codebooks": ("F16", (1, 256, 1, 8))},
    "vptq": {"w.indices": ("I32", (1, 4, 8)), "w.centroids.weight": ("BF16", (1, 16))},
    "quip#": {"w.Qidxs": ("I64", (32, 4)), "w.SU": ("F16", (32,)), "w.SV": ("F16", (32,))},
    "any precision": {"w.planes": ("I32", (4, 32, 32)), "w.lut4": ("F16", (32, 16))},
    "lookup": {"w.quant": ("U8", (32, 32)), "w.lookup_table": ("F16", (32, 16))},
    "comfy": {"w.weight": (FP8, (32, 32)), "w.scale_weight": ("F32", (1,))},
    "experts": {"mlp.w1": (FP8, (4, 32, 32)), "mlp.w1_scale": ("F32", (4,))},
    "flat names": {"l0_q_weight": ("I8", (32, 32)), "l0_q_scale": ("F32", (32,))},
    "zero points": {"w.weight_int": ("U8", (32, 32)), "w.weight_zero_point": ("F32", (32, 1))},
    "a word of its own": {"w.packed": ("U8", (32, 16)), "w.step": ("BF16", (32, 2))},
    "a word for rows": {"w.numbers": ("I8", (32, 16)), "w.step": ("BF16", (32,))},
    "a word for exponents": {"e.up_p": ("U8", (4, 32, 2, 16)), "e.up_e": ("U8", (4, 32, 2))},
    "a word for blocks": {"w.weight": (FP8, (256, 256)), "w.weight_s": ("F32", (2, 2))},
    "nothing beside": {"w.weight": ("I8", (32, 32)), "norm.weight": ("BF16", (32,))},
    "beside a router": {
        "mlp.weight": ("BF16", (4, 32)),
        "mlp.gate_up_proj": ("I8", (4, 32, 32)),
        "mlp.gate_up_proj_scale": ("F32", (4, 1, 32)),
    },
}


@pytest.mark.parametrize("tool", TOOLS)
def test_weights_in_few_bits(tool: str) -> None:
    assert judged(TOOLS[tool] | {"model.embed_tokens.weight": ("BF16", (16, 4))}) is not None


PLAIN: dict[str, Shapes] = {
    "layer scale": {"l.scale": ("BF16", (32,)), "l.weight": ("BF16", (32, 32))},
    "fp8 with a bias": {"w.weight": (FP8, (32, 32)), "w.bias": ("BF16", (32,))},
    "fp8 experts": {
        "mlp.gate_up_proj": (FP8, (4, 32, 64)),
        "mlp.gate_up_proj_bias": ("BF16", (4, 64)),
        "mlp.router.per_expert_scale": ("BF16", (4,)),
    },
    "fp8 clip": {
        "text_projection": (FP8, (64, 64)),
        "logit_scale": ("F32", ()),
        "positional_embedding": ("BF16", (16, 64)),
        "class_embedding": ("BF16", (64,)),
    },
    "fp8 vit": {
        "pos_embed": (FP8, (1, 64, 64)),
        "cls_token": ("BF16", (1, 1, 64)),
        "registers": ("BF16", (1, 4, 64)),
    },
    "fp8 cache": {"a.weight": (FP8, (32, 32)), "a.k_scale": ("F32", ()), "a.v_scale": ("F32", ())},
    "fp8 adapter": {
        "w.weight": (FP8, (64, 64)),
        "w.lora_A.weight": ("BF16", (8, 64)),
        "w.lora_B.weight": ("BF16", (64, 8)),
    },
    "old masks": {"attn.bias": ("U8", (1, 1, 64, 64)), "attn.masked_bias": ("F32", ())},
    "a mask": {"a.causal_mask": ("U8", (64, 64)), "a.scale": ("F32", ())},
    "positions": {
        "a.relative_position_bias_table": ("F32", (169, 4)),
        "a.relative_position_index": ("I32", (49, 49)),
        "a.logit_scale": ("F32", (4, 1, 1)),
    },
    "biases by index": {
        "a.attention_biases": ("F32", (4, 196)),
        "a.attention_bias_idxs": ("I32", (196, 196)),
    },
    "hashed experts": {"gate.weight": ("BF16", (8, 32)), "gate.tid2eid": ("I32", (64, 2))},
    "a hash table": {"h.hash_table": ("I32", (64, 4)), "h.scale": ("F32", (64,))},
    "hashes": {"hash.weight": ("I32", (64, 4)), "norm.weight": ("BF16", (8,))},
    "anchors": {"anchors.sizes": ("I32", (9, 4)), "anchors.scales": ("F32", (9,))},
    "codebooks": {"q.codebook.embed": ("F32", (64, 8)), "q.codebook.used": ("I32", (64,))},
    "batches": {"bn.num_batches_tracked": ("I64", ()), "bn.scale": ("F32", (64,))},
    "awq smoothing": {"mlp.act.scales": ("BF16", (64,)), "mlp.up.weight": ("BF16", (64, 64))},
    "training for few bits": {
        "w.weight": ("BF16", (32, 32)),
        "w.weight_fake_quant.scale": ("F32", (1,)),
        "w.weight_fake_quant.zero_point": ("I32", (1,)),
        "w.weight_fake_quant.fake_quant_enabled": ("U8", (1,)),
    },
}


@pytest.mark.parametrize("kind", PLAIN)
def test_what_only_looks_like_it(kind: str) -> None:
    shapes = PLAIN[kind]
    assert judged(shapes) is None
    if all(dtype != FP8 for dtype, _ in shapes.values()) and kind != "hashes":
        declared = {"a": [{"b": {"quantization_config": {"quant_method": "fp8"}}}]}
        assert judged(shapes, declared) is None


def test_plain_fp8_with_a_declaration_is_quantised() -> None:
    declared = {"text_config": {"quantization_config": {"quant_method": "fp8"}}}
    found = judged({"w.weight": (FP8, (32, 32))}, declared)
    assert found is not None
    assert "'fp8'" in found
    assert "w.weight is F8_E4M3" in found


def saved(tmp_path: Path, state: dict[str, Any]) -> str | None:
    """The judgement of a state dict, saved."""
    from safetensors.torch import save_file as save_tensors

    save_tensors({n: t.contiguous() for n, t in state.items()}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        return quantisation(checkpoint)


LAYERS = {
    "finegrained_fp8.FP8Linear": {
        "in_features": 256,
        "out_features": 256,
        "block_size": (128,) * 2,
    },
    "gemma_quant.QuantizedLinear": {"in_features": 32, "out_features": 32, "num_bits": 4},
    "metal_quantization.MetalLinear": {"in_features": 256, "out_features": 32},
    "bitnet.BitLinear": {"in_features": 64, "out_features": 64, "bias": False},
    "eetq.EetqLinear": {"in_features": 32, "out_features": 32},
    "fbgemm_fp8.FbgemmFp8Linear": {"in_features": 32, "out_features": 32, "bias": False},
    "higgs.HiggsLinear": {"in_features": 1024, "out_features": 64, "num_bits": 4},
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_of_transformers(tmp_path: Path, layer: str) -> None:
    module, _, name = layer.partition(".")
    integration = pytest.importorskip(f"transformers.integrations.{module}")
    state = getattr(integration, name)(**LAYERS[layer]).state_dict()
    assert saved(tmp_path, {f"model.layers.0.mlp.up_proj.{n}": t for n, t in state.items()})


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64},
    "Bert": SMALL | {"intermediate_size": 32, "vocab_size": 64},
    "Swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32},
    "Swinv2": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32},
    "Levit": {"hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2], "key_dim": [4] * 3},
    "Encodec": {"num_filters": 4, "hidden_size": 16, "codebook_size": 32, "codebook_dim": 16},
    "Wav2Vec2": SMALL
    | {"intermediate_size": 32, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16},
    "Mamba": SMALL | {"vocab_size": 64, "state_size": 4},
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("kind", MODELS)
def test_models_of_transformers(tmp_path: Path, kind: str, dtype: str) -> None:
    """With their buffers, in 16 bits and with matrices in unscaled fp8."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**MODELS[kind])
    state = getattr(transformers, f"{kind}Model")(config).state_dict()
    cast = {
        name: value.to(getattr(torch, dtype if value.ndim > 1 else "bfloat16"))
        if value.is_floating_point()
        else value
        for name, value in state.items()
    }
    assert saved(tmp_path, {name: value.clone() for name, value in cast.items()}) is None
