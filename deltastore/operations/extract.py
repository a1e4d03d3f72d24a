"""``extract``: measure a delta once and store it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike

from deltastore.checkpoint import open_checkpoint
from deltastore.codecs import get_codec
from deltastore.errors import UsageError
from deltastore.execution.progress import Progress, Silent, Staged
from deltastore.execution.thread_pool import ThreadPool, job_count
from deltastore.extraction.inputs import Inputs, made_ready
from deltastore.extraction.result import ExtractResult, Made, tell_not_stored
from deltastore.extraction.reuse import already_there, reusable
from deltastore.lineage.kinship import check_kinship, has_same_weights, refuse_same
from deltastore.lineage.pair_similarity import PairLineage
from deltastore.lineage.pairing import pair_up
from deltastore.refs import default_name, validate_name, validate_tag
from deltastore.store import Store
from deltastore.tensor_names.selectors import Renaming
from deltastore.tensor_names.token_rows import may_tie


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
    watcher = Staged(progress or Silent())
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
        open_checkpoint(base, downloads=watcher) as opened_base,
        open_checkpoint(post, downloads=watcher) as opened_post,
    ):
        inputs = made_ready(
            opened_base,
            opened_post,
            restore_only=restore_only,
            renaming=renaming,
            force=force,
            progress=watcher,
        )
        before, after = inputs.base, inputs.post
        name = name or default_name(after.repo or after.path.name)
        labels = {"base": before.title, "post": after.title}
        with store.lease("extract"):
            made = _find_or_make(
                store, inputs, codec, job_count(jobs), rehash=rehash, force=force, progress=watcher
            )
            if has_same_weights(made.config):
                refuse_same(before, after, force=force, progress=watcher)
            published = store.publish(
                made.manifest, made.config, name=name, labels=labels, tags=tags
            )
    tell_not_stored(made.config, watcher)
    left = [asdict(file) for file in inputs.left]
    return ExtractResult.of(published, made, started, not_stored=left)


def _find_or_make(
    store: Store,
    inputs: Inputs,
    codec: str,
    jobs: int,
    *,
    rehash: bool,
    force: bool,
    progress: Progress,
) -> Made:
    """The pair's artifact: the one that is stored, or a new one.

    Raises:
        IncompatibleError: The two do not look like a pair, and ``force`` is false.
    """
    base, post = inputs.base, inputs.post
    wanted = inputs.wanted(thorough=rehash)
    found = None
    if not rehash:
        stored = already_there(store, base, post, codec, progress, jobs)
        found = reusable(store, stored, wanted)
    pairs = pair_up(base, post, may_tie=may_tie(base.config))
    kinship = PairLineage()
    if not inputs.restore_only and (found is None or (base.is_local and post.is_local)):
        forced = force or found is not None
        kinship = check_kinship(base, post, pairs, force=forced, progress=progress)
    if found is not None:
        return Made(*found, reused=True, cosine=kinship.cosine)
    pool = ThreadPool(jobs)
    progress.start("planning", 0)
    plan = inputs.plan(pairs, codec=codec, kinship=kinship, pool=pool)
    made = inputs.encode(store, plan, pool, progress)
    return made.or_stored(store, codec, wanted)
