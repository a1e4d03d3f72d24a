"""Which tensors have a row for each token, and which of them may be one under several names.

A model may use its embeddings as its output head, and the embeddings of its encoder as those of its
decoder. Such a *tied set* is one tensor, and a file holds some of its names: ``save_pretrained``
and ``save_model`` keep one each, not the same one; ``torch.save`` keeps all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from functools import cache, cached_property
from itertools import islice
from typing import Any

_SHARED = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""The embeddings of an encoder and a decoder, which are one tensor where one of them is missing."""

_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "word_embedding.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
    "tokens_embed.weight",
    "backbone.embeddings.weight",
    "backbone.embedding.weight",
    "rwkv.embeddings.weight",
    "transformer.embeddings.weight",
    "shared.weight",
)
_HEADS = (
    "lm_head.weight",
    "lm_head.out_proj.weight",
    "lm_loss.weight",
    "embed_out.weight",
    "predictions.decoder.weight",
    "lm_head.decoder.weight",
    "mlm_score.decoder.weight",
    "generator_lm_head.weight",
    "vocab_projector.weight",
    "pred_layer.proj.weight",
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
_BIAS_PAIRS = (
    ("lm_head.bias", "lm_head.decoder.bias"),
    ("predictions.bias", "predictions.decoder.bias"),
)
"""Two names of one bias."""

_WHOLE_NAMES = (
    "output.weight",
    "proj_out.weight",
    "decoder.weight",
    "head.weight",
    "head.decoder.weight",
)
"""Heads only by their whole name: attention has an ``output.weight`` too."""

_WHOLE_BIASES = ("decoder.bias", "head.decoder.bias")

_OTHER_MODALITIES = ("vision", "image", "visual", "audio", "speech", "acoustic")
"""Parts of a configuration that own neither embeddings of tokens nor a head."""

_MAX_LEVELS = 4


_COLUMNS = ("final_logits_bias",)
"""BART's bias of its head, which is a row."""


def embedding_of(names: Iterable[str]) -> str | None:
    """The name of the input embeddings; None if there are none, or several.

    Of an encoder and a decoder that share theirs it is the shared one's. A layer's own, as that of
    a block that predicts several tokens, is not the model's.
    """
    found = [name for name in names if _ends(name, _EMBEDDINGS)]
    found = [name for name in found if not any(map(str.isdigit, name.split(".")))] or found
    shared = [name for name in found if _ends(name, ("shared.weight",))]
    return _only(shared or found)


def stored_embedding_of(names: Collection[str]) -> str | None:
    """The same; the head's name where tied embeddings are stored under that alone."""
    return embedding_of(names) if any(map(is_embedding, names)) else head_of(names)


def head_of(names: Iterable[str]) -> str | None:
    """The name of the output head's weights; None if there is none, or several."""
    return _only([name for name in names if is_head(name)])


def is_head(name: str) -> bool:
    """Whether this is the name of an output head's weights."""
    return name in _WHOLE_NAMES or _ends(name, _HEADS)


def head_ending(name: str) -> str:
    """What a head is called within its class: the longest of the usual endings of its name."""
    found = [ending for ending in (*_HEADS, *_WHOLE_NAMES) if _ends(name, (ending,))]
    return max(found, key=len, default=name)


def is_embedding(name: str) -> bool:
    """Whether this is the name of input embeddings."""
    return _ends(name, _EMBEDDINGS)


def has_token_rows(name: str) -> bool:
    """Whether a tensor of this name has a row for each token."""
    whole = name in _WHOLE_NAMES + _WHOLE_BIASES
    return whole or _ends(name, _EMBEDDINGS + _HEADS + _BIASES)


class StoredNames:
    """The names of stored tensors, with what is asked of all of them found once.

    Checkpoints have a hundred thousand tensors, and what stands in for one is asked of each.

    Args:
        names: What is stored; is not changed afterwards.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names if isinstance(names, Mapping | Set) else frozenset(names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @cached_property
    def embeddings(self) -> list[str]:
        """The names of input embeddings."""
        return [name for name in self._names if is_embedding(name)]

    @cached_property
    def embedding(self) -> str | None:
        """As ``embedding_of``; of an encoder and a decoder that share none, the decoder's."""
        found = embedding_of(self.embeddings)
        if found is None:
            decoders = ("decoder.embed_tokens.weight",)
            found = _only([name for name in self.embeddings if _ends(name, decoders)])
        return found

    @cached_property
    def head(self) -> str | None:
        """As ``head_of``."""
        return head_of(self._names)


def stand_in(name: str, names: Collection[str] | StoredNames, *, ties: bool) -> str | None:
    """Which stored tensor a model uses where it has none called ``name``.

    No model is without embeddings: one that stores none keeps them under its head's name.

    Args:
        name: An embedding, a head or a head's bias that is not stored.
        names: What is stored; ``StoredNames``, where more is asked of the same.
        ties: Whether the model uses its embeddings as a head if it has none.

    Returns:
        None where nothing stands for it, or it is not known what.
    """
    if not has_token_rows(name):
        return None
    stored = names if isinstance(names, StoredNames) else StoredNames(names)
    for member in _bias_partners(name):
        if member in stored:
            return member
    if is_head(name):
        return stored.embedding if ties and stored.head is None else None
    if not is_embedding(name):
        return None
    for member in _family(name):
        if member in stored:
            return member
    return stored.head if not stored.embeddings else None


class TiedNames:
    """Names of which some may be tied, in order; says of each the first that may be one with it.

    Two names may be one tensor where ``stand_in`` says so of the two alone.
    """

    def __init__(self) -> None:
        self._position: dict[str, int] = {}
        self._heads: dict[str, None] = {}
        self._embeddings: dict[str, None] = {}
        self._count = 0

    def add(self, name: str) -> None:
        """Append a name."""
        self._position[name] = self._count
        self._count += 1
        if is_head(name):
            self._heads[name] = None
        elif is_embedding(name):
            self._embeddings[name] = None

    def remove(self, name: str) -> None:
        """Take one out again."""
        del self._position[name]
        self._heads.pop(name, None)
        self._embeddings.pop(name, None)

    def first(self, name: str) -> str | None:
        """The first of all but ``name``."""
        pair = islice(self._position, 2)
        return next((other for other in pair if other != name), None)

    def first_tied(self, name: str) -> str | None:
        """The first that may be one with ``name``."""
        found = [*_bias_partners(name)]
        if is_head(name):
            found += islice(self._embeddings, 1)
        elif is_embedding(name):
            found += [*_family(name), *islice(self._heads, 1)]
        there = [other for other in found if other in self._position and other != name]
        return min(there, key=self._position.__getitem__, default=None)


def aliases(
    stored: Mapping[str, object], config: Mapping[str, Any] | None
) -> Callable[[str], bool]:
    """Whether a tensor that is not stored is one that is, under a second name: a tied one.

    Args:
        stored: The tensors that are, by name.
        config: ``config.json``; None if there is none.
    """
    names, ties = StoredNames(stored), may_tie(config)
    return lambda name: stand_in(name, names, ties=ties) is not None


def has_tokens(name: str) -> bool:
    """Whether a tensor of this name has a row, or a column, for each token."""
    return has_token_rows(name) or _ends(name, _COLUMNS)


def may_tie(config: Mapping[str, Any] | None) -> bool:
    """Whether a model without a head of its own uses its embeddings as one.

    ``tie_word_embeddings`` stands at the level of the class that owns embeddings and head, which is
    not the same in all versions of a family: a level that ties them is believed, and one that does
    not counts where no other does. Where nothing is said they are tied; without any ``config.json``
    they are not.
    """
    if config is None:
        return False
    said = [level["tie_word_embeddings"] for level in tie_levels(config)]
    return True in said or not said


def tie_levels(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The levels of a ``config.json`` that say whether head and embeddings are tied, top first."""
    return [
        level for level in _levels(config, 0) if isinstance(level.get("tie_word_embeddings"), bool)
    ]


def _levels(config: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    yield config
    for name, part in config.items() if depth < _MAX_LEVELS else ():
        whole = name.endswith("_config") or name in ("encoder", "decoder", "generator")
        if whole and isinstance(part, Mapping) and not any(m in name for m in _OTHER_MODALITIES):
            yield from _levels(part, depth + 1)


def _bias_partners(name: str) -> list[str]:
    """The other names of a head's bias."""
    return [
        name.removesuffix(own) + other
        for pair in _BIAS_PAIRS
        for own, other in (pair, pair[::-1])
        if _ends(name, (own,))
    ]


def _family(name: str) -> list[str]:
    """The other names of an encoder's and decoder's embeddings, the shared one first."""
    for own in _SHARED:
        if _ends(name, (own,)):
            return [name.removesuffix(own) + other for other in _SHARED if other != own]
    return []


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return name in endings or name.endswith(_dotted(endings))


@cache
def _dotted(endings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f".{ending}" for ending in endings)


def _only(found: list[str]) -> str | None:
    return found[0] if len(found) == 1 else None
