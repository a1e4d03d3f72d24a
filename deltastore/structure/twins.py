"""The tensors of a delta by the new base's names, and which of them are one under two names."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Mapping

from deltastore.manifest import TensorEntry
from deltastore.tensor_names.token_rows import TiedNames


class Table:
    """A delta's tensors by what the new base calls them.

    Tensors that are equal in every bit are found by what they are, not by going through all: a
    checkpoint may have a hundred thousand that the other side lacks.

    Args:
        entries: The tensors by name.
        base: The names of the new base's tensors.
    """

    def __init__(self, entries: Mapping[str, TensorEntry], base: Container[str]) -> None:
        self.entries = dict(entries)
        self._order: dict[str, int] | None = None
        self._groups = [
            # What base and post have as another tensor that the new base has.
            _Groups(lambda n, e: (e.own_base, e.post) if e.own_base and n in base else None),
            # What post stores, by the tensor of base that it was; and by that one's name.
            _Groups(lambda _, e: e.base if e.post else None),
            _Groups(lambda _, e: e.base_name if e.post else None),
        ]

    def rename(self, name: str, other: str) -> None:
        """Call a tensor otherwise; what has that name already is left out."""
        entry = self.entries[name]
        self._order = None
        for groups in self._groups:
            groups.remove(name, entry)
            if other in self.entries:
                groups.remove(other, self.entries[other])
            groups.add(other, entry)
        del self.entries[name]
        self.entries[other] = entry

    def moved_to(self, name: str, entry: TensorEntry) -> str | None:
        """Under which name of the new base another tensor is that base and post have as this."""
        group = self._groups[0].of((entry.base, entry.post), self.entries)
        return None if group is None else _first(name, entry, group)

    def kept_as(self, name: str, entry: TensorEntry) -> str | None:
        """Under which other name post stores a tensor that only base stored under this one."""
        if entry.kind != "removed":
            return None
        named = self._groups[2].of(entry.name, self.entries)
        alike = self._groups[1].of(entry.base, self.entries)
        found = (
            None if named is None else named.first(name),
            None if alike is None else _first(name, entry, alike),
        )
        there = [other for other in found if other is not None]
        return min(there, key=self._positions.__getitem__, default=None)

    @property
    def _positions(self) -> dict[str, int]:
        if self._order is None:
            self._order = {name: number for number, name in enumerate(self.entries)}
        return self._order


class _Groups:
    """Tensors of a table by what they have in common, which are put together when first asked for.

    Args:
        key: What is common to a group, from name and entry; None where a tensor is in none.
    """

    def __init__(self, key: Callable[[str, TensorEntry], Hashable | None]) -> None:
        self._key = key
        self._by_key: dict[Hashable, TiedNames] | None = None

    def of(self, key: Hashable, entries: Mapping[str, TensorEntry]) -> TiedNames | None:
        if self._by_key is None:
            self._by_key = {}
            for name, entry in entries.items():
                self.add(name, entry)
        return self._by_key.get(key)

    def add(self, name: str, entry: TensorEntry) -> None:
        key = self._key(name, entry)
        if self._by_key is not None and key is not None:
            self._by_key.setdefault(key, TiedNames()).add(name)

    def remove(self, name: str, entry: TensorEntry) -> None:
        key = self._key(name, entry)
        if self._by_key is not None and key is not None:
            self._by_key[key].remove(name)


def _first(name: str, entry: TensorEntry, group: TiedNames) -> str | None:
    """The first of some tensors, equal in every bit, that may be one with this."""
    matrix = entry.base is not None and len(entry.base.shape) > 1
    return group.first(name) if matrix else group.first_tied(name)
