"""``verify``: read every byte that artifacts need and say what is wrong. Never raises on damage.

Other processes may publish, remove and collect meanwhile: what is wrong for the instant that they
need is looked at again, and what concerns a version that was removed meanwhile is no problem.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

from deltastore.execution.progress import Progress, Silent
from deltastore.execution.thread_pool import job_count
from deltastore.health.verification import Problem, Verification, VerifyReport
from deltastore.store import Store
from deltastore.store.survey import (
    Finding,
    check_tags,
    compare_with_catalog,
    is_removed,
    live_records,
)

_ATTEMPTS = 30
_PAUSE_S = 0.1


def verify(
    store: Store,
    refs: Sequence[str] = (),
    *,
    jobs: int | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check the sha256 of every blob, the documents, and that records and catalog agree.

    Args:
        store: The store.
        refs: What to check; everything where it is empty.
        quick: Look at the structure alone: records, tags, manifests, the catalog, and of other
            blobs whether they are there with their size.
        jobs: Threads; as ``job_count`` says.
        progress: Who watches.

    Raises:
        RefError: One of ``refs`` means no artifact.
        CatalogError: The catalog failed.
    """
    progress = progress or Silent()
    findings: list[Finding] = []
    if refs:
        wanted = {(a.name, a.version): a.digest for a in map(store.resolve, refs)}
    else:
        wanted = _survey(store, findings)
    owners: dict[str, list[str]] = defaultdict(list)
    for (name, version), digest in sorted(wanted.items()):
        owners[digest].append(f"{name}:v{version}")
    problems = [Problem(f.where, f.digest, f.problem, f.refs) for f in findings]

    work = Verification(store, owners, problems)
    work.read_manifests()
    if quick:
        work.check_sizes()
    else:
        work.check_blobs(job_count(jobs), progress)
        work.read_configs()
        if not refs:
            work.compare_summaries()
    orphans = [] if refs else work.orphans()
    kept = tuple(problem for problem in problems if not _is_over(store, problem.refs))
    return VerifyReport(work.checked, work.bytes, kept, tuple(orphans))


def _survey(store: Store, findings: list[Finding]) -> dict[tuple[str, int], str]:
    """All records, and what is wrong with them, the tags and the catalog."""
    records = _look(store, findings)
    for _ in range(_ATTEMPTS - 1):
        # A row follows its record, and a process at work says so by a lease. What another user
        # has changed since, our own index does not have.
        busy = bool(findings and store.parts.leases.all())
        if not findings or (not store.refresh() and not busy):
            break
        if busy:
            time.sleep(_PAUSE_S)
        found: list[Finding] = []
        records = _look(store, found)
        # What is wrong stays wrong; what was on its way is elsewhere by now.
        findings[:] = [finding for finding in found if finding in findings]
    return records


def _look(store: Store, findings: list[Finding]) -> dict[tuple[str, int], str]:
    records = live_records(store, findings)
    findings += check_tags(store)
    findings += compare_with_catalog(store, records)
    return records


def _is_over(store: Store, refs: Sequence[str]) -> bool:
    """Whether all versions that a problem concerns have been removed."""
    if not refs:
        return False
    for ref in refs:
        name, _, version = ref.partition(":v")
        if not version.isdecimal() or not is_removed(store, name, int(version)):
            return False
    return True
