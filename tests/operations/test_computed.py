"""Buffers that a library computes, and weights of the same name."""

from __future__ import annotations

from typing import Any

import pytest

from deltastore.tensor_names.computed import is_computed, may_be_left_out


@pytest.mark.parametrize(
    ("name", "shape", "config", "computed"),
    [
        ("layers.0.rotary_emb.inv_freq", (4,), None, True),
        ("embeddings.position_ids", (1, 16), None, True),
        ("embeddings.position_embeddings.weight", (16, 8), None, False),
        ("h.0.attn.bias", (1, 1, 4, 4), None, True),
        ("pooler.attention.bias", (8,), None, False),
        ("model.encoder.embed_positions.weight", (16, 8), {"model_type": "marian"}, True),
        ("model.encoder.embed_positions.weight", (16, 8), {"model_type": "bart"}, False),
        ("model.encoder.embed_positions.weight", (16, 8), None, False),
        ("position_ids_head.weight", (4, 8), None, False),
    ],
)
def test_computed(
    name: str, shape: tuple[int, ...], config: dict[str, Any] | None, computed: bool
) -> None:
    assert is_computed(name, shape, config) is computed
    assert may_be_left_out(name, shape, config) is computed


def test_a_bias_that_was_trained_in_some_models_is_not_the_same_in_all() -> None:
    assert is_computed("final_logits_bias", (1, 40), None)
    assert not may_be_left_out("final_logits_bias", (1, 40), None)
