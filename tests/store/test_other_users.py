"""The tests that need several users pass wherever the checkout lies and whoever runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from other_users import ANN, PACKAGE

pytestmark = pytest.mark.blob_files

TESTS = Path(__file__).parents[1]


def checked_out(directory: Path) -> Path:
    """A checkout with what these tests need."""
    ignored = shutil.ignore_patterns("__pycache__")
    directory.mkdir(mode=0o700)
    shutil.copytree(PACKAGE, directory / PACKAGE.name, ignore=ignored)
    shutil.copytree(TESTS / "store", directory / "tests" / "store", ignore=ignored)
    for name in ("conftest.py", "memory_blobs.py"):
        shutil.copy(TESTS / name, directory / "tests")
    return directory


def outcome(checkout: Path, user: int | None = None) -> str:
    """What pytest says of the tests with a user who may not write, which root becomes."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(
        [*command, "-k", "read_only or nobody_may_write", "tests/store/test_store_open.py"],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"},
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_checkout_that_others_may_not_enter(public_path: Path) -> None:
    assert "8 passed" in outcome(checked_out(public_path / "closed"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_user_without_a_name(public_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        command = [sys.executable, "-c", "import pytest"]
        subprocess.run(command, user=ANN, group=ANN, extra_groups=[], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"users other than root may not run {sys.executable}")
    home = checked_out(public_path / "theirs")
    for path in [home, *home.rglob("*")]:
        os.chown(path, ANN, ANN)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(home))
    assert "8 passed" in outcome(home, ANN)
