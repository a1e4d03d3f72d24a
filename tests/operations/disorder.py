"""A command in a process of its own in which the system fails, and what must hold after it."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from checkpoints import assert_same_bits, load
from worlds import BEFORE, World, apply, collect, extract, rm, tag

import deltastore
from deltastore.errors import DeltastoreError
from deltastore.operations.reindex import reindex
from deltastore.testing.faults import FaultMap, Rule, counting
from deltastore.testing.killing import start, succeeds


class UnreadableError(DeltastoreError):
    """``reindex`` has said that it could not read something."""

    exit_code = 40


def rebuild(world: World) -> None:
    problems = reindex(world.store).problems
    if problems:
        raise UnreadableError(problems[0])


Command = Callable[[World], None]
Listing = dict[str, tuple[str, ...]]

# What each command does, and what is listed after it.
COMMANDS: dict[str, tuple[Command, Listing]] = {
    "extract": (extract, {"x:v1": ("old",), "x:v2": (), "x:v3": ("new", "t"), "y:v1": ()}),
    "apply": (apply, BEFORE),
    "tag": (tag, BEFORE | {"x:v1": ("old",), "x:v2": ("t",)}),
    "rm": (rm, {"x:v2": (), "y:v1": ()}),
    "gc": (collect, {"x:v2": (), "y:v1": ()}),
    "reindex": (rebuild, BEFORE),
}
_CLI = Path(__file__).parents[2] / "docs" / "cli.md"
DOCUMENTED = {
    int(code): set(re.findall(r"`(\w+)`", kinds))
    for code, kinds in re.findall(r"^\| (\d+) \|([^|]*)\|", _CLI.read_text(), re.MULTILINE)
}


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it asked of the system."""

    code: int
    kind: str
    message: str
    struck: int
    calls: int
    writes: int
    written: int


def refresh(world: World, template: World) -> None:
    """The store as it was, and no outputs."""
    for directory in (world.store, world.out.parent):
        shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(template.store, world.store)
    world.out.parent.mkdir()


def run(
    world: World,
    command: Command,
    rule: Rule = counting,
    *,
    arrange: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a command in a child, with faults by a rule and whatever ``arrange`` does to it."""
    told = world.directory.parent / "outcome"

    def child() -> None:
        error: DeltastoreError | None = None
        with told.open("w") as file, ExitStack() as stack:
            arrange()
            faults = stack.enter_context(FaultMap(world.directory, rule))
            try:
                command(world)
            except DeltastoreError as caught:
                error = caught
            stack.close()
            # A limit that ``arrange`` set on files ends here.
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            json.dump(
                {
                    "code": error.exit_code if error else 0,
                    "kind": type(error).__name__ if error else "",
                    "message": error.message if error else "",
                    "struck": faults.struck,
                    "calls": len(faults.calls),
                    "writes": sum(call.kind == "write" for call in faults.calls),
                    "written": faults.written,
                },
                file,
            )

    succeeds(start(child))  # anything but an error of ours is a traceback, and fails here
    return Outcome(**json.loads(told.read_text()))


def check(world: World, name: str, outcome: Outcome) -> None:
    """The error is a documented one; what is listed is whole; the command, again, finishes."""
    command, after = COMMANDS[name]
    if outcome.kind == UnreadableError.__name__:
        # It has left out what it could not read, and has said so: the next one finds it again.
        command(world)
    elif outcome.code:
        assert outcome.kind in DOCUMENTED[outcome.code], outcome
        assert outcome.code != 1
        assert outcome.message.endswith("."), outcome
    found = _seen(world)
    assert BEFORE.keys() & after.keys() <= found.keys() <= BEFORE.keys() | after.keys()
    for ref, tags in found.items():
        possible = {*BEFORE.get(ref, ()), *after.get(ref, ())}
        certain = {*BEFORE.get(ref, ())} & {*after.get(ref, ())}
        assert certain <= {*tags} <= possible, ref
    if not outcome.code:
        assert found == after
    if world.out.exists():
        # What has its name is whole.
        assert_same_bits(load(world.out), world.posts["one"])
        shutil.rmtree(world.out)
    # Once there is nothing in its way.
    command(world)
    assert _seen(world, collect=True) == after
    if name == "apply":
        assert_same_bits(load(world.out), world.posts["one"])
    for directory in ("tmp", "leases"):
        assert list((world.store / directory).iterdir()) == []
    assert {path.name for path in world.out.parent.iterdir()} <= {world.out.name}


def _seen(world: World, *, collect: bool = False) -> Listing:
    """What is listed, every byte of it checked; with ``collect``, there is nothing else."""
    with deltastore.open(world.store) as store:
        if collect:
            store.gc(grace_s=0)
        report = store.verify()
        assert report.problems == (), report.problems
        assert not collect or report.orphans == ()
        return {f"{found.name}:v{found.version}": found.tags for found in store.list()}
