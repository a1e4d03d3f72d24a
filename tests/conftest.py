"""What every test gets: a store home of its own, no network, no progress bars."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def isolated_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A test that forgets to name a store must not touch the user's own."""
    home = tmp_path / "home"
    monkeypatch.setenv("DELTASTORE_HOME", str(home))
    monkeypatch.delenv("DELTASTORE_STORE", raising=False)
    monkeypatch.delenv("DELTASTORE_INDEX", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    return home
