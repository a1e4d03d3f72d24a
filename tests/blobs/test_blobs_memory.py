"""The second place for blobs keeps the same promises as the first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from memory_blobs import MemoryBlobs

from deltastore.blobs import CollectableBlobs, FileBlobs
from deltastore.errors import NoSpaceError, StoreError
from deltastore.testing.blobs import BlobStoreContract


class TestMemoryBlobs(BlobStoreContract):
    @pytest.fixture
    def blobs(self) -> MemoryBlobs:
        return MemoryBlobs()

    def overwrite(self, blobs: MemoryBlobs, digest: str, data: bytes) -> None:
        blobs.data[digest] = data

    def failures(self, blobs: MemoryBlobs) -> Iterator[contextlib.AbstractContextManager[object]]:
        for error in (StoreError("no answer", hint="Try again."), NoSpaceError("full", hint="rm")):
            yield failing(blobs, "put", error)


@contextlib.contextmanager
def failing(blobs: MemoryBlobs, call: str, error: Exception) -> Iterator[None]:
    def fail(found: str, _digest: str) -> None:
        if found == call:
            raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blobs, "before", fail)
        yield


def test_it_can_be_collected_and_has_no_files() -> None:
    assert isinstance(MemoryBlobs(), CollectableBlobs)
    assert not isinstance(MemoryBlobs(), FileBlobs)
