"""Where the index of a store lies: beside the records, or on this machine, one for each user.

A database is opened as it lies only where nobody else may write: what is in one, and beside one, is
obeyed by SQLite. And SQLite relies on locks that do not hold on every network file system, so that
two machines that write to one ``catalog.db`` there can damage it. So wherever somebody else may
write, or another machine, the records alone are shared, and each user has an index of them that can
be thrown away.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from deltastore.blobs import durable
from deltastore.catalog.lying import LONGEST_PATH_BYTES, files
from deltastore.catalog.ownership import other_mover, other_writer
from deltastore.errors import StoreError, UsageError
from deltastore.store import filesystem
from deltastore.store.layout import Layout, StoreInfo, share_with_all
from deltastore.system import places
from deltastore.system.directory import Place

VARIABLE = "DELTASTORE_INDEX"
_UNSET = (
    f'Unset {VARIABLE} and the key "index" of the config file: the index is then on this machine.'
)
_NOTE = b"Every user has an index of this store on his own machine; catalog.db is not used.\n"


@dataclass(frozen=True, slots=True)
class IndexPlace:
    """Where the index is.

    Attributes:
        path: Its file; None where it is in memory, as this user has no place for one.
        local: Whether it is not in the store.
        reason: Why it is there, for people.
        on_network: Whether the store may be on another machine's disk.
    """

    path: Path | None
    local: bool
    reason: str
    on_network: bool


def place_index(
    layout: Layout, info: StoreInfo, setting: str | None, *, writable: bool
) -> IndexPlace:
    """Decide where the index of a store lies.

    Args:
        layout: The store's paths.
        info: The store's id.
        setting: ``store``, ``local``, or a directory for indexes; None to ask the environment, and
            if that says nothing, the file system.
        writable: Whether the user may change the store.

    Raises:
        UsageError: The setting is none of these, or names no place that there can be.
        StoreError: It asks for an index in a store where there can be none.
    """
    kind = filesystem.file_system_type(layout.root)
    path, local, reason = _place(layout, info, setting, kind, writable=writable)
    on_network = kind is None or kind in filesystem.NETWORK_TYPES
    return IndexPlace(path, local=local, reason=reason, on_network=on_network)


def _place(
    layout: Layout, info: StoreInfo, setting: str | None, kind: str | None, *, writable: bool
) -> tuple[Path | None, bool, str]:
    """The index's file, whether it is not in the store, and why."""
    setting = setting or os.environ.get(VARIABLE) or None
    catalog = Path(os.path.realpath(layout.root)) / layout.catalog.name
    network = kind in filesystem.NETWORK_TYPES
    if setting == "store":
        if network:
            raise StoreError(
                f"The index of the store at {layout.root} cannot lie in it: that is on {kind}, a "
                "network file system, where SQLite's locks need not hold.",
                hint=_UNSET,
                path=str(layout.root),
            )
        if reason := _not_alone(layout, catalog):
            raise StoreError(
                f"The index of the store at {layout.root} cannot lie in it: {reason}; a database "
                "is not opened where anybody but the user may write.",
                hint=_UNSET,
                path=str(layout.root),
            )
        if reason := _too_long(catalog):
            raise StoreError(
                f"The index of the store at {layout.root} cannot lie in it: {reason}.",
                hint=_UNSET,
                path=str(layout.root),
            )
        if layout.local_index.exists():
            raise StoreError(
                f"The index of the store at {layout.root} cannot lie in it: {layout.local_index} "
                "says that its users have indexes of their own.",
                hint=f"Unset {VARIABLE}; or, if no other machine uses the store, delete that file "
                "and run `deltastore reindex`.",
                path=str(layout.root),
            )
        return catalog, False, "as asked for"
    if setting is not None:
        path = _local_path(layout, info, _asked_for(setting))
        return path, True, "as asked for"
    if network:
        return _implied(layout, info, f"the store is on {kind}, a network file system")
    if reason := _not_alone(layout, catalog):
        return _implied(layout, info, reason)
    if reason := _too_long(catalog):
        return _implied(layout, info, reason)
    if layout.local_index.exists():
        reason = f"{layout.local_index.name} in the store asks for it"
        return _implied(layout, info, reason)
    if not writable and not (layout.catalog.exists() and layout.catalog.stat().st_size):
        return _implied(layout, info, "the store has no catalog and cannot be written")
    return catalog, False, "in the store"


