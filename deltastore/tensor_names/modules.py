"""Which layer a tensor is in and what kind of module it belongs to, by its name alone.

A stack of layers is a word that is usual for one with a number behind it: ``model.layers.7.``,
``transformer.h.7.``, ``bert.encoder.layer.7.``, ``visual.blocks.7.``. What is left of the name is
the kind, which is the same in all layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

_STACKS = frozenset(
    {
        "block",
        "blocks",
        "h",
        "layer",
        "layers",
        "resblocks",
        "single_transformer_blocks",
        "transformer_blocks",
    }
)
_PARAMETERS = frozenset({"weight", "bias"})
_EXPERTS = "experts"
_MOST_DIGITS = 6


@dataclass(frozen=True, slots=True)
class ModulePlace:
    """Where a tensor is: its layer, None outside of the stacks, and its kind."""

    layer: int | None
    kind: str


def places(names: Iterable[str]) -> dict[str, ModulePlace]:
    """The place of each tensor of a model, or of several models that are looked at together.

    - The kind is the module's path within the layer, without ``weight`` or ``bias``:
      ``self_attn.q_proj``, ``input_layernorm``.
    - All experts of a layer are of one kind: ``…experts.7.w1`` is ``experts.w1``.
    - A tensor outside of the stacks has no layer, and the path that stacks do not share as its
      kind: ``model.embed_tokens.weight`` is ``embed_tokens``.
    - Where there are several stacks, as in an encoder with a decoder, kinds begin with what tells
      the stacks apart: ``decoder.self_attn.q_proj``.
    """
    split = {name: _split(name) for name in names}
    stacks = {stack for stack, layer, _ in split.values() if layer is not None}
    shared = _shared(stacks)
    # The word itself, as in "layers", says nothing unless two stacks differ in it alone.
    end = -1 if len({stack[:-1] for stack in stacks}) == len(stacks) else None
    found = {}
    for name, (stack, layer, rest) in split.items():
        if layer is None:
            inner = rest[len(shared) :] if rest[: len(shared)] == shared else rest
            found[name] = ModulePlace(None, _kind(inner or rest, name))
        else:
            label = stack[len(shared) : end]
            found[name] = ModulePlace(layer, ".".join([*label, _kind(rest, stack[-1])]))
    return found


def _split(name: str) -> tuple[tuple[str, ...], int | None, tuple[str, ...]]:
    """The path of the outermost stack with its word, the layer in it, and the rest of the name."""
    words = tuple(name.split("."))
    for i, (word, number) in enumerate(pairwise(words)):
        if word in _STACKS and _is_number(number):
            return words[: i + 1], int(number), words[i + 2 :]
    return (), None, words


def _shared(stacks: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """What the paths to all stacks begin with."""
    paths = [stack[:-1] for stack in stacks]
    if not paths:
        return ()
    first, last = min(paths), max(paths)
    same = 0
    while same < len(first) and same < len(last) and first[same] == last[same]:
        same += 1
    return first[:same]


def _kind(words: tuple[str, ...], otherwise: str) -> str:
    """The module's path, with all experts as one."""
    if words and words[-1] in _PARAMETERS:
        words = words[:-1]
    if _EXPERTS in words:
        first = words.index(_EXPERTS)
        inner = words[first + 1 :]
        words = (_EXPERTS, *(inner[1:] if inner and _is_number(inner[0]) else inner))
    return ".".join(words) or otherwise


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= _MOST_DIGITS
