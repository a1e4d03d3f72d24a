"""``compose``: deltas that follow one another become the delta of the whole way.

The sum of two stored deltas is not that delta: where exponents lie far apart a difference was
rounded, and what restores post to the bit depends on the bits of base and post. So the first base
is read once more, each delta is added to it chunk by chunk as ``apply`` would, and what comes out
is taken for post by the code of ``extract``: the artifact is the one that ``extract`` makes of the
first base and the last post.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike

from deltastore.artifact import small_files
from deltastore.artifact.model_files import fitting
from deltastore.artifact.reader import ArtifactReader, blaming, open_artifact
from deltastore.blobs import CountedBlobs
from deltastore.checkpoint import Checkpoint, Weights
from deltastore.digest import sha256_digest
from deltastore.errors import (
    IncompatibleError,
    ManifestInvalidError,
    RestoreFailedError,
    RestoreOnlyError,
    UsageError,
)
from deltastore.execution.crew import Crew, job_count
from deltastore.execution.progress import Progress, Silent, Staged
from deltastore.extraction.storing import Source, Wanted, encode_pair, reusable
from deltastore.lineage import digests
from deltastore.lineage.pair_similarity import measure_pair
from deltastore.lineage.pairing import pair_up
from deltastore.lineage.source_base import (
    open_source_base,
    require_content,
    require_source_base,
)
from deltastore.manifest import Config, Descriptor, Manifest, manifest_bytes
from deltastore.merging.post_view import Restored
from deltastore.operations.extract import ExtractResult, tell_not_stored
from deltastore.refs import default_name, validate_name, validate_tag
from deltastore.store import Artifact, Store
from deltastore.tensor_names.patterns import listed
from deltastore.tensor_names.token_rows import may_tie

_CODEC = "exact"


@dataclass(frozen=True, slots=True)
class ComposeResult(ExtractResult):
    """What ``compose`` did; all but the last as in ``ExtractResult``.

    Attributes:
        composed: The refs of what was composed, in order.
    """

    composed: list[str]


@dataclass(frozen=True, slots=True)
class _Step:
    """One of the deltas that follow one another."""

    artifact: Artifact
    reader: ArtifactReader

    @property
    def ref(self) -> str:
        return self.artifact.ref

    @property
    def config(self) -> Config:
        return self.reader.config

    @property
    def manifest(self) -> Manifest:
        return self.reader.manifest


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
        steps = [_load(store, ref, stack) for ref in refs]
        _require_chain(steps)
        first, last = steps[0], steps[-1]
        pair = (first.config.base.content, last.config.post.content, _CODEC)
        with store.lease("compose"):
            found = _stored(store, first, last, store.find_made(*pair))
            reused = found is not None
            blobs = CountedBlobs(store.blobs)
            cosine = None
            if found is None:
                checkpoint = stack.enter_context(
                    open_source_base(
                        store,
                        first.artifact,
                        first.config,
                        base,
                        watcher,
                        otherwise="or add the deltas to any base without composing them: "
                        f"`deltastore apply {' '.join(s.ref for s in steps)} --base CKPT "
                        "--out DIR`",
                    )
                )
                manifest, config, wanted, cosine = _encode(
                    store, blobs, checkpoint, steps, threads, watcher
                )
                store.remember_made(config, sha256_digest(manifest_bytes(manifest)))
                # The same pair, encoded by another version of deltastore, stays what it was.
                found = reusable(store, store.find_made(*pair), wanted)
                reused = found is not None
            if found is not None:
                manifest, config = found
            published = store.publish(
                manifest,
                config,
                name=name or _default_name(steps),
                labels={"base": first.artifact.base, "post": last.artifact.post},
                tags=tags,
            )
    tell_not_stored(config.not_stored, watcher)
    return ComposeResult.of(
        published,
        manifest,
        config,
        reused=reused,
        blobs=blobs,
        cosine=cosine,
        started=started,
        not_stored=[
            {"side": "post", "name": name, "why": "not in the last artifact"}
            for name in config.not_stored
        ],
        composed=[step.ref for step in steps],
    )


def _default_name(steps: Sequence[_Step]) -> str:
    """All their names. Under one of them, that name would mean the composition from then on."""
    return default_name("-".join(step.artifact.name for step in steps))


def _load(store: Store, ref: str, stack: ExitStack) -> _Step:
    """An artifact that can be composed.

    Raises:
        RestoreOnlyError: It is for restoration only.
        IncompatibleError: It does not give its post to the bit.
    """
    artifact = store.resolve(ref)
    with blaming([artifact.ref]):
        reader = open_artifact(store, artifact.digest)
    stack.enter_context(reader)
    if reader.config.restore_only:
        raise RestoreOnlyError(
            f"{artifact.ref} was stored for restoration only and cannot be composed.",
            hint="Apply it alone, with scale 1, to its own base.",
            refs=[artifact.ref],
        )
    if reader.config.exactness != "exact":
        raise IncompatibleError(
            f"{artifact.ref} cannot be composed: expected deltas that restore its post to the "
            f"bit, got codec {reader.config.codec}, which is {reader.config.exactness}.",
            hint="Extract the pair with `--codec exact` and compose that.",
            ref=artifact.ref,
        )
    return _Step(artifact, reader)


def _require_chain(steps: Sequence[_Step]) -> None:
    """Refuse artifacts of which one does not begin where the one before it ends.

    Raises:
        IncompatibleError: Two of them do not.
        ManifestInvalidError: They say so, and have other tensors there.
    """
    for before, after in pairwise(steps):
        end, begin = before.config.post.content, after.config.base.content
        if end != begin:
            raise IncompatibleError(
                f"{after.ref} does not follow {before.ref}: expected it to begin at "
                f"{before.artifact.post} ({end}), got {after.artifact.base} ({begin}).",
                hint=f"The other way round they fit: `deltastore compose {after.ref} {before.ref}`."
                if after.config.post.content == before.config.base.content
                else f"See what begins there: `deltastore list --base {end}`.",
                post=end,
                base=begin,
            )
        posts = [(entry.name, entry.post) for entry in before.config.tensors]
        bases = [(entry.name, entry.own_base) for entry in after.config.tensors]
        if digests.rows(posts) != digests.rows(bases):
            raise ManifestInvalidError(
                f"{before.ref} ends where {after.ref} begins, at {end}, with other tensors.",
                hint=f"See which of them is damaged: `deltastore verify {before.ref} {after.ref}`.",
            )


def _stored(
    store: Store, first: _Step, last: _Step, digests: Sequence[str]
) -> tuple[Manifest, Config] | None:
    """The artifact, if it is one of these; nothing but manifests and configs is read."""
    for files in _possible_files(first, last):
        found = reusable(store, digests, Wanted(files, last.config.not_stored))
        if found is not None:
            return found
    return None


def _possible_files(first: _Step, last: _Step) -> Iterator[small_files.FileDigests]:
    """What small files the artifact may have, as far as the base's are known without the base.

    An artifact has its base's tokenizer only where post's is another: where it has none, that may
    be post's, or the base has none.
    """
    known = _side(first, "base")
    posts = _side(last, "post")
    if not small_files.tokenizer_of(known):
        tokenizer = small_files.tokenizer_of(_side(first, "post"))
        yield small_files.belonging(known | tokenizer, posts)
    yield small_files.belonging(known, posts)


def _side(step: _Step, side: small_files.Side) -> dict[str, str]:
    """Digests of one side's small files by name."""
    files = small_files.stored_digests(step.manifest, step.config)
    return {name: digest for (of, name), digest in files.items() if of == side}


