"""An artifact as an OCI image layout: a directory that ``skopeo``, ``oras`` and registries read.

Source: https://github.com/opencontainers/image-spec, ``image-layout.md``.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from deltastore.blobs import FileBlobs, check_file
from deltastore.checkpoint.destination import check_space
from deltastore.checkpoint.files import file_error
from deltastore.checkpoint.output import Output
from deltastore.digest import canonical_json
from deltastore.errors import BlobCorruptError
from deltastore.manifest.format import ARTIFACT_TYPE, MANIFEST_MEDIA_TYPE
from deltastore.store import Artifact, Store
from deltastore.system.directory import Directory
from deltastore.system.limits import NO_SPACE

REF_NAME = "org.opencontainers.image.ref.name"
NAME = "vnd.deltastore.name"
_BLOCK_BYTES = 1 << 20
_INDEX = "index.json"
_NO_LINK = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
)
_FICLONE = 0x40049409


@dataclass(frozen=True, slots=True)
class Exported:
    """A layout that was written: its blobs, and how many of them take no room of their own.

    Attributes:
        directory: Where it is.
        blobs: How many there are.
        bytes: Theirs.
        linked: Hard links: the store's own files.
        cloned: Copies that the file system keeps once until one of them is changed.
    """

    directory: Path
    blobs: int
    bytes: int
    linked: int
    cloned: int


def write_layout(
    store: Store, artifact: Artifact, directory: Path, *, link: bool = False
) -> Exported:
    """Write an artifact as an OCI image layout with one manifest, tagged ``v<N>``.

    Every blob is a copy of its own, and checked: what is done to it does not reach the store. The
    directory appears whole or not at all.

    Args:
        store: The store.
        artifact: What to export.
        directory: A new or empty directory, as ``check_output`` says.
        link: Make hard links of the blobs that are this user's and that nobody else may write to,
            where the file system allows.

    Raises:
        OutputExistsError: It is there and not empty, or is a file.
        BlobMissingError: A blob is not in the store.
        BlobCorruptError: A blob is damaged.
        ManifestInvalidError: The manifest breaks the format.
        NoSpaceError: It does not fit.
        CheckpointError: This user cannot write there.
    """
    manifest, _ = store.load(artifact.digest)
    sizes = {blob.digest: blob.size for blob in manifest.blobs}
    sizes[artifact.digest] = manifest_size = store.blobs.size(artifact.digest) or 0
    with Output(directory) as output:
        try:
            root = output.directory
            with root.make("blobs") as blobs, blobs.make("sha256") as target:
                linked, cloned, left = 0, 0, {}
                for digest, size in sizes.items():
                    if link and _link(store, digest, size, target):
                        linked += 1
                    elif _clone(store, digest, size, target):
                        cloned += 1
                    else:
                        left[digest] = size
                check_space(directory, sum(left.values()), largest=max(left.values(), default=0))
                for digest, size in left.items():
                    _copy(store, digest, size, target)
            _write_documents(root, artifact, manifest_size)
        except OSError as error:
            raise file_error(error, directory, "write") from error
        # It is by its index that tools know a layout.
        output.deliver([_INDEX])
    return Exported(directory, len(sizes), sum(sizes.values()), linked, cloned)


def _link(store: Store, digest: str, size: int, target: Directory) -> bool:
    """Make a hard link of a blob; whether that can be done, and is safe."""
    if not isinstance(store.blobs, FileBlobs):
        return False
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
        return False
    # What somebody else may write to would change in the export when he does.
    if not _is_own(target.status(name)):
        target.unlink(name)
        return False
    _check(target, digest, size)
    return True


def _clone(store: Store, digest: str, size: int, target: Directory) -> bool:
    """Copy a blob without its bytes, where the file system can: btrfs, XFS and others.

    Both have the same blocks until one of them is written to, which then gets blocks of its own.
    """
    if not isinstance(store.blobs, FileBlobs):
        return False
    name = digest.removeprefix("sha256:")
    descriptor = target.create(name)
    try:
        with store.blobs.open(digest, size) as reader:
            fcntl.ioctl(descriptor, _FICLONE, reader.fileno())
    except OSError as error:
        target.unlink(name)
        if error.errno in NO_SPACE:
            raise
        return False
    finally:
        os.close(descriptor)
    _check(target, digest, size)
    return True


def _copy(store: Store, digest: str, size: int, target: Directory) -> None:
    """Copy a blob, whose digest is that of the bytes that are written."""
    hasher = hashlib.sha256()
    block = memoryview(bytearray(min(_BLOCK_BYTES, max(1, size))))
    name = digest.removeprefix("sha256:")
    with store.blobs.open(digest, size) as reader, open(target.create(name), "wb") as file:
        for offset in range(0, size, len(block)):
            piece = block[: min(len(block), size - offset)]
            reader.read_into(offset, piece)
            hasher.update(piece)
            file.write(piece)
    if f"sha256:{hasher.hexdigest()}" != digest:
        raise _damaged(digest)


def _is_own(status: os.stat_result) -> bool:
    """Whether a file is the user's, and nobody else may write to it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _check(target: Directory, digest: str, size: int) -> None:
    """Compare what has been put there, not what the store has by now, with its digest."""
    try:
        descriptor = target.read(digest.removeprefix("sha256:"))
    except OSError as error:
        raise _damaged(digest) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise _damaged(digest)
        check_file(descriptor, digest)
    finally:
        os.close(descriptor)


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
    root.write("oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"}))
    root.write(_INDEX, canonical_json(index))
