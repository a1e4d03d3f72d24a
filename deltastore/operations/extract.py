"""``extract``: measure a delta once and store it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

from deltastore.artifact import small_files
from deltastore.blobs import CountedBlobs
from deltastore.checkpoint import Checkpoint, open_checkpoint, quantisation
from deltastore.checkpoint.index import listed
from deltastore.checkpoint.ungathered import refuse_ungathered
from deltastore.codecs import get_codec
from deltastore.digest import fingerprint, sha256_digest
from deltastore.errors import QuantisedCheckpointError, UsageError
from deltastore.execution.crew import job_count
from deltastore.execution.progress import Progress, Silent, Staged
from deltastore.extraction.storing import Source, Wanted, encode_pair, reusable
from deltastore.lineage import digests
from deltastore.lineage.calling import called_alike
from deltastore.lineage.kinship import (
    check_kinship,
    has_same_weights,
    refuse_adapter,
    refuse_same,
)
from deltastore.lineage.pair_similarity import PairLineage
from deltastore.lineage.pairing import pair_up
from deltastore.manifest import Config, Manifest, manifest_bytes
from deltastore.refs import default_name, validate_name, validate_tag
from deltastore.store import Published, Store
from deltastore.tensor_names.selectors import Renaming
from deltastore.tensor_names.token_rows import may_tie


@dataclass(frozen=True, slots=True)
class ExtractResult:
    """What ``extract`` did.

    Attributes:
        name: The artifact's name.
        version: Its version of that name.
        digest: The manifest's digest.
        codec: The codec.
        raw_bytes: Bytes of post's tensors.
        stored_bytes: Bytes of the manifest and all blobs.
        bits_per_weight: 8 x bytes of the tensor parts over the elements of all post tensors.
        tensors: Rows of the tensor table.
        unchanged: How many of them are equal in base and post.
        patched: How many carry a restore patch.
        reused: Whether the artifact was in the store already.
        resumed_bytes: Of the tensor parts of a new artifact, those that were in the store already,
            stored by a run that was stopped, or in common with another artifact; they were
            compared, not written again.
        relative_change: |post - base| / |base| over the tensors that changed; None if none did.
        cosine: Mean cosine between base's and post's matrices at the lineage samples; None where
            nothing was compared.
        not_stored: What lies beside the weights of each side and is not in the artifact: ``side``,
            ``name`` and ``why``.
        seconds: Wall time.
    """

    name: str
    version: int
    digest: str
    codec: str
    raw_bytes: int
    stored_bytes: int
    bits_per_weight: float
    tensors: int
    unchanged: int
    patched: int
    reused: bool
    resumed_bytes: int
    relative_change: float | None
    cosine: float | None
    not_stored: list[dict[str, str]]
    seconds: float

    @classmethod
    def of(
        cls,
        published: Published,
        manifest: Manifest,
        config: Config,
        *,
        reused: bool,
        blobs: CountedBlobs,
        cosine: float | None,
        started: float,
        **more: Any,
    ) -> Self:
        """The result of what was just published.

        Args:
            published: The version.
            manifest: The artifact's manifest.
            config: Its config.
            reused: Whether it was found, not made.
            blobs: By which its parts were put.
            cosine: As measured.
            started: When the work began, by the monotonic clock.
            **more: What a further result says besides.
        """
        reused = reused or published.reused
        return cls(
            name=published.name,
            version=published.version,
            digest=published.digest,
            codec=config.codec,
            raw_bytes=config.post.nbytes,
            stored_bytes=published.stored_bytes,
            bits_per_weight=config.bits_per_weight(manifest),
            tensors=len(config.tensors),
            unchanged=sum(entry.kind == "unchanged" for entry in config.tensors),
            patched=sum(entry.patch is not None for entry in config.tensors),
            reused=reused,
            resumed_bytes=0 if reused else blobs.reused_bytes,
            relative_change=_relative_change(config),
            cosine=cosine,
            seconds=time.monotonic() - started,
            **more,
        )

    @property
    def ref(self) -> str:
        """The ref that means just this version."""
        return f"{self.name}:v{self.version}"


def extract(
    store: Store,
    base: str | PathLike[str],
    post: str | PathLike[str],
    *,
    name: str | None = None,
    tags: Sequence[str] = (),
    codec: str = "exact",
    jobs: int | None = None,
    rehash: bool = False,
    restore_only: bool = False,
    renaming: Renaming | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExtractResult:
    """Store the delta between two checkpoints.

    The pair is read once. The same pair and codec again gives the stored artifact. Before that a
    pair that is no model before and after its post-training is refused.

    Args:
        store: Where to.
        base: The checkpoint before post-training: a local path, or a Hub id.
        post: The checkpoint after it.
        name: The artifact's name; the last part of post's path or id if None.
        tags: Tags to set on the version.
        codec: The codec's spec.
        jobs: Threads; one for each core if None.
        rehash: Read the files even where their digests are remembered.
        restore_only: Accept quantised checkpoints; the artifact can then only restore post from
            this very base.
        renaming: What base calls post's tensors, where that is something else.
        force: Take a pair that does not look like one.
        progress: Who is told how far the work is.

    Raises:
        CheckpointError: One of the checkpoints cannot be read.
        IncompatibleError: They are not one model before and after post-training.
        UsageError: The renaming fits no tensor; there is no such codec, or it is not exact and
            ``restore_only`` is true.
        CheckpointCorruptError: Tensors of one are empty that have elements in the other.
        QuantisedCheckpointError: One of them is quantised, and ``restore_only`` is false.
        NoSpaceError: The artifact will not fit.
        StoreError: The store cannot be written.
        RefSyntaxError: The name or a tag cannot be one.
        SourceChangedError: A file changed while it was read.
    """
    started = time.monotonic()
    progress = Staged(progress or Silent())
    chosen = get_codec(codec)
    if restore_only and chosen.exactness != "exact":
        raise UsageError(
            f"--restore-only needs an exact codec, got {chosen.name}, which is {chosen.exactness}.",
            hint="Leave out `--codec`.",
        )
    codec = chosen.name  # of all the ways to write it, the one that is stored
    if name is not None:
        validate_name(name)
    for tag in tags:
        validate_tag(tag)
    store.require_writable()
    with (
        open_checkpoint(base, downloads=progress) as opened_base,
        open_checkpoint(post, downloads=progress) as opened_post,
    ):
        for checkpoint, role in ((opened_base, "base"), (opened_post, "post")):
            refuse_adapter(checkpoint, role)
            if not restore_only:
                _refuse_quantised(checkpoint)
        before, after = called_alike(opened_base, opened_post, renaming, progress)
        if [shard.path for shard in before.shards] == [shard.path for shard in after.shards]:
            refuse_same(before, after, force=force)  # at once; what was copied shows at the end
        refuse_ungathered(before, after.tensors.items(), may_grow=True)
        refuse_ungathered(after, before.tensors.items())
        name = name or default_name(after.repo or after.path.name)
        labels = {"base": before.title, "post": after.title}
        files = (digests.identities(before), digests.identities(after))
        small = small_files.collect(before, after)
        wanted = Wanted(
            small_files.digests(small.files), small.not_stored, restore_only, thorough=rehash
        )
        with store.lease("extract"):
            found = None
            if not rehash:
                pairs = _already_there(store, before, after, codec, progress, jobs)
                found = reusable(store, pairs, wanted)
            reused = found is not None
            blobs = CountedBlobs(store.blobs)
            table = pair_up(before, after, may_tie=may_tie(before.config))
            figures = PairLineage()
            if not restore_only and (found is None or (before.is_local and after.is_local)):
                figures = check_kinship(
                    before, after, table, force=force or reused, progress=progress
                )
            if found is None:
                manifest, config = encode_pair(
                    store,
                    blobs,
                    Source(before, before.repo, before.revision),
                    Source(after, after.repo, after.revision),
                    codec=codec,
                    files=small.files,
                    pairs=table,
                    not_stored=small.not_stored or (),
                    restore_only=restore_only,
                    doing="extracting",
                    jobs=job_count(jobs),
                    progress=progress,
                )
                known = (digests.digests(config, "base"), digests.digests(config, "post"))
                for checkpoint, identities, own in zip((before, after), files, known, strict=True):
                    checkpoint.check_unchanged()
                    digests.remember(store, checkpoint, identities, own)
                store.remember_made(config, sha256_digest(manifest_bytes(manifest)))
                # The same pair, encoded by another version of deltastore, stays what it was.
                pairs = store.find_made(config.base.content, config.post.content, codec)
                found = reusable(store, pairs, wanted)
                reused = found is not None
            if found is not None:
                manifest, config = found
            if has_same_weights(config):
                refuse_same(before, after, force=force, progress=progress)
            published = store.publish(manifest, config, name=name, labels=labels, tags=tags)
    tell_not_stored(config.not_stored, progress)
    return ExtractResult.of(
        published,
        manifest,
        config,
        reused=reused,
        blobs=blobs,
        cosine=figures.cosine,
        started=started,
        not_stored=small.rows(),
    )


def tell_not_stored(names: Sequence[str], progress: Progress) -> None:
    """Say what lies beside post and is not in its artifact."""
    if names:
        progress.warn(f"Beside the weights of post and not stored: {listed(list(names))}.")


def _already_there(
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


def _relative_change(config: Config) -> float | None:
    """|post - base| / |base|, over the tensors that have a delta."""
    changed = [entry for entry in config.tensors if entry.delta is not None]
    moved = math.fsum(entry.l2**2 for entry in changed)
    source = math.fsum(entry.base_l2**2 for entry in changed)
    return math.sqrt(moved / source) if source else None


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    reason = quantisation(checkpoint)
    if reason is not None:
        raise QuantisedCheckpointError(
            f"{checkpoint.path} is quantised ({reason}); a delta needs weights in floating point.",
            hint="Dequantise it first, or give `--restore-only` to keep it for this base alone.",
            path=str(checkpoint.path),
        )
