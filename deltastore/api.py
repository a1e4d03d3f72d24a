"""The library: a store as an object, with a method for each operation.

Each method imports what it needs when it is called, so that listing artifacts does not pay for
the libraries that compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableSequence, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self
from weakref import WeakKeyDictionary

from deltastore.errors import UsageError

if TYPE_CHECKING:
    from os import PathLike

    from torch import Tensor
    from torch.nn import Module

    from deltastore.comparison.figures import Comparison
    from deltastore.execution.progress import Progress
    from deltastore.extraction.result import ExtractResult
    from deltastore.health.verification import VerifyReport
    from deltastore.inmemory.patch import Patch
    from deltastore.operations.apply import ApplyResult
    from deltastore.operations.compose import ComposeResult
    from deltastore.operations.du import Usage
    from deltastore.operations.export import ExportReport
    from deltastore.operations.gc import GcReport
    from deltastore.operations.list import Listing
    from deltastore.operations.reindex import Indexed
    from deltastore.operations.resolve import Candidate
    from deltastore.operations.rm import Removed
    from deltastore.operations.show import Details
    from deltastore.operations.tag import Tagged
    from deltastore.store import Store


class Artifact(Protocol):
    """What operations return about an artifact, and what stands for a ref to it."""

    @property
    def name(self) -> str:
        """The name."""

    @property
    def digest(self) -> str:
        """The digest, ``sha256:<hex>``."""


def open(  # noqa: A001
    path: str | PathLike[str] | None = None, *, create: bool = True, index: str | None = None
) -> DeltaStore:
    """Open a store.

    Args:
        path: Its directory; None for the default one: ``DELTASTORE_HOME``, else a directory of
            the user.
        create: Make the store if there is none.
        index: Where the index is: ``store``, ``local``, or a directory for indexes on this
            machine; None for what ``DELTASTORE_INDEX`` says, or else for what suits the store's
            file system.

    Raises:
        StoreNotFoundError: There is no store, and ``create`` is false.
        NotAStoreError: The directory holds something else.
        StoreTooNewError: A newer deltastore wrote the store.
        StoreOutdatedError: The store's catalog must be migrated first.
        StoreReadOnlyError: The store cannot be made here.
        CatalogError: The catalog is damaged or locked.
    """
    from pathlib import Path

    from deltastore.store import default_store_path, open_store

    place = default_store_path() if path is None else Path(path)
    return DeltaStore(open_store(place, create=create, index=index), index=index)


class DeltaStore:
    """A store of deltas. Made by ``deltastore.open``; closes itself at the end of a ``with``.

    Wherever a ref is wanted, an artifact will do: what ``extract``, ``list``, ``show`` or ``tag``
    returned.
    """

    def __init__(self, store: Store, *, index: str | None = None) -> None:
        self._store = store
        self._patches: WeakKeyDictionary[Module, MutableSequence[Patch]] = WeakKeyDictionary()
        self._index = index

    def extract(
        self,
        base: str | PathLike[str],
        post: str | PathLike[str],
        *,
        name: str | None = None,
        tags: Sequence[str] = (),
        codec: str = "exact",
        jobs: int | None = None,
        rehash: bool = False,
        restore_only: bool = False,
        rename: Mapping[str, str] | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> ExtractResult:
        """Measure the delta between two checkpoints and store it.

        Args:
            base: The model before post-training: a path or a hub id.
            post: The same model after it.
            name: The name to store it under; by default the last part of ``post``.
            tags: Tags for the new version.
            codec: How deltas become bytes: a codec's name, with its options after colons.
            jobs: Threads; by default the processors this process may use.
            rehash: Read files again whose digests are remembered.
            restore_only: Store quantised checkpoints, to be restored from their own base only.
            rename: What base calls post's tensors: regular expressions, and what replaces them
                wherever they are found in a name.
            force: Take a pair that does not look like one.
            progress: Is told how far the work is.

        Raises:
            CheckpointError: One of the checkpoints cannot be read.
            IncompatibleError: They are not one model before and after post-training.
            RefError: The name or a tag cannot be used.
            StoreError: The store cannot be written.
            UsageError: There is no such codec.
        """
        from deltastore.execution.progress import Silent
        from deltastore.operations.extract import extract
        from deltastore.tensor_names.selectors import Renaming

        return extract(
            self._store,
            str(base),
            str(post),
            name=name,
            tags=tags,
            codec=codec,
            jobs=jobs,
            rehash=rehash,
            restore_only=restore_only,
            renaming=Renaming.of((rename or {}).items()),
            force=force,
            progress=progress or Silent(),
        )

    def apply(
        self,
        artifacts: str | Artifact | Sequence[str | Artifact],
        *,
        base: str | PathLike[str],
        out: str | PathLike[str],
        scale: float | Sequence[float] = 1.0,
        scale_for: Mapping[str, float | Sequence[float]] | None = None,
        rename: Mapping[str, str] | None = None,
        dtype: str | None = None,
        partial: bool = False,
        skip_embeddings: bool = False,
        force: bool = False,
        dry_run: bool = False,
        fsync: bool = False,
        jobs: int | None = None,
        max_shard_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> ApplyResult:
        """Add one or more deltas to a new base.

        Args:
            artifacts: A ref or an artifact, or several.
            base: The new base: a path or a hub id.
            out: The directory to write; an empty one that is there is filled.
            scale: What the deltas are multiplied by: one for all, or one each.
            scale_for: The same for tensors whose names match a pattern, as in
                ``{"model.layers.*.mlp.*": 0.7}``; the last that matches counts.
            rename: What the new base calls the deltas' tensors: regular expressions, and what
                replaces them wherever they are found in a name.
            dtype: Dtype of the output; by default the new base's, tensor by tensor.
            partial: Leave out tensors that do not match.
            skip_embeddings: Leave the new base's embeddings and output head as they are.
            force: Accept a base of another lineage.
            dry_run: Check everything, write nothing.
            fsync: Return only when the output is on the disk.
            jobs: Threads; by default the processors this process may use.
            max_shard_bytes: Cut the output into shards of at most this size.
            progress: Is told how far the work is.

        Raises:
            UsageError: There are not as many scales as artifacts, or ``out`` is in the store.
            RefError: There is no such artifact.
            IncompatibleError: The deltas do not belong to this base.
            IntegrityError: Stored bytes are damaged.
            CheckpointError: The base cannot be read, or ``out`` cannot be written.
        """
        from deltastore.execution.progress import Silent
        from deltastore.merging.planning import MergeOptions
        from deltastore.operations.apply import apply
        from deltastore.tensor_names.selectors import Renaming, ScaleRule

        refs = _refs(artifacts)
        scales = _numbers(scale) * (len(refs) if isinstance(scale, (int, float)) else 1)
        return apply(
            self._store,
            refs,
            base=str(base),
            out=str(out),
            options=MergeOptions(
                scales=scales,
                scale_rules=[
                    ScaleRule.checked(pattern, _numbers(x))
                    for pattern, x in (scale_for or {}).items()
                ],
                renaming=Renaming.of((rename or {}).items()),
                dtype=dtype,
                partial=partial,
                skip_embeddings=skip_embeddings,
                force=force,
                max_shard_bytes=max_shard_bytes,
            ),
            dry_run=dry_run,
            fsync=fsync,
            jobs=jobs,
            progress=progress or Silent(),
        )

    def compose(
        self,
        artifacts: Sequence[str | Artifact],
        *,
        base: str | PathLike[str] | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> ComposeResult:
        """Store deltas that follow one another as one, as ``extract`` of the whole way would.

        Args:
            artifacts: Refs or artifacts, each extracted from what the one before it leads to.
            base: The first one's base: a path or a hub id; by default it is looked for.
            name: The name to store it under; by default theirs, with hyphens between them.
            tags: Tags for the new version.
            jobs: Threads; by default the processors this process may use.
            progress: Is told how far the work is.

        Raises:
            UsageError: There are less than two artifacts.
            RefError: There is no such artifact, or the name or a tag cannot be used.
            IncompatibleError: They do not follow one another, or ``base`` is another.
            IntegrityError: Stored bytes are damaged.
            CheckpointError: The base is not known, or cannot be read.
            StoreError: The store cannot be written.
        """
        from deltastore.operations.compose import compose

        return compose(
            self._store,
            _refs(artifacts),
            base=None if base is None else str(base),
            name=name,
            tags=tags,
            jobs=jobs,
            progress=progress,
        )

    def resolve(self, base: str | PathLike[str]) -> Sequence[Candidate]:
        """The stored deltas for a base: those that fit first, nearest lineage first.

        Args:
            base: A path or a hub id.

        Raises:
            CheckpointError: The base cannot be read.
        """
        from deltastore.operations.resolve import resolve

        return resolve(self._store, str(base))

    def compare(
        self,
        *artifacts: str | Artifact,
        plot: str | PathLike[str] | None = None,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Comparison:
        """Whether deltas point the same way, cancel, or are orthogonal.

        Args:
            artifacts: Refs or artifacts, two or more.
            plot: Also draw the cosines, as a ``.png``, ``.svg`` or ``.pdf``.
            jobs: Threads; by default the processors this process may use.
            progress: Is told how far the work is.

        Returns:
            The cosine of every two deltas, over all and by layer and kind of module.

        Raises:
            UsageError: There are fewer than two, or no such picture can be written.
            MissingExtraError: A picture is wanted, and matplotlib is not installed.
            RefError: There is no such artifact.
            IncompatibleError: Two deltas have no tensor in common, or one is for restoration only.
            IntegrityError: Stored bytes are damaged.
            StoreError: The picture cannot be written.
        """
        from deltastore.operations.compare import compare

        refs = _refs(artifacts)
        if plot is not None:
            from deltastore.comparison.plot import check_plot, plot_comparison

            check_plot(plot, len(refs))
        comparison = compare(self._store, refs, jobs=jobs, progress=progress)
        if plot is not None:
            plot_comparison(comparison, plot)
        return comparison

    def patch(
        self,
        model: Module,
        artifact: str | Artifact,
        scale: float = 1.0,
        *,
        rename: Mapping[str, str] | None = None,
        partial: bool = False,
        force: bool = False,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Patch:
        """Add a delta to a loaded model's weights, in place, as ``apply`` would.

        Args:
            model: Any ``torch.nn.Module``, on any device; also compiled, in DDP or FSDP, or with an
                adapter, which is left alone.
            artifact: A ref or an artifact.
            scale: What the delta is multiplied by.
            rename: What the model calls the delta's tensors: regular expressions, and what
                replaces them wherever they are found in a name.
            partial: Leave weights that do not match as they are; ``left_out`` lists them.
            force: Accept a model of another lineage.
            jobs: Threads; by default the processors this process may use.
            progress: Is told how far the work is.

        Returns:
            What was done. ``bytes_kept`` is the memory that ``unpatch`` needs, which goes with
            the model.

        Raises:
            UsageError: ``rename`` does not fit the delta's names.
            RefError: There is no such artifact.
            IncompatibleError: The delta does not belong to this model.
            IntegrityError: Stored bytes are damaged. Nothing was changed.
        """
        from deltastore.inmemory.wrappers import unwrapped
        from deltastore.operations.patch import patch

        done = patch(
            self._store,
            model,
            _ref(artifact),
            scale=float(scale),
            rename=rename,
            partial=partial,
            force=force,
            jobs=jobs,
            progress=progress,
        )
        self._patches.setdefault(unwrapped(model), []).append(done)
        return done

    def unpatch(
        self, model: Module, *, jobs: int | None = None, progress: Progress | None = None
    ) -> None:
        """Take the last delta out of a model again: every bit is what it was before ``patch``.

        Wrappers may have been put around the model since, or taken away.

        Raises:
            UsageError: This store put no delta into the model, or the weights were changed since.
                Nothing is changed.
            IntegrityError: The delta is no longer in the store, or damaged. Likewise.
        """
        from deltastore.inmemory.wrappers import unwrapped
        from deltastore.operations.patch import unpatch

        patches = self._patches.get(unwrapped(model))
        if not patches:
            raise UsageError(
                f"There is no delta of this store in this {type(model).__name__}.",
                hint="Call `patch` first, with the same store object.",
            )
        unpatch(self._store, model, patches[-1], jobs=jobs, progress=progress)
        patches.pop()

    def delta_tensors(self, artifact: str | Artifact) -> Iterator[tuple[str, Tensor]]:
        """Name and delta of each tensor that has one, one tensor in memory at a time.

        Shapes:
            float32, or float64 where base or post is float32 or wider; post's shape.

        Raises:
            RefError: There is no such artifact.
            IntegrityError: Stored bytes are damaged.
        """
        from deltastore.operations.patch import delta_tensors

        return delta_tensors(self._store, _ref(artifact))

    def show(self, artifact: str | Artifact) -> Details:
        """Everything about one artifact.

        Raises:
            RefError: There is no such artifact.
            IntegrityError: Its manifest is missing or damaged.
        """
        from deltastore.operations.show import show

        return show(self._store, _ref(artifact))

    def verify(
        self,
        artifacts: str | Artifact | Sequence[str | Artifact] = (),
        *,
        jobs: int | None = None,
        quick: bool = False,
        progress: Progress | None = None,
    ) -> VerifyReport:
        """Check every byte of some artifacts, or of the whole store if none is given.

        With ``quick``, only whether everything is there with its size, and agrees.

        Damage is reported, not raised.

        Raises:
            RefError: There is no such artifact.
        """
        from deltastore.execution.progress import Silent
        from deltastore.operations.verify import verify

        return verify(
            self._store,
            _refs(artifacts),
            jobs=jobs,
            quick=quick,
            progress=progress or Silent(),
        )

    def tag(self, artifact: str | Artifact, tag: str) -> Tagged:
        """Give a version a tag, whatever the tag meant before.

        Raises:
            RefError: There is no such artifact, or the tag cannot be one.
            StoreError: The store cannot be written.
        """
        from deltastore.operations.tag import tag as set_tag

        return set_tag(self._store, _ref(artifact), tag)

    def untag(self, artifact: str | Artifact, tag: str) -> Tagged:
        """Take a tag away from the artifact's name.

        Raises:
            RefError: There is no such artifact, or its name has no such tag.
            StoreError: The store cannot be written.
        """
        from deltastore.operations.tag import untag

        return untag(self._store, _ref(artifact), tag)

    def rm(self, artifact: str | Artifact) -> Removed:
        """Remove a version.

        Raises:
            RefError: There is no such artifact, or several versions are meant.
            StoreError: The store cannot be written.
        """
        from deltastore.operations.rm import rm

        return rm(self._store, _ref(artifact))

    def gc(self, *, grace_s: float = 24 * 3600.0, dry_run: bool = False) -> GcReport:
        """Delete the blobs that no version refers to.

        Args:
            grace_s: What became unused less than so many seconds ago is spared.
            dry_run: Only say what would be deleted.

        Raises:
            UsageError: The grace period is no number of seconds.
            StoreError: The store cannot be written.
            IntegrityError: A record or manifest is missing or damaged; nothing was deleted.
            FormatError: One of them breaks the format, likewise.
        """
        from deltastore.operations.gc import gc

        return gc(self._store, grace_s=grace_s, dry_run=dry_run)

    def export(
        self, artifact: str | Artifact, directory: str | PathLike[str], *, link: bool = False
    ) -> ExportReport:
        """Write an artifact as an OCI image layout.

        Args:
            artifact: A ref or an artifact.
            directory: A new directory, or an empty one, which is filled.
            link: Make hard links of blobs, as far as that is safe, in place of copies: what is
                done to them in the export is done to the store.

        Raises:
            RefError: There is no such artifact.
            UsageError: The directory is in the store.
            OutputExistsError: The directory is there and not empty.
            IntegrityError: Stored bytes are damaged.
            NoSpaceError: It does not fit.
            CheckpointError: The directory cannot be written.
        """
        from deltastore.operations.export import export

        return export(self._store, _ref(artifact), str(directory), link=link)

    def du(self) -> Usage:
        """How much room the store takes."""
        from deltastore.operations.du import du

        return du(self._store)

    def reindex(self) -> Indexed:
        """Rebuild the catalog from records and manifests.

        Raises:
            StoreError: The store cannot be written.
        """
        from deltastore.operations.reindex import reindex
        from deltastore.store import open_store

        # The catalog's file is replaced, which nobody may have open.
        path = self._store.path
        self._store.close()
        try:
            return reindex(path, index=self._index)
        finally:
            self._store = open_store(path, create=False, index=self._index)

    def close(self) -> None:
        """Release what is open; idempotent."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Last, because within the class its name hides the built-in list.
    def list(
        self,
        *,
        base: str | PathLike[str] | None = None,
        post: str | PathLike[str] | None = None,
        name: str | None = None,
        tag: str | None = None,
    ) -> Sequence[Listing]:
        """The stored versions that fit everything given, by name and version.

        Args:
            base: A source base: its path, hub id, label or content digest.
            post: A source post, likewise.
            name: A name, with ``*`` and ``?``.
            tag: A tag.

        Raises:
            CheckpointError: A path is no checkpoint.
        """
        from deltastore.operations.list import list_artifacts

        before, after = (None if side is None else str(side) for side in (base, post))
        return list_artifacts(self._store, base=before, post=after, name=name, tag=tag)


def _refs(artifacts: str | Artifact | Sequence[str | Artifact]) -> list[str]:
    """The refs of one or several artifacts."""
    if isinstance(artifacts, Sequence) and not isinstance(artifacts, str):
        return [_ref(artifact) for artifact in artifacts]
    return [_ref(artifacts)]


def _numbers(scale: float | Sequence[float]) -> list[float]:
    """One scale or several."""
    return [float(scale)] if isinstance(scale, (int, float)) else [float(x) for x in scale]


def _ref(artifact: str | Artifact) -> str:
    """A ref to just this artifact: its digest with its name, whatever the versions are by now."""
    return artifact if isinstance(artifact, str) else f"{artifact.name}@{artifact.digest}"
