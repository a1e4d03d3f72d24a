"""Counting what was put and was there already."""

from __future__ import annotations

from collections.abc import Sequence

from deltastore.blobs.protocol import BlobSink, StoredBlob


class CountedBlobs:
    """Puts blobs into another place, and counts the bytes that it had already.

    Not thread-safe: one thread at a time puts.
    """

    def __init__(self, blobs: BlobSink) -> None:
        self._blobs = blobs
        self.reused_bytes = 0

    def put(
        self, pieces: Sequence[bytes | bytearray | memoryview], *, digest: str | None = None
    ) -> StoredBlob:
        """See ``BlobStore.put``."""
        stored = self._blobs.put(pieces, digest=digest)
        if stored.reused:
            self.reused_bytes += stored.size
        return stored
