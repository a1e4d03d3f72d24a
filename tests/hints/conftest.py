"""A store for every case, made once and copied."""

from __future__ import annotations

from pathlib import Path

import pytest
from hints_world import World, build, copy


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hints")
    build(root)
    return root


@pytest.fixture
def world(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    # Commands in hints are typed as they stand, whatever the directories are called.
    root = tmp_path / "it's here"
    root.mkdir()
    copy(template, root)
    monkeypatch.setenv("DELTASTORE_STORE", str(root / "store"))
    monkeypatch.chdir(root)
    return World(root, monkeypatch)
