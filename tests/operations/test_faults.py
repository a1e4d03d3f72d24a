"""Calls to the system fail, one in each run, all over every command.

Each run ends in a documented error or succeeds; then ``verify`` is clean, what is listed is whole,
the command given again finishes, and a collection leaves nothing over.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from disorder import COMMANDS, check, refresh, run
from worlds import World

from deltastore.catalog import sqlite
from deltastore.testing.faults import Rule, nth_fails, nth_is_short

POINTS = 10  # for each of four kinds of failure, at other calls
KINDS: dict[str, Callable[[int], Rule]] = {
    "EIO": lambda n: nth_fails(n, errno.EIO),
    "ENOSPC": lambda n: nth_fails(n, errno.ENOSPC),
    "EACCES": lambda n: nth_fails(n, errno.EACCES),
    "short write": lambda n: nth_is_short(n, errno.ENOSPC),
}

NOTHING = ("reindex", "short write")


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls the plug here: syncing would only take time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(sqlite, "SYNCHRONOUS", "OFF")


@pytest.mark.parametrize(
    ("name", "kind"),
    # ``reindex`` leaves all writing to SQLite.
    [(name, kind) for name in COMMANDS for kind in KINDS if (name, kind) != NOTHING],
)
def test_a_call_fails(template: World, tmp_path: Path, name: str, kind: str) -> None:
    world = replace(template, directory=tmp_path / "world")
    world.directory.mkdir()
    for part in template.directory.iterdir():
        if part.name not in ("store", "outputs"):
            (world.directory / part.name).symlink_to(part)
    refresh(world, template)
    command, _ = COMMANDS[name]
    undisturbed = run(world, command)
    total = undisturbed.writes if kind == "short write" else undisturbed.calls
    first = list(KINDS).index(kind)
    struck = 0
    for n in sorted({1 + (4 * i + first) * total // (4 * POINTS) for i in range(POINTS)}):
        refresh(world, template)
        outcome = run(world, command, KINDS[kind](n))
        struck += outcome.struck
        try:
            check(world, name, outcome)
        except Exception as error:
            error.add_note(f"{kind} at call {n} of {total}: {outcome}")
            raise
    assert struck
