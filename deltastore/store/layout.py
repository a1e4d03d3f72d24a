"""A store's directory: where everything lies, how it is made, how it is recognised.

::

    store.json                      format, store id
    blobs/sha256/<hex>              immutable
    names/<name>/v<N>.json          a version's record; its creation is the commit
    names/<name>/tags/<tag>.json    replaced atomically
    catalog.db                      the index, rebuildable
    local-index                     there if the index is not in the store
    tmp/  leases/                   of running processes
    spare/                          what is written over where the disk is full
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeGuard

from deltastore.blobs import durable
from deltastore.blobs.regular import read_regular
from deltastore.digest import canonical_json
from deltastore.errors import (
    ManifestInvalidError,
    NotAStoreError,
    StoreClosedError,
    StoreError,
    StoreNotFoundError,
    StoreTooNewError,
    shown,
)
from deltastore.manifest.parse import load_json
from deltastore.system import permission, places
from deltastore.system.directory import Place, share

STORE_FORMAT = 1
_MAX_STORE_JSON_BYTES = 64 << 10
_LOOKED_AT = 20_000
_MADE_ANEW = (
    "Restore it from a copy of the store, or have it made anew: `deltastore reindex`; all else is "
    "kept."
)


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of the store at ``root``."""

    root: Path

    @property
    def directories(self) -> tuple[Path, ...]:
        """All of the store's own; any but the first may be a link."""
        return (self.root, self.blobs.parent, self.blobs, self.names, self.temp, self.leases)

    @property
    def marker(self) -> Path:
        """What makes the directory a store."""
        return self.root / "store.json"

    @property
    def blobs(self) -> Path:
        """One file per blob."""
        return self.root / "blobs" / "sha256"

    @property
    def names(self) -> Path:
        """One directory per name."""
        return self.root / "names"

    @property
    def catalog(self) -> Path:
        """The index."""
        return self.root / "catalog.db"

    @property
    def local_index(self) -> Path:
        """Says that the index is not in the store."""
        return self.root / "local-index"

    @property
    def temp(self) -> Path:
        """Files that do not have their name yet."""
        return self.root / "tmp"

    @property
    def leases(self) -> Path:
        """What running processes are about to change."""
        return self.root / "leases"


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What ``store.json`` says."""

    format: int
    id: str
    created: str


def default_store_path() -> Path:
    """The store that is meant when none is named: ``DELTASTORE_HOME``, else the user's own.

    Raises:
        UsageError: There is no such place: the user has no home directory, for one.
    """
    if home := os.environ.get("DELTASTORE_HOME"):
        return places.given(home, called="DELTASTORE_HOME")
    return places.user_directory("data", instead="name a store in DELTASTORE_STORE or `--store`")


def now() -> str:
    """The time, as ISO 8601 in UTC to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def read_marker(layout: Layout) -> StoreInfo | None:
    """What the store's marker says; None where there is none.

    Raises:
        NotAStoreError: The marker is damaged.
        StoreTooNewError: A newer deltastore made the store.
        StoreClosedError: The user may not read it.
    """
    path = layout.marker
    try:
        data = read_regular(path, limit=_MAX_STORE_JSON_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL, errno.ENXIO):
            raise _damaged(path, error.strerror or str(error)) from error
        if error.errno == errno.ENAMETOOLONG:
            return None  # nothing can be there; making it says so
        if error.errno in (errno.EACCES, errno.EPERM):
            raise closed(layout, path) from error
        raise StoreError(
            f"{path} cannot be read: {error.strerror}.",
            hint="Run `deltastore doctor` for the state of the store.",
            path=str(path),
        ) from error
    try:
        fields = load_json(data, limit=_MAX_STORE_JSON_BYTES, where=str(path))
    except ManifestInvalidError as error:
        raise _damaged(path, error.message) from error
    if not isinstance(fields, dict):
        raise _damaged(path, "it is no JSON object")
    found, store_id, created = fields.get("format"), fields.get("id"), fields.get("created")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise _damaged(path, f"its format is {shown(found)}")
    if found > STORE_FORMAT:
        raise StoreTooNewError(
            f"The store at {layout.root} has format {shown(found)}; this deltastore knows "
            f"{STORE_FORMAT}.",
            hint="Upgrade deltastore: `pip install -U deltastore`.",
            found=found,
            expected=STORE_FORMAT,
        )
    if not _is_word(store_id) or not _is_word(created):
        raise _damaged(path, "it lacks its id or its date")
    return StoreInfo(format=found, id=store_id, created=created)


def _is_word(value: object) -> TypeGuard[str]:
    """Whether a value may be shown as it is."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 64


def create(layout: Layout) -> None:
    """Make a store in a new or empty directory. Several processes may do so at once.

    Raises:
        NotAStoreError: The directory holds something else, or is a file.
        StoreReadOnlyError: The user may not write there.
        NoSpaceError: The disk is full.
    """
    root = layout.root
    with durable.translated(root):
        try:
            root.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotAStoreError(
                f"{root} is a file, not a store's directory.",
                hint="Name another place with `--store` or DELTASTORE_HOME.",
            ) from error
        _refuse_foreign(layout)
        make_directories(layout)
        # The marker comes last and once: of processes that create the store together, one gives
        # it its id.
        try:
            with durable.write_temp(layout.temp, [_marker_bytes()]) as temp:
                share_with_all(layout, temp)
                temp.create(Place(root, own=0), layout.marker.name)
        except FileExistsError:
            return


def share_with_all(layout: Layout, temp: durable.Temp) -> None:
    """Have a file that is to lie in the store's directory belong to all users of the store."""
    with Place(layout.root, own=0).hold() as above:
        share(temp.descriptor, above)


