"""Which tensors of a checkpoint are no weights, but what a library computes as it loads a model."""

from __future__ import annotations

_COMPUTED = (
    "inv_freq",
    "original_inv_freq",
    "masked_bias",
    "position_ids",
    "token_type_ids",
    "num_batches_tracked",
    "final_logits_bias",
    "embed_positions.weight",
    "embed_positions.weights",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "attn.bias",
    "attention.bias",
    "relative_position_index",
)
"""Buffers that a library computes; which of its versions also saves them differs."""

_LEARNED_ELSEWHERE = ("embed_positions.weight", "final_logits_bias")
"""Names of buffers of some architectures that are weights of others."""


def is_computed(name: str) -> bool:
    """Whether a tensor of this name may be a buffer that not every version of a library saves."""
    return _ends(name, _COMPUTED)


def may_be_left_out(name: str) -> bool:
    """Whether a model whose checkpoint has no tensor of this name has it all the same."""
    return is_computed(name) and not _ends(name, _LEARNED_ELSEWHERE)


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)
