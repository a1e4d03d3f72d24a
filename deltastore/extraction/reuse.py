"""Stored artifacts that are what is to be made, so that nothing need be encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltastore.artifact import small_files
from deltastore.checkpoint import Checkpoint
from deltastore.digest import fingerprint
from deltastore.errors import FormatError, IntegrityError
from deltastore.execution.progress import Progress
from deltastore.execution.thread_pool import job_count
from deltastore.lineage import digests
from deltastore.manifest import Config, Manifest
from deltastore.store import Store


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an artifact of the same weights must have in common to be the same artifact.

    ``not_stored`` is None where it is not known what lies beside post.
    ``thorough``: all its bytes are compared with their digests, rather than their sizes.
    """

    files: small_files.FileDigests
    not_stored: tuple[str, ...] | None = None
    restore_only: bool = False
    thorough: bool = False


def reusable(
    store: Store, digests: Sequence[str], wanted: Wanted
) -> tuple[Manifest, Config] | None:
    """The first of these artifacts that is what is wanted and whole; a damaged one is replaced."""
    for digest in digests:
        try:
            manifest, config = store.load(digest)
            if wanted.thorough:
                for blob in manifest.blobs:
                    store.blobs.check(blob.digest, blob.size)
        except (IntegrityError, FormatError):
            continue
        if any(store.blobs.size(blob.digest) != blob.size for blob in manifest.blobs):
            continue
        same = small_files.stored_digests(manifest, config) == wanted.files
        same = same and wanted.not_stored in (None, config.not_stored)
        if same and config.restore_only == wanted.restore_only:
            return manifest, config
    return None


def already_there(
    store: Store,
    before: Checkpoint,
    after: Checkpoint,
    codec: str,
    progress: Progress,
    jobs: int | None,
) -> list[str]:
    """The stored artifacts of this pair of weights, found without encoding anything.

    Files whose digests are not remembered are only read ahead of time where the store holds an
    artifact of this structure that this user made, so that it is likely that it pays.
    """
    known_base, known_post = (
        digests.remembered(store, side, trust_cache=True) for side in (before, after)
    )
    if known_base is None or known_post is None:
        structure = fingerprint((t.name, t.shape) for t in before.tensors.values())
        made = store.made()
        alike = [
            artifact
            for artifact in (store.artifacts() if made else ())
            if artifact.base_fingerprint == structure
            and artifact.codec == codec
            and artifact.raw_bytes == after.nbytes
            and artifact.digest in made
        ]
        if not alike:
            return []
        contents = {artifact.base_content for artifact in alike}
        if known_base is None:
            known_base = digests.hash_checkpoint(store, before, job_count(jobs), progress)
        if digests.content_of(before, known_base) not in contents:
            return []
        if known_post is None:
            known_post = digests.hash_checkpoint(store, after, job_count(jobs), progress)
    return store.find_made(
        digests.content_of(before, known_base), digests.content_of(after, known_post), codec
    )
