"""Stored deltas that follow one another: each begins where the one before it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike

from deltastore.artifact import small_files
from deltastore.artifact.model_files import fitting
from deltastore.artifact.reader import ArtifactReader, blaming, open_artifact
from deltastore.checkpoint import Checkpoint
from deltastore.errors import (
    IncompatibleError,
    ManifestInvalidError,
    RestoreFailedError,
    RestoreOnlyError,
)
from deltastore.execution.progress import Progress, Staged
from deltastore.execution.thread_pool import ThreadPool
from deltastore.extraction.plan import LeftFile
from deltastore.extraction.reuse import Wanted, reusable
from deltastore.lineage import digests
from deltastore.lineage.source_base import open_source_base
from deltastore.manifest import Config, Descriptor, Manifest
from deltastore.store import Artifact, Store
from deltastore.tensor_names.patterns import listed


@dataclass(frozen=True, slots=True)
class Step:
    """One of the deltas that follow one another."""

    artifact: Artifact
    reader: ArtifactReader

    @property
    def ref(self) -> str:
        """Its ref."""
        return self.artifact.ref

    @property
    def config(self) -> Config:
        """Its config."""
        return self.reader.config

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""
        return self.reader.manifest


@dataclass(frozen=True, slots=True)
class Chain:
    """Two or more steps in order."""

    steps: Sequence[Step]

    @classmethod
    def of(cls, store: Store, refs: Sequence[str], stack: ExitStack) -> Chain:
        """Open artifacts that are to follow one another.

        Args:
            store: Where they are.
            refs: What they are called, in order.
            stack: Closes them.

        Raises:
            RefError: A ref means nothing.
            RestoreOnlyError: One is for restoration only.
            IncompatibleError: One does not give its post to the bit, or does not begin where the
                one before it ends.
            IntegrityError: A document of one is missing or damaged.
        """
        steps = [_load(store, ref, stack) for ref in refs]
        _require_chain(steps)
        return cls(steps)

    @property
    def first(self) -> Step:
        """The one whose base is the whole way's."""
        return self.steps[0]

    @property
    def last(self) -> Step:
        """The one whose post is the whole way's."""
        return self.steps[-1]

    @property
    def refs(self) -> list[str]:
        """The steps' refs."""
        return [step.ref for step in self.steps]

    @property
    def not_stored(self) -> tuple[str, ...]:
        """What lay beside the last post and is in no artifact of it."""
        return self.last.config.not_stored

    @property
    def left(self) -> tuple[LeftFile, ...]:
        """The same with the reason."""
        return tuple(LeftFile("post", name, "not in the last artifact") for name in self.not_stored)

    def stored(self, store: Store, made: Sequence[str]) -> tuple[Manifest, Config] | None:
        """The whole way's artifact, if it is one of these; only manifests and configs are read."""
        for files in self._possible_files():
            found = reusable(store, made, Wanted(files, self.not_stored))
            if found is not None:
                return found
        return None

    def open_base(
        self, store: Store, given: str | PathLike[str] | None, progress: Staged
    ) -> Checkpoint:
        """The first step's base; see ``open_source_base``."""
        return open_source_base(
            store,
            self.first.artifact,
            self.first.config,
            given,
            progress,
            otherwise="or add the deltas to any base without composing them: "
            f"`deltastore apply {' '.join(self.refs)} --base CKPT --out DIR`",
        )

    def post_files(self, store: Store, progress: Progress) -> dict[str, bytes]:
        """The small files of the last post, by name.

        Args:
            store: Where they are.
            progress: Is told of files that older versions stored and no artifact holds now.

        Raises:
            IntegrityError: One is missing or damaged.
        """
        last = self.last
        with blaming([last.ref]):
            stored = small_files.read_stored(store.blobs, last.manifest, last.config, "post")
        posts, unfit = fitting(stored, storing=False)
        if unfit:
            progress.warn(
                f"Small files of {last.ref} that no artifact holds are left out: {listed(unfit)}."
            )
        return posts

    def check_parts(self, store: Store, pool: ThreadPool, progress: Progress) -> None:
        """Compare every part with its digest: better now than after hours.

        Raises:
            IntegrityError: One is missing or damaged.
        """
        sizes = (part.size for step in self.steps for part in step.reader.parts)
        progress.start("checking", sum(sizes))

        def work(_number: int, part: Descriptor) -> None:
            store.blobs.check(part.digest, part.size, advance=progress.advance)

        for step in self.steps:
            with blaming([step.ref]):
                pool.run(step.reader.parts, work)

    def require_post(self, config: Config) -> None:
        """Refuse what was made of the whole way if it ends elsewhere than the last step.

        Raises:
            RestoreFailedError: It does.
        """
        wanted, got = self.last.config.post.content, config.post.content
        if got != wanted:
            refs = " ".join(self.refs)
            raise RestoreFailedError(
                f"{refs} do not lead from {self.first.artifact.base} to "
                f"{self.last.artifact.post}: expected content {wanted}, got {got}.",
                hint=f"See whether they are whole: `deltastore verify {refs}`.",
                refs=self.refs,
            )

    def _possible_files(self) -> Iterator[small_files.FileDigests]:
        """What small files the artifact may have, as far as the base's are known without the base.

        An artifact has its base's tokenizer only where post's is another: where it has none, that
        may be post's, or the base has none.
        """
        known = _side(self.first, "base")
        posts = _side(self.last, "post")
        if not small_files.tokenizer_of(known):
            tokenizer = small_files.tokenizer_of(_side(self.first, "post"))
            yield small_files.belonging(known | tokenizer, posts)
        yield small_files.belonging(known, posts)


def _load(store: Store, ref: str, stack: ExitStack) -> Step:
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
    return Step(artifact, reader)


def _require_chain(steps: Sequence[Step]) -> None:
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


def _side(step: Step, side: small_files.Side) -> dict[str, str]:
    """Digests of one side's small files by name."""
    files = small_files.stored_digests(step.manifest, step.config)
    return {name: digest for (of, name), digest in files.items() if of == side}
