"""Which tensors of a checkpoint are no weights, but what a library computes as it loads a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_COMPUTED = (
    "inv_freq",
    "original_inv_freq",
    "masked_bias",
    "position_ids",
    "token_type_ids",
    "num_batches_tracked",
    "final_logits_bias",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "relative_position_index",
)
"""Buffers that a library computes; which of its versions also saves them differs."""

_MASKS = ("attn.bias", "attention.bias")
"""Causal masks; a vector of this name is a layer's learned bias."""

_POSITIONS = ("embed_positions.weight", "embed_positions.weights")
_SINUSOIDAL = frozenset(
    {
        *("marian", "pegasus", "pegasus_x", "m2m_100", "xglm", "fsmt", "speech_to_text"),
        *("nllb-moe", "seamless_m4t", "seamless_m4t_v2", "musicgen", "musicgen_melody", "speecht5"),
        *("informer", "autoformer", "time_series_transformer"),
    }
)
"""Model types that compute their positions; to others the same names are learned weights."""


def is_computed(name: str, shape: Sequence[int], config: Mapping[str, Any] | None) -> bool:
    """Whether a tensor may be a buffer that not every version of a library saves.

    Args:
        name: Its name.
        shape: Its shape.
        config: The model's ``config.json``; None if it is not known.
    """
    if _ends(name, _POSITIONS):
        return (config or {}).get("model_type") in _SINUSOIDAL
    return _ends(name, _COMPUTED) or (_ends(name, _MASKS) and len(shape) > 1)


def may_be_left_out(name: str, shape: Sequence[int], config: Mapping[str, Any] | None) -> bool:
    """Whether a model that stores no tensor of this name has the very same one all the same.

    Args:
        name: The tensor's name.
        shape: Its shape.
        config: As above.
    """
    return is_computed(name, shape, config) and not _ends(name, ("final_logits_bias",))


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)
