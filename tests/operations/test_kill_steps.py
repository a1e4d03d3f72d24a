"""Every command that changes something, killed at every step that it takes.

Whatever is listed is whole and applies bit for bit; the same command, given again, finishes; and
``gc --grace 0`` leaves no file that nothing refers to.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from later_schema import later_schema
from worlds import (
    BEFORE,
    World,
    apply,
    apply_into,
    check_nothing_left_over,
    check_whole,
    collect,
    compose,
    extract,
    extract_what_follows,
    listed,
    rebuild,
    rm,
    tag,
    untag,
)

from deltastore.catalog import sqlite
from deltastore.checkpoint import CheckpointWriter
from deltastore.errors import StoreOutdatedError
from deltastore.operations.migrate import migrate
from deltastore.operations.reindex import reindex
from deltastore.system.steps import OutputStep, Step
from deltastore.testing.killing import killed_at, traced


@pytest.fixture
def world(template: World, tmp_path: Path) -> World:
    shutil.copytree(template.directory, tmp_path / "world")
    return replace(template, directory=tmp_path / "world")


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are killed here, machines are not: syncing would only take time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(sqlite, "SYNCHRONOUS", "OFF")


def rebuild_from_garbage(world: World) -> None:
    """Given again after the new catalog is there, it finds nothing wrong."""
    catalog = world.store / "catalog.db"
    if not (world.store / "was-garbage").exists():
        (world.store / "was-garbage").touch()
        catalog.write_bytes(b"garbage" * 3000)
    reindex(world.store)


def upgrade(world: World) -> None:
    migrate(world.store)


def fail_to_apply(world: World) -> None:
    """The disk is full, say: what was begun is removed."""

    def write(self: CheckpointWriter, *_arguments: object) -> None:
        raise RuntimeError("made up")

    with pytest.MonkeyPatch.context() as patch, suppress(RuntimeError):
        patch.setattr(CheckpointWriter, "write", write)
        apply(world)


STORING = (
    *("TEMP", "BLOB", "LEASE", "BLOBS", "MANIFEST", "CLAIM"),
    *("RECORD", "ROW", "TAG", "TAG_ROW", "TAGS"),
)
COMMANDS: dict[str, tuple[Callable[[World], None], dict[str, tuple[str, ...]], tuple[str, ...]]] = {
    "extract": (
        extract,
        {"x:v1": ("old",), "x:v2": (), "x:v3": ("new", "t"), "y:v1": ()},
        STORING,
    ),
    "compose": (
        compose,
        {"x:v1": ("old",), "x:v2": (), "x:v3": ("new", "t"), "y:v1": (), "z:v1": ()},
        STORING,
    ),
    "tag": (tag, BEFORE | {"x:v1": ("old",), "x:v2": ("t",)}, ("LEASE", "TAG", "TAG_ROW")),
    "untag": (untag, BEFORE | {"x:v1": ("old",)}, ("LEASE", "TAG", "TAG_ROW")),
    "rm": (rm, {"x:v2": (), "y:v1": ()}, ("LEASE", "CLAIMED", "UNTAGGED", "TOMBSTONE", "UNLISTED")),
    "gc": (
        collect,
        {"x:v2": (), "y:v1": ()},
        (
            *("LEASE", "CLAIMED", "UNTAGGED", "TOMBSTONE", "UNLISTED"),
            *("BIN", "GATE", "STALE", "BINNED", "OPENED", "EMPTIED"),
        ),
    ),
    "reindex": (rebuild, BEFORE, ("REFILLED", "INDEXED")),
    "reindex of garbage": (rebuild_from_garbage, BEFORE, ("DISCARDED", "REFILLED", "INDEXED")),
    "migrate": (upgrade, BEFORE, ("UPGRADED", "MIGRATED")),
    "apply": (
        apply,
        BEFORE,
        ("LEASED", "BARE", "OWNED", "RESERVED", "WRITTEN", "RELEASED", "NAMED", "DONE"),
    ),
    "apply into a directory": (
        apply_into,
        BEFORE,
        (
            *("LEASED", "BARE", "OWNED", "RESERVED", "WRITTEN"),
            *("FILLING", "FILLED", "CLEARED", "DONE"),
        ),
    ),
    "apply that fails": (
        fail_to_apply,
        BEFORE,
        ("LEASED", "BARE", "OWNED", "RESERVED", "CLEARED"),
    ),
}
CASES = [(name, step) for name, (_, _, taken) in COMMANDS.items() for step in taken]


def as_step(name: str) -> Step | OutputStep:
    return Step[name] if name in Step.__members__ else OutputStep[name]


def arrange(world: World, name: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command needs that the others do not."""
    if name == "migrate":
        later_schema(directory, monkeypatch)
    if name == "compose":
        extract_what_follows(world)


@pytest.mark.parametrize(("name", "step"), CASES)
def test_killed_at(
    world: World, name: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, expected, _ = COMMANDS[name]
    arrange(world, name, tmp_path, monkeypatch)
    killed_at(as_step(step), lambda: command(world))
    try:
        check_whole(world)
    except StoreOutdatedError:
        # Not migrated yet, and said to be: the store as it was.
        assert step == "UPGRADED"
    if name == "apply that fails":
        command = apply
    command(world)
    assert listed(world) == expected
    check_whole(world)
    check_nothing_left_over(world)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_step_of_a_command_is_left_out(
    world: World, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that is added to a command needs a case here."""
    command, _, taken = COMMANDS[name]
    arrange(world, name, tmp_path, monkeypatch)
    assert traced(tmp_path, lambda: command(world)) == set(taken)


def test_every_step_belongs_to_a_command() -> None:
    reached = {as_step(step) for _, step in CASES}
    assert reached == {*Step, *OutputStep}


@pytest.mark.parametrize("name", ["extract", "compose", "rm", "gc"])
def test_killed_again_and_again(
    world: World, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt gets one step further than the one before, on what that one left."""
    command, expected, taken = COMMANDS[name]
    arrange(world, name, tmp_path, monkeypatch)
    for step in taken:
        with suppress(AssertionError):  # what is done already takes no step again
            killed_at(as_step(step), lambda: command(world))
        check_whole(world)
    command(world)
    assert listed(world) == expected
    check_nothing_left_over(world)
