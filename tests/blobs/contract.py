"""What every place for blobs must do. A test class inherits this and has a fixture ``blobs``."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from deltastore.blobs import BlobStore
from deltastore.errors import BlobCorruptError, BlobMissingError, ManifestInvalidError

ABSENT = "sha256:" + "0" * 64


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class BlobStoreContract:
    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 9000])
    def test_what_is_put_is_read_back(self, blobs: BlobStore, data: bytes) -> None:
        stored = blobs.put([data])
        assert (stored.digest, stored.size) == (digest_of(data), len(data))
        assert blobs.read(stored.digest, limit=len(data), what="Blob") == data
        blobs.check(stored.digest, len(data))
        assert blobs.size(stored.digest) == len(data)

    def test_pieces_of_any_buffer_are_joined(self, blobs: BlobStore) -> None:
        wide = memoryview(bytes(range(16))).cast("I")
        stored = blobs.put([b"ab", bytearray(b"cd"), memoryview(b"ef"), wide, b""])
        assert blobs.read(stored.digest, limit=99, what="Blob") == b"abcdef" + bytes(range(16))

    def test_putting_again_is_reuse(self, blobs: BlobStore) -> None:
        assert not blobs.put([b"abc"]).reused
        again = blobs.put([b"a", b"bc"], digest=digest_of(b"abc"))
        assert again.reused
        assert list(blobs.digests()) == [digest_of(b"abc")]

    def test_another_digest_than_expected_is_refused(self, blobs: BlobStore) -> None:
        with pytest.raises(BlobCorruptError, match="have the digest"):
            blobs.put([b"abc"], digest=ABSENT)
        assert list(blobs.digests()) == []

    def test_a_reader_reads_anywhere(self, blobs: BlobStore) -> None:
        data = bytes(range(256)) * 40
        stored = blobs.put([data])
        with blobs.open(stored.digest, stored.size) as reader:
            assert reader.size == len(data)
            assert reader.read(300, 100) == data[300:400]
            assert reader.read(len(data), 0) == b""
            buffer = bytearray(50)
            reader.read_into(7, memoryview(buffer))
            assert buffer == data[7:57]
            with pytest.raises(BlobCorruptError, match="ends"):
                reader.read(len(data) - 5, 6)
        reader.close()

    def test_what_is_not_there_is_missing(self, blobs: BlobStore) -> None:
        assert blobs.size(ABSENT) is None
        with pytest.raises(BlobMissingError):
            blobs.open(ABSENT, 0)
        with pytest.raises(BlobMissingError):
            blobs.read(ABSENT, limit=10, what="Blob")
        with pytest.raises(BlobMissingError):
            blobs.check(ABSENT, 0)

    def test_another_size_than_the_manifest_says_is_damage(self, blobs: BlobStore) -> None:
        stored = blobs.put([b"abc"])
        for size in (2, 4):
            with pytest.raises(BlobCorruptError, match=stored.digest):
                blobs.open(stored.digest, size)
            with pytest.raises(BlobCorruptError, match=stored.digest):
                blobs.check(stored.digest, size)

    def test_what_is_over_the_limit_is_not_read(self, blobs: BlobStore) -> None:
        stored = blobs.put([b"abcd"])
        with pytest.raises(ManifestInvalidError, match=r"Manifest .* has 4 bytes"):
            blobs.read(stored.digest, limit=3, what="Manifest")

    def test_checking_tells_how_far_it_is(self, blobs: BlobStore) -> None:
        data = b"x" * 3_000_000
        stored = blobs.put([data])
        done: list[int] = []
        blobs.check(stored.digest, stored.size, advance=done.append)
        assert sum(done) == len(data)
        assert len(done) > 1

    def test_deleting_is_idempotent(self, blobs: BlobStore) -> None:
        stored = blobs.put([b"abc"])
        with blobs.open(stored.digest, 3) as reader:
            assert blobs.delete(stored.digest)
            assert reader.read(0, 3) == b"abc"
        assert not blobs.delete(stored.digest)
        assert list(blobs.digests()) == []
        assert not blobs.put([b"abc"]).reused

    def test_threads_put_and_read_at_once(self, blobs: BlobStore) -> None:
        def work(number: int) -> str:
            data = str(number % 4).encode() * 100_000
            stored = blobs.put([data])
            blobs.check(stored.digest, stored.size)
            with blobs.open(stored.digest, stored.size) as reader:
                assert reader.read(500, 100) == data[:100]
            return stored.digest

        with ThreadPoolExecutor(8) as pool:
            digests = set(pool.map(work, range(40)))
        assert digests == set(blobs.digests())
        assert len(digests) == 4
