"""Where an artifact's bytes are: by digest, immutable, whole or absent.

``BlobStore`` is the contract, ``LocalBlobs`` keeps blobs as files. ``durable`` and ``owner`` are
what the rest of the store writes its small files with.
"""

from deltastore.blobs.local import LocalBlobs, LocalReader
from deltastore.blobs.protocol import BlobReader, BlobStore, StoredBlob

__all__ = ["BlobReader", "BlobStore", "LocalBlobs", "LocalReader", "StoredBlob"]
