"""Processes that are killed in the middle of extract and apply: what is left, and the next try."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from checkpoints import Tensors, assert_same_bits, load, model, save, trained

import deltastore
from deltastore.checkpoint import CheckpointWriter, lease, output, writer
from deltastore.cli.main import main
from deltastore.errors import OutputExistsError
from deltastore.extraction import assembling, encoding
from deltastore.system import steps
from deltastore.system.directory import Directory
from deltastore.system.steps import Step

Action = Callable[[], object]


@dataclass(frozen=True)
class World:
    """Checkpoints, and what must come of them."""

    base: Path
    post: Path
    new: Path
    after: Tensors


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    directory = tmp_path_factory.mktemp("world")
    base = model("base", width=128, vocab=500)
    post = trained(base, "post")
    files = {"config.json": '{"model_type": "llama"}', "tokenizer.json": "{}"}
    return World(
        save(directory / "base", base, shards=2, files=files),
        save(directory / "post", post, shards=2, files=files),
        save(directory / "new", trained(base, "new"), shards=2, files=files),
        post,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "store"


def extract(world: World, place: Path) -> Any:
    with deltastore.open(place) as store:
        return store.extract(world.base, world.post, name="x", tags=["t"], jobs=2)


def apply(world: World, place: Path, out: Path) -> Any:
    with deltastore.open(place) as store:
        return store.apply("x", base=world.base, out=out, jobs=2)


def started(action: Action) -> int:
    """Run ``action`` in a child; its process id."""
    with warnings.catch_warnings():
        # Other threads of the test runner hold no lock that a child here needs.
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        _run(action)
    return pid


def _run(action: Action) -> NoReturn:
    status = 1
    try:
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def killed_at(action: Action) -> None:
    """Run ``action``, which must kill its own process somewhere."""
    _, status = os.waitpid(started(action), 0)
    assert os.WIFSIGNALED(status), "the place was not reached"
    assert os.WTERMSIG(status) == signal.SIGKILL


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def after_calls(count: int, then: Action | None = None) -> Callable[..., None]:
    """Something to call that kills the process at call number ``count``."""
    calls = 0

    def called(*_arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            die()

    return called


def wrapped(holder: Any, name: str, count: int, *, after: bool = False) -> None:
    """Kill the process before (or after) call number ``count`` of a function."""
    real, tick = getattr(holder, name), after_calls(count)

    def replacement(*arguments: Any, **options: Any) -> Any:
        if after:
            result = real(*arguments, **options)
            tick()
            return result
        tick()
        return real(*arguments, **options)

    setattr(holder, name, replacement)


def at_step(step: Step, count: int = 1) -> Action:
    def arrange() -> None:
        tick = after_calls(count)
        steps.reached = lambda where: tick() if where is step else None

    return arrange


def small_parts() -> None:
    """So that the store holds some parts before the last chunk is encoded."""
    builder = assembling.PartBuilder
    assembling.PartBuilder = lambda hand_over: builder(hand_over, part_bytes=40_000)


EXTRACT_POINTS: dict[str, Action] = {
    "the first chunk": lambda: wrapped(encoding, "encode_chunk", 1),
    "a middle chunk": lambda: wrapped(encoding, "encode_chunk", 6),
    "the first temporary file": at_step(Step.TEMP),
    "the third blob": at_step(Step.BLOB, 3),
    "the last part but one": at_step(Step.BLOB, 5),
    "the lease": at_step(Step.LEASE),
    "all blobs": at_step(Step.BLOBS),
    "the manifest": at_step(Step.MANIFEST),
    "the record": at_step(Step.RECORD),
    "the row": at_step(Step.ROW),
    "the tag": at_step(Step.TAG),
    "the tags": at_step(Step.TAGS),
}
COMMITTED = ("the record", "the row", "the tag", "the tags")


def check_store(world: World, place: Path, *, committed: bool | None = None) -> None:
    """Whatever is listed is whole; then the same command finishes, and nothing is left over."""
    with deltastore.open(place) as store:
        listed = store.list()
        report = store.verify()
        assert report.problems == ()
        if committed is not None:
            assert bool(listed) is committed
        if listed:
            out = place.parent / "listed"
            assert store.apply("x:v1", base=world.base, out=out).restored
    inodes = {path.name: path.stat().st_ino for path in (place / "blobs" / "sha256").glob("*")}
    builder_was = assembling.PartBuilder
    try:
        small_parts()
        result = extract(world, place)
    finally:
        assembling.PartBuilder = builder_was
    assert (result.name, result.version) == ("x", 1)
    with deltastore.open(place) as store:
        (artifact,) = store.list()
        assert artifact.tags == ("t",)
        assert store.verify().problems == ()
        assert store.verify().orphans == ()
        assert store.apply("x:t", base=world.base, out=place.parent / "out").restored
    assert_same_bits(load(place.parent / "out"), world.after)
    # What was there is used again, not written anew.
    for path in (place / "blobs" / "sha256").glob("*"):
        assert inodes.get(path.name, path.stat().st_ino) == path.stat().st_ino
    assert list((place / "tmp").iterdir()) == []
    assert list((place / "leases").iterdir()) == []


@pytest.mark.parametrize("point", EXTRACT_POINTS)
def test_extract_killed_at(world: World, place: Path, point: str) -> None:
    def doomed() -> None:
        small_parts()
        EXTRACT_POINTS[point]()
        extract(world, place)

    killed_at(doomed)
    check_store(world, place, committed=point in COMMITTED)


def test_what_a_killed_extract_had_stored_is_used_again_and_said(
    world: World, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killed_at(lambda: (small_parts(), at_step(Step.BLOB, 3)(), extract(world, place)))
    blobs = place / "blobs" / "sha256"
    left = {path: path.stat() for path in blobs.iterdir()}
    assert len(left) == 3
    pair = ["--base", str(world.base), "--post", str(world.post), "--name", "x", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembling, "PartBuilder", assembling.PartBuilder)
        small_parts()
        assert main(["--store", str(place), "extract", *pair]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["resumed_bytes"] == sum(s.st_size for s in left.values())
    assert "resumed: " in said.err
    assert "stopped" not in said.err  # they may as well be another artifact's
    assert {path: path.stat().st_ino for path in left} == {p: s.st_ino for p, s in left.items()}
    # What is stored as an artifact is reused, not resumed.
    with deltastore.open(place) as store:
        again = store.extract(world.base, world.post, name="x", rehash=True)
    assert (again.reused, again.resumed_bytes) == (True, 0)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4, 0.55, 0.7, 0.9])
def test_extract_killed_at_any_moment(world: World, place: Path, share: float) -> None:
    def whole() -> None:
        small_parts()
        extract(world, place)

    def timed() -> None:
        small_parts()
        extract(world, place.parent / "other")

    begun = time.monotonic()
    os.waitpid(started(timed), 0)
    duration = time.monotonic() - begun
    pid = started(whole)
    time.sleep(share * duration)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    check_store(world, place)


def failing_then(arrange: Action) -> Action:
    """An application that fails and is killed while it cleans up."""

    def both() -> None:
        def write(self: CheckpointWriter, *arguments: Any) -> None:
            raise RuntimeError("made up")

        CheckpointWriter.write = write
        arrange()

    return both


def empty_lease() -> None:
    """The file is there, and what it says is not."""

    lease._say = lambda *_: die()


APPLY_POINTS: dict[str, Action] = {
    "the empty lease": empty_lease,
    "the bare directory": lambda: wrapped(lease, "own_lease", 1),
    "the partial directory": lambda: wrapped(output, "create_partial", 1, after=True),
    "the first file": lambda: wrapped(writer, "reserve", 1),
    "all files": lambda: wrapped(writer, "reserve", 2, after=True),
    "the first chunk": lambda: wrapped(CheckpointWriter, "write", 1),
    "a middle chunk": lambda: wrapped(CheckpointWriter, "write", 5),
    "the first small file": lambda: wrapped(CheckpointWriter, "write_file", 1),
    "all small files": lambda: wrapped(CheckpointWriter, "commit", 1),
    "the commit": lambda: wrapped(lease, "release", 1),
    "the lease beside the directory": lambda: wrapped(lease, "release", 1, after=True),
    "the beginning of a clean-up": failing_then(lambda: wrapped(output, "remove_partial", 1)),
    "a clean-up": failing_then(lambda: wrapped(Directory, "unlink", 2)),
    "the end of a clean-up": failing_then(lambda: wrapped(Directory, "remove", 1)),
}


@pytest.fixture
def filled(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("filled") / "store"
    extract(world, place)
    return place


def check_output(world: World, filled: Path, out: Path) -> None:
    """The same command finishes, and removes what the dead one left."""
    apply(world, filled, out)
    assert_same_bits(load(out), world.after)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("point", APPLY_POINTS)
def test_apply_killed_at(world: World, filled: Path, tmp_path: Path, point: str) -> None:
    out = tmp_path / "place" / "out"
    out.parent.mkdir()

    def doomed() -> None:
        APPLY_POINTS[point]()
        apply(world, filled, out)

    killed_at(doomed)
    assert not out.exists()
    assert [path.name for path in out.parent.iterdir() if not path.name.startswith(".out.")] == []
    check_output(world, filled, out)


def test_apply_killed_once_the_output_is_there(world: World, filled: Path, tmp_path: Path) -> None:
    """The rename is the commit: the output is whole, and stays."""
    out = tmp_path / "place" / "out"
    out.parent.mkdir()

    def doomed() -> None:
        real = Directory.rename

        def rename(self: Directory, name: str, into: Directory, new: str) -> None:
            real(self, name, into, new)
            if into.path / new == out:
                die()

        Directory.rename = rename
        apply(world, filled, out)

    killed_at(doomed)
    assert_same_bits(load(out), world.after)
    with pytest.raises(OutputExistsError):
        apply(world, filled, out)
    assert_same_bits(load(out), world.after)
    out.rename(tmp_path / "kept")
    check_output(world, filled, out)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.85])
def test_apply_killed_at_any_moment(
    world: World, filled: Path, tmp_path: Path, share: float
) -> None:
    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    begun = time.monotonic()
    os.waitpid(started(lambda: apply(world, filled, tmp_path / "other")), 0)
    duration = time.monotonic() - begun
    pid = started(lambda: apply(world, filled, out))
    time.sleep(share * duration)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if out.exists():
        assert_same_bits(load(out), world.after)
        out.rename(tmp_path / "kept")
    check_output(world, filled, out)


def test_many_dead_beside_one_output(world: World, filled: Path, tmp_path: Path) -> None:
    """A dead one is met by the next for the same output; those of other outputs are not touched."""
    out, other = tmp_path / "place" / "out", tmp_path / "place" / "out.partial"
    out.parent.mkdir()
    for place in (out, out, other):

        def doomed(place: Path = place) -> None:
            wrapped(CheckpointWriter, "write", 4)
            apply(world, filled, place)

        killed_at(doomed)
    apply(world, filled, out)
    assert_same_bits(load(out), world.after)
    left = [path.name for path in out.parent.iterdir() if path != out]
    assert left
    assert all(name.startswith(".out.partial.partial-") for name in left)
    apply(world, filled, other)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.partial"]


def test_one_that_lives_is_left_alone(world: World, filled: Path, tmp_path: Path) -> None:
    """Two write the same output: the first to finish has it, the other is told, and cleans up."""
    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    gate = tmp_path / "gate"

    def waiting() -> None:
        real = CheckpointWriter.commit

        def commit(self: CheckpointWriter, **options: Any) -> None:
            (tmp_path / "ready").touch()
            while not gate.exists():
                time.sleep(0.01)
            real(self, **options)

        CheckpointWriter.commit = commit
        try:
            apply(world, filled, out)
        except OutputExistsError:
            os._exit(67)

    pid = started(waiting)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    apply(world, filled, out)
    assert_same_bits(load(out), world.after)
    gate.touch()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 67
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert_same_bits(load(out), world.after)


def test_the_command_line_killed_and_run_again(world: World, place: Path, tmp_path: Path) -> None:
    """As a user would: a process of its own, stopped as soon as its partial output is seen."""
    command = [sys.executable, "-m", "deltastore", "--store", str(place), "-q"]
    pair = ["--base", str(world.base), "--post", str(world.post), "--name", "x"]
    subprocess.run([*command, "extract", *pair], check=True)
    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    arguments = ["apply", "x", "--base", str(world.new), "--out", str(out)]
    with subprocess.Popen([*command, *arguments]) as process:
        while process.poll() is None and not list(out.parent.iterdir()):
            time.sleep(0.0005)
        process.kill()
    if out.exists():  # too late for this time
        out.rename(tmp_path / "kept")
    subprocess.run([*command, *arguments], check=True)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert load(out).keys() == world.after.keys()
    with deltastore.open(place) as store:
        assert store.verify().problems == ()
