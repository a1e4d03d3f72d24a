"""An artifact as an OCI image layout: a directory that ``skopeo``, ``oras`` and registries read.

Source: https://github.com/opencontainers/image-spec, ``image-layout.md``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from deltastore import places
from deltastore.blobs.durable import translated
from deltastore.blobs.local import LocalReader, check_bytes
from deltastore.checkpoint.destination import resolved
from deltastore.checkpoint.lease import (
    create_partial,
    deliver,
    remove_dead_partials,
    remove_partial,
)
from deltastore.digest import canonical_json
from deltastore.directory import Directory, hold_or_make, unmake
from deltastore.errors import BlobCorruptError, OutputExistsError
from deltastore.manifest.format import ARTIFACT_TYPE, MANIFEST_MEDIA_TYPE
from deltastore.store import Artifact, Store

REF_NAME = "org.opencontainers.image.ref.name"
NAME = "vnd.deltastore.name"
_BLOCK_BYTES = 1 << 20
_NO_LINK = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
)


@dataclass(frozen=True, slots=True)
class Exported:
    """A layout that was written: its blobs, how many of them are links into the store."""

    directory: Path
    blobs: int
    bytes: int
    linked: int


def write_layout(store: Store, artifact: Artifact, directory: Path) -> Exported:
    """Write an artifact as an OCI image layout with one manifest, tagged ``v<N>``.

    Blobs of the user's own are hard links where the file system allows, all others copies; every
    one is checked. The
    directory appears whole or not at all.

    Args:
        store: The store.
        artifact: What to export.
        directory: A new or empty directory.

    Raises:
        OutputExistsError: It is there and not empty, or is a file.
        BlobMissingError: A blob is not in the store.
        BlobCorruptError: A blob is damaged.
        ManifestInvalidError: The manifest breaks the format.
        NoSpaceError: It does not fit.
        StoreReadOnlyError: The user may not write there.
    """
    directory = resolved(places.given(directory, called="the directory"))
    with translated(directory):
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise OutputExistsError(
                f"{directory} is there and not empty.", hint="Name a new or empty directory."
            )
    manifest, _ = store.load(artifact.digest)
    sizes = {blob.digest: blob.size for blob in manifest.blobs}
    sizes[artifact.digest] = manifest_size = store.blobs.size(artifact.digest) or 0
    with translated(directory):
        remove_dead_partials(directory)
        parent, made = hold_or_make(directory.parent)
        try:
            with parent:
                linked = _write(store, artifact, manifest_size, sizes, parent, directory.name)
        except BaseException:
            unmake(made)
            raise
        finally:
            for held in chain.from_iterable(made):
                held.close()
    return Exported(directory, len(sizes), sum(sizes.values()), linked)


def _write(
    store: Store,
    artifact: Artifact,
    manifest_size: int,
    sizes: Mapping[str, int],
    parent: Directory,
    name: str,
) -> int:
    """Put a layout together beside its place and give it its name; how many blobs are links."""
    partial = create_partial(parent, name)
    try:
        with partial.directory.make("blobs") as blobs, blobs.make("sha256") as target:
            linked = sum(_put(store, digest, size, target) for digest, size in sizes.items())
        _write_documents(partial.directory, artifact, manifest_size)
        # Onto an empty directory this replaces it; onto anything else it fails.
        deliver(partial, name)
    except BaseException:
        remove_partial(partial)
        raise
    partial.close()
    return linked


def _put(store: Store, digest: str, size: int, target: Directory) -> bool:
    """Put one blob in its place; whether as a link."""
    path, name = store.blobs.path(digest), digest.removeprefix("sha256:")
    try:
        os.link(path, name, dst_dir_fd=target.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        # Gone since the manifest was read; opening it gives the right error.
        store.blobs.open(digest, size).close()
        raise
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
    else:
        # What somebody else may write to would change in the export when he does.
        if _is_own(target.status(name)):
            _check(target, digest, size)
            return True
        target.unlink(name)
    block = memoryview(bytearray(min(_BLOCK_BYTES, max(1, size))))
    with store.blobs.open(digest, size) as reader, open(target.create(name), "wb") as file:
        for offset in range(0, size, len(block)):
            piece = block[: min(len(block), size - offset)]
            reader.read_into(offset, piece)
            file.write(piece)
    _check(target, digest, size)
    return False


def _is_own(status: os.stat_result) -> bool:
    """Whether a file is the user's, and nobody else may write to it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _check(target: Directory, digest: str, size: int) -> None:
    """Compare what has been put there, not what the store has by now, with its digest."""
    try:
        descriptor = target.read(digest.removeprefix("sha256:"))
    except OSError as error:
        raise _damaged(digest) from error
    status = os.fstat(descriptor)
    with LocalReader(descriptor, digest, status.st_size) as reader:
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise _damaged(digest)
        check_bytes(reader, digest)


def _damaged(digest: str) -> BlobCorruptError:
    return BlobCorruptError(
        f"Blob {digest} is damaged, or no ordinary file.",
        hint="Run `deltastore verify` to see what else is damaged.",
        digest=digest,
    )


def _write_documents(root: Directory, artifact: Artifact, manifest_size: int) -> None:
    descriptor = {
        "mediaType": MANIFEST_MEDIA_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "digest": artifact.digest,
        "size": manifest_size,
        # Tools split "directory:tag" at the colon: the version alone is a tag, the ref is not.
        "annotations": {REF_NAME: f"v{artifact.version}", NAME: artifact.name},
    }
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor],
    }
    root.write("index.json", canonical_json(index))
    root.write("oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"}))
