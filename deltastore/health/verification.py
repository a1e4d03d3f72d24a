"""The bytes that artifacts need, read again: what is missing, damaged, or not as it says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltastore.blobs import FileBlobs
from deltastore.errors import FormatError, IntegrityError, StoreClosedError
from deltastore.execution.progress import Progress
from deltastore.manifest import Config, Manifest, parse_config, parse_manifest
from deltastore.manifest import format as fmt
from deltastore.store import Store
from deltastore.store.survey import compare_summary
from deltastore.system.threads import Workers


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it must be. ``refs`` are the versions it affects.

    ``digest``: which blob it is about; None for what is closed to this user, and may be whole.
    """

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


class Verification:
    """One verification under way.

    Args:
        store: The store.
        owners: The refs by the digest of the manifest that they mean.
        problems: What is wrong so far; what is found is added.
    """

    def __init__(self, store: Store, owners: dict[str, list[str]], problems: list[Problem]) -> None:
        self.checked = 0
        self.bytes = 0
        self.named = set(owners)
        self._store = store
        self._owners = owners
        self._problems = problems
        self._manifests: dict[str, Manifest] = {}
        self._refs: dict[tuple[str, int], list[str]] = defaultdict(list)
        self._configs: dict[str, tuple[Manifest, Config]] = {}
        self._damaged: set[str] = set()
        self._closed = False

    def read_manifests(self) -> None:
        """The documents that say which blobs there have to be."""
        for digest, refs in self._owners.items():
            try:
                data = self._store.blobs.read(digest, limit=fmt.MAX_MANIFEST_BYTES, what="Manifest")
                manifest = parse_manifest(data, where=f"Manifest {digest}")
            except (FormatError, IntegrityError) as error:
                self._report_error(digest, error, refs)
                self._closed = self._closed or isinstance(error, StoreClosedError)
                continue
            self.checked += 1
            self.bytes += len(data)
            self._manifests[digest] = manifest
            for blob in manifest.blobs:
                self.named.add(blob.digest)
                known = self._refs[blob.digest, blob.size]
                known.extend(ref for ref in refs if ref not in known)

    def check_sizes(self) -> None:
        """Whether each blob is there with its size, without reading it."""
        for (digest, size), refs in self._refs.items():
            self.checked += 1
            try:
                found = self._store.blobs.size(digest)
            except StoreClosedError as error:
                self._report_error(digest, error, refs)
                continue
            if found is None:
                self._report(digest, f"Blob {digest} is not in the store.", refs)
            elif found != size:
                problem = f"Blob {digest} has {found} bytes; its manifest says {size}."
                self._report(digest, problem, refs)

    def orphans(self) -> list[str]:
        """The blobs that nothing names; none where a name is closed to this user."""
        if self._closed or self._store.closed_names():
            return []
        try:
            return sorted(set(self._store.blobs.digests()) - self.named)
        except StoreClosedError as error:
            where = Path(error.facts["path"]).relative_to(self._store.path)
            problem = f"{error.message} {error.hint}"
            self._problems.append(Problem(str(where), None, problem, ()))
            return []

    def compare_summaries(self) -> None:
        """Hold the catalog's rows of artifacts against manifests and configs."""
        for finding in compare_summary(self._store, self._configs):
            self._problems.append(
                Problem(finding.where, finding.digest, finding.problem, finding.refs)
            )

    def check_blobs(self, jobs: int, progress: Progress) -> None:
        """Compare every blob with its digest, by several threads."""
        progress.start("verify", sum(size for _, size in self._refs))
        executor = Workers(jobs, name="verify")
        try:
            checks = executor.map(lambda blob: self._check(blob[0], blob[1], progress), self._refs)
            for ((digest, size), refs), problem in zip(self._refs.items(), checks, strict=True):
                self.checked += 1
                if problem is None:
                    self.bytes += size
                else:
                    self._damaged.add(digest)
                    self._report_error(digest, problem, refs)
        finally:
            executor.shutdown(cancel_futures=True)

    def read_configs(self) -> None:
        """Parse each config that is not damaged already."""
        for digest, manifest in self._manifests.items():
            config = manifest.config.digest
            if config in self._damaged:
                continue
            try:
                data = self._store.blobs.read(config, limit=fmt.MAX_CONFIG_BYTES, what="Config")
                parsed = parse_config(data, manifest, where=f"Config {config}")
                self._configs[digest] = (manifest, parsed)
            except (FormatError, IntegrityError) as error:
                self._report_error(config, error, self._owners[digest])

    def _check(self, digest: str, size: int, progress: Progress) -> IntegrityError | None:
        try:
            self._store.blobs.check(digest, size, advance=progress.advance)
        except IntegrityError as error:
            return error
        return None

    def _report_error(
        self, digest: str, error: FormatError | IntegrityError, refs: Sequence[str]
    ) -> None:
        if not isinstance(error, StoreClosedError):
            self._report(digest, error.message, refs)
            return
        # It need not be damaged, so that it has no digest to be written anew, but a way to it.
        problem = f"{error.message} {error.hint}"
        self._problems.append(Problem(self._where(digest), None, problem, tuple(refs)))

    def _report(self, digest: str, problem: str, refs: Sequence[str]) -> None:
        self._problems.append(Problem(self._where(digest), digest, problem, tuple(refs)))

    def _where(self, digest: str) -> str:
        """A blob's path in the store; its digest where blobs are no files."""
        blobs = self._store.blobs
        if isinstance(blobs, FileBlobs):
            return str(blobs.path(digest).relative_to(self._store.path))
        return digest
