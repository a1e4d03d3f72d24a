"""Bringing a local index up to date with the records, at the cost of a look at each directory.

A directory's times change with every file that is made, replaced or removed in it. So a name whose
directories look as they did when they were last read need not be read again, with one exception: a
directory that was changed within the last tick of the file server's clock could change once more
and look the same. It is proof only when it was already old by that same clock when it was read.
"""

from __future__ import annotations

import contextlib
import time

from deltastore.blobs import BlobStore
from deltastore.catalog import LocalIndex
from deltastore.errors import StoreError
from deltastore.store import indexing
from deltastore.store.leases import Leases
from deltastore.store.names import Names

GRAIN_NS = 2_000_000_000
"""FAT counts in two seconds, no file system in use is coarser."""


def refresh(
    names: Names, blobs: BlobStore, index: LocalIndex, leases: Leases, *, writable: bool
) -> int:
    """Make the index agree with all records.

    Args:
        names: The records and tags.
        blobs: The artifacts.
        index: What is brought up to date.
        leases: Knows the file server's time, which takes a file to find out.
        writable: Whether a file may be made.

    Returns:
        How many names had to be read.

    Raises:
        CatalogError: The index failed.
    """
    # Before anything is looked at: a later change has a later time than this.
    found = names.stamps()
    seen = index.seen()
    changed = [name for name, stamp in found.items() if seen.get(name) != stamp.text]
    gone = seen.keys() - found.keys()
    if not changed and not gone:
        return 0
    # The newest time seen has been on the file server's clock, unless somebody has set it: then
    # our own clock says that it has not come yet.
    newest = max((stamp.newest_ns for stamp in found.values()), default=0)
    at = min(newest, time.time_ns())
    if writable:
        with contextlib.suppress(StoreError):
            at = int(leases.server_time() * 1e9)
    # Read within the transaction: a process of the same user that changes a name meanwhile writes
    # its rows after us.
    with index.following() as writer:
        for name in sorted(gone):
            writer.forget(name)
        for name in changed:
            stamp = names.stamp(name)
            if stamp is None:
                writer.forget(name)
                continue
            sound = not indexing.index_name(names, blobs, writer, name)
            # What could not be read is looked at again: it may have been on its way.
            proof = sound and stamp.newest_ns + GRAIN_NS < at
            writer.see(name, stamp.text if proof else "")
    return len(changed)
