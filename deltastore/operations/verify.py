"""``verify``: read every byte that artifacts need and say what is wrong. Never raises on damage."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from deltastore.errors import FormatError, IntegrityError
from deltastore.manifest import Manifest, parse_config, parse_manifest
from deltastore.manifest import format as fmt
from deltastore.operations.progress import Progress, Silent
from deltastore.store import Store
from deltastore.store.survey import Finding, compare_with_catalog, live_records


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it must be. ``refs`` are the versions it affects."""

    where: str
    digest: str | None
    problem: str
    refs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was read and what was found.

    ``checked`` counts blobs, each once, and ``bytes`` theirs. ``orphans`` are blobs that no
    artifact names: left by what was stopped or removed, not a problem.
    """

    checked: int
    bytes: int
    problems: tuple[Problem, ...]
    orphans: tuple[str, ...]


def verify(
    store: Store,
    refs: Sequence[str] = (),
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check the sha256 of every blob, the documents, and that records and catalog agree.

    Args:
        store: The store.
        refs: What to check; everything where it is empty.
        jobs: Threads; as many as there are processors where None.
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
        wanted = live_records(store, findings)
        findings += compare_with_catalog(store, wanted)
    owners: dict[str, list[str]] = defaultdict(list)
    for (name, version), digest in sorted(wanted.items()):
        owners[digest].append(f"{name}:v{version}")
    problems = [Problem(f.where, f.digest, f.problem, f.refs) for f in findings]

    work = _Work(store, owners, problems)
    work.read_manifests()
    work.check_blobs(jobs or os.cpu_count() or 1, progress)
    work.read_configs()
    orphans = [] if refs else sorted(set(store.blobs.digests()) - work.named)
    return VerifyReport(work.checked, work.bytes, tuple(problems), tuple(orphans))


class _Work:
    """One verification under way."""

    def __init__(self, store: Store, owners: dict[str, list[str]], problems: list[Problem]) -> None:
        self.checked = 0
        self.bytes = 0
        self.named = set(owners)
        self._store = store
        self._owners = owners
        self._problems = problems
        self._manifests: dict[str, Manifest] = {}
        self._refs: dict[tuple[str, int], list[str]] = defaultdict(list)
        self._damaged: set[str] = set()

    def read_manifests(self) -> None:
        for digest, refs in self._owners.items():
            try:
                data = self._store.blobs.read(digest, limit=fmt.MAX_MANIFEST_BYTES, what="Manifest")
                manifest = parse_manifest(data, where=f"Manifest {digest}")
            except (FormatError, IntegrityError) as error:
                self._report(digest, error.message, refs)
                continue
            self.checked += 1
            self.bytes += len(data)
            self._manifests[digest] = manifest
            for blob in manifest.blobs:
                self.named.add(blob.digest)
                known = self._refs[blob.digest, blob.size]
                known.extend(ref for ref in refs if ref not in known)

    def check_blobs(self, jobs: int, progress: Progress) -> None:
        progress.start("verify", sum(size for _, size in self._refs))
        executor = ThreadPoolExecutor(jobs, thread_name_prefix="verify")
        try:
            checks = executor.map(lambda blob: self._check(blob[0], blob[1], progress), self._refs)
            for ((digest, size), refs), problem in zip(self._refs.items(), checks, strict=True):
                self.checked += 1
                if problem is None:
                    self.bytes += size
                else:
                    self._damaged.add(digest)
                    self._report(digest, problem, refs)
        finally:
            executor.shutdown(cancel_futures=True)

    def read_configs(self) -> None:
        for digest, manifest in self._manifests.items():
            config = manifest.config.digest
            if config in self._damaged:
                continue
            try:
                data = self._store.blobs.read(config, limit=fmt.MAX_CONFIG_BYTES, what="Config")
                parse_config(data, manifest, where=f"Config {config}")
            except (FormatError, IntegrityError) as error:
                self._report(config, error.message, self._owners[digest])

    def _check(self, digest: str, size: int, progress: Progress) -> str | None:
        try:
            self._store.blobs.check(digest, size, advance=progress.advance)
        except IntegrityError as error:
            return error.message
        return None

    def _report(self, digest: str, problem: str, refs: Sequence[str]) -> None:
        where = self._store.blobs.path(digest).relative_to(self._store.path)
        self._problems.append(Problem(str(where), digest, problem, tuple(refs)))
