"""Whether deltas fit a new base, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deltastore.checkpoint import TensorInfo, Weights
from deltastore.errors import StructureMismatchError, UsageError
from deltastore.lineage.copies import Copies
from deltastore.manifest import Config, TensorEntry
from deltastore.manifest.format import DELTA_DTYPES
from deltastore.merging.twins import Table
from deltastore.tensor_names.computed import is_computed, may_be_left_out
from deltastore.tensor_names.recognising import Rule, as_options, recognised, renamed
from deltastore.tensor_names.token_rows import (
    Stored,
    embedding_of,
    has_token_rows,
    has_tokens,
    is_embedding,
    is_head,
    may_tie,
    stand_in,
)
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
class Place:
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
    places: list[dict[str, Place]] = field(default_factory=list)

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


_SAME_FIELDS = ("num_attention_heads", "num_key_value_heads", "head_dim", "n_head")
"""Fields of ``config.json`` that say how a matrix is cut, which its shape does not show."""


def check_structure(
    base: Weights,
    deltas: Sequence[Delta],
    *,
    partial: bool,
    config: Mapping[str, Any] | None = None,
) -> Report:
    """Find a place for every tensor of every delta in the new base.

    Args:
        base: The new base.
        deltas: What is to be applied.
        partial: Go on with what fits.
        config: The new base's ``config.json``, if known.

    Raises:
        StructureMismatchError: Something cannot be matched and ``partial`` is false; ``facts``
            lists all of it.
    """
    report = Report()
    for delta in deltas:
        _Matching(base, delta, report, config, alone=len(deltas) == 1).run()
    # A base of another size has other heads too: tensors say so better.
    for delta in deltas if not report.all else ():
        _compare_configs(config or {}, delta, report)
    report.skipped = sorted(set(report.skipped))
    if report.all and not partial:
        raise _mismatch_error(base, deltas, report, config)
    return report


def _compare_configs(config: Mapping[str, Any], delta: Delta, report: Report) -> None:
    source = delta.source_config or {}
    for where in ("", "text_config"):
        ours, theirs = (part.get(where) if where else part for part in (config, source))
        for key in _SAME_FIELDS:
            got, wanted = (p.get(key) if isinstance(p, Mapping) else None for p in (ours, theirs))
            if isinstance(got, int) and isinstance(wanted, int) and got != wanted:
                name = f"config.json {where}{'.' if where else ''}{key}"
                problem = f"expected {wanted} as in the base of {delta.ref}, got {got}"
                report.mismatched.append(Mismatch(name, problem))


class _Matching:
    """One delta and the new base."""

    def __init__(
        self,
        base: Weights,
        delta: Delta,
        report: Report,
        config: Mapping[str, Any] | None,
        *,
        alone: bool,
    ) -> None:
        self._base = base
        self._config = config
        self._tied = may_tie(config)
        self._alone = alone
        self._delta = delta
        self._report = report
        named = {delta.named(entry): entry for entry in delta.config.tensors}
        self._names = Table(named, base.tensors)
        self._table = self._names.entries
        self._stored = Stored(base.tensors)
        self._copies = Copies(base)
        self._like_placed = self._copies.among(())
        self._places: dict[str, Place] = {}

    def run(self) -> None:
        self._report.places.append(self._places)
        words = self._delta.vocabulary
        skips = words is not None and words.verdict == "skipped"
        # A class that the output is to be of has no tensors of another one's head, and all of its
        # own.
        moves = ("added", "removed") if self._delta.makes_another_class else ()
        self._take_other_names()
        based = {
            name: entry
            for name, entry in self._table.items()
            if entry.own_base is not None or (entry.base is not None and is_embedding(name))
        }
        self._based, self._source_ties = Stored(based), may_tie(self._delta.source_config)
        for name, entry in self._table.items():
            if skips and has_tokens(name) and entry.kind not in moves:
                self._report.skipped.append(name)
            else:
                keeper = self._keeper(name, entry)
                self._match(name, keeper or entry, self._source(name, entry))
        for name, info in self._base.tensors.items():
            if name in self._table:
                continue
            shared = self._shared(name)
            if shared is None and is_computed(name, info.shape, self._config):
                continue  # the new base's own
            if shared is None:
                problem = f"{self._delta.ref} knows nothing of it"
                self._report.extra.append(Mismatch(name, problem))
            elif skips and has_tokens(name):
                self._report.skipped.append(name)
            else:
                self._match(name, shared, info)
        self._tell_unsure()

    def _tell_unsure(self) -> None:
        """Note tensors that may have a row for each token under a name that is not known."""
        words, embedding = self._delta.vocabulary, embedding_of(self._table)
        if words is None or words.verdict != "matched" or embedding is None:
            return
        side = self._table[embedding].base
        tokens = side.shape[0] if side is not None and side.shape else None
        for name, place in self._places.items():
            shape = place.entry.base.shape if place.entry.base is not None else ()
            by_index = place.rows is None and place.entry.kind in ("delta", "resized")
            if by_index and tokens in shape:
                self._report.unsure.append(name)

    def _take_other_names(self) -> None:
        """Call a tensor as the new base does that stores a tied set under another of its names."""
        for name, entry in list(self._table.items()):
            if name in self._base.tensors or entry.base is None or entry.post is None:
                continue
            other = stand_in(name, self._stored, ties=True)
            if is_head(name) and other is None:
                other = self._stored.head
            if not self._alone:
                # Another delta has it under base's name; what post calls it restores post alone.
                source = self._source(name, entry)
                moved = self._table.get(source.name) if source is not None else None
                if source is not None and moved is not None and moved.post is None:
                    if entry.base_name == moved.name or entry.base == moved.base:
                        self._names.rename(name, source.name)
                    continue
            if other is not None and other not in self._table:
                self._names.rename(name, other)

    def _keeper(self, name: str, entry: TensorEntry) -> TensorEntry | None:
        """Of a tensor that only base stored, and post under another name: what is kept of it.

        None where the new base has no tensor of its own there: one that is a copy of what is kept
        goes, as post's did.
        """
        other = self._names.kept_as(name, entry)
        if other is None or not self._base.tensors.keys() >= {name, other}:
            return None
        known = _may_be_one(name, other)
        copy = self._copies.are_copies(name, other, may_be_plain=known)
        # Another delta may have it: beside one, no name of a tied set goes.
        return None if copy and self._alone else self._table[other]

    def _source(self, name: str, entry: TensorEntry) -> TensorInfo | None:
        """The new base's tensor that a tensor of the delta is added to."""
        own = self._base.tensors.get(name)
        if own is not None or entry.base is None or entry.post is None:
            return own
        if is_head(name) and not self._tied and self._stored.head is None:
            return None  # without a head of its own a model that ties nothing has none at all
        if entry.base_name is not None:
            source = self._delta.names.get(entry.base_name, entry.base_name)
            if source in self._base.tensors:
                return self._base.tensors[source]
        other = stand_in(name, self._stored, ties=self._tied)
        if other is not None and other in self._table:
            return self._base.tensors[other]
        twin = self._names.moved_to(name, entry)
        return None if twin is None else self._base.tensors[twin]

    def _shared(self, name: str) -> TensorEntry | None:
        """What the delta has for a tensor that it knows by another name of its tied set."""
        other = stand_in(name, self._based, ties=self._source_ties)
        if other is None and is_head(name):
            other = self._based.head
        if other is not None and not (is_head(name) and name != self._stored.head):
            entry = self._table[other]
            kept = self._names.kept_as(other, entry)
            return entry if kept is None else self._table[kept]
        other = self._like_placed.find(name)
        found = self._places[other].entry if other is not None else None
        return found if found is not None and found.base is not None else None

    def _match(self, name: str, entry: TensorEntry, info: TensorInfo | None) -> None:
        ref, report = self._delta.ref, self._report
        if entry.base is None:
            if info is not None and may_be_left_out(name, info.shape, self._config):
                return  # post's library saved what the new base's did: it stays its own
            if info is not None:
                problem = f"{ref} adds it, and the new base has it already"
                report.mismatched.append(Mismatch(name, problem))
            else:
                self._place(Place(entry, None), name)
            return
        wanted = f"{entry.base.dtype} {list(entry.base.shape)}"
        if info is None:
            # What post-training removed, such as a buffer that newer libraries no longer save, or
            # a head that post ties to its embeddings, is not there afterwards either way.
            dispensable = entry.kind == "unchanged" and may_be_left_out(
                name, entry.base.shape, self._config
            )
            if entry.kind != "removed" and not dispensable:
                report.missing.append(Mismatch(name, f"{ref} has it as {wanted}"))
            return
        floating = info.dtype in DELTA_DTYPES
        fits = floating == (entry.base.dtype in DELTA_DTYPES)
        rows = self._rows(name, entry, info) if fits else None
        rows_only = rows is not None or self._drops_rows(name, entry, info)
        if not fits or not (rows_only or info.shape == entry.base.shape):
            problem = f"expected {wanted} as in {ref}, got {info.dtype} {list(info.shape)}"
            report.mismatched.append(Mismatch(name, problem))
            return
        self._place(Place(entry, info, rows), name)

    def _place(self, place: Place, name: str) -> None:
        self._places[name] = place
        self._like_placed.add(name)

    def _drops_rows(self, name: str, entry: TensorEntry, info: TensorInfo) -> bool:
        """Whether post has no such tensor of tokens, so that it does not matter which they are."""
        words, base = self._delta.vocabulary, entry.base
        matched = words is not None and words.verdict == "matched" and has_token_rows(name)
        same = base is not None and info.shape[1:] == base.shape[1:]
        return matched and same and entry.kind == "removed"

    def _rows(self, name: str, entry: TensorEntry, info: TensorInfo) -> Rows | None:
        """Rows by token, where tokens were matched and this tensor has a row for each."""
        words = self._delta.vocabulary
        if words is None or words.verdict != "matched" or not has_token_rows(name):
            return None
        if entry.base is None or entry.post is None or not info.shape:
            return None
        if entry.kind not in ("unchanged", "delta", "resized"):
            return None
        if info.shape[1:] != entry.base.shape[1:]:
            return None
        common = min(entry.base.shape[0], entry.post.shape[0])
        return words.rows(info.shape[0], common, entry.post.shape[0])


