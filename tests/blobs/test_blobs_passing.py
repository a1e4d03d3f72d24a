"""The digest that is taken in passing is the digest, however a blob is read."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_blobs import MemoryBlobs

from deltastore.blobs import passing
from deltastore.blobs.passing import PassingDigest, PassingReader, Room
from deltastore.errors import BlobCorruptError

DATA = hashlib.shake_128(b"passing").digest(60_000)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of blobs that are a thousand times as large."""
    monkeypatch.setattr(passing, "_GAP_BYTES", 16_000)
    monkeypatch.setattr(passing, "BLOCK_BYTES", 1000)


class Read:
    """A blob that is read while its digest is taken; ``once`` is what was read for others."""

    def __init__(self, data: bytes = DATA, room: int = 8000, *, damaged: int | None = None) -> None:
        self.blobs = MemoryBlobs()
        self.digest = self.blobs.put([data]).digest
        if damaged is not None:
            wrong = bytearray(data)
            wrong[damaged] ^= 1
            self.blobs.data[self.digest] = bytes(wrong)
        self.size = len(data)
        self.space = room
        self.room = Room(room)
        self.passing = PassingDigest(self.digest, self.size, self.room)
        self.reader = PassingReader(
            self.blobs.open(self.digest, self.size), self.digest, {self.digest: self.passing}
        )
        self.once = 0

    def read(self, offset: int, count: int) -> None:
        assert len(self.reader.read(offset, count)) == count
        self.once += count

    def finish(self) -> int:
        """How many bytes were read for the digest alone."""
        try:
            with self.blobs.open(self.digest, self.size) as reader:
                self.passing.finish(reader)
        finally:
            assert (self.passing._held, self.room._left) == ([], self.space)
        return self.blobs.bytes_read - self.once


def test_what_is_read_in_order_is_read_once() -> None:
    read = Read()
    for offset in range(0, 60_000, 1000):
        read.read(offset, 1000)
    assert read.finish() == 0


def test_threads_that_read_nearly_in_order_read_once() -> None:
    """Each piece comes up to three places too early or too late, as of four threads."""
    read = Read()
    pieces = list(range(0, 60_000, 500))
    for first in range(0, len(pieces), 4):
        for offset in reversed(pieces[first : first + 4]):
            read.read(offset, 500)
    assert read.finish() == 0


def test_what_is_read_twice_is_hashed_once() -> None:
    read = Read()
    for offset in range(0, 59_000, 500):
        read.read(offset, 1000)
    read.read(59_000, 1000)
    assert read.finish() == 0


def test_a_part_that_nobody_reads_is_all_that_is_read_again() -> None:
    """As of the offsets at its beginning, and a stream that is not used."""
    read = Read()
    for offset in (*range(500, 20_000, 500), *range(21_000, 58_000, 500)):
        read.read(offset, 500)
    assert read.finish() == 500 + 1000 + 2000


def test_what_is_read_backwards_is_read_twice_and_not_held() -> None:
    read = Read()
    for offset in reversed(range(0, 60_000, 500)):
        read.read(offset, 500)
        assert read.passing._held_bytes <= 8000
    assert read.finish() <= 60_000


def test_without_room_what_comes_in_order_still_passes() -> None:
    """Another blob of the artifact may hold all that may be held."""
    read = Read(room=0)
    for offset in range(0, 60_000, 1000):
        read.read(offset, 1000)
    assert read.finish() == 0


def test_nothing_at_all_was_read() -> None:
    assert Read().finish() == 60_000
    assert Read(b"").finish() == 0


@pytest.mark.parametrize("damaged", [0, 777, 30_000, 59_999])
def test_damage_is_told_when_the_last_byte_passes(damaged: int) -> None:
    read = Read(damaged=damaged)
    for offset in range(0, 59_000, 1000):
        read.read(offset, 1000)
    with pytest.raises(BlobCorruptError, match=read.digest):
        read.read(59_000, 1000)
    with pytest.raises(BlobCorruptError, match=read.digest):
        read.finish()


@settings(max_examples=200, deadline=None)
@given(data=st.data(), damaged=st.none() | st.integers(0, 59_999), room=st.integers(0, 9000))
def test_however_it_is_read(data: st.DataObject, damaged: int | None, room: int) -> None:
    """Exact in both directions, bounded in memory and in what is read again."""
    read = Read(room=room, damaged=damaged)
    spans = st.tuples(st.integers(0, 59_999), st.integers(0, 6000))
    found = False
    try:
        for offset, count in data.draw(st.lists(spans, max_size=40)):
            read.read(offset, min(count, 60_000 - offset))
            assert 0 <= read.room._left <= room
        assert read.finish() <= 60_000
    except BlobCorruptError:
        found = True
    assert found == (damaged is not None)


def test_many_threads_read_at_once() -> None:
    """None waits for one that hashes, and every byte is hashed once."""
    for seed in range(20):
        read = Read()
        offsets = iter(range(0, 60_000, 250))
        lock = threading.Lock()

        def work(_: Any, offsets: Any = offsets, lock: Any = lock, read: Read = read) -> None:
            while True:
                with lock:
                    offset = next(offsets, None)
                if offset is None:
                    return
                read.reader.read(offset, 250)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        read.finish()
        assert read.passing._at == 60_000, seed


def test_a_reader_does_not_wait_for_one_that_hashes() -> None:
    read = Read()
    with read.passing._hashing:
        done = threading.Thread(target=read.read, args=(0, 1000))
        done.start()
        done.join(10)
        assert not done.is_alive()
    assert read.finish() == 59_000
