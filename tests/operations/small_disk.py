"""File systems in memory of few bytes or files, and how they are filled to the last one."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def may_mount() -> bool:
    """Whether this user can mount a file system in memory: asked by doing it."""
    if os.geteuid() or not shutil.which("mount"):
        return False
    probe = Path(f"/tmp/deltastore-mount-{os.getpid()}")
    probe.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(probe)],
            capture_output=True,
            check=False,
        )
        if done.returncode == 0:
            subprocess.run(["umount", str(probe)], check=True)
        return done.returncode == 0
    finally:
        probe.rmdir()


MAY_MOUNT = may_mount()
needs_mount = pytest.mark.skipif(
    not MAY_MOUNT, reason="only who may mount a file system can have a small one"
)


@contextlib.contextmanager
def small_disk(place: Path, *options: str) -> Iterator[Path]:
    """A file system in memory at ``place``, with options of ``mount``."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join(("mode=755", *options)), "tmpfs", str(place)]
    subprocess.run(command, check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill_bytes(disk: Path) -> None:
    """Leave no byte; may be called again, to take what has become free since."""
    ballast = disk / "ballast"
    ballast.mkdir(exist_ok=True)
    for number in itertools.count(len(list(ballast.iterdir()))):
        with contextlib.suppress(OSError), (ballast / str(number)).open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        if not os.statvfs(disk).f_bavail:
            return


def fill_files(disk: Path) -> None:
    """Leave no inode; may be called again."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError):
        ballast.mkdir(exist_ok=True)
        for number in itertools.count(len(list(ballast.iterdir()))):
            (ballast / str(number)).touch()


def empty(disk: Path) -> None:
    """Remove what filled it."""
    shutil.rmtree(disk / "ballast", ignore_errors=True)


FILLERS = {"bytes": fill_bytes, "files": fill_files}
