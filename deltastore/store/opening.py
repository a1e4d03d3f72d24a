"""Opening a store: make it if need be, finish what the dead left, find the catalog."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

from deltastore.blobs import LocalBlobs, durable
from deltastore.catalog import Catalog, CatalogWriter
from deltastore.errors import NotAStoreError
from deltastore.store import indexing, layout
from deltastore.store.layout import Layout
from deltastore.store.leases import Leases
from deltastore.store.names import Names
from deltastore.store.parts import Parts, Recovered


def open_parts(path: Path, *, create: bool) -> Parts:
    """See ``open_store``."""
    place = Layout(path.expanduser().absolute())
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
    writable = os.access(place.root, os.W_OK | os.X_OK) and (
        not place.names.exists() or os.access(place.names, os.W_OK | os.X_OK)
    )
    blobs = LocalBlobs(place.blobs, place.temp)
    names = Names(place.names, place.temp)

    def fill(writer: CatalogWriter) -> None:
        indexing.index_all(names, blobs, writer)

    if writable:
        # A store that was copied without its empty directories.
        with durable.translated(place.names):
            place.names.mkdir(exist_ok=True)
        catalog = Catalog.at(place.catalog, read_only=False)
    elif place.catalog.exists() and place.catalog.stat().st_size:
        catalog = Catalog.at(place.catalog, read_only=True)
    else:
        # Nobody may write one here; the records are all that is needed.
        catalog = Catalog.in_memory()
    catalog.prepare(fill)
    parts = Parts(
        layout=place,
        info=info,
        blobs=blobs,
        names=names,
        leases=Leases(place.leases, place.temp),
        catalog=catalog,
        writable=writable,
    )
    if writable:
        return dataclasses.replace(parts, recovered=_recover(parts))
    return parts


def _recover(parts: Parts) -> Recovered:
    """Finish what a process that was stopped began, and remove what it left.

    Both directories are normally empty, so that looking costs almost nothing.
    """
    leases = 0
    for lease in parts.leases.all():
        if lease.name is not None:
            indexing.reconcile(parts.names, parts.blobs, parts.catalog, lease.name)
        if lease.dead:
            with contextlib.suppress(OSError):
                lease.path.unlink()
                leases += 1
    temps = parts.leases.stale_temps()
    return Recovered(leases, len(temps), sum(map(parts.leases.discard, temps)))
