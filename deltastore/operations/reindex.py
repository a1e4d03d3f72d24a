"""``reindex``: rebuild the catalog from records and manifests, all of it."""

from __future__ import annotations

from pathlib import Path

from deltastore.store.maintenance import rebuild_catalog
from deltastore.store.refreshing import Indexed

__all__ = ["Indexed", "reindex"]


def reindex(path: str | Path, *, index: str | None = None) -> Indexed:
    """Rebuild the catalog of the store at ``path``, even where it is damaged beyond opening.

    Args:
        path: The store.
        index: Where its index is; see ``open_store``.

    Raises:
        StoreError: There is no store, it cannot be written, or its catalog is locked or of
            another version.
    """
    return rebuild_catalog(path, index=index)
