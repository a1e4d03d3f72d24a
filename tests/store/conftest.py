from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_blobs import MemoryBlobs
from mounting import mounted
from other_users import public_directory, readable_package

from deltastore.catalog import sqlite
from deltastore.store import Store, collecting, open_store, opening
from deltastore.store.layout import Layout


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "blob_files: what it is about are blobs as files, or other processes"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test runs with blobs in memory as well, but for those that are about files."""
    files_only = metafunc.definition.get_closest_marker("blob_files") is not None
    metafunc.parametrize(
        "place_of_blobs", ["files"] if files_only else ["files", "memory"], indirect=True
    )


@pytest.fixture(autouse=True)
def place_of_blobs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where stores keep their blobs: ``files``, or ``memory``, shared by who opens one store."""
    # The model is unittest's class, without parameters; its crashes are other processes.
    place: str = getattr(request, "param", "files")
    if place == "memory":
        kept: dict[Path, MemoryBlobs] = {}

        def open_blobs(layout: Layout) -> MemoryBlobs:
            return kept.setdefault(layout.blobs, MemoryBlobs())

        monkeypatch.setattr(opening, "open_blobs", open_blobs)
    return place


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are killed here, machines are not: syncing would only take time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(sqlite, "SYNCHRONOUS", "OFF")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collectors do not wait long for writers that a test has stopped."""
    monkeypatch.setattr(collecting, "DRAIN_S", 0.05)


@pytest.fixture(scope="session")
def others_can_read() -> Iterator[None]:
    """Children may become another user."""
    with readable_package():
        yield


@pytest.fixture
def public_path(others_can_read: None) -> Iterator[Path]:
    """A directory that other users may enter, for tests whose children become one."""
    with public_directory() as path:
        yield path


@pytest.fixture(scope="module")
def may_mount(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where a machine does not let root mount."""
    try:
        with mounted(tmp_path_factory.mktemp("probe"), "-t", "tmpfs", "tmpfs"):
            pass
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be mounted on this machine")
