"""``doctor``: is this machine and is this store in order, and if not, what to type next."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import deltastore
from deltastore import places
from deltastore.errors import MAKE_ROOM, DeltastoreError, StoreNotFoundError, UsageError
from deltastore.operations.sharing import look_at_sharing
from deltastore.store import Store, open_store
from deltastore.store.filesystem import NETWORK_TYPES, file_system_type
from deltastore.store.mounts import all_apart, on_one
from deltastore.text import typed

PACKAGES = (
    "alembic",
    "blake3",
    "huggingface_hub",
    "ml_dtypes",
    "numba",
    "numpy",
    "safetensors",
    "sqlalchemy",
    "torch",
    "zstandard",
)
LOW_SPACE_BYTES = 10 << 30
CLOCK_TOLERANCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. ``next`` is what to do where it is not ``ok``; may be empty."""

    what: str
    status: Literal["ok", "warn", "fail"]
    found: str
    next: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks, in order. ``healthy``: none failed."""

    healthy: bool
    checks: tuple[Check, ...]


def doctor(path: str | Path, *, index: str | None = None) -> Diagnosis:
    """Look at the machine, the installation and the store at ``path``; changes no artifact.

    Opening the store finishes what a stopped process left half done, as every command does.

    Args:
        path: The store.
        index: Where its index is; see ``open_store``.

    Raises:
        UsageError: A variable or option names a place that cannot be.
    """
    checks = (*_installation(), *_store(places.absolute(path, called="the store"), index))
    return Diagnosis(all(check.status != "fail" for check in checks), checks)


def _installation() -> Iterator[Check]:
    yield Check("deltastore", "ok", deltastore.__version__)
    yield Check("python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield Check("system", "ok", f"{platform.platform()}, {platform.machine()}")
    yield Check("processors", "ok", f"{_processors()} usable of {os.cpu_count() or 1}")
    for package in PACKAGES:
        # Only the installation's list is read: importing torch takes longer than all the rest.
        try:
            yield Check(package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Check(
                package,
                "fail",
                "not installed",
                f"Run `pip install {package}` in this environment.",
            )
    yield Check("sqlite", "ok", sqlite3.sqlite_version)


def _store(path: Path, index: str | None) -> Iterator[Check]:
    yield Check("store", "ok", str(path))
    try:
        with open_store(path, create=False, index=index) as store:
            yield from _opened(store)
    except StoreNotFoundError as error:
        yield Check("store format", "warn", "there is no store yet", error.hint)
    except UsageError:
        raise  # of a variable: nothing is wrong with the store
    except DeltastoreError as error:
        yield Check("store format", "fail", error.message, error.hint)


def _opened(store: Store) -> Iterator[Check]:
    info = store.parts.info
    yield Check("store format", "ok", f"{info.format}, id {info.id}, made {info.created[:10]}")
    yield _writable(store)
    yield _catalog(store)
    yield _index(store)
    yield _file_system(store)
    yield from _mounts(store)
    yield _sharing(store)
    yield _space(store)
    yield from _clock(store)
    yield _leases(store)
    yield _temps(store)


def _writable(store: Store) -> Check:
    closed = [path for path in store.parts.closed if path != store.path]
    if store.writable:
        return Check("store access", "ok", "read and write")
    if store.path in store.parts.closed:
        return Check(
            "store access",
            "warn",
            "read only",
            "To extract into it, ask its owner for write permission.",
        )
    shown = ", ".join(str(place.relative_to(store.path)) for place in closed)
    return Check(
        "store access",
        "fail",
        f"the store can be written, but not {shown}",
        f"Have the owner run `chmod -R u+rwX,g+rwX {typed(store.path)}`, and set the umask to 002.",
    )


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
    if store.parts.catalog.detached:
        return Check("index", "warn", f"in memory: no space is left for {index.path}", MAKE_ROOM)
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


def _mounts(store: Store) -> Iterator[Check]:
    layout = store.parts.layout
    if found := all_apart(layout):
        shown = ", ".join(map(str, found[:3]))
        yield Check(
            "mounts",
            "fail",
            f"{shown}: on another file system or mount than {layout.temp}, so that nothing can be "
            "renamed into it; what is there can be read",
            on_one(layout),
        )


def _sharing(store: Store) -> Check:
    try:
        sharing = look_at_sharing(store)
    except (OSError, DeltastoreError) as error:
        return Check("sharing", "warn", str(error))
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


def _clock(store: Store) -> Iterator[Check]:
    if not store.writable:
        return
    try:
        ahead = store.parts.leases.server_time() - time.time()
    except DeltastoreError as error:
        yield Check("clock", "fail", error.message, error.hint)
        return
    if abs(ahead) < CLOCK_TOLERANCE_S:
        yield Check("clock", "ok", "this machine and the file system agree")
        return
    where = "ahead of" if ahead > 0 else "behind"
    yield Check(
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


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
