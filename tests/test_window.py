from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from deltastore.system.window import BLOCK_BYTES, SMALL_BYTES, Window

DATA = os.urandom(40 * BLOCK_BYTES + 12_345)


class File:
    """Counts what is fetched from it."""

    def __init__(self) -> None:
        self.fetched: list[tuple[int, int]] = []

    def __call__(self, position: int, count: int) -> bytes:
        self.fetched.append((position, count))
        return DATA[position : position + count]


def test_small_reads_that_lie_together_are_fetched_together() -> None:
    file = File()
    window = Window(file, len(DATA))
    for position in range(0, BLOCK_BYTES, 512):
        # As threads do that each read an offset here and a frame there.
        for place in (0, 7, 20, 33):
            at = place * BLOCK_BYTES + position
            assert window.read(at, 512) == DATA[at : at + 512]
    assert sorted(file.fetched) == [(n * BLOCK_BYTES, BLOCK_BYTES) for n in (0, 7, 20, 33)]


def test_every_byte_to_the_end_is_the_files() -> None:
    window = Window(File(), len(DATA))
    for count in (0, 1, 7, SMALL_BYTES):
        for position in (0, 1, len(DATA) - count, len(DATA) - count - 5, 3 * BLOCK_BYTES):
            assert window.read(position, count) == DATA[position : position + count]


@pytest.mark.parametrize(
    ("position", "count"),
    [
        (0, SMALL_BYTES + 1),
        (BLOCK_BYTES - 10, 11),
        (len(DATA) - 5, 6),
        (len(DATA) + BLOCK_BYTES, 1),
    ],
    ids=["large", "across blocks", "past the end", "far past the end"],
)
def test_what_is_not_for_a_window_is_left_to_the_caller(position: int, count: int) -> None:
    file = File()
    assert Window(file, len(DATA)).read(position, count) is None
    assert file.fetched == []


def test_a_failure_passes_and_nothing_of_it_stays() -> None:
    fail = True

    def fetch(position: int, count: int) -> bytes:
        if fail:
            raise OSError("gone")
        return DATA[position : position + count]

    window = Window(fetch, len(DATA))
    with pytest.raises(OSError, match="gone"):
        window.read(5, 10)
    fail = False
    assert window.read(5, 10) == DATA[5:15]


def test_few_blocks_are_kept_however_many_threads_read(tmp_path: Path) -> None:
    window = Window(File(), len(DATA))
    wrong: list[int] = []

    def read(first: int) -> None:
        for number in range(3000):
            at = (first * 7919 + number * 104_729) % (len(DATA) - 300)
            found = window.read(at, 300)
            if found is not None and found != DATA[at : at + 300]:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(window._blocks) <= 8
