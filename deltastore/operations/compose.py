"""``compose``: deltas that follow one another become the delta of the whole way.

The sum of two stored deltas is not that delta: where exponents lie far apart a difference was
rounded, and what restores post to the bit depends on the bits of base and post. So the first base
is read once more, each delta is added to it chunk by chunk as ``apply`` would, and what comes out
is taken for post by the code of ``extract``: the artifact is the one that ``extract`` makes of the
first base and the last post.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from os import PathLike

from deltastore.artifact import small_files
from deltastore.artifact.reader import blaming
from deltastore.checkpoint import Checkpoint, Weights
from deltastore.errors import UsageError
from deltastore.execution.progress import Progress, Silent, Staged
from deltastore.execution.thread_pool import ThreadPool, job_count
from deltastore.extraction.chain import Chain
from deltastore.extraction.plan import PlannedSide, make_plan
from deltastore.extraction.result import ExtractResult, Made, tell_not_stored
from deltastore.extraction.reuse import Wanted
from deltastore.extraction.storing import encode_pair
from deltastore.lineage import digests
from deltastore.lineage.pair_similarity import measure_pair
from deltastore.lineage.pairing import pair_up
from deltastore.lineage.source_base import require_content, require_source_base
from deltastore.merging.post_view import PostView
from deltastore.refs import default_name, validate_name, validate_tag
from deltastore.store import Store
from deltastore.tensor_names.token_rows import may_tie

_CODEC = "exact"


@dataclass(frozen=True, slots=True)
class ComposeResult(ExtractResult):
    """What ``compose`` did; all but the last as in ``ExtractResult``.

    Attributes:
        composed: The refs of what was composed, in order.
    """

    composed: list[str]


def compose(
    store: Store,
    refs: Sequence[str],
    *,
    base: str | PathLike[str] | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    jobs: int | None = None,
    progress: Progress | None = None,
) -> ComposeResult:
    """Store the delta from the first artifact's base to the last one's post.

    It is the artifact that ``extract`` makes of these two checkpoints, byte for byte, of which
    the post need not exist any more. If the store has it already, nothing is read.

    Args:
        store: Where the artifacts are, and where to.
        refs: Two or more artifacts, each of which begins where the one before it ends.
        base: The first one's base: a local path, or a Hub id. If None, it is looked for: in files
            that the store remembers, then on the hub.
        name: The new artifact's name; if None, those of ``refs`` with hyphens between them.
        tags: Tags to set on the version.
        jobs: Threads; one for each core if None.
        progress: Who is told how far the work is.

    Raises:
        UsageError: There are less than two refs.
        RefError: A ref means nothing, or the name or a tag cannot be one.
        IncompatibleError: The artifacts do not follow one another or are not exact, or ``base``
            is not the first one's own.
        RestoreOnlyError: An artifact is for restoration only.
        IntegrityError: A blob is missing or damaged, or the base changed while it was read.
        CheckpointError: The base is not known, or cannot be read.
        NoSpaceError: The artifact will not fit.
        StoreError: The store cannot be written.
    """
    started = time.monotonic()
    watcher = Staged(progress or Silent())
    threads = job_count(jobs)
    if len(refs) < 2:
        raise UsageError(
            f"There is nothing to compose: expected two refs or more, got {len(refs)}.",
            hint="Give the refs in the order in which the models were trained.",
        )
    if name is not None:
        validate_name(name)
    for tag in tags:
        validate_tag(tag)
    store.require_writable()
    with ExitStack() as stack:
        chain = Chain.of(store, refs, stack)
        first, last = chain.first, chain.last
        with store.lease("compose"):
            stored = store.find_made(first.config.base.content, last.config.post.content, _CODEC)
            found = chain.stored(store, stored)
            if found is not None:
                made = Made(*found, reused=True)
            else:
                checkpoint = stack.enter_context(chain.open_base(store, base, watcher))
                made = _make(store, chain, checkpoint, ThreadPool(threads), watcher)
            published = store.publish(
                made.manifest,
                made.config,
                # Under one of their names, that name would mean the composition from then on.
                name=name or default_name("-".join(step.artifact.name for step in chain.steps)),
                labels={"base": first.artifact.base, "post": last.artifact.post},
                tags=tags,
            )
    tell_not_stored(made.config, watcher)
    left = [asdict(file) for file in chain.left]
    return ComposeResult.of(published, made, started, not_stored=left, composed=chain.refs)


def _make(
    store: Store, chain: Chain, checkpoint: Checkpoint, pool: ThreadPool, progress: Progress
) -> Made:
    """The artifact of the whole way.

    Raises:
        IncompatibleError: The checkpoint is not the first step's base.
        RestoreFailedError: The steps do not give the last one's post on it.
        SourceChangedError: The checkpoint changed meanwhile.
    """
    first, last = chain.first, chain.last
    identities = digests.identities(checkpoint)
    with blaming([first.ref]):
        require_source_base(store, first.artifact, first.manifest, first.config, checkpoint)
    chain.check_parts(store, pool, progress)
    files = small_files.collect_stored(checkpoint, chain.post_files(store, progress))
    weights: Weights = checkpoint
    for step in chain.steps:
        weights = PostView(weights, step.reader, step.ref)
    pairs = pair_up(checkpoint, weights, may_tie=may_tie(checkpoint.config))
    kinship = measure_pair(checkpoint, weights, pairs)
    named = PlannedSide.of(checkpoint)
    if first.config.base.repo:
        named = replace(named, repo=first.config.base.repo, revision=first.config.base.revision)
    progress.start("planning", 0)
    plan = make_plan(
        checkpoint,
        weights,
        pairs,
        codec=_CODEC,
        sides=(named, PlannedSide(last.config.post.repo, last.config.post.revision)),
        files=files,
        left=chain.left,
        not_stored=chain.not_stored,
        kinship=kinship,
        restore_only=False,
        pool=pool,
    )
    made = encode_pair(
        store,
        plan,
        checkpoint,
        weights,
        files,
        doing="composing",
        pool=pool,
        progress=progress,
    )
    checkpoint.check_unchanged()
    digests.remember(store, checkpoint, identities, digests.digests(made.config, "base"))
    require_content(first.artifact, first.config, checkpoint, made.config.base.content)
    chain.require_post(made.config)
    return made.or_stored(store, _CODEC, Wanted(small_files.digests(files), chain.not_stored))
