"""Where the tensors of deltas go in a new base, and which of them have no place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deltastore.checkpoint import TensorInfo
from deltastore.manifest import Config, TensorEntry
from deltastore.tensor_names.token_rows import has_tokens
from deltastore.tokenizer.matching import Vocabulary
from deltastore.tokenizer.rows import NONE, Rows


@dataclass(frozen=True, slots=True)
class Delta:
    """One delta of an application, and what is known of it and the new base beforehand.

    Attributes:
        ref: What to call it.
        config: Its config.
        names: What the new base calls its tensors, where that is something else.
        source_config: ``config.json`` of its base; None if it has none.
        post_config: That of its post.
        vocabulary: How its tokens stand to the new base's; None if that was not looked at.
    """

    ref: str
    config: Config
    names: Mapping[str, str] = field(default_factory=dict)
    source_config: Mapping[str, Any] | None = None
    post_config: Mapping[str, Any] | None = None
    vocabulary: Vocabulary | None = None

    def named(self, entry: TensorEntry) -> str:
        """What the new base calls a tensor of the delta."""
        return self.names.get(entry.name, entry.name)

    @property
    def makes_another_class(self) -> bool:
        """Whether post is of another class than its base, by its tensors and by what it says."""
        classes = [(c or {}).get("architectures") for c in (self.source_config, self.post_config)]
        return classes[0] != classes[1] is not None and any(
            entry.kind in ("added", "removed") and not has_tokens(entry.name)
            for entry in self.config.tensors
        )


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Something that cannot be matched: a tensor, or a field of ``config.json``."""

    name: str
    problem: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one tensor of a delta goes.

    Attributes:
        entry: The delta's tensor.
        base: The new base's tensor that it is added to; None if there is none.
        rows: Which row goes where; None where all rows stay in their order.
    """

    entry: TensorEntry
    base: TensorInfo | None
    rows: Rows | None = None

    @property
    def grows(self) -> bool:
        """Whether post has rows there that its base has not, and the output is to have."""
        if self.rows is not None:
            return bool((self.rows.values != NONE).any())
        return self.entry.kind == "resized" and self.entry.values is not None


@dataclass(slots=True)
class Report:
    """Where every tensor goes, and every one that cannot be matched, over all deltas.

    ``missing``: a delta has it, the new base does not. ``extra``: the new base has it, a delta
    knows nothing of it. ``mismatched``: shape or kind of dtype differ. ``skipped``: embeddings
    and heads that were to be left as they are. ``unsure``: tensors that go by index where rows of
    tokens go by string, and have as many rows or columns as there are tokens. ``places`` has one
    table for each delta, by the output's names.
    """

    missing: list[Mismatch] = field(default_factory=list)
    extra: list[Mismatch] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)
    places: list[dict[str, Placement]] = field(default_factory=list)

    @property
    def all(self) -> list[Mismatch]:
        """All that cannot be matched."""
        return [*self.missing, *self.extra, *self.mismatched]

    @property
    def summary(self) -> str:
        """How many of each, and the first of all; empty if everything matches."""
        counts = {
            "missing in the new base": self.missing,
            "unknown to the delta": self.extra,
            "of another shape or dtype": self.mismatched,
        }
        if not self.all:
            return ""
        said = ", ".join(f"{len(items)} {what}" for what, items in counts.items() if items)
        return f"{said}; the first is {self.all[0].name}: {self.all[0].problem}"


def comparable(places: Mapping[str, Placement]) -> dict[str, TensorInfo]:
    """The new base's tensors in which an element is where it is in the source base's.

    By the source base's names. Rows that go by token are elsewhere.
    """
    found: dict[str, TensorInfo] = {}
    for name, place in places.items():
        if place.base is None or place.rows is not None:
            continue
        # A head that is made of embeddings is like no head.
        if place.base.name == name and place.entry.base_name is None:
            found.setdefault(place.entry.source, place.base)
    return found
