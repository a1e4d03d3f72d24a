"""Changing what a name means, so that catalog and records agree however that ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from deltastore.errors import DeltastoreError
from deltastore.store.parts import Parts
from deltastore.store.refreshing import refresh_name


@contextlib.contextmanager
def changing(parts: Parts, purpose: str, name: str) -> Iterator[Path]:
    """Hold a lease on a name; what fails half way is put in order before the lease ends.

    What a killed process leaves, the next command finds by its lease. A process that meets an
    error removes its lease, so it has to do itself what the next command would; where it cannot,
    as the disk is full, say, the lease stays.
    """
    parts.require_together(parts.layout.names, parts.layout.names / name)
    with parts.leases.hold(purpose, name) as lease:
        try:
            yield lease
        except BaseException:
            try:
                refresh_name(parts.sources, parts.catalog, name)
            except (DeltastoreError, OSError):
                parts.leases.leave(lease)
            raise
