"""Children that become another user, wherever the checkout and Python lie.

Another user may read neither: a clone may lie below a directory that only its owner may enter, and
its environment with it. A child is a fork, and has what was imported before it was made; what it
reads later of the package it reads from a copy that everybody may read.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

import deltastore
from deltastore.operations.doctor import doctor
from deltastore.operations.gc import gc
from deltastore.operations.verify import verify
from deltastore.store import open_store
from deltastore.testing.artifacts import publish
from deltastore.testing.killing import start, succeeds

PACKAGE = Path(deltastore.__file__).parent
TEAM = 60000
ANN, BOB = 60001, 60002
NOBODY = 65534

_INSTALLED = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]

_copies: list[Path] = []


def run_as(user: int, action: Callable[[], object], *, umask: int = 0o002) -> None:
    """Run ``action`` in a child that is a user of the team."""
    succeeds(start(becoming(user, umask, action)))


def becoming(user: int, umask: int, action: Callable[[], object]) -> Callable[[], None]:
    """``action`` for a child, which is to be a user of the team."""

    def become() -> None:
        os.umask(umask)
        _become(user, [TEAM])
        action()

    return become


def without_privileges(action: Callable[[], object]) -> None:
    """Run ``action`` in a child that permissions hold for: root may write anywhere."""

    def unprivileged() -> None:
        if os.geteuid() == 0:
            _become(NOBODY, [])
        action()

    succeeds(start(unprivileged))


@contextmanager
def public_directory() -> Iterator[Path]:
    """A new directory that other users may enter, which those of pytest are not."""
    for place in (None, "/tmp", "/var/tmp"):
        path = Path(tempfile.mkdtemp(dir=place)).resolve()
        path.chmod(0o755)
        try:
            if os.geteuid() != 0 or all(p.stat().st_mode & stat.S_IXOTH for p in path.parents):
                yield path
                return
        finally:
            for directory in [path, *(p for p in path.rglob("*") if p.is_dir())]:
                directory.chmod(0o755)
            shutil.rmtree(path)
    pytest.skip("there is no directory for temporary files that other users may enter")


@contextmanager
def readable_package() -> Iterator[None]:
    """While it lasts, children may become another user; skips where they could not go on then."""
    if os.geteuid() != 0:
        yield
        return
    with public_directory() as directory:
        shutil.copytree(
            PACKAGE, directory / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__")
        )
        for path in directory.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        _copies.append(directory)
        try:
            _try_out(directory)
            yield
        finally:
            _copies.remove(directory)


def _try_out(directory: Path) -> None:
    for name in ("mine", "theirs"):
        (directory / name).mkdir()
        (directory / name).chmod(0o777)
    _use(directory / "mine")  # imports what is imported late
    problem = directory / "theirs" / "problem"

    def attempt() -> None:
        try:
            _use(directory / "theirs")
        except Exception as error:
            if unreadable := _unreadable(error):
                problem.write_text(unreadable)
                os._exit(0)
            raise

    without_privileges(attempt)
    if problem.exists():
        pytest.skip(
            f"users other than root may not read {problem.read_text()}, where Python is installed"
        )


def _use(directory: Path) -> None:
    """Do what children do in tests."""
    for index in (None, str(directory / "index")):
        path = directory / f"store-{bool(index)}"
        with open_store(path, index=index) as store:
            publish(store, "m", 1, tags=("t",))
            store.rm("m")
            gc(store, grace_s=0)
            verify(store)
        doctor(path, index=index)


def _unreadable(error: BaseException | None) -> str | None:
    """Where Python is installed, if that is why a module was not found."""
    while error is not None:
        if isinstance(error, ImportError | PermissionError):
            for path in _INSTALLED:
                if not os.access(path, os.R_OK | os.X_OK):
                    return path
        error = error.__cause__ or error.__context__
    return None


def _become(user: int, groups: list[int]) -> None:
    _read_from(_copies[-1])
    os.setgroups(groups)
    os.setgid(user)
    os.setuid(user)


def _read_from(directory: Path) -> None:
    """Have what is imported, or read, of the package from now on come from the copy there."""
    for name, module in sys.modules.items():
        if name.split(".")[0] == PACKAGE.name and module.__file__ is not None:
            path = directory / Path(module.__file__).relative_to(PACKAGE.parent)
            module.__file__ = str(path)
            assert module.__spec__ is not None
            module.__spec__.loader = SourceFileLoader(name, str(path))
            if hasattr(module, "__path__"):
                module.__path__ = [str(path.parent)]
