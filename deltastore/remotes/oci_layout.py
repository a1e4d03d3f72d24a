"""An artifact as an OCI image layout: a directory that ``skopeo``, ``oras`` and registries read.

Source: https://github.com/opencontainers/image-spec, ``image-layout.md``.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from deltastore.blobs.durable import translated
from deltastore.blobs.owner import is_dead, owner_token
from deltastore.digest import canonical_json
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

    Blobs are hard links where the file system allows, else copies; every one is checked. The
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
    directory = directory.expanduser().absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise OutputExistsError(
            f"{directory} is there and not empty.", hint="Name a new or empty directory."
        )
    manifest, _ = store.load(artifact.digest)
    sizes = {blob.digest: blob.size for blob in manifest.blobs}
    sizes[artifact.digest] = manifest_size = store.blobs.size(artifact.digest) or 0
    with translated(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(directory)
        partial = directory.parent / f".{directory.name}.{owner_token()}.partial"
        partial.mkdir()
        try:
            blobs = partial / "blobs" / "sha256"
            blobs.mkdir(parents=True)
            linked = 0
            for digest, size in sizes.items():
                linked += _place(store, digest, size, blobs / digest.removeprefix("sha256:"))
            _write_documents(partial, artifact, manifest_size)
            # Onto an empty directory this replaces it; onto anything else it fails.
            partial.rename(directory)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return Exported(directory, len(sizes), sum(sizes.values()), linked)


def _place(store: Store, digest: str, size: int, target: Path) -> bool:
    """Put one blob in its place; whether as a link."""
    try:
        os.link(store.blobs.path(digest), target, follow_symlinks=False)
    except FileNotFoundError:
        # Gone since the manifest was read; opening it gives the right error.
        store.blobs.open(digest, size).close()
        raise
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
    else:
        store.blobs.check(digest, size)
        return True
    hasher = hashlib.sha256()
    block = memoryview(bytearray(min(_BLOCK_BYTES, max(1, size))))
    with store.blobs.open(digest, size) as reader, open(target, "xb") as file:
        for offset in range(0, size, len(block)):
            piece = block[: min(len(block), size - offset)]
            reader.read_into(offset, piece)
            hasher.update(piece)
            file.write(piece)
    if f"sha256:{hasher.hexdigest()}" != digest:
        raise BlobCorruptError(
            f"Blob {digest} is damaged: its bytes have another digest.",
            hint="Run `deltastore verify` to see what else is damaged.",
            digest=digest,
        )
    return False


def _write_documents(root: Path, artifact: Artifact, manifest_size: int) -> None:
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
    (root / "index.json").write_bytes(canonical_json(index))
    (root / "oci-layout").write_bytes(canonical_json({"imageLayoutVersion": "1.0.0"}))


def _remove_stale(directory: Path) -> None:
    """Remove what exports to this directory that were killed have left."""
    prefix = f".{directory.name}."
    for path in directory.parent.iterdir():
        token = path.name.removeprefix(prefix)
        if path.name.startswith(prefix) and token.endswith(".partial") and is_dead(token):
            shutil.rmtree(path, ignore_errors=True)
