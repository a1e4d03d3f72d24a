"""Layers and kinds from the names that models of several libraries use."""

from __future__ import annotations

import pytest

from deltastore.tensor_names.modules import ModulePlace, places


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.0.self_attn.q_proj.weight", 0, "self_attn.q_proj"),
        ("model.layers.31.mlp.up_proj.weight", 31, "mlp.up_proj"),
        ("model.layers.7.self_attn.q_proj.bias", 7, "self_attn.q_proj"),
        ("model.layers.7.input_layernorm.weight", 7, "input_layernorm"),
        ("transformer.h.11.attn.c_attn.weight", 11, "attn.c_attn"),
        ("bert.encoder.layer.3.attention.self.query.weight", 3, "attention.self.query"),
        ("encoder.layer.3.output.dense.bias", 3, "output.dense"),
        ("gpt_neox.layers.5.attention.query_key_value.weight", 5, "attention.query_key_value"),
        ("transformer.blocks.2.ffn.up_proj.weight", 2, "ffn.up_proj"),
        ("layers.4.attention.wq.weight", 4, "attention.wq"),
        ("backbone.layers.1.mixer.A_log", 1, "mixer.A_log"),
        ("model.layers.2.block_sparse_moe.experts.6.w1.weight", 2, "experts.w1"),
        ("model.layers.2.mlp.experts.63.down_proj.weight", 2, "experts.down_proj"),
        ("model.layers.2.mlp.experts.gate_up_proj", 2, "experts.gate_up_proj"),
        ("model.layers.2.mlp.shared_experts.up_proj.weight", 2, "mlp.shared_experts.up_proj"),
        ("model.layers.2.mlp.gate.weight", 2, "mlp.gate"),
        ("encoder.block.3.layer.1.DenseReluDense.wi.weight", 3, "layer.1.DenseReluDense.wi"),
        (
            "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight",
            0,
            "self_attn.v_proj.lora_A",
        ),
        ("h.0.weight", 0, "h"),
        ("lm_head.weight", None, "lm_head"),
        ("features.3.weight", None, "features.3"),
        ("weight", None, "weight"),
        ("layers.x.weight", None, "layers.x"),
        ("layers", None, "layers"),
        ("", None, ""),
        ("model.layers.٣.w", None, "model.layers.٣.w"),
        ("layers.9999999.w", None, "layers.9999999.w"),
        ("layers.-1.w", None, "layers.-1.w"),
    ],
)
def test_the_usual_layouts(name: str, layer: int | None, kind: str) -> None:
    assert places([name]) == {name: ModulePlace(layer, kind)}


def test_outside_of_the_layers_the_path_to_them_is_left_out() -> None:
    found = places(
        [
            "lm_head.weight",
            "model.embed_tokens.weight",
            "model.layers.0.mlp.up_proj.weight",
            "model.norm.weight",
        ]
    )
    assert [(place.layer, place.kind) for place in found.values()] == [
        (None, "lm_head"),
        (None, "embed_tokens"),
        (0, "mlp.up_proj"),
        (None, "norm"),
    ]


def test_two_stacks_are_told_apart() -> None:
    found = places(
        [
            "model.decoder.layers.0.self_attn.q_proj.weight",
            "model.encoder.layers.0.self_attn.q_proj.weight",
            "model.shared.weight",
            "model.encoder.layer_norm.weight",
            "lm_head.weight",
        ]
    )
    assert [(place.layer, place.kind) for place in found.values()] == [
        (0, "decoder.self_attn.q_proj"),
        (0, "encoder.self_attn.q_proj"),
        (None, "shared"),
        (None, "encoder.layer_norm"),
        (None, "lm_head"),
    ]


def test_two_stacks_beside_each_other_are_told_apart_by_their_words() -> None:
    names = ["transformer_blocks.0.ff.weight", "single_transformer_blocks.0.ff.weight"]
    assert [place.kind for place in places(names).values()] == [
        "transformer_blocks.ff",
        "single_transformer_blocks.ff",
    ]


def test_a_picture_and_a_text_model() -> None:
    found = places(
        [
            "visual.blocks.1.attn.qkv.weight",
            "visual.merger.mlp.0.weight",
            "model.layers.1.self_attn.q_proj.weight",
            "model.embed_tokens.weight",
        ]
    )
    assert [(place.layer, place.kind) for place in found.values()] == [
        (1, "visual.attn.qkv"),
        (None, "visual.merger.mlp.0"),
        (1, "model.self_attn.q_proj"),
        (None, "model.embed_tokens"),
    ]


def test_no_names_are_no_places() -> None:
    assert places([]) == {}
