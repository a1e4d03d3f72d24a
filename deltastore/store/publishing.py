"""Publishing: how an artifact gets its name and version.

The order of the steps is the transaction; ``system.steps`` lists them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltastore._version import __version__
from deltastore.catalog import Record
from deltastore.errors import (
    BlobCorruptError,
    BlobMissingError,
    FormatError,
    IntegrityError,
    NoSpaceError,
    RefError,
    StoreError,
)
from deltastore.manifest import Config, Manifest, config_bytes, manifest_bytes
from deltastore.refs import validate_name, validate_tag
from deltastore.store import indexing, tagging
from deltastore.store.changing import changing
from deltastore.store.layout import now
from deltastore.store.parts import Parts, whoami
from deltastore.store.records import printable
from deltastore.store.refreshing import refresh_name
from deltastore.system import steps
from deltastore.system.steps import Step


@dataclass(frozen=True, slots=True)
class Published:
    """A version of a name. ``reused``: the name had this artifact before, nothing was added."""

    name: str
    version: int
    digest: str
    stored_bytes: int
    reused: bool

    @property
    def ref(self) -> str:
        """The ref that means just this version."""
        return f"{self.name}:v{self.version}"


def publish(
    parts: Parts,
    manifest: Manifest,
    config: Config,
    *,
    name: str,
    base_label: str,
    post_label: str,
    tags: Sequence[str],
) -> Published:
    """See ``Store.publish``."""
    parts.require_writable()
    validate_name(name)
    for tag in tags:
        validate_tag(tag)
        tagging.refuse_other_case(parts, name, tag)
    _refuse_other_case(parts, name)
    with changing(parts, "publish", name) as lease:
        steps.reached(Step.LEASE)
        config_data = config_bytes(config)
        parts.blobs.put([config_data], digest=manifest.config.digest)
        _check_blobs(parts, manifest)
        steps.reached(Step.BLOBS)
        manifest_data = manifest_bytes(manifest)
        digest = parts.blobs.put([manifest_data]).digest
        steps.reached(Step.MANIFEST)

        def check() -> None:
            # The last look before the commit. A collector that did not see the lease was done, or
            # took the lease and the record's temporary file away, before it deleted anything.
            _check_lease(lease)
            _check_blobs(parts, manifest)
            _require(parts, digest, len(manifest_data))
            steps.reached(Step.CLAIM)

        summary = indexing.summarise(digest, manifest, config, len(manifest_data))
        while True:
            record, reused = _commit(parts, name, digest, base_label, post_label, check)
            steps.reached(Step.RECORD)
            try:
                with parts.catalog.writing() as writer:
                    # Whoever removes a version holds this lock while it does.
                    if listed := _is_live(parts, record):
                        writer.put_version(record, summary)
            except NoSpaceError:
                refresh_name(parts.sources, parts.catalog, name)
                listed = _is_live(parts, record)
            # The one that was there is being removed: this artifact gets a version of its own.
            if listed or not reused:
                break
        steps.reached(Step.ROW)
        for tag in tags if listed else ():
            tagging.set_tag(parts, name, tag, record.version)
        steps.reached(Step.TAGS)
    return Published(name, record.version, digest, summary.stored_bytes, reused)


def _commit(
    parts: Parts,
    name: str,
    digest: str,
    base_label: str,
    post_label: str,
    check: Callable[[], None],
) -> tuple[Record, bool]:
    """The name's record of this artifact, and whether it was there before."""
    taken: set[int] = set()
    while True:
        # A network file system may show its clients a directory as it was a while ago.
        used = sorted({*parts.names.versions(name), *taken})
        for version in reversed(used):
            try:
                known = parts.names.read(name, version)
            except (FormatError, IntegrityError):
                # Damaged, or just being written by another process: the number is taken.
                continue
            if isinstance(known, Record) and known.digest == digest:
                return known, True
        record = Record(
            name=name,
            version=max(used, default=0) + 1,
            digest=digest,
            created=now(),
            created_by=printable(whoami()),
            tool=f"deltastore {__version__}",
            base_label=printable(base_label),
            post_label=printable(post_label),
        )
        try:
            parts.names.create(record, check=check)
        except FileExistsError:
            # Another process was first; it may even have published the same artifact.
            taken.add(record.version)
            continue
        return record, False


def _check_blobs(parts: Parts, manifest: Manifest) -> None:
    """Refuse to publish what could not be read back."""
    for blob in manifest.blobs:
        _require(parts, blob.digest, blob.size)


def _require(parts: Parts, digest: str, expected: int) -> None:
    size = parts.blobs.size(digest)
    if size is None:
        raise BlobMissingError(
            f"Blob {digest}, which the artifact needs, is not in the store.",
            hint="Extract the pair again with `--rehash`, which writes damaged blobs anew.",
            digest=digest,
        )
    if size != expected:
        raise BlobCorruptError(
            f"Blob {digest} has {size} bytes; the manifest says {expected}.",
            hint="Extract the pair again with `--rehash`, which writes damaged blobs anew.",
            digest=digest,
        )


def _check_lease(lease: Path) -> None:
    if not os.path.lexists(lease):
        raise StoreError(
            f"The lease {lease} of this process was taken away: it showed no sign of life for too "
            "long.",
            hint="Run the same command again: what was stored is used again.",
        )


def _is_live(parts: Parts, record: Record) -> bool:
    """Whether a record has not been removed since it was read or made.

    Removal leaves a tombstone in its place: what cannot be read is an error, not removed.
    """
    found = parts.names.read(record.name, record.version)
    return isinstance(found, Record) and found.digest == record.digest


def _refuse_other_case(parts: Parts, name: str) -> None:
    other = parts.names.same_but_for_case(name)
    if other is not None:
        raise RefError(
            f"The name {name!r} differs from {other!r} only in upper and lower case, which some "
            "file systems do not tell apart.",
            hint=f"Use `{other}`, or another name.",
            name=name,
        )