def _encode(
    store: Store,
    blobs: CountedBlobs,
    checkpoint: Checkpoint,
    steps: Sequence[_Step],
    jobs: int,
    progress: Progress,
) -> tuple[Manifest, Config, Wanted, float | None]:
    """The artifact of the whole way, what another one of it must have, and post's cosine to base.

    Raises:
        IncompatibleError: The checkpoint is not the first step's base.
        RestoreFailedError: The steps do not give the last one's post on it.
        SourceChangedError: The checkpoint changed meanwhile.
    """
    first, last = steps[0], steps[-1]
    identities = digests.identities(checkpoint)
    with blaming([first.ref]):
        require_source_base(store, first.artifact, first.manifest, first.config, checkpoint)
    _check_parts(store, steps, jobs, progress)
    with blaming([last.ref]):
        stored = small_files.read_stored(store.blobs, last.manifest, last.config, "post")
    posts, unfit = fitting(stored, storing=False)
    if unfit:
        progress.warn(
            f"Small files of {last.ref} that no artifact holds are left out: {listed(unfit)}."
        )
    files = small_files.collect_stored(checkpoint, posts)
    weights: Weights = checkpoint
    for step in steps:
        weights = Restored(weights, step.reader, step.ref)
    pairs = pair_up(checkpoint, weights, may_tie=may_tie(checkpoint.config))
    cosine = measure_pair(checkpoint, weights, pairs).cosine
    manifest, config = encode_pair(
        store,
        blobs,
        Source(
            checkpoint,
            first.config.base.repo or checkpoint.repo,
            first.config.base.revision if first.config.base.repo else checkpoint.revision,
        ),
        Source(weights, last.config.post.repo, last.config.post.revision),
        codec=_CODEC,
        files=files,
        pairs=pairs,
        not_stored=last.config.not_stored,
        restore_only=False,
        doing="composing",
        jobs=jobs,
        progress=progress,
    )
    checkpoint.check_unchanged()
    digests.remember(store, checkpoint, identities, digests.digests(config, "base"))
    require_content(first.artifact, first.config, checkpoint, config.base.content)
    if config.post.content != last.config.post.content:
        refs = " ".join(step.ref for step in steps)
        raise RestoreFailedError(
            f"{refs} do not lead from {first.artifact.base} to {last.artifact.post}: expected "
            f"content {last.config.post.content}, got {config.post.content}.",
            hint=f"See whether they are whole: `deltastore verify {refs}`.",
            refs=[step.ref for step in steps],
        )
    wanted = Wanted(small_files.digests(files), last.config.not_stored)
    return manifest, config, wanted, cosine


def _check_parts(store: Store, steps: Sequence[_Step], jobs: int, progress: Progress) -> None:
    """Compare every part with its digest: better now than after hours.

    Raises:
        IntegrityError: One is missing or damaged.
    """
    progress.start("checking", sum(part.size for step in steps for part in step.reader.parts))

    def work(_number: int, part: Descriptor) -> None:
        store.blobs.check(part.digest, part.size, advance=progress.advance)

    for step in steps:
        with blaming([step.ref]):
            Crew(jobs).run(step.reader.parts, work)
