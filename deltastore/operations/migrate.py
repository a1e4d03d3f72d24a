"""``migrate``: bring the catalog's schema to the one this version needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltastore.store.maintenance import migrate_catalog


@dataclass(frozen=True, slots=True)
class Migrated:
    """The schema's revision before and after; equal where there was nothing to do."""

    before: str | None
    after: str


def migrate(path: str | Path, *, index: str | None = None) -> Migrated:
    """Migrate the catalog of the store at ``path``, all or nothing.

    Args:
        path: The store.
        index: Where its index is; see ``open_store``.

    Raises:
        StoreError: There is no store, it cannot be written, or a newer deltastore wrote it.
    """
    before, after = migrate_catalog(path, index=index)
    return Migrated(before, after)
