"""Changing what a name means: the files are the truth, and the rows follow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deltastore.catalog import CatalogWriter
from deltastore.errors import DeltastoreError, NoSpaceError
from deltastore.store.parts import Parts
from deltastore.store.refreshing import refresh_name


@contextlib.contextmanager
def changing(parts: Parts, purpose: str, name: str) -> Iterator[Path]:
    """Hold a lease on a name; what fails half way is put in order before the lease ends.

    What a killed process leaves, the next command finds by the files, and so it does where they
    cannot be read here: this is for who goes on with the same store.
    """
    parts.require_together(parts.layout.names, parts.layout.names / name)
    with parts.leases.hold(purpose, name) as lease:
        try:
            yield lease
        except BaseException:
            with contextlib.suppress(DeltastoreError, OSError):
                refresh_name(parts.sources, parts.catalog, name)
            raise


@dataclass(slots=True)
class Rows:
    """The rows of a name while its files are changed; ``committed`` once they are."""

    writer: CatalogWriter
    committed: bool = False


@contextlib.contextmanager
def rows_of(parts: Parts, name: str) -> Iterator[Rows]:
    """Hold the catalog's write lock while a name's files are changed.

    Were two processes to set one tag at the same time, file and row could otherwise end up with
    different versions.

    Raises:
        NoSpaceError: There is no room, and nothing is committed. Afterwards the rows can wait.
    """
    rows = None
    try:
        with parts.catalog.writing() as writer:
            rows = Rows(writer)
            yield rows
    except NoSpaceError:
        if rows is None or not rows.committed:
            raise
        refresh_name(parts.sources, parts.catalog, name)
