"""What is looked at in a store that could be opened."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator

from deltastore.errors import DeltastoreError, StoreClosedError
from deltastore.health.check import Check
from deltastore.store import Store
from deltastore.store.filesystem import NETWORK_TYPES, file_system_type
from deltastore.store.layout import closed
from deltastore.store.mounts import all_apart, on_one
from deltastore.store.sharing import look_at_sharing
from deltastore.system.permission import (
    closest,
    described,
    first_closed,
    is_mounted_read_only,
    is_readable,
    writing,
)
from deltastore.text import typed

_FILES_LOOKED_AT = 20_000
LOW_SPACE_BYTES = 10 << 30
CLOCK_TOLERANCE_S = 5.0


def look_at_store(store: Store) -> Iterator[Check]:
    """All looks, in order; what one of them meets does not keep the others from being taken."""
    info = store.parts.info
    yield Check("store format", "ok", f"{info.format}, id {info.id}, made {info.created[:10]}")
    for what, look in _LOOKS.items():
        try:
            found = look(store)
        except DeltastoreError as error:
            yield Check(what, "fail", error.message, error.hint)
        except OSError as error:
            # Whatever the system refuses one look, the others are of use.
            yield Check(what, "warn", f"it cannot be looked at: {error}")
        else:
            yield from () if found is None else (found,)


def _writable(store: Store) -> Check:
    if store.writable:
        return Check("store access", "ok", "read and write")
    if is_mounted_read_only(store.path):
        return Check(
            "store access",
            "warn",
            "read only: its file system is mounted so",
            "To extract, have root mount it for writing, or use `--store` with another store.",
        )
    barred = store.parts.closed
    advice = writing(store.path, barred)
    if store.path in barred:
        found = f"read only: {described(store.path, named=False)}"
        return Check("store access", "warn", found, f"To extract into it: {advice}.")
    shown = ", ".join(str(place.relative_to(store.path)) for place in barred)
    found = f"the store can be written, but not {shown}: {described(closest(barred[0]))}"
    return Check("store access", "fail", found, f"{advice}.")


def _readable(store: Store) -> Check:
    """Whether there is anything that others have closed to this user."""
    layout = store.parts.layout
    for path in (layout.blobs.parent, layout.blobs):
        if not is_readable(path):
            error = closed(layout, path)
            return Check("reading", "fail", error.message, error.hint)
    if names := store.closed_names():
        _, error = names[0]
        more = f" ({len(names) - 1} more)" if len(names) > 1 else ""
        return Check("reading", "warn", f"{error.message}{more}", error.hint)
    blob = first_closed(layout.blobs, most=_FILES_LOOKED_AT)
    if blob is not None:
        error = closed(layout, blob)
        return Check("reading", "warn", error.message, error.hint)
    return Check("reading", "ok", "nothing is closed to this user")


def _catalog(store: Store) -> Check:
    catalog = store.parts.catalog
    try:
        catalog.check()
        found = f"schema {catalog.revision()}, {catalog.journal_mode()} journal"
    except DeltastoreError as error:
        return Check("catalog", "fail", error.message, error.hint)
    return Check("catalog", "ok", found)


def _index(store: Store) -> Check:
    index, layout = store.parts.index, store.parts.layout
    if (error := store.parts.catalog.detached) is not None:
        return Check("index", "warn", f"in memory: {error.message}", error.hint)
    if not index.local:
        return Check("index", "ok", "catalog.db in the store")
    if index.reason.startswith("in memory"):
        return Check(
            "index",
            "warn",
            index.reason,
            "Every command reads all records; name a directory of yours, in which nobody else may "
            "write, in DELTASTORE_INDEX, or take that permission away with `chmod go-w`.",
        )
    if os.path.lexists(layout.catalog):
        found = f"{index.path}: {index.reason}; catalog.db in the store is not used"
        # One that an older deltastore made has paths of local files in it.
        delete = f"Delete it: `rm {typed(layout.catalog)}`." if store.writable else ""
        return Check("index", "ok", found, delete)
    return Check("index", "ok", f"{index.path}: {index.reason}")


def _file_system(store: Store) -> Check:
    kind = file_system_type(store.path)
    if kind not in NETWORK_TYPES:
        return Check("file system", "ok", kind or "unknown")
    found = f"{kind}, a network file system"
    if store.parts.index.local:
        return Check("file system", "ok", found)
    return Check(
        "file system",
        "warn",
        found,
        "Locks may not hold there; let one machine at a time write to this store.",
    )


def _mounts(store: Store) -> Check | None:
    layout = store.parts.layout
    if not (found := all_apart(layout)):
        return None
    shown = ", ".join(map(str, found[:3]))
    return Check(
        "mounts",
        "fail",
        f"{shown}: on another file system or mount than {layout.temp}, so that nothing can be "
        "renamed into it; what is there can be read",
        on_one(layout),
    )


def _sharing(store: Store) -> Check:
    try:
        sharing = look_at_sharing(store)
    except StoreClosedError as error:
        return Check("sharing", "warn", error.message, error.hint)
    return Check("sharing", "warn" if sharing.next else "ok", sharing.found, sharing.next)


def _space(store: Store) -> Check:
    free = store.free_bytes()
    found = f"{free / 1e9:.1f} GB free of {shutil.disk_usage(store.path).total / 1e9:.1f} GB"
    if free < LOW_SPACE_BYTES:
        return Check("free space", "warn", found, _freeable(store))
    return Check("free space", "ok", found)


def _freeable(store: Store) -> str:
    usage = "`deltastore du` shows what the store's space is used for."
    with contextlib.suppress(DeltastoreError):
        free = store.freeable()
        if free.blobs and store.writable:
            amount = (
                f"{free.bytes / 1e9:.1f} GB" if free.bytes >= 1e9 else f"{free.bytes / 1e6:.1f} MB"
            )
            return f"`deltastore gc --grace 0` frees {amount}; {usage}"
    return usage


def _clock(store: Store) -> Check | None:
    if not store.writable:
        return None
    ahead = store.parts.leases.server_time() - time.time()
    if abs(ahead) < CLOCK_TOLERANCE_S:
        return Check("clock", "ok", "this machine and the file system agree")
    where = "ahead of" if ahead > 0 else "behind"
    return Check(
        "clock",
        "warn",
        f"the file system is {abs(ahead):.0f} s {where} this machine",
        "Set the clocks, by NTP for example: versions are listed by them, and ages count by the "
        "file system's.",
    )


def _leases(store: Store) -> Check:
    # Those of processes on this machine that ended were removed when the store was opened.
    leases = store.parts.leases.all()
    if not leases:
        return Check("leases", "ok", "none")
    shown = "; ".join(
        f"{lease.purpose} by process {lease.pid} on {lease.host} since {lease.created}"
        for lease in leases[:3]
    )
    stale = [lease for lease in leases if lease.dead]
    if stale:
        return Check(
            "leases",
            "warn",
            f"{len(stale)} of processes that ended: {shown}",
            "Run any command as a user who can write to the store.",
        )
    with contextlib.suppress(DeltastoreError):
        at = store.parts.leases.server_time()
        silent = [lease for lease in leases if lease.over(at)]
        if silent:
            return Check(
                "leases",
                "warn",
                f"{len(silent)} without a sign of life for an hour: {shown}",
                "Run `deltastore gc`, which takes them away.",
            )
    return Check("leases", "ok", f"{len(leases)}: {shown}")


def _temps(store: Store) -> Check:
    count = 0
    with contextlib.suppress(OSError):
        count = sum(1 for _ in store.parts.layout.temp.iterdir())
    foreign = store.parts.leases.strangers()
    if foreign:
        return Check(
            "temporary files",
            "warn",
            f"{len(foreign)} things in tmp/ and leases/ were not made by deltastore",
            f"They do no harm; look at them, then remove them: `ls -ld {typed(foreign[0])}`.",
        )
    stale = len(store.parts.leases.stale_temps())
    if stale:
        return Check(
            "temporary files",
            "warn",
            f"{count}, {stale} of processes that ended",
            "Run any command as a user who can write to the store.",
        )
    return Check("temporary files", "ok", str(count) if count else "none")


_LOOKS: dict[str, Callable[[Store], Check | None]] = {
    "store access": _writable,
    "reading": _readable,
    "catalog": _catalog,
    "index": _index,
    "file system": _file_system,
    "mounts": _mounts,
    "sharing": _sharing,
    "free space": _space,
    "clock": _clock,
    "leases": _leases,
    "temporary files": _temps,
}
