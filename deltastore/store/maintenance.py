"""What is done to a store that cannot be opened as it is: migrate, rebuild the catalog."""

from __future__ import annotations

from pathlib import Path

from deltastore.blobs.durable import translated
from deltastore.catalog import HEAD, Catalog, lying
from deltastore.errors import CatalogError, StoreOutdatedError
from deltastore.store import layout
from deltastore.store.layout import Layout
from deltastore.store.opening import closed_to_writing
from deltastore.store.placing import IndexPlace, place_index
from deltastore.store.refreshing import Indexed
from deltastore.store.store import open_store
from deltastore.system import places, steps
from deltastore.system.steps import Step


def migrate_catalog(path: str | Path, *, index: str | None = None) -> tuple[str | None, str]:
    """Bring the catalog's schema to head, all or nothing; the revisions before and after.

    Raises:
        StoreNotFoundError: There is no store.
        StoreReadOnlyError: It cannot be written.
        StoreTooNewError: A newer deltastore wrote it.
        CatalogError: The catalog is damaged or locked.
    """
    place, where = _place(path, index)
    if closed_to_writing(place):
        with open_store(place.root, create=False, index=index) as store:
            if not where.local and store.parts.index.local:
                # The reader does without the catalog, which may be of another schema.
                store.require_writable()
            return HEAD, HEAD
    before = None
    if where.path is not None and not where.local and place.catalog.exists():
        catalog = Catalog.at(where.path, read_only=False)
        before = catalog.revision()
        if before is not None and before != HEAD:
            catalog.upgrade(written=lambda: steps.reached(Step.UPGRADED))
            steps.reached(Step.MIGRATED)
    # Makes the catalog where there is none, and finishes what was left half done.
    open_store(place.root, create=False, index=index).close()
    return before, HEAD


def rebuild_catalog(path: str | Path, *, index: str | None = None) -> Indexed:
    """Rebuild the catalog from records and manifests, however damaged it is.

    So is the store's marker, where it is damaged or missing and the rest of a store is there.

    Raises:
        StoreNotFoundError: There is no store.
        NotAStoreError: The marker is damaged, and there is nothing else of a store.
        StoreReadOnlyError: The catalog is in the store, and cannot be written there.
        StoreTooNewError: A newer deltastore wrote it.
        CatalogError: It is locked.
        StoreError: What lies in its place cannot be removed.
    """
    layout.restore_marker(Layout(Path(path).expanduser().absolute()))
    place, where = _place(path, index)
    try:
        with open_store(place.root, create=False, index=index) as store:
            store.require_index_writable()
            store.parts.catalog.check()
            return store.reindex()
    except StoreOutdatedError:
        pass  # nothing is in it that the records do not say
    except CatalogError as error:
        if not error.facts.get("damaged"):
            raise
    if where.path is not None:
        with translated(where.path):
            lying.discard_files(where.path)
    steps.reached(Step.DISCARDED)
    with open_store(place.root, create=False, index=index) as store:
        return store.reindex()


def _place(path: str | Path, index: str | None) -> tuple[Layout, IndexPlace]:
    place = Layout(places.absolute(path, called="the store"))
    layout.check_links(place)
    info = layout.read_marker(place)
    if info is None:
        raise layout.not_found(place.root)
    return place, place_index(place, info, index, writable=True)
