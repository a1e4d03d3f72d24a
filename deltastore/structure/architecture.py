"""Saying of a base that does not fit what kind of model it is, not only which tensors differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deltastore.checkpoint import Checkpoint
from deltastore.errors import StructureMismatchError, shown
from deltastore.structure.places import Delta
from deltastore.text import typed

_KEYS = (
    "model_type",
    "architectures",
    "hidden_size",
    "n_embd",
    "intermediate_size",
    "num_hidden_layers",
    "n_layer",
    "num_local_experts",
    "num_experts",
    "vocab_size",
)
"""Fields of ``config.json`` that shape the tensors, the telling ones first."""

_FOREIGN_FROM = 7 / 8
"""From this share of absent tensors on a base is another model: an odd name is in many."""

Config = Mapping[str, Any]


def explained(
    error: StructureMismatchError, base: Checkpoint, deltas: Sequence[Delta]
) -> StructureMismatchError:
    """The error with what the configurations say of it.

    Where the base has next to no tensor of a delta, and no other names would help, the message is
    about that alone, and the fact ``other_model`` names the delta: a list of all tensors of two
    models would help nobody.

    Args:
        error: What ``check_structure`` raised.
        base: The new base.
        deltas: What was to be applied.
    """
    own, label = base.config or {}, base.repo or base.path
    differences = {d.ref: list(_differences(own, d.source_config or {})) for d in deltas}
    facts = error.facts | {"config": differences}
    for delta in deltas if "--map" not in error.hint else ():
        names = {delta.named(entry) for entry in delta.config.tensors if entry.base is not None}
        absent, others = sorted(names - base.tensors.keys()), sorted(base.tensors.keys() - names)
        if others and len(absent) > _FOREIGN_FROM * len(names):
            told = "; ".join(["", *differences[delta.ref]])
            return StructureMismatchError(
                f"{label} is another model than the one {delta.ref} was extracted from: it has "
                f"{len(names) - len(absent)} of the {len(names)} tensors of {delta.ref}, and "
                f"{len(others)} of its own, such as {others[0]} and not {absent[0]}{told}.",
                hint=f"See which deltas fit: `deltastore resolve --base {typed(label)}`; `--json` "
                "lists every tensor.",
                **facts,
                other_model=delta.ref,
            )
    told = "".join(f"; {item} ({ref})" for ref, items in differences.items() for item in items)
    return StructureMismatchError(
        f"{error.message.removesuffix('.')}{told}.", hint=error.hint, **facts
    )


def _differences(own: Config, theirs: Config) -> Iterator[str]:
    """What both configurations have and say differently; a text model's part counts as its own."""
    parts = [
        {**config, **text} if isinstance(text := config.get("text_config"), dict) else config
        for config in (own, theirs)
    ]
    for key in _KEYS:
        got, expected = (part.get(key) for part in parts)
        if got is not None and expected is not None and got != expected:
            yield f"{key} {shown(got)} instead of {shown(expected)}"
