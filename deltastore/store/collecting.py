"""Collecting: deleting the blobs that no record refers to, beside running writers.

``docs/durability.md`` has the protocol and why it is safe. In short: a writer's lease is there
before it looks at a blob, the collector's before it looks for leases. So either the collector sees
the writer and deletes nothing, or the writer sees the collector and waits until it has deleted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from deltastore.blobs import BlobEntry, CollectableBlobs
from deltastore.errors import NoSpaceError, StoreError
from deltastore.store.leases import COLLECTOR, OVER_S, Lease
from deltastore.store.parts import Parts
from deltastore.store.references import References
from deltastore.store.refreshing import refresh_name
from deltastore.system import steps
from deltastore.system.directory import Directory
from deltastore.system.steps import Step

DRAIN_S = 2.0
"""How long a collector waits for running writers to end, keeping new ones waiting."""

_POLL_S = 0.02


@dataclass(slots=True)
class Amount:
    """Some blobs: how many, and their bytes."""

    blobs: int = 0
    bytes: int = 0

    def add(self, blob: BlobEntry) -> None:
        """One more."""
        self.blobs += 1
        self.bytes += blob.size


@dataclass(slots=True)
class Collection:
    """What was deleted and what was spared.

    Attributes:
        removed: Blobs that were deleted; under a dry run, that would be.
        referenced: Blobs that a record refers to.
        young: Blobs that nothing refers to, younger than the grace period.
        held: Blobs that nothing refers to, which a running writer may be about to use.
        holders: Those writers, for people.
        digests: Of the removed blobs.
        temp_files: Temporary files of processes that ended.
        temp_bytes: Their bytes.
        leases: Leases of processes that ended.
        foreign: Paths in the store's own directories that deltastore did not make; left alone.
    """

    removed: Amount = field(default_factory=Amount)
    referenced: Amount = field(default_factory=Amount)
    young: Amount = field(default_factory=Amount)
    held: Amount = field(default_factory=Amount)
    holders: tuple[str, ...] = ()
    digests: list[str] = field(default_factory=list)
    temp_files: int = 0
    temp_bytes: int = 0
    leases: int = 0
    foreign: tuple[str, ...] = ()


def collect(parts: Parts, *, grace_s: float, dry_run: bool) -> Collection:
    """See ``Store.collect``."""
    if not dry_run:
        parts.require_writable()
        parts.require_together(parts.layout.blobs)
    blobs = _collectable(parts)
    done = Collection(
        temp_files=parts.recovered.temp_files,
        temp_bytes=parts.recovered.temp_bytes,
        leases=parts.recovered.leases,
    )
    references = References()
    references.update(parts)
    # A reader can make no file to see the server's clock by; nothing is deleted by his own.
    age = _Age(parts.leases.server_time() if parts.writable else time.time(), grace_s)
    plan = _plan(parts, blobs, references, age, done)
    if dry_run:
        _preview(parts, plan, age, done)
        return done
    with parts.leases.bin() as waste:
        # Before the lease: whoever fences this process off by its lease must find the bin.
        steps.reached(Step.BIN)
        with parts.leases.hold(COLLECTOR):
            steps.reached(Step.GATE)
            _sweep(parts, age, done)
            steps.reached(Step.STALE)
            writers = _writers(parts)
            if writers:
                _hold_back(plan, writers, done)
            else:
                # Writers that came and went since the plan have left records.
                references.update(parts)
                _delete(parts, blobs, plan, references, age, waste, done)
        steps.reached(Step.OPENED)
    steps.reached(Step.EMPTIED)
    return done


def freeable(parts: Parts) -> Amount:
    """What a collection without a grace period would free now, if nobody holds it back.

    Raises:
        IntegrityError: As for ``collect``, which would then delete nothing.
        FormatError: Likewise.
    """
    references = References()
    references.update(parts)
    found = Amount()
    for blob in _collectable(parts).entries():
        if blob.digest not in references.blobs:
            found.add(blob)
    return found


@dataclass(frozen=True, slots=True)
class _Age:
    """The grace period; ``at`` is now on the file server's clock, both in seconds."""

    at: float
    grace_s: float

    def is_young(self, since: float) -> bool:
        """Whether something that is so since then must be spared; the future counts as young."""
        return self.grace_s > 0 and self.at - since < self.grace_s


