"""What every test gets: a store home and settings of its own, no network, no progress bars."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_SETTINGS = (
    "DELTASTORE_CONFIG",
    "DELTASTORE_INDEX",
    "DELTASTORE_STORE",
    "COLUMNS",
    "LINES",
    "FORCE_COLOR",
    "PY_COLORS",
    "PYTEST_ADDOPTS",
)


def pytest_configure() -> None:
    """Forget the settings of whoever runs the tests, before the first fixture is made."""
    for name in _SETTINGS:
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def isolated_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A test that forgets to name a store must not touch the user's own."""
    home = tmp_path / "home"
    monkeypatch.setenv("DELTASTORE_HOME", str(home))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "xdg"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    return home
