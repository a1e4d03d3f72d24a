"""What every place for blobs must do: pytest tests that a class inherits.

::

    class TestMyBlobs(BlobStoreContract):
        @pytest.fixture
        def blobs(self, tmp_path): ...          # an empty store

        def overwrite(self, blobs, digest, data): ...

The other hooks have a default that is right where nothing can be said.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import pytest

from deltastore.blobs import BlobStore, CollectableBlobs, FileBlobs
from deltastore.errors import (
    BlobCorruptError,
    BlobMissingError,
    ManifestInvalidError,
    StoreError,
)
from deltastore.system.directory import Place

ABSENT = "sha256:" + "0" * 64


def digest_of(data: bytes) -> str:
    """The digest of these bytes, computed without deltastore."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class BlobStoreContract:
    """The promises of ``BlobStore``, a test each. Needs a fixture ``blobs``: an empty store."""

    # --- what the tests cannot know of a store ---------------------------------------------

    def overwrite(self, blobs: Any, digest: str, data: bytes) -> None:
        """Put ``data`` in the place of a blob's bytes, behind the store's back."""
        raise NotImplementedError("say how bytes are damaged in your store")

    def make_unreadable(self, blobs: Any, digest: str) -> None:
        """Make sure that a blob's bytes are there and cannot be had; may be done by halves."""
        self.overwrite(blobs, digest, b"")

    def failures(self, blobs: Any) -> Iterable[contextlib.AbstractContextManager[object]]:
        """Contexts in each of which a ``put`` fails at another moment, in the system's words."""
        del blobs
        return ()

    def leftovers(self, blobs: Any) -> list[object]:
        """What the store keeps that is no blob, such as temporary files."""
        del blobs
        return []

    # --- put and read -----------------------------------------------------------------------

    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 9000])
    def test_what_is_put_is_read_back(self, blobs: BlobStore, data: bytes) -> None:
        """Digest, size and bytes; none, one and many."""
        stored = blobs.put([data])
        assert (stored.digest, stored.size) == (digest_of(data), len(data))
        assert blobs.read(stored.digest, limit=len(data), what="Blob") == data
        assert blobs.read(stored.digest, limit=1 << 30, what="Blob", size=len(data)) == data
        blobs.check(stored.digest, len(data))
        assert blobs.size(stored.digest) == len(data)
        with blobs.open(stored.digest, len(data)) as reader:
            assert reader.read(0, len(data)) == data

    def test_no_pieces_are_the_empty_blob(self, blobs: BlobStore) -> None:
        """A blob may have no bytes, and no pieces."""
        assert blobs.put([]).digest == digest_of(b"")
        assert blobs.put([b"", b""]).reused
        assert list(blobs.digests()) == [digest_of(b"")]

    def test_pieces_of_any_buffer_are_joined(self, blobs: BlobStore) -> None:
        """Bytes, bytearrays and memoryviews of any item."""
        wide = memoryview(bytes(range(16))).cast("I")
        stored = blobs.put([b"ab", bytearray(b"cd"), memoryview(b"ef"), wide, b""])
        assert stored.size == 22
        assert blobs.read(stored.digest, limit=99, what="Blob") == b"abcdef" + bytes(range(16))

    def test_many_pieces_are_joined(self, blobs: BlobStore) -> None:
        """More than the system takes in one call, where it takes several."""
        pieces = [bytes([number % 251]) * (number % 7) for number in range(5000)]
        stored = blobs.put(pieces)
        assert blobs.read(stored.digest, limit=1 << 20, what="Blob") == b"".join(pieces)

    def test_pieces_are_not_kept(self, blobs: BlobStore) -> None:
        """The caller uses its buffers again."""
        buffer = bytearray(b"abc")
        stored = blobs.put([buffer])
        buffer[:] = b"xyz"
        assert blobs.read(stored.digest, limit=3, what="Blob") == b"abc"

    def test_blobs_do_not_mix(self, blobs: BlobStore) -> None:
        """Each has its own bytes, and all are listed."""
        stored = {blobs.put([bytes([n]) * n]).digest: bytes([n]) * n for n in range(20)}
        assert sorted(blobs.digests()) == sorted(stored)
        for digest, data in stored.items():
            assert blobs.read(digest, limit=20, what="Blob") == data

    def test_putting_again_is_reuse(self, blobs: BlobStore) -> None:
        """The same bytes are one blob, whatever pieces they come in."""
        assert not blobs.put([b"abc"]).reused
        again = blobs.put([b"a", b"bc"], digest=digest_of(b"abc"))
        assert (again.digest, again.size, again.reused) == (digest_of(b"abc"), 3, True)
        assert list(blobs.digests()) == [digest_of(b"abc")]

    def test_another_digest_than_expected_is_refused(self, blobs: BlobStore) -> None:
        """What was damaged on its way is not stored under any name."""
        with pytest.raises(BlobCorruptError, match="have the digest"):
            blobs.put([b"abc"], digest=ABSENT)
        assert list(blobs.digests()) == []
        assert self.leftovers(blobs) == []

    def test_a_reader_reads_anywhere(self, blobs: BlobStore) -> None:
        """At any offset, into any buffer, and never past the end."""
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
            with pytest.raises(BlobCorruptError, match="ends"):
                reader.read(len(data) + 5, 1)
        reader.close()

    def test_checking_tells_how_far_it_is(self, blobs: BlobStore) -> None:
        """In steps that add up to the blob."""
        data = b"x" * 3_000_000
        stored = blobs.put([data])
        done: list[int] = []
        blobs.check(stored.digest, stored.size, advance=done.append)
        assert sum(done) == len(data)
        assert len(done) > 1

    # --- what is not there, or not as it should be -------------------------------------------

    def test_what_is_not_there_is_missing(self, blobs: BlobStore) -> None:
        """Every way to ask says so; none makes it."""
        assert blobs.size(ABSENT) is None
        with pytest.raises(BlobMissingError):
            blobs.open(ABSENT, 0)
        with pytest.raises(BlobMissingError):
            blobs.read(ABSENT, limit=10, what="Blob")
        with pytest.raises(BlobMissingError):
            blobs.check(ABSENT, 0)
        assert not blobs.delete(ABSENT)
        assert list(blobs.digests()) == []

    def test_another_size_than_the_manifest_says_is_damage(self, blobs: BlobStore) -> None:
        """Whether a manifest says more or less."""
        stored = blobs.put([b"abc"])
        for size in (0, 2, 4):
            with pytest.raises(BlobCorruptError, match=stored.digest):
                blobs.open(stored.digest, size)
            with pytest.raises(BlobCorruptError, match=stored.digest):
                blobs.check(stored.digest, size)
            with pytest.raises(BlobCorruptError, match=stored.digest):
                blobs.read(stored.digest, limit=9, what="Blob", size=size)

    def test_what_is_over_the_limit_is_not_read(self, blobs: BlobStore) -> None:
        """A limit is kept before anything is read into memory."""
        stored = blobs.put([b"abcd"])
        with pytest.raises(ManifestInvalidError, match=r"Manifest .* has 4 bytes"):
            blobs.read(stored.digest, limit=3, what="Manifest")

    @pytest.mark.parametrize("position", [0, 1_500_000, 2_999_999])
    def test_damage_is_found_and_putting_again_heals_it(
        self, blobs: BlobStore, position: int
    ) -> None:
        """One bit anywhere; and a damaged blob is no reason not to store the right bytes."""
        data = hashlib.shake_128(b"contract").digest(3_000_000)
        stored = blobs.put([data])
        damaged = bytearray(data)
        damaged[position] ^= 1
        self.overwrite(blobs, stored.digest, bytes(damaged))
        with pytest.raises(BlobCorruptError, match=stored.digest):
            blobs.check(stored.digest, stored.size)
        with pytest.raises(BlobCorruptError, match=stored.digest):
            blobs.read(stored.digest, limit=stored.size, what="Blob")
        assert not blobs.put([data[:1_000_000], data[1_000_000:]]).reused
        blobs.check(stored.digest, stored.size)

    @pytest.mark.parametrize("found", [b"", b"abcd", b"abcdefg"])
    def test_a_blob_of_another_length_is_found_and_healed(
        self, blobs: BlobStore, found: bytes
    ) -> None:
        """Cut short, or with something behind it."""
        stored = blobs.put([b"abcdef"])
        self.overwrite(blobs, stored.digest, found)
        with pytest.raises(BlobCorruptError):
            blobs.check(stored.digest, 6)
        with pytest.raises(BlobCorruptError):
            blobs.read(stored.digest, limit=9, what="Blob")
        with pytest.raises(BlobCorruptError):
            blobs.open(stored.digest, 6)
        assert not blobs.put([b"abcdef"]).reused
        blobs.check(stored.digest, 6)

    def test_what_cannot_be_read_is_damage_and_is_healed(self, blobs: BlobStore) -> None:
        """Not missing, and no error of the system's: it is there, and no use."""
        stored = blobs.put([b"abcdef"])
        self.make_unreadable(blobs, stored.digest)
        with pytest.raises(BlobCorruptError):
            blobs.check(stored.digest, 6)
        with pytest.raises(BlobCorruptError):
            blobs.read(stored.digest, limit=9, what="Blob")
        assert not blobs.put([b"abcdef"]).reused
        blobs.check(stored.digest, 6)

    # --- what fails half way ----------------------------------------------------------------

    def test_a_put_that_fails_leaves_nothing(self, blobs: BlobStore) -> None:
        """The whole blob or none, an error that can be acted on, and room for another try."""
        for failure in self.failures(blobs):
            with pytest.raises(StoreError) as caught, failure:
                blobs.put([b"abc", b"def"])
            assert caught.value.hint
            assert blobs.size(digest_of(b"abcdef")) in (None, 6)
            for digest in blobs.digests():
                blobs.check(digest, 6)
            assert self.leftovers(blobs) == []
            assert blobs.put([b"abc", b"def"]).size == 6
            blobs.check(digest_of(b"abcdef"), 6)
            blobs.delete(digest_of(b"abcdef"))

    def test_pieces_that_fail_leave_nothing(self, blobs: BlobStore) -> None:
        """A source that breaks off, wherever it does, stores nothing."""
        data = [b"abc", b"def", b"ghi"]
        for count in range(30):
            pieces = _Breaking(data, count)
            with contextlib.suppress(_BrokenOffError):
                blobs.put(pieces)
            if pieces.broke:
                assert list(blobs.digests()) == []
                assert self.leftovers(blobs) == []
        assert blobs.put(data).size == 9

    def test_a_failed_put_harms_no_other_blob(self, blobs: BlobStore) -> None:
        """What was there is there."""
        kept = blobs.put([b"kept"])
        for failure in self.failures(blobs):
            with contextlib.suppress(StoreError), failure:
                blobs.put([b"abcdef"])
            blobs.check(kept.digest, 4)

    # --- what only some can do: skipped where it is not offered ------------------------------

    def test_entries_are_the_blobs(self, blobs: BlobStore) -> None:
        """Each with its size, and as young as when it was put last."""
        held = _collectable(blobs)
        stored = {blobs.put([b"x" * n]).digest: n for n in range(5)}
        before = {entry.digest: entry for entry in held.entries()}
        assert {digest: entry.size for digest, entry in before.items()} == stored
        for digest, size in stored.items():
            assert held.entry(digest) == before[digest]
            time.sleep(0.02)
            assert blobs.put([b"x" * size]).reused
            again = held.entry(digest)
            assert again is not None
            assert again.modified > before[digest].modified
        assert held.entry(ABSENT) is None
        assert held.strangers() == []

    def test_what_is_moved_out_is_gone(self, blobs: BlobStore, tmp_path: Path) -> None:
        """That blob and no other; whoever puts it again stores it."""
        held = _collectable(blobs)
        stored, kept = blobs.put([b"abc"]), blobs.put([b"kept"])
        with Place(tmp_path / "bin").make() as bin_, blobs.open(stored.digest, 3) as reader:
            assert held.move_out(stored.digest, bin_)
            assert not held.move_out(stored.digest, bin_)
            assert not held.move_out(ABSENT, bin_)
            held.sync()
            assert reader.read(0, 3) == b"abc"
            assert blobs.size(stored.digest) is None
            assert list(blobs.digests()) == [kept.digest]
            assert not blobs.put([b"abc"]).reused
        blobs.check(stored.digest, 3)
        blobs.check(kept.digest, 4)

    def test_nothing_is_moved_out_without_a_bin(self, blobs: BlobStore, tmp_path: Path) -> None:
        """A writer has taken it away: it relies on what it finds."""
        held = _collectable(blobs)
        stored = blobs.put([b"abc"])
        with Place(tmp_path / "bin").make() as bin_:
            bin_.path.rmdir()
            assert not held.move_out(stored.digest, bin_)
        blobs.check(stored.digest, 3)
        assert self.leftovers(blobs) == []

    def test_files_are_where_they_are_said_to_be(self, blobs: BlobStore) -> None:
        """By path and by descriptor."""
        if not isinstance(blobs, FileBlobs):
            pytest.skip("no FileBlobs")
        stored = blobs.put([b"abc"])
        assert blobs.path(stored.digest).read_bytes() == b"abc"
        with blobs.open(stored.digest, 3) as reader:
            assert os.pread(reader.fileno(), 9, 0) == b"abc"

    # --- deleting, and several at once ------------------------------------------------------

    def test_deleting_is_idempotent(self, blobs: BlobStore) -> None:
        """Who has it open keeps it; who asks afterwards finds it gone."""
        stored = blobs.put([b"abc"])
        other = blobs.put([b"other"])
        with blobs.open(stored.digest, 3) as reader:
            assert blobs.delete(stored.digest)
            assert reader.read(0, 3) == b"abc"
        assert not blobs.delete(stored.digest)
        assert blobs.size(stored.digest) is None
        assert list(blobs.digests()) == [other.digest]
        assert not blobs.put([b"abc"]).reused

    def test_threads_put_and_read_at_once(self, blobs: BlobStore) -> None:
        """The same few blobs, forty times."""

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
        assert self.leftovers(blobs) == []

    def test_threads_share_a_reader(self, blobs: BlobStore) -> None:
        """A reader has no position of its own."""
        data = hashlib.shake_128(b"shared").digest(200_000)
        stored = blobs.put([data])
        with blobs.open(stored.digest, stored.size) as reader, ThreadPoolExecutor(8) as pool:
            offsets = [number * 997 % 190_000 for number in range(400)]
            found = list(pool.map(lambda offset: reader.read(offset, 5000), offsets))
        assert found == [data[offset : offset + 5000] for offset in offsets]

    def test_threads_see_a_blob_whole_or_not_at_all(self, blobs: BlobStore) -> None:
        """While it comes and goes: missing, or right to the last byte."""
        data = b"z" * 300_000
        digest = digest_of(data)

        def change(_: int) -> None:
            blobs.put([data])
            blobs.delete(digest)

        def look(_: int) -> None:
            with contextlib.suppress(BlobMissingError):
                blobs.check(digest, len(data))
            assert blobs.size(digest) in (None, len(data))

        with ThreadPoolExecutor(6) as pool:
            done = [pool.map(change, range(20)), pool.map(look, range(60))]
            for results in done:
                list(results)


def _collectable(blobs: BlobStore) -> CollectableBlobs:
    if not isinstance(blobs, CollectableBlobs):
        pytest.skip("no CollectableBlobs")
    return blobs


class _BrokenOffError(Exception):
    """In the place of whatever a source may raise."""


class _Breaking(Sequence[bytes]):
    """Pieces that can be had only so many times."""

    def __init__(self, pieces: list[bytes], count: int) -> None:
        self._pieces = pieces
        self._left = count
        self.broke = False

    def __len__(self) -> int:
        return len(self._pieces)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        self._use()
        return self._pieces[index]

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self._use()
            yield piece

    def _use(self) -> None:
        if self._left == 0:
            self.broke = True
            raise _BrokenOffError
        self._left -= 1
