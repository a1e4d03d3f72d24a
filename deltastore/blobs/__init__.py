"""Where an artifact's bytes are: by digest, immutable, whole or absent.

``BlobStore`` is the contract, ``LocalBlobs`` keeps blobs as files. ``CollectableBlobs`` and
``FileBlobs`` are what only some places can do. ``durable`` and ``owner`` are what the rest of the
store writes its small files with.
"""

from deltastore.blobs.counted import CountedBlobs
from deltastore.blobs.local import LocalBlobs, LocalReader, check_file
from deltastore.blobs.protocol import (
    BlobEntry,
    BlobReader,
    BlobSink,
    BlobStore,
    CollectableBlobs,
    FileBlobs,
    StoredBlob,
)

__all__ = [
    "BlobEntry",
    "BlobReader",
    "BlobSink",
    "BlobStore",
    "CollectableBlobs",
    "CountedBlobs",
    "FileBlobs",
    "LocalBlobs",
    "LocalReader",
    "StoredBlob",
    "check_file",
]
