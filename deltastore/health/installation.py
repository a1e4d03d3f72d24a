"""This machine and what is installed on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import sys
from collections.abc import Iterator

from deltastore._version import __version__
from deltastore.health.check import Check

PACKAGES = (
    "alembic",
    "blake3",
    "huggingface_hub",
    "ml_dtypes",
    "numba",
    "numpy",
    "safetensors",
    "sqlalchemy",
    "torch",
    "zstandard",
)


def look_at_installation() -> Iterator[Check]:
    """Versions, processors and packages."""
    yield Check("deltastore", "ok", __version__)
    yield Check("python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield Check("system", "ok", f"{platform.platform()}, {platform.machine()}")
    yield Check("processors", "ok", f"{_processors()} usable of {os.cpu_count() or 1}")
    for package in PACKAGES:
        # Only the installation's list is read: importing torch takes longer than all the rest.
        try:
            yield Check(package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Check(
                package,
                "fail",
                "not installed",
                f"Run `pip install {package}` in this environment.",
            )
    yield Check("sqlite", "ok", sqlite3.sqlite_version)


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
