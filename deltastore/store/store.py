"""The store: what the rest of the program asks of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from deltastore.blobs import BlobStore, spares
from deltastore.blobs.durable import translated
from deltastore.catalog import Artifact, FileIdentity, Listing
from deltastore.errors import FormatError, IntegrityError, RefNotFoundError, StoreClosedError
from deltastore.manifest import Config, Manifest
from deltastore.store import (
    collecting,
    finding,
    indexing,
    publishing,
    refreshing,
    removing,
    tagging,
)
from deltastore.store.changing import changing
from deltastore.store.layout import closed
from deltastore.store.opening import open_parts
from deltastore.store.parts import Parts
from deltastore.store.publishing import Published
from deltastore.system import steps
from deltastore.system.permission import first_closed
from deltastore.system.steps import Step

_LOOKED_AT = 10_000


def open_store(path: str | Path, *, create: bool = True, index: str | None = None) -> Store:
    """Open the store in a directory.

    What a process that was stopped left half done is finished first.

    Args:
        path: The store's directory.
        create: Whether to make a store where there is none.
        index: Where the index is: ``store``, ``local``, or a directory for indexes on this
            machine; None for what ``DELTASTORE_INDEX`` says, or else for what suits the file
            system.

    Raises:
        StoreNotFoundError: There is none, and ``create`` is false.
        NotAStoreError: The directory holds something else.
        StoreTooNewError: A newer deltastore wrote it.
        StoreOutdatedError: Its catalog has an older schema.
        StoreReadOnlyError: It would have to be made, and cannot be.
        CatalogError: Its catalog is damaged or locked.
    """
    return Store(open_parts(Path(path), create=create, index=index))


class Store:
    """A store of artifacts. Made by ``open_store``.

    Methods may be called from several threads, and several processes may have a store open at
    once. Any of them may be killed at any instant: what was listed stays whole. Every method that
    changes something may raise StoreReadOnlyError, NoSpaceError, StoreError and CatalogError, every
    one that reads CatalogError.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    @property
    def path(self) -> Path:
        """The store's directory."""
        return self.parts.layout.root

    @property
    def id(self) -> str:
        """What tells this store from all others, wherever it is moved."""
        return self.parts.info.id

    @property
    def blobs(self) -> BlobStore:
        """The store's blobs."""
        return self.parts.blobs

    @property
    def writable(self) -> bool:
        """Whether this user may change the store."""
        return self.parts.writable

    def require_writable(self) -> None:
        """Refuse early what could not be stored in the end.

        Raises:
            StoreReadOnlyError: The user may not write.
        """
        self.parts.require_writable()

    def require_index_writable(self) -> None:
        """Refuse to make a catalog anew that lies in a store which cannot be written.

        Raises:
            StoreReadOnlyError: It does. An index of the user's own is no matter of the store's.
        """
        if not self.parts.index.local:
            self.parts.require_writable()

    def lease(self, purpose: str) -> AbstractContextManager[Path]:
        """Hold a lease while blobs are being put: what they are put for is not published yet.

        Raises:
            StoreReadOnlyError: The user may not write.
            StoreError: The store's directories are not on one file system.
        """
        self.parts.require_writable()
        self.parts.require_together(self.parts.layout.blobs, self.parts.layout.names)
        return self.parts.leases.hold(purpose)

    def publish(
        self,
        manifest: Manifest,
        config: Config,
        *,
        name: str,
        labels: Mapping[str, str],
        tags: Sequence[str] = (),
    ) -> Published:
        """Give an artifact, whose layers have been put, the next version of a name.

        An artifact that the name has already is not given another version. The record is the
        commit: before it nothing is listed, after it the version stays.

        Args:
            manifest: The manifest; its config blob and itself are put here.
            config: The config.
            name: The name.
            labels: What the user called the sources: ``base`` and ``post``.
            tags: Tags to set on the version.

        Raises:
            RefSyntaxError: The name or a tag cannot be one.
            RefError: The name or a tag differs from another only in case.
            BlobMissingError: A blob that the manifest names is not there.
            BlobCorruptError: One has another size, or the config is not the manifest's.
        """
        return publishing.publish(
            self.parts,
            manifest,
            config,
            name=name,
            base_label=labels["base"],
            post_label=labels["post"],
            tags=tags,
        )

    def refresh(self) -> int:
        """See what others have changed since the store was opened.

        Returns:
            How many names had to be read again.

        Raises:
            CatalogError: The index failed.
        """
        return refreshing.refresh(self.parts.sources, self.parts.catalog)

    def resolve(self, ref: str) -> Artifact:
        """The artifact that a ref means.

        Raises:
            RefSyntaxError: It is no ref.
            RefNotFoundError: There is none; the hint names the nearest.
            RefAmbiguousError: A shortened digest fits several artifacts.
        """
        return finding.resolve(self.parts, ref)

    def load(self, digest: str) -> tuple[Manifest, Config]:
        """An artifact's manifest and config, their bytes checked.

        Raises:
            BlobMissingError: One of them is not there.
            BlobCorruptError: One of them is damaged.
            ManifestInvalidError: One of them breaks the format.
        """
        manifest, config, _ = indexing.load(self.parts.blobs, digest)
        return manifest, config

    def artifacts(self) -> list[Artifact]:
        """All versions of all names, by name and version."""
        return self.parts.catalog.artifacts()

    def listings(self) -> list[Listing]:
        """All versions of all names, by name and version, with what a list shows.

        It is for thousands of versions what ``artifacts`` is for a few.
        """
        return self.parts.catalog.listings()

    def closed_names(self) -> list[tuple[str, StoreClosedError]]:
        """The names of which this user may not read all, and what opens each."""
        found = []
        for name in self.parts.catalog.unproven():
            path = first_closed(self.parts.layout.names / name, most=_LOOKED_AT)
            if path is not None:
                found.append((name, closed(self.parts.layout, path, name)))
        return found

    def find_made(self, base_content: str, post_content: str, codec: str) -> list[str]:
        """The digests of the artifacts of this pair of weights and codec that the user made.

        Oldest first. They differ in the small files of post, or in the version that encoded them.
        Artifacts that others published, and that say that they are of this pair, are not among
        them: whether they are, only reading the pair can tell.
        """
        made = self.parts.digests.made(base_content, post_content, codec)
        if not made:
            return []
        found = self.parts.catalog.find_pair(base_content, post_content, codec)
        return [digest for digest in found if digest in made]

    def made(self) -> set[str]:
        """The digests of all artifacts that the user made, here or in another store."""
        return self.parts.digests.all_made()

    def remember_made(self, config: Config, digest: str) -> None:
        """Remember that an artifact was made of its pair, of which all bytes were read.

        Args:
            config: The artifact's.
            digest: The manifest's digest.
        """
        self.parts.digests.remember_made(
            config.base.content, config.post.content, config.codec, digest
        )

    def tag(self, ref: str, tag: str) -> Artifact:
        """Make a tag mean the version that ``ref`` means; the version with its tags.

        Raises:
            RefSyntaxError: ``ref`` is no ref, or ``tag`` cannot be a tag.
            RefError: Another tag of the name differs only in case.
            RefNotFoundError: There is no such artifact.
            RefAmbiguousError: A shortened digest fits several artifacts.
        """
        self.parts.require_writable()
        artifact = self.resolve(ref)
        with changing(self.parts, "tag", artifact.name):
            steps.reached(Step.LEASE)
            tagging.set_tag(self.parts, artifact.name, tag, artifact.version)
        return self.resolve(artifact.ref)

    def untag(self, ref: str, tag: str) -> Artifact | None:
        """Remove a tag of the name that ``ref`` has; the version it meant, as it is now.

        None where the tag meant none: its file was damaged, or its version was removed.

        Raises:
            RefSyntaxError: ``ref`` is no ref, or ``tag`` cannot be a tag.
            RefNotFoundError: There is no such artifact, or the name has no such tag.
            RefAmbiguousError: A shortened digest fits several artifacts.
        """
        self.parts.require_writable()
        artifact = None
        try:
            name = self.resolve(ref).name
            artifact = self.resolve(f"{name}:{tag}")
        except (RefNotFoundError, FormatError, IntegrityError):
            found = tagging.name_with_file(self.parts, ref, tag)
            if found is None:
                raise
            name = found
        with changing(self.parts, "untag", name):
            steps.reached(Step.LEASE)
            tagging.remove_tag(self.parts, name, tag)
        return None if artifact is None else self.resolve(artifact.ref)

    def rm(self, ref: str) -> Artifact:
        """Remove a version and its tags; what was removed. Its number is never used again.

        Whatever lies in the place of its record is replaced: see ``removing.unlisted``.

        Raises:
            RefSyntaxError: ``ref`` is no ref.
            RefNotFoundError: There is no such artifact.
            RefAmbiguousError: The ref fits several versions.
        """
        self.parts.require_writable()
        try:
            artifact = finding.resolve_version(self.parts, ref)
        except (RefNotFoundError, FormatError, IntegrityError):
            found = removing.unlisted(self.parts, ref)
            if found is None:
                raise
            artifact = found
        removing.remove(self.parts, artifact)
        spares.fill(self.parts.layout.temp, plenty=False)
        return artifact

    def collect(self, *, grace_s: float, dry_run: bool = False) -> collecting.Collection:
        """Delete the blobs that no record refers to, and what processes that ended have left.

        Where anything is damaged or not understood, nothing is deleted.

        Args:
            grace_s: What became unused less than so many seconds ago is spared.
            dry_run: Only say what would be deleted.

        Raises:
            IntegrityError: A record, tombstone or manifest is missing or damaged.
            FormatError: One of them breaks the format.
        """
        done = collecting.collect(self.parts, grace_s=grace_s, dry_run=dry_run)
        spares.fill(self.parts.layout.temp, plenty=dry_run)
        return done

    def freeable(self) -> collecting.Amount:
        """The blobs that ``collect`` without a grace period would delete now.

        Raises:
            IntegrityError: As for ``collect``.
            FormatError: Likewise.
        """
        return collecting.freeable(self.parts)

    def remembered_digests(self, files: Iterable[FileIdentity]) -> dict[str, dict[str, str]]:
        """The BLAKE3 of the tensors of those files that have not changed since the user read them.

        Returns:
            By path, the tensors' hex digests by name.
        """
        return self.parts.digests.remembered(files)

    def files_with(self, blake3: str) -> list[str]:
        """The paths of files that had a tensor of this BLAKE3 (hex) when they were last read."""
        return self.parts.digests.files_with(blake3)

    def remember_digests(self, files: Iterable[tuple[FileIdentity, Mapping[str, str]]]) -> None:
        """Remember the BLAKE3 of the tensors of files, for the next time.

        Args:
            files: Each file as it was *before* it was read, and its tensors' hex digests by name.
        """
        self.parts.digests.remember(files)

    def free_bytes(self) -> int:
        """How many bytes this user may still write on the store's file system."""
        with translated(self.path):
            status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def reindex(self) -> refreshing.Indexed:
        """Make the catalog anew from all records and manifests."""
        self.require_index_writable()
        indexed = refreshing.index_all(self.parts.sources, self.parts.catalog)
        steps.reached(Step.INDEXED)
        return indexed

    def close(self) -> None:
        """Release what is open; idempotent."""
        self.parts.catalog.close()
        self.parts.digests.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
