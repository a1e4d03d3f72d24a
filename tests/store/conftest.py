from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounting import mounted
from other_users import public_directory, readable_package

from deltastore.catalog import sqlite
from deltastore.store import Store, collecting, open_store


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
