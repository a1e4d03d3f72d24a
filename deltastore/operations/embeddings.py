"""Which tensors have a row for each token: input embeddings, output heads, the heads' biases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
    "backbone.embeddings.weight",
    "backbone.embedding.weight",
    "shared.weight",
)
_HEADS = (
    "lm_head.weight",
    "embed_out.weight",
    "predictions.decoder.weight",
    "lm_head.decoder.weight",
    "generator_lm_head.weight",
    "vocab_projector.weight",
    "transformer.output_layer.weight",
    "output_projection.weight",
)
_BIASES = (
    "lm_head.bias",
    "lm_head.decoder.bias",
    "predictions.bias",
    "predictions.decoder.bias",
    "generator_lm_head.bias",
    "vocab_projector.bias",
    "embed_out.bias",
)
_WHOLE_NAMES = ("output.weight",)
"""Heads only by their whole name: attention has an ``output.weight`` too."""


_COLUMNS = ("final_logits_bias",)
"""BART's bias of its head, which is a row."""


def embedding_of(names: Iterable[str]) -> str | None:
    """The name of the input embeddings; None if there are none, or several."""
    return _only(name for name in names if _ends(name, _EMBEDDINGS))


def head_of(names: Iterable[str]) -> str | None:
    """The name of the output head's weights; None if there is none, or several."""
    return _only(name for name in names if name in _WHOLE_NAMES or _ends(name, _HEADS))


def has_token_rows(name: str) -> bool:
    """Whether a tensor of this name has a row for each token."""
    return name in _WHOLE_NAMES or _ends(name, _EMBEDDINGS + _HEADS + _BIASES)


def has_tokens(name: str) -> bool:
    """Whether a tensor of this name has a row, or a column, for each token."""
    return has_token_rows(name) or _ends(name, _COLUMNS)


def may_tie(config: Mapping[str, Any] | None) -> bool:
    """Whether a model without a head of its own uses its embeddings as one.

    ``tie_word_embeddings`` is true unless ``config.json`` says otherwise, at its top or in the
    part on the text model; without any ``config.json`` nothing says so.
    """
    if config is None:
        return False
    text = config.get("text_config")
    parts = [config, text if isinstance(text, Mapping) else {}]
    return not any(part.get("tie_word_embeddings") is False for part in parts)


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _only(names: Iterable[str]) -> str | None:
    found = list(names)
    return found[0] if len(found) == 1 else None