def index_outside(layout: Layout, info: StoreInfo, place: IndexPlace, reason: str) -> IndexPlace:
    """The user's own place for the index of a store, instead of another.

    Args:
        layout: The store's paths.
        info: The store's id.
        place: What it takes the place of.
        reason: Why, for people.
    """
    path, local, reason = _implied(layout, info, reason)
    return replace(place, path=path, local=local, reason=reason)


def place_digests(setting: str | None) -> Path | None:
    """Where this user's deltastore remembers what it computed, for all stores; None for nowhere.

    Args:
        setting: As for ``place_index``; where it is a directory, it lies there.

    Raises:
        UsageError: There is no such directory.
    """
    setting = setting or os.environ.get(VARIABLE) or "local"
    if os.sep in setting:
        return _given(setting) / "digests.db"
    try:
        return _cache() / "digests.db"
    except UsageError:
        return None  # a user without a home directory


def _implied(layout: Layout, info: StoreInfo, reason: str) -> tuple[Path | None, bool, str]:
    """The place of an index that is on this machine although nobody asked for that.

    One who has no home directory reads the store all the same.
    """
    try:
        path = _local_path(layout, info, _cache() / "indexes")
    except UsageError as error:
        return None, True, f"in memory: {error.message}"
    return path, True, reason


def mark_local(layout: Layout) -> None:
    """Have all users of the store use indexes of their own, on machines that see a disk as well.

    A ``catalog.db`` would not follow what the others publish.

    Raises:
        StoreReadOnlyError: The user may not write.
        NoSpaceError: The disk is full.
    """
    if layout.local_index.exists():
        return
    with durable.translated(layout.local_index):
        try:
            with durable.write_temp(layout.temp, [_NOTE]) as temp:
                share_with_all(layout, temp)
                temp.create(Place(layout.root, own=0), layout.local_index.name)
        except FileExistsError:
            return


def _too_long(catalog: Path) -> str:
    """Why SQLite cannot open a file of this name, as a sentence's end; empty if it can."""
    size = len(os.fsencode(catalog))
    if size <= LONGEST_PATH_BYTES:
        return ""
    return f"its path has {size} bytes, and SQLite opens at most {LONGEST_PATH_BYTES}"


def _asked_for(setting: str) -> Path:
    """The directory of indexes that a setting means."""
    if os.sep in setting:
        return _given(setting)
    if setting != "local":
        raise UsageError(
            "The index of a store can be 'store', 'local' or a directory; it was given as "
            f"{setting!r}.",
            hint=f'Correct {VARIABLE} or the key "index" of the config file; a directory\'s path '
            f"has a {os.sep!r}.",
        )
    try:
        return _cache() / "indexes"
    except UsageError as error:
        raise UsageError(
            f"{_called(setting)} is 'local'. {error.message}", hint=error.hint
        ) from error


def _given(setting: str) -> Path:
    return places.absolute(setting, called=_called(setting))


def _called(setting: str) -> str:
    return VARIABLE if setting == os.environ.get(VARIABLE) else "The store's index"


def _cache() -> Path:
    return places.user_directory("cache", instead=f"name a directory in {VARIABLE}")


def _local_path(layout: Layout, info: StoreInfo, directory: Path) -> Path:
    """The index of a store in a directory of indexes."""
    # The place counts as well: a copy of a store has its id, and other records.
    key = hashlib.sha256(f"{info.id}\n{layout.root.resolve()}".encode(errors="surrogateescape"))
    return directory / f"{key.hexdigest()[:32]}.db"


def _not_alone(layout: Layout, catalog: Path) -> str:
    """Who else may write to the store, as a sentence's end; empty if nobody."""
    for path in (*files(catalog), layout.marker):
        if reason := other_writer(path, follow=False):
            return reason
    # Links of the user's in place of these are followed.
    for path in (layout.root, layout.names, layout.blobs.parent, layout.blobs):
        if reason := other_writer(path):
            return reason
    return other_mover(catalog)
