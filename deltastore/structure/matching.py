"""One delta and a new base: a place for each tensor, or why it has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltastore.checkpoint import TensorInfo, Weights
from deltastore.lineage.copies import Copies
from deltastore.manifest import TensorEntry
from deltastore.manifest.format import DELTA_DTYPES
from deltastore.structure.places import Delta, Mismatch, Placement, Report
from deltastore.structure.twins import Table
from deltastore.tensor_names.computed import is_computed, may_be_left_out
from deltastore.tensor_names.token_rows import (
    StoredNames,
    embedding_of,
    has_token_rows,
    has_tokens,
    is_embedding,
    is_head,
    may_tie,
    stand_in,
)
from deltastore.tokenizer.rows import Rows


class Matching:
    """Fills a report with the places of one delta's tensors.

    Most tensors are in the delta and in the new base under one name. The others are of a *tied
    set*: one tensor that may go by several names, such as embeddings and head, of which each
    checkpoint stores one or another, or several. So there are three steps:

    1. Tensors of the delta are called by the name that the new base stores of their set.
    2. Each tensor of the delta is matched with the new base's tensor that it is added to.
    3. Each tensor of the new base that the delta does not name is matched with what the delta has
       for another name of its set. One that is in no set is unknown to the delta.

    Args:
        base: The new base.
        delta: The delta.
        report: Where to put what was found.
        config: The new base's ``config.json``, if known.
        alone: Whether this is the only delta that is applied.
    """

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
        self._alone = alone
        self._delta = delta
        self._report = report
        verdict = None if delta.vocabulary is None else delta.vocabulary.verdict
        self._by_token, self._skips = verdict == "matched", verdict == "skipped"
        # The delta's tensors by the new base's names.
        self._names = Table({delta.named(e): e for e in delta.config.tensors}, base.tensors)
        self._table = self._names.entries
        # What the new base stores of each tied set, and which of its tensors are copies.
        self._stored, self._tied = StoredNames(base.tensors), may_tie(config)
        self._copies = Copies(base)
        self._like_placed = self._copies.among(())
        self._places: dict[str, Placement] = {}

    def run(self) -> None:
        """Find the places."""
        self._report.places.append(self._places)
        self._take_other_names()
        self._match_delta()
        self._match_rest()
        self._tell_unsure()

    # --- step 1: names ------------------------------------------------------------------------

    def _take_other_names(self) -> None:
        """Call a tensor as the new base does that stores a tied set under another of its names."""
        for name, entry in list(self._table.items()):
            if name in self._base.tensors or entry.base is None or entry.post is None:
                continue
            if self._alone or not self._took_name_of_base(name, entry):
                self._take_stored_name(name)

    def _take_stored_name(self, name: str) -> None:
        other = stand_in(name, self._stored, ties=True)
        if is_head(name) and other is None:
            other = self._stored.head
        if other is not None and other not in self._table:
            self._names.rename(name, other)

    def _took_name_of_base(self, name: str, entry: TensorEntry) -> bool:
        """Whether post stores under this name what base stored under another.

        It gets that name then: another delta has it under base's, and post's restores post alone.
        """
        source = self._source(name, entry)
        moved = self._table.get(source.name) if source is not None else None
        if source is None or moved is None or moved.post is not None:
            return False
        if entry.base_name == moved.name or entry.base == moved.base:
            self._names.rename(name, source.name)
        return True

    # --- step 2: the delta's tensors ----------------------------------------------------------

    def _match_delta(self) -> None:
        # A class that the output is to be of has no tensors of another one's head, and all of its
        # own.
        moves = ("added", "removed") if self._delta.makes_another_class else ()
        for name, entry in self._table.items():
            if self._skips and has_tokens(name) and entry.kind not in moves:
                self._report.skipped.append(name)
            else:
                keeper = self._keeper(name, entry)
                self._match(name, keeper or entry, self._source(name, entry))

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
        """The new base's tensor that a tensor of the delta is added to.

        That of its name; else the one that the delta's base measured it from; else another name of
        its tied set; else one that was equal to it in every bit, in base and in post.
        """
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

    # --- step 3: the new base's other tensors -------------------------------------------------

    def _match_rest(self) -> None:
        # What base stored of each tied set: a delta for one name is a delta for all.
        based = {
            name: entry
            for name, entry in self._table.items()
            if entry.own_base is not None or (entry.base is not None and is_embedding(name))
        }
        stored, ties = StoredNames(based), may_tie(self._delta.source_config)
        for name, info in self._base.tensors.items():
            if name in self._table:
                continue
            shared = self._shared(name, stored, ties=ties)
            if shared is None:
                if not is_computed(name, info.shape, self._config):  # else the new base's own
                    problem = f"{self._delta.ref} knows nothing of it"
                    self._report.extra.append(Mismatch(name, problem))
            elif self._skips and has_tokens(name):
                self._report.skipped.append(name)
            else:
                self._match(name, shared, info)

    def _shared(self, name: str, stored: StoredNames, *, ties: bool) -> TensorEntry | None:
        """What the delta has for a tensor that it knows by another name of its tied set."""
        other = stand_in(name, stored, ties=ties)
        if other is None and is_head(name):
            other = stored.head
        if other is not None and not (is_head(name) and name != self._stored.head):
            entry = self._table[other]
            kept = self._names.kept_as(other, entry)
            return entry if kept is None else self._table[kept]
        other = self._like_placed.find(name)
        found = self._places[other].entry if other is not None else None
        return found if found is not None and found.base is not None else None

    # --- one tensor ---------------------------------------------------------------------------

    def _match(self, name: str, entry: TensorEntry, info: TensorInfo | None) -> None:
        """Place a tensor of the delta on one of the new base, or say why it cannot be."""
        if entry.base is None:
            self._match_added(name, entry, info)
        elif info is None:
            self._match_absent(name, entry)
        elif self._fits(name, entry, info):
            self._place(name, Placement(entry, info, self._rows(name, entry, info)))
        else:
            wanted = f"{entry.base.dtype} {list(entry.base.shape)} as in {self._delta.ref}"
            problem = f"expected {wanted}, got {info.dtype} {list(info.shape)}"
            self._report.mismatched.append(Mismatch(name, problem))

    def _match_added(self, name: str, entry: TensorEntry, info: TensorInfo | None) -> None:
        """A tensor that post alone has."""
        if info is None:
            self._place(name, Placement(entry, None))
        elif not may_be_left_out(name, info.shape, self._config):
            # Else post's library saved what the new base's did: it stays its own.
            problem = f"{self._delta.ref} adds it, and the new base has it already"
            self._report.mismatched.append(Mismatch(name, problem))

    def _match_absent(self, name: str, entry: TensorEntry) -> None:
        """A tensor that the new base has not."""
        assert entry.base is not None
        # What post-training removed, such as a buffer that newer libraries no longer save, or
        # a head that post ties to its embeddings, is not there afterwards either way.
        dispensable = entry.kind == "unchanged" and may_be_left_out(
            name, entry.base.shape, self._config
        )
        if entry.kind != "removed" and not dispensable:
            wanted = f"{entry.base.dtype} {list(entry.base.shape)}"
            self._report.missing.append(Mismatch(name, f"{self._delta.ref} has it as {wanted}"))

    def _fits(self, name: str, entry: TensorEntry, info: TensorInfo) -> bool:
        """Whether dtype and shape are such that one can be added to the other."""
        assert entry.base is not None
        if (info.dtype in DELTA_DTYPES) != (entry.base.dtype in DELTA_DTYPES):
            return False
        if info.shape == entry.base.shape or self._goes_by_token(name, entry, info):
            return True
        # Which tokens they are does not matter where post has no such tensor.
        dropped = self._by_token and has_token_rows(name) and entry.kind == "removed"
        return dropped and info.shape[1:] == entry.base.shape[1:]

    def _goes_by_token(self, name: str, entry: TensorEntry, info: TensorInfo) -> bool:
        """Whether this tensor has a row for each token, and tokens were matched."""
        return (
            self._by_token
            and has_token_rows(name)
            and entry.kind in ("unchanged", "delta", "resized")
            and entry.base is not None
            and entry.post is not None
            and bool(info.shape)
            and info.shape[1:] == entry.base.shape[1:]
        )

    def _rows(self, name: str, entry: TensorEntry, info: TensorInfo) -> Rows | None:
        """Rows by token, where they go by token."""
        if not self._goes_by_token(name, entry, info):
            return None
        assert self._delta.vocabulary is not None
        assert entry.base is not None
        assert entry.post is not None
        common = min(entry.base.shape[0], entry.post.shape[0])
        return self._delta.vocabulary.rows(info.shape[0], common, entry.post.shape[0])

    def _place(self, name: str, place: Placement) -> None:
        self._places[name] = place
        self._like_placed.add(name)

    def _tell_unsure(self) -> None:
        """Note tensors that may have a row for each token under a name that is not known."""
        embedding = embedding_of(self._table)
        if not self._by_token or embedding is None:
            return
        side = self._table[embedding].base
        tokens = side.shape[0] if side is not None and side.shape else None
        for name, place in self._places.items():
            shape = place.entry.base.shape if place.entry.base is not None else ()
            by_index = place.rows is None and place.entry.kind in ("delta", "resized")
            if by_index and tokens in shape:
                self._report.unsure.append(name)


def _may_be_one(name: str, other: str) -> bool:
    """Whether the names are two of a tied set."""
    return other == stand_in(name, [other], ties=True) or name == stand_in(other, [name], ties=True)
