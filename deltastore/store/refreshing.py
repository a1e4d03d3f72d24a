"""Bringing an index up to date with the records, at the cost of a look at each file's state.

Records and tags are the truth, and anybody may bring them: deltastore on another machine, a tool
that copies a store over another. Every change of a file changes its times, and one that is made or
removed its directory's. So a name whose files look as they did when they were last read need not
be read again, with one exception: a file that was changed within the last tick of the file server's
clock could change once more and look the same. Its looks are proof only when it was already old by
that same clock when it was read.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from deltastore.blobs import BlobStore
from deltastore.catalog import Catalog, CatalogWriter
from deltastore.errors import CatalogError, NoSpaceError, StoreError
from deltastore.store import indexing
from deltastore.store.leases import Leases
from deltastore.store.names import Names
from deltastore.system import steps
from deltastore.system.steps import Step

GRAIN_NS = 2_000_000_000
"""FAT counts in two seconds, no file system in use is coarser."""

_NEVER = ""
_PATIENCE_S = 2.0
"""How long another process's lock on the index is waited for."""


@dataclass(frozen=True, slots=True)
class Indexed:
    """What an index of everything counted, and what it could not read."""

    artifacts: int
    versions: int
    tags: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sources:
    """What an index is made of.

    Attributes:
        names: The records and tags.
        blobs: The artifacts.
        leases: Knows the file server's time, which takes a file to find out.
        writable: Whether a file may be made in the store.
        on_network: Whether the store may be on another machine, with a clock of its own.
        remember: Whether the index keeps what has gone without a tombstone. An index in the store
            does, so that a record that was lost is missed, by ``gc`` above all; one of a user of
            many follows the files.
    """

    names: Names
    blobs: BlobStore
    leases: Leases
    writable: bool
    on_network: bool
    remember: bool

    def time_ns(self, names: list[str]) -> int:
        """The file server's time in nanoseconds, or one before it, without waiting.

        Args:
            names: Those that are to be read next.
        """
        if self.writable:
            with contextlib.suppress(StoreError):
                return int(self.leases.server_time() * 1e9)
        if not self.on_network:
            return time.time_ns()
        # The newest time seen has been on the file server's clock, unless somebody has set it:
        # then our own clock says that it has not come yet.
        looks = filter(None, map(self.names.look, names))
        return min(max((look.newest_ns for look in looks), default=0), time.time_ns())


def refresh(sources: Sources, index: Catalog) -> int:
    """Make the index agree with all records; in memory where its disk is full, or it is locked.

    Returns:
        How many names had to be read.

    Raises:
        StoreReadOnlyError: The index cannot be written.
        CatalogError: It failed.
    """
    changed, gone = _compare(sources.names, index.seen())
    if sources.remember:
        gone = []
    if changed or gone:
        _read(sources, index, changed, gone)
    return len(changed)


def refresh_name(sources: Sources, index: Catalog, name: str) -> None:
    """Make the index agree with the records of one name; in memory as ``refresh`` does.

    Raises:
        StoreReadOnlyError: The index cannot be written.
        CatalogError: It failed.
    """
    seen = index.seen(name).get(name)
    if seen is not None and seen[1] == sources.names.stamp(name, seen[0]):
        return
    if seen is None and sources.names.look(name) is None:
        return
    _read(sources, index, [name], [])


def index_all(sources: Sources, index: Catalog) -> Indexed:
    """Make the index anew from all records and manifests, within one transaction.

    Raises:
        StoreReadOnlyError: The index cannot be written.
        NoSpaceError: There is no space for it.
        CatalogError: It failed.
    """
    index.require_file()
    names = sources.names.all()
    at = sources.time_ns(names)
    problems: list[str] = []
    with index.writing() as writer:
        writer.forget_all()
        for name in names:
            problems += _follow(sources, writer, name, at)
        artifacts, versions, tags = writer.count()
        steps.reached(Step.REFILLED)
    return Indexed(artifacts, versions, tags, tuple(problems))


def _read(sources: Sources, index: Catalog, names: list[str], gone: list[str]) -> None:
    try:
        _read_into(sources, index, names, gone)
    except (NoSpaceError, CatalogError) as error:
        if not isinstance(error, NoSpaceError) and not error.facts.get("locked"):
            raise
        # In memory it is as right, and the next command sees what the file lacks. Who only reads
        # does not wait for one who makes the whole index anew.
        index.detach(error)
        _read_into(sources, index, names, gone)


def _read_into(sources: Sources, index: Catalog, names: list[str], gone: list[str]) -> None:
    at = sources.time_ns(names)
    # Read within the transaction: a process of the same user that changes a name meanwhile writes
    # its rows after us.
    with index.writing(wait_s=_PATIENCE_S) as writer:
        for name in gone:
            writer.forget(name)
        for name in names:
            _follow(sources, writer, name, at)


def _compare(names: Names, seen: dict[str, tuple[str, str]]) -> tuple[list[str], list[str]]:
    """The names that look otherwise than they did, and those that are no longer there."""
    found = names.entries()
    stamp = names.stamp
    changed = [
        name for name, (files, then) in seen.items() if name in found and stamp(name, files) != then
    ]
    unknown = found - seen.keys()
    changed += (name for name in names.valid(unknown) if names.look(name) is not None)
    return sorted(changed), sorted(seen.keys() - found)


def _follow(sources: Sources, writer: CatalogWriter, name: str, at: int) -> list[str]:
    look = sources.names.look(name)
    if look is None:
        if not sources.remember:
            writer.forget(name)
        return []
    problems = indexing.index_name(
        sources.names, sources.blobs, writer, name, remember=sources.remember
    )
    # What could not be read is looked at again: it may have been on its way.
    proof = not problems and look.newest_ns + GRAIN_NS < at
    writer.see(name, look.files, look.stamp if proof else _NEVER)
    return problems
