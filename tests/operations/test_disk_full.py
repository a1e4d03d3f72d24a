"""The disk is full at fifty different points of a command, and then there is room again.

Three ways to be full. By the fault map, after so many bytes that Python writes; everywhere. By a
limit on the size of a file, which the kernel enforces, for SQLite as well; everywhere. On a small
file system in memory that a file fills up but for so many bytes: only where the user may mount one,
which is root; elsewhere there are no such cases, and the first two are all.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from disorder import COMMANDS, check, refresh, run
from small_disk import MAY_MOUNT
from worlds import World

from deltastore.catalog import sqlite
from deltastore.checkpoint import writer
from deltastore.extraction import storing
from deltastore.testing.faults import full_after

POINTS = {"extract": 50, "apply": 50, "tag": 6, "rm": 6, "gc": 6, "reindex": 6}
ON_TMPFS = {"extract": 17, "apply": 17, "tag": 4, "rm": 4, "gc": 4, "reindex": 4}
SIZE = 96 << 20


REAL = ["tmpfs"] if MAY_MOUNT else []


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls the plug here: syncing would only take time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(sqlite, "SYNCHRONOUS", "OFF")


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory; of a small file system of its own if the test is to have one."""
    place = tmp_path / "disk"
    place.mkdir()
    if request.param == "plain":
        yield place
        return
    options = ["-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs"]
    subprocess.run(["mount", *options, str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def world(disk: Path, template: World) -> World:
    """The store and the outputs on the disk, the checkpoints elsewhere."""
    found = replace(template, directory=disk / "world")
    found.directory.mkdir()
    for part in template.directory.iterdir():
        if part.name not in ("store", "outputs"):
            (found.directory / part.name).symlink_to(part)
    refresh(found, template)
    return found


def spread(total: int, points: int) -> list[int]:
    return [total * i // points for i in range(points)]


@pytest.mark.parametrize("disk", ["plain"], indirect=True)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_room_after_so_many_bytes(world: World, template: World, name: str) -> None:
    command, _ = COMMANDS[name]
    total = run(world, command).written
    for room in spread(total, min(total, POINTS[name])):
        refresh(world, template)
        outcome = run(world, command, full_after(room))
        assert outcome.struck, room
        # Said to be a full disk, but where what failed was only tidying up.
        assert outcome.code in (0, 16), (room, outcome)
        assert outcome.code == 16 or name in ("rm", "gc", "tag", "reindex"), (room, outcome)
        check(world, name, outcome)


@pytest.mark.parametrize("disk", ["plain"], indirect=True)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_file_may_grow_beyond_a_limit(world: World, template: World, name: str) -> None:
    command, _ = COMMANDS[name]
    refused = 0
    for limit in (0, 100, 700, 5_000, 20_000):
        refresh(world, template)

        def arrange(limit: int = limit) -> None:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

        outcome = run(world, command, arrange=arrange)
        refused += outcome.code != 0
        assert outcome.code in (0, 10, 16, 17), (limit, outcome)
        check(world, name, outcome)
    assert refused


@pytest.mark.parametrize("disk", REAL, indirect=True)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_small_file_system_is_full(world: World, template: World, name: str) -> None:
    """Also for SQLite and for space that is reserved at once."""
    command, _ = COMMANDS[name]
    measured = run(world, command)
    # A page for each file at least; twice as much is certainly enough.
    total = 2 * (measured.written + 4096 * measured.calls // 4)
    refused = 0
    for number, room in enumerate(spread(total, ON_TMPFS[name])):
        refresh(world, template)
        with filled_up(world.directory.parent, room):
            outcome = run(world, command, arrange=unasked if number % 5 else lambda: None)
        refused += outcome.code != 0
        assert outcome.code in (0, 16), (room, outcome)
        check(world, name, outcome)
    # What frees space needs none.
    assert bool(refused) == (name not in ("rm", "gc"))


def unasked() -> None:
    """The room was there when the command looked, and was taken by somebody else since."""
    writer.__dict__["check_space"] = lambda *_, **__: None
    storing.__dict__["_require_space"] = lambda *_: None


class filled_up:
    """A file system on which only so many bytes are left."""

    def __init__(self, disk: Path, room: int) -> None:
        self._ballast = disk / "ballast"
        self._room = room

    def __enter__(self) -> None:
        free = shutil.disk_usage(self._ballast.parent).free
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - self._room))

    def __exit__(self, *_: object) -> None:
        self._ballast.unlink()