def make_directories(layout: Layout) -> None:
    """Make the store's directories where they are missing.

    Raises:
        StoreError: One of them cannot be made, or is a link of somebody else's.
        NoSpaceError: The disk is full.
    """
    for place in _places(layout):
        with durable.translated(place.path):
            place.make().close()


def has_records(layout: Layout) -> bool:
    """Whether a directory has what only a store has, whatever its marker says."""
    # os.path, as Path's raises an error of what may not be looked at.
    return os.path.isdir(layout.names) and os.path.isdir(layout.blobs)  # noqa: PTH112


def restore_marker(layout: Layout) -> None:
    """Make a store's marker anew where it is missing or damaged; the store gets another id.

    Raises:
        StoreNotFoundError: There is no store.
        NotAStoreError: The marker is damaged, and there is nothing else of a store.
        StoreTooNewError: A newer deltastore made the store.
        StoreReadOnlyError: The user may not read or write it.
    """
    try:
        if read_marker(layout) is not None:
            return
    except NotAStoreError:
        if not has_records(layout):
            raise
    if not has_records(layout):
        raise not_found(layout.root)
    with (
        durable.translated(layout.marker),
        durable.write_temp(layout.temp, [_marker_bytes()]) as temp,
    ):
        share_with_all(layout, temp)
        temp.replace(Place(layout.root, own=0), layout.marker.name)


def _marker_bytes() -> bytes:
    return canonical_json({"format": STORE_FORMAT, "id": str(uuid.uuid4()), "created": now()})


def check_links(layout: Layout) -> None:
    """Refuse a store whose directories are links that another user has made, or no directories.

    Raises:
        StoreError: One of them is.
    """
    # os.path, as Path's raises an error of what may not be looked at.
    if not os.path.isdir(layout.root):  # noqa: PTH112
        return
    for place in _places(layout):
        with durable.translated(place.path, "read"):
            place.check()


def _places(layout: Layout) -> tuple[Place, ...]:
    return (Place(layout.blobs, own=2), *map(Place, (layout.names, layout.temp, layout.leases)))


def is_store(directory: Path) -> bool:
    """Whether a directory looks like a store, by what it has in it."""
    layout = Layout(directory)
    with contextlib.suppress(OSError):
        return layout.marker.is_file() and layout.names.is_dir() and layout.blobs.is_dir()
    return False


def require_readable(layout: Layout) -> None:
    """Refuse a store whose names this user may not list.

    Raises:
        StoreClosedError: He may not.
    """
    if not permission.is_readable(layout.names):
        raise closed(layout, layout.names)


def closed(layout: Layout, path: Path, name: str | None = None) -> StoreClosedError:
    """The error of what is closed to this user; its command opens all that a reader needs.

    Args:
        layout: The store's paths.
        path: What is closed.
        name: The name that is to be read; all of them if None.
    """
    if not permission.is_readable(layout.root):
        # What is in it cannot be seen, so that all of it has to be opened.
        return permission.closed(path, (layout.root, path))
    trees = []
    if not permission.is_readable(layout.marker):
        trees.append((layout.marker, layout.marker))
    if name is None and not permission.is_readable(layout.names):
        trees.append((layout.names, layout.names))
    # What is closed below `names` may be private; of the blobs nobody knows whose they are.
    for tree in (*([layout.names / name] if name else []), layout.blobs.parent):
        if (found := permission.first_closed(tree, most=_LOOKED_AT)) is not None:
            trees.append((tree, found))
    return permission.closed(path, *trees)


def not_found(root: Path) -> StoreNotFoundError:
    """There is no store at ``root``."""
    layout = Layout(root)
    if has_records(layout):
        return StoreNotFoundError(
            f"There is no store at {root}: {layout.marker.name} is missing.",
            hint=_MADE_ANEW,
            path=str(root),
        )
    return StoreNotFoundError(
        f"There is no store at {root}.",
        hint="`deltastore extract` makes one there; `--store` or DELTASTORE_HOME name another.",
        path=str(root),
    )


def _refuse_foreign(layout: Layout) -> None:
    """Refuse a directory in which there is anything that does not belong to a store.

    Our own entries without a marker are a store that another process is just making, or one whose
    maker was stopped.
    """
    own = {"blobs", "names", "tmp", "leases", "store.json", "catalog.db", "local-index", "spare"}
    foreign = sorted(entry.name for entry in layout.root.iterdir() if entry.name not in own)
    if foreign and not layout.marker.exists() and not has_records(layout):
        raise NotAStoreError(
            f"{layout.root} is not empty and is no store: it holds {', '.join(foreign[:3])}.",
            hint="Name an empty or new directory with `--store` or DELTASTORE_HOME.",
            path=str(layout.root),
        )


def _damaged(path: Path, why: str) -> NotAStoreError:
    ours = has_records(Layout(path.parent))
    return NotAStoreError(
        f"{path} is damaged: {why.removesuffix('.')}.",
        hint=_MADE_ANEW if ours else "Name another place with `--store` or DELTASTORE_HOME.",
        path=str(path),
    )