def _collectable(parts: Parts) -> CollectableBlobs:
    """The store's blobs, if any can be deleted beside running writers."""
    if isinstance(parts.blobs, CollectableBlobs):
        return parts.blobs
    raise StoreError(
        f"The blobs of the store at {parts.layout.root} are kept where none can be moved out in "
        "one step; nothing was deleted.",
        hint="While nobody writes to the store, delete there what `deltastore verify --json` lists "
        "as orphans.",
        path=str(parts.layout.root),
    )


def _plan(
    parts: Parts, blobs: CollectableBlobs, references: References, age: _Age, done: Collection
) -> list[BlobEntry]:
    plan = []
    for blob in blobs.entries():
        if blob.digest in references.blobs:
            done.referenced.add(blob)
        elif age.is_young(max(blob.modified, references.removed.get(blob.digest, blob.modified))):
            done.young.add(blob)
        else:
            plan.append(blob)
    foreign = (*blobs.strangers(), *parts.leases.strangers())
    done.foreign = tuple(sorted(str(path.relative_to(parts.layout.root)) for path in foreign))
    return plan


def _writers(parts: Parts) -> list[Lease]:
    """The writers that are left after a short wait; those that begin now wait for us."""
    deadline = time.monotonic() + DRAIN_S
    while True:
        writers = [
            lease for lease in parts.leases.all_or_error() if lease.writes and not lease.dead
        ]
        if not writers or time.monotonic() > deadline:
            return writers
        time.sleep(_POLL_S)


def _preview(parts: Parts, plan: list[BlobEntry], age: _Age, done: Collection) -> None:
    # A reader may be kept out of the leases: nothing is deleted by what he does not see.
    leases = parts.leases.all_or_error() if parts.writable else parts.leases.all()
    done.leases += sum(lease.over(age.at) for lease in leases)
    temps = _temps(parts, age)
    done.temp_files += len(temps)
    writers = [lease for lease in leases if lease.writes and not lease.over(age.at)]
    if writers:
        _hold_back(plan, writers, done)
        return
    for blob in plan:
        done.removed.add(blob)
        done.digests.append(blob.digest)


def _sweep(parts: Parts, age: _Age, done: Collection) -> None:
    """Take leases and temporary files of processes that ended away; finish what they began."""
    at = parts.leases.server_time()
    for lease in parts.leases.all_or_error():
        if lease.over(at):
            if lease.name is not None:
                refresh_name(parts.sources, parts.catalog, lease.name)
            parts.leases.fence(lease)
            done.leases += 1
    done.leases += parts.claims.sweep(at)
    for temp in _temps(parts, age):
        freed = parts.leases.discard(temp)
        done.temp_bytes += freed or 0
        done.temp_files += freed is not None


def _temps(parts: Parts, age: _Age) -> list[Path]:
    # Without a lease, a process on another machine can be between its temporary file and its
    # lease; so even a grace period of nothing leaves it the time after which it counts as ended.
    old = parts.leases.old_temps(age.at, max(age.grace_s, OVER_S))
    return sorted({*parts.leases.stale_temps(), *old})


def _hold_back(plan: list[BlobEntry], writers: list[Lease], done: Collection) -> None:
    for blob in plan:
        done.held.add(blob)
    done.holders = tuple(lease.holder for lease in writers)


def _delete(
    parts: Parts,
    blobs: CollectableBlobs,
    plan: list[BlobEntry],
    references: References,
    age: _Age,
    waste: Directory,
    done: Collection,
) -> None:
    for position, blob in enumerate(plan):
        if blob.digest in references.blobs:
            done.referenced.add(blob)
            continue
        # Put again since the plan, by a writer that was stopped before it published.
        current = blobs.entry(blob.digest)
        if current is None:
            continue
        if age.is_young(current.modified):
            done.young.add(current)
            continue
        if _binned(blobs, blob.digest, waste):
            done.removed.add(current)
            done.digests.append(blob.digest)
            steps.reached(Step.BINNED)
        elif not parts.leases.has_bin(waste):
            # A writer waited too long and took the bin away: it may use what is left.
            for left in plan[position:]:
                done.held.add(left)
            done.holders = ("a writer that waited too long for this collection",)
            break
    if done.digests:
        blobs.sync()


def _binned(blobs: CollectableBlobs, digest: str, waste: Directory) -> bool:
    """Move a blob into the bin; see ``CollectableBlobs.move_out``."""
    try:
        return blobs.move_out(digest, waste)
    except NoSpaceError:
        # The bin itself would have to grow: what is in it goes at once, and gives room.
        waste.clear(folders=0)
        return blobs.move_out(digest, waste)
