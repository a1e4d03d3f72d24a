"""Every command that changes something, killed at every step that it takes.

Whatever is listed is whole and applies bit for bit; the same command, given again, finishes; and
``gc --grace 0`` leaves no file that nothing refers to.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from checkpoints import Tensors, assert_same_bits, load, model, save, trained
from later_schema import later_schema

import deltastore
from deltastore.blobs.steps import Step
from deltastore.catalog import sqlite
from deltastore.checkpoint import CheckpointWriter
from deltastore.checkpoint.steps import Step as OutputStep
from deltastore.errors import OutputExistsError, RefNotFoundError, StoreOutdatedError
from deltastore.operations.migrate import migrate
from deltastore.operations.reindex import reindex
from deltastore.testing.killing import killed_at, traced

# The versions before the command, with their tags.
BEFORE = {"x:v1": ("old", "t"), "x:v2": (), "y:v1": ()}


@dataclass(frozen=True)
class World:
    """Checkpoints, a store to copy, and what its versions give on their own base."""

    directory: Path
    posts: dict[str, Tensors]

    @property
    def base(self) -> Path:
        return self.directory / "base"

    @property
    def store(self) -> Path:
        return self.directory / "store"

    @property
    def out(self) -> Path:
        return self.directory / "outputs" / "out"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    directory = tmp_path_factory.mktemp("template")
    base = model("base")
    files = {"config.json": '{"model_type": "llama"}', "tokenizer.json": "{}"}
    save(directory / "base", base, shards=2, files=files)
    posts = {}
    for name in ("one", "two", "three", "four"):
        posts[name] = trained(base, name)
        save(directory / name, posts[name], files=files)
    with deltastore.open(directory / "store") as store:
        store.extract(directory / "base", directory / "one", name="x", tags=["t", "old"])
        store.extract(directory / "base", directory / "two", name="x")
        store.extract(directory / "base", directory / "three", name="y")
    (directory / "outputs").mkdir()
    return World(directory, posts)


@pytest.fixture
def world(template: World, tmp_path: Path) -> World:
    shutil.copytree(template.directory, tmp_path / "world")
    return replace(template, directory=tmp_path / "world")


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are killed here, machines are not: syncing would only take time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(sqlite, "SYNCHRONOUS", "OFF")


def extract(world: World) -> None:
    with deltastore.open(world.store) as store:
        store.extract(world.base, world.directory / "four", name="x", tags=["t", "new"], jobs=1)


def tag(world: World) -> None:
    with deltastore.open(world.store) as store:
        store.tag("x:v2", "t")


def untag(world: World) -> None:
    with deltastore.open(world.store) as store, suppress(RefNotFoundError):
        store.untag("x", "t")


def rm(world: World) -> None:
    with deltastore.open(world.store) as store, suppress(RefNotFoundError):
        store.rm("x:v1")


def collect(world: World) -> None:
    rm(world)
    with deltastore.open(world.store) as store:
        store.gc(grace_s=0)


def rebuild(world: World) -> None:
    reindex(world.store)


def rebuild_from_garbage(world: World) -> None:
    """Given again after the new catalog is there, it finds nothing wrong."""
    catalog = world.store / "catalog.db"
    if not (world.store / "was-garbage").exists():
        (world.store / "was-garbage").touch()
        catalog.write_bytes(b"garbage" * 3000)
    reindex(world.store)


def upgrade(world: World) -> None:
    migrate(world.store)


def apply(world: World) -> None:
    with deltastore.open(world.store) as store, suppress(OutputExistsError):
        store.apply("x:v1", base=world.base, out=world.out, jobs=1)


def fail_to_apply(world: World) -> None:
    """The disk is full, say: what was begun is removed."""

    def write(self: CheckpointWriter, *_arguments: object) -> None:
        raise RuntimeError("made up")

    with pytest.MonkeyPatch.context() as patch, suppress(RuntimeError):
        patch.setattr(CheckpointWriter, "write", write)
        apply(world)


COMMANDS: dict[str, tuple[Callable[[World], None], dict[str, tuple[str, ...]], tuple[str, ...]]] = {
    "extract": (
        extract,
        {"x:v1": ("old",), "x:v2": (), "x:v3": ("new", "t"), "y:v1": ()},
        (
            "TEMP",
            "BLOB",
            "LEASE",
            "BLOBS",
            "MANIFEST",
            "CLAIM",
            "RECORD",
            "ROW",
            "TAG",
            "TAG_ROW",
            "TAGS",
        ),
    ),
    "tag": (tag, BEFORE | {"x:v1": ("old",), "x:v2": ("t",)}, ("LEASE", "TAG", "TAG_ROW")),
    "untag": (untag, BEFORE | {"x:v1": ("old",)}, ("LEASE", "TAG", "TAG_ROW")),
    "rm": (rm, {"x:v2": (), "y:v1": ()}, ("LEASE", "UNTAGGED", "TOMBSTONE", "UNLISTED")),
    "gc": (
        collect,
        {"x:v2": (), "y:v1": ()},
        (
            *("LEASE", "UNTAGGED", "TOMBSTONE", "UNLISTED"),
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
    "apply that fails": (
        fail_to_apply,
        BEFORE,
        ("LEASED", "BARE", "OWNED", "RESERVED", "CLEARED"),
    ),
}
CASES = [(name, step) for name, (_, _, taken) in COMMANDS.items() for step in taken]


def as_step(name: str) -> Step | OutputStep:
    return Step[name] if name in Step.__members__ else OutputStep[name]


def listed(world: World) -> dict[str, tuple[str, ...]]:
    with deltastore.open(world.store) as store:
        return {f"{found.name}:v{found.version}": found.tags for found in store.list()}


def check_whole(world: World) -> None:
    """Nothing is wrong, and every version that is listed gives what it was made from."""
    with deltastore.open(world.store) as store:
        assert store.verify().problems == ()
        for found in store.list():
            out = world.directory / "check"
            store.apply(f"{found.name}:v{found.version}", base=world.base, out=out, jobs=1)
            assert_same_bits(load(out), world.posts[found.post])
            shutil.rmtree(out)
    if world.out.exists():
        assert_same_bits(load(world.out), world.posts["one"])


def check_nothing_left_over(world: World) -> None:
    """After a collection there is no file that nothing refers to."""
    with deltastore.open(world.store) as store:
        store.gc(grace_s=0)
        report = store.verify()
        assert (report.problems, report.orphans) == ((), ())
    present = {str(p.relative_to(world.store)) for p in world.store.rglob("*") if p.is_file()}
    strays = {
        name
        for name in present - {"store.json", "catalog.db", "was-garbage"}
        if not name.startswith(("blobs/sha256/", "names/"))
    }
    assert strays == set()
    assert {path.name for path in world.out.parent.iterdir()} <= {world.out.name}


@pytest.mark.parametrize(("name", "step"), CASES)
def test_killed_at(
    world: World, name: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, expected, _ = COMMANDS[name]
    if name == "migrate":
        later_schema(tmp_path, monkeypatch)
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
    if name == "migrate":
        later_schema(tmp_path, monkeypatch)
    assert traced(tmp_path, lambda: command(world)) == set(taken)


def test_every_step_belongs_to_a_command() -> None:
    reached = {as_step(step) for _, step in CASES}
    assert reached == {*Step, *OutputStep}


@pytest.mark.parametrize("name", ["extract", "rm", "gc"])
def test_killed_again_and_again(world: World, name: str) -> None:
    """Each attempt gets one step further than the one before, on what that one left."""
    command, expected, taken = COMMANDS[name]
    for step in taken:
        with suppress(AssertionError):  # what is done already takes no step again
            killed_at(as_step(step), lambda: command(world))
        check_whole(world)
    command(world)
    assert listed(world) == expected
    check_nothing_left_over(world)