def _may_be_one(name: str, other: str) -> bool:
    """Whether the names are two of a tied set."""
    return other == stand_in(name, [other], ties=True) or name == stand_in(other, [name], ties=True)


def _mismatch_error(
    base: Weights,
    deltas: Sequence[Delta],
    report: Report,
    config: Mapping[str, Any] | None,
) -> StructureMismatchError:
    refs = ", ".join(delta.ref for delta in deltas)
    return StructureMismatchError(
        f"{base.path} does not have the structure that {refs} was extracted from: "
        f"{report.summary}.",
        hint=_hint(base, deltas, report, config),
        missing=[(m.name, m.problem) for m in report.missing],
        extra=[(m.name, m.problem) for m in report.extra],
        mismatched=[(m.name, m.problem) for m in report.mismatched],
    )


def _hint(
    base: Weights,
    deltas: Sequence[Delta],
    report: Report,
    config: Mapping[str, Any] | None,
) -> str:
    """What helps; what is advised was tried."""
    if any(delta.config.restore_only for delta in deltas):
        return "What was stored for restoration only goes onto its own base, as `--base`, alone."
    if report.missing and report.extra:
        own = {entry.name: entry for delta in deltas for entry in delta.config.tensors}
        if any(delta.named(e) != e.name for delta in deltas for e in delta.config.tensors):
            if _fits(base, [replace(delta, names={}) for delta in deltas], config):
                return "The names are the new base's without `--map`: leave it out."
        else:
            rules = recognised([n for n, e in own.items() if e.base is not None], base.tensors)
            if rules and _fits(base, [_renamed(delta, rules) for delta in deltas], config):
                return f"The names differ by what they begin with: give `{as_options(rules)}`."
    if report.mismatched and all(has_tokens(m.name) for m in report.all):
        return "Only rows of tokens differ: give `--skip-embeddings` to leave them as they are."
    if all(report.places):
        return "Choose another base, or give `--partial` to apply what fits and list the rest."
    return "Choose another base: `deltastore resolve --base CKPT` says what fits."


def _renamed(delta: Delta, rules: Sequence[Rule]) -> Delta:
    try:
        return replace(delta, names=renamed([e.name for e in delta.config.tensors], rules))
    except UsageError:  # of several deltas, one that the rules do not fit
        return delta


def _fits(base: Weights, deltas: Sequence[Delta], config: Mapping[str, Any] | None) -> bool:
    """Whether every tensor finds its place."""
    report = Report()
    for delta in deltas:
        _Matching(base, delta, report, config, alone=len(deltas) == 1).run()
    return not report.all


def comparable(places: Mapping[str, Place]) -> dict[str, TensorInfo]:
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
