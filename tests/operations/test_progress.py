"""Stages that downloads interrupt, and downloads that end when the work ends."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from deltastore.execution.progress import Staged
from deltastore.execution.thread_pool import Stopped, ThreadPool


class Watcher:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def start(self, label: str, total_bytes: int) -> None:
        self.events.append((label, total_bytes))

    def advance(self, done_bytes: int) -> None:
        self.events.append(done_bytes)

    def warn(self, message: str) -> None:
        self.events.append(message)


def test_a_stage_goes_on_where_a_download_interrupted_it() -> None:
    watcher = Watcher()
    staged = Staged(watcher)
    staged.start("extracting", 100)
    staged.advance(10)
    staged.begin_download("a", 50)
    staged.advance_download(20)
    staged.advance(5)  # another thread works on
    staged.begin_download("b", 30)
    staged.end_download(50)
    staged.advance_download(30)
    staged.end_download(30)
    staged.advance(1)
    staged.warn("oh")
    assert watcher.events == [
        ("extracting", 100),
        10,
        ("downloading a", 50),
        0,
        20,
        ("downloading 2 files", 80),
        20,
        30,
        ("extracting", 100),
        15,
        1,
        "oh",
    ]


def test_a_stage_that_begins_during_a_download_waits_for_its_end() -> None:
    watcher = Watcher()
    staged = Staged(watcher)
    staged.begin_download("config.json", 0)
    staged.start("planning", 0)
    staged.end_download(0)
    assert watcher.events == [("downloading config.json", 0), 0, ("planning", 0), 0]


def test_downloads_end_when_another_thread_fails() -> None:
    """A download is no chunk: without this, an interrupt would wait for gigabytes."""
    staged = Staged(Watcher())
    downloading = threading.Event()
    ends: list[type[BaseException]] = []

    def work(number: int, _: str) -> None:
        if number:
            downloading.wait(10)
            raise ValueError("the disk is gone")
        staged.begin_download("a", 0)
        try:
            for _ in range(1_000_000):
                staged.advance_download(1)
                downloading.set()
        except Stopped as stop:
            ends.append(type(stop))
            with pytest.raises(Stopped):
                staged.begin_download("b", 0)
            raise

    with pytest.raises(ValueError, match="the disk is gone"):
        ThreadPool(2).run(["download", "fail"], work)
    assert ends == [Stopped]
    staged.begin_download("c", 0)  # outside of a pool nothing stops
