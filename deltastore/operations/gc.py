"""``gc``: delete the blobs that no version refers to, and what stopped processes left."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from deltastore.errors import UsageError
from deltastore.store import Store
from deltastore.store.collecting import Amount

DEFAULT_GRACE_S = 24 * 3600.0
"""An extraction that was interrupted today is run again today, and then uses what it had stored."""


@dataclass(frozen=True, slots=True)
class Spared:
    """Blobs that nothing refers to and that stay all the same, by reason.

    ``young``: stored, used again or removed within the grace period. ``held``: a running writer
    may be about to refer to them.
    """

    young: Amount
    held: Amount


@dataclass(frozen=True, slots=True)
class GcReport:
    """What was deleted; with ``dry_run``, what would be.

    Attributes:
        dry_run: Whether nothing was deleted.
        grace_s: The grace period in seconds.
        removed: How many blobs were deleted.
        freed_bytes: Their bytes and those of temporary files.
        digests: Which blobs.
        referenced: The blobs that versions refer to.
        spared: The others that stay.
        holders: The running writers for whose sake blobs are held.
        temp_files: Temporary files of processes that ended, which were deleted.
        leases: Leases of processes that ended, likewise.
        foreign: Files in the store's directories that deltastore did not make, and left alone.
        seconds: Wall time.
    """

    dry_run: bool
    grace_s: float
    removed: int
    freed_bytes: int
    digests: tuple[str, ...]
    referenced: Amount
    spared: Spared
    holders: tuple[str, ...]
    temp_files: int
    leases: int
    foreign: tuple[str, ...]
    seconds: float


def gc(store: Store, *, grace_s: float = DEFAULT_GRACE_S, dry_run: bool = False) -> GcReport:
    """Delete what nothing refers to. Safe beside any other command, on any machine.

    Args:
        store: The store.
        grace_s: What became unused less than so many seconds ago is spared.
        dry_run: Delete nothing. Opening the store has removed what stopped processes left, as
            it does for every command.

    Raises:
        UsageError: The grace period is no number of seconds.
        StoreReadOnlyError: The store cannot be written.
        IntegrityError: A record, a tombstone or a manifest is missing or damaged; nothing was
            deleted.
        FormatError: One of them breaks the format; nothing was deleted.
    """
    if not (math.isfinite(grace_s) and grace_s >= 0):
        raise UsageError(
            f"The grace period is {grace_s}; expected seconds, 0 or more.",
            hint="`deltastore gc --grace 0` takes everything that nothing refers to.",
        )
    started = time.monotonic()
    done = store.collect(grace_s=grace_s, dry_run=dry_run)
    return GcReport(
        dry_run=dry_run,
        grace_s=grace_s,
        removed=done.removed.blobs,
        freed_bytes=done.removed.bytes + done.temp_bytes,
        digests=tuple(sorted(done.digests)),
        referenced=done.referenced,
        spared=Spared(done.young, done.held),
        holders=done.holders,
        temp_files=done.temp_files,
        leases=done.leases,
        foreign=done.foreign,
        seconds=time.monotonic() - started,
    )
