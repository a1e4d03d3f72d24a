"""Opening a store: make it if need be, finish what the dead left, find the catalog."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import replace
from pathlib import Path

from deltastore.blobs import BlobStore, LocalBlobs, spares
from deltastore.catalog import Catalog, DigestMemory, LocalIndex
from deltastore.errors import NoSpaceError, NotAStoreError, StoreError
from deltastore.store import layout, placing
from deltastore.store.claims import Claims
from deltastore.store.layout import Layout, StoreInfo
from deltastore.store.leases import Leases
from deltastore.store.names import Names
from deltastore.store.parts import Parts, Recovered
from deltastore.store.placing import IndexPlace
from deltastore.store.refreshing import Sources, refresh
from deltastore.system import places


def open_parts(path: Path, *, create: bool, index: str | None) -> Parts:
    """See ``open_store``."""
    place = Layout(places.absolute(path, called="the store"))
    layout.check_links(place)
    info = layout.read_marker(place)
    if info is None:
        if not create:
            raise layout.not_found(place.root)
        layout.create(place)
        info = layout.read_marker(place)
    if info is None:
        raise NotAStoreError(
            f"{place.root} stopped being a store while it was opened.", hint="Try again."
        )
    layout.require_readable(place)
    blobs = open_blobs(place)
    names = Names(place.names, place.temp)
    leases = Leases(place.leases, place.temp)
    closed = closed_to_writing(place)
    where = placing.place_index(place, info, index, writable=not closed)
    if not where.local and place.catalog.exists() and not os.access(place.catalog, os.W_OK):
        closed = (*closed, place.catalog)
    if not closed:
        # A store that was copied without its empty directories.
        with contextlib.suppress(NoSpaceError):
            layout.make_directories(place)
            if where.local:
                placing.mark_local(place)
        spares.fill(place.temp)
    sources = Sources(
        names, blobs, leases, not closed, on_network=where.on_network, remember=not where.local
    )
    catalog, where = _index(sources, place, info, where)
    sources = replace(sources, remember=not where.local)
    parts = Parts(
        layout=place,
        info=info,
        blobs=blobs,
        names=names,
        leases=leases,
        claims=Claims(place.leases, place.temp),
        catalog=catalog,
        sources=sources,
        digests=DigestMemory(placing.place_digests(index)),
        index=where,
        closed=closed,
    )
    if parts.writable:
        return replace(parts, recovered=_recover(parts))
    return parts


def open_blobs(place: Layout) -> BlobStore:
    """Where a store keeps its blobs; nothing else knows what kind of place that is."""
    return LocalBlobs(place.blobs, place.temp)


def closed_to_writing(place: Layout) -> tuple[Path, ...]:
    """The directories that a change needs and in which this user may make no file."""
    needed = (place.root, place.blobs, place.names, place.temp, place.leases)
    return tuple(
        path
        for path in needed
        if _may_be_directory(path, otherwise=path == place.names)
        and not os.access(path, os.W_OK | os.X_OK)
    )


def _may_be_directory(path: Path, *, otherwise: bool) -> bool:
    """Whether there is a directory, or what stands there is not to be seen by this user.

    A file in the place of a directory is not a matter of permission: ``otherwise``.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode) or otherwise
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EPERM) or otherwise


def _index(
    sources: Sources, place: Layout, info: StoreInfo, where: IndexPlace
) -> tuple[Catalog, IndexPlace]:
    """The index, brought up to date with the records, and where it is."""
    catalog: Catalog
    if not where.local and where.path is not None:
        if sources.writable:
            catalog = Catalog.at(where.path, read_only=False)
            try:
                catalog.prepare()
            except NoSpaceError as error:
                catalog.detach(error)
                catalog.prepare()
            refresh(sources, catalog)
            return catalog, where
        try:
            catalog = Catalog.read_from(where.path)
            refresh(sources, catalog)
            return catalog, where
        except StoreError as error:
            reason = f"the store cannot be written, and its catalog not be used: {error.message}"
            where = placing.index_outside(place, info, where, reason)
    sources = replace(sources, remember=False)
    if where.path is not None:
        try:
            catalog = LocalIndex.open(where.path, info.id)
            refresh(sources, catalog)
            return catalog, where
        except StoreError as error:
            # There is no room for it, or another process has it locked. All that is in it is in
            # the records: without it every command reads them all.
            where = replace(where, reason=f"in memory: {error.message}")
    catalog = LocalIndex.unshared(info.id)
    refresh(sources, catalog)
    return catalog, where


def _recover(parts: Parts) -> Recovered:
    """Finish what a process that was stopped began, and remove what it left.

    Both directories are normally empty, so that looking costs almost nothing.
    """
    leases = 0
    for lease in parts.leases.all():
        if lease.dead:
            with contextlib.suppress(OSError):
                parts.leases.drop(lease)
                leases += 1
    leases += parts.claims.sweep()
    discarded = [parts.leases.discard(temp) for temp in parts.leases.stale_temps()]
    freed = [size for size in discarded if size is not None]
    return Recovered(leases, len(freed), sum(freed))
