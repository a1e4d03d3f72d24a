"""A directory that is there already is filled: it stays the one it was, and is never half a model.

Whoever prepared it may have given it an owner, a group, a mode or a mount, or may stand in it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from deltastore.checkpoint import (
    CheckpointWriter,
    ShardPlan,
    TensorSpec,
    check_destination,
    filling,
    open_checkpoint,
    output,
)
from deltastore.checkpoint.lease import own_lease
from deltastore.checkpoint.output import remove_dead
from deltastore.errors import CheckpointCorruptError, CheckpointError, OutputExistsError, UsageError
from deltastore.system import steps
from deltastore.system.directory import Directory
from deltastore.system.steps import OutputStep
from deltastore.testing.killing import is_killed_at, killed_at, start

PLAN = (
    ShardPlan("model-00001-of-00002.safetensors", (TensorSpec("a", "U8", (1000,)),)),
    ShardPlan("model-00002-of-00002.safetensors", (TensorSpec("b", "U8", (1000,)),)),
)
WHOLE = {
    "README.md",
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "sub",
}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a directory away")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    place = tmp_path / "out"
    place.mkdir()
    return place


def write(out: Path | str, *, fsync: bool = False) -> None:
    with CheckpointWriter(out, PLAN) as writer:
        for name in "ab":
            writer.write(name, 0, name.encode() * 1000)
        for name in ("README.md", "config.json", "sub/x"):
            writer.write_file(name, b"{}")
        writer.commit(fsync=fsync)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def reads(directory: Path) -> bool:
    """Whether a model is there, whole; a part of one is refused and never read."""
    try:
        with open_checkpoint(directory) as checkpoint:
            assert set(checkpoint.tensors) == {"a", "b"}
            assert names(directory) >= WHOLE
            return True
    except CheckpointError:
        assert "config.json" not in names(directory)
        return False


@pytest.mark.parametrize("fsync", [False, True])
def test_it_stays_the_directory_that_it_was(out: Path, tmp_path: Path, fsync: bool) -> None:
    out.chmod(0o2750)
    if os.geteuid() == 0:
        os.chown(out, 2001, 3000)
        out.chmod(0o2750)
    before = out.stat()
    held = os.open(out, os.O_RDONLY)
    try:
        write(out, fsync=fsync)
        assert set(os.listdir(held)) == WHOLE  # noqa: PTH208 - by the descriptor
    finally:
        os.close(held)
    after = out.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    # The bit that was set for that gives what is in it the same group.
    assert {path.stat().st_gid for path in out.rglob("*")} == {before.st_gid}
    assert names(tmp_path) == {"out"}
    assert reads(out)


def test_the_directory_one_stands_in(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out)
    write(".")
    assert names(Path()) == WHOLE


def test_a_link_to_it(out: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("out")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names(out) == WHOLE


FILLING = (
    *(
        OutputStep.LEASED,
        OutputStep.BARE,
        OutputStep.OWNED,
        OutputStep.RESERVED,
        OutputStep.WRITTEN,
    ),
    *(OutputStep.FILLING, OutputStep.FILLED, OutputStep.CLEARED, OutputStep.DONE),
)


@pytest.mark.parametrize("step", FILLING, ids=lambda step: step.name)
def test_killed_at_a_step(out: Path, tmp_path: Path, step: OutputStep) -> None:
    killed_at(step, lambda: write(out))
    done = FILLING.index(step) >= FILLING.index(OutputStep.FILLED)
    assert reads(out) == done
    if done:
        with pytest.raises(OutputExistsError):
            write(out)
    else:
        assert not names(out) & WHOLE
        check_destination(out, PLAN)  # a dry run says what the run would
        write(out)
    assert names(out) == WHOLE
    assert reads(out)
    assert names(tmp_path) == {"out"}


def stopped_before_renaming(name: str, then: Callable[[], object], out: Path) -> None:
    """``write``, with something done just before this name appears."""
    rename = Directory.rename

    def renamed(self: Directory, old: str, into: Directory, new: str) -> None:
        if new == name and into.path == out:
            then()
        rename(self, old, into, new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Directory, "rename", renamed)
        write(out)


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_killed_while_its_files_appear(out: Path, name: str) -> None:
    def die() -> None:
        os.kill(os.getpid(), 9)

    _, status = os.waitpid(start(lambda: stopped_before_renaming(name, die, out)), 0)
    assert status == 9
    assert (out / filling.CLAIM).exists()
    assert not reads(out)
    for shard in out.glob("*.safetensors*"):
        with pytest.raises(CheckpointCorruptError, match="not there as a whole") as caught:
            open_checkpoint(shard)
        assert "deltastore apply" in caught.value.hint
    check_destination(out, PLAN)
    write(out)
    assert names(out) == WHOLE
    assert reads(out)


def test_config_appears_last_and_the_index_before_it(out: Path) -> None:
    """By these a model is known as one, to this package and to all others."""
    before: dict[str, int] = {}
    for name in WHOLE:

        def look(name: str = name) -> None:
            before[name] = len(names(out) & WHOLE)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            stopped_before_renaming(name, look, out)
        assert names(out) == set()
    order = sorted(before, key=lambda name: before[name])
    assert order[-2:] == ["model.safetensors.index.json", "config.json"]
    assert [name for name in order if name.endswith(".safetensors")] == order[-4:-2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "broken")])
def test_what_fails_half_way_leaves_it_empty(out: Path, error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises((KeyboardInterrupt, CheckpointError)):
        stopped_before_renaming("config.json", fail, out)
    assert names(out) == set()


def test_an_interruption_after_the_last_file_leaves_it_whole(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(step: OutputStep) -> None:
        if step is OutputStep.FILLED:
            raise KeyboardInterrupt

    monkeypatch.setattr(steps, "reached", reached)
    with pytest.raises(KeyboardInterrupt):
        write(out)
    assert names(out) == WHOLE
    assert reads(out)


@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
@pytest.mark.parametrize("when", ["made", "opened", "leased", "handed over"])
def test_an_interruption_as_it_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, there: bool
) -> None:
    """Wherever it comes: between two calls, too, when nobody holds what is there already."""
    place = tmp_path / "out"
    if there:
        place.mkdir()

    def after(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            done = real(*arguments, **options)
            if "partial" in f"{arguments} {done}":
                raise KeyboardInterrupt
            return done

        return call

    holder, name = {
        "made": (os, "mkdir"),
        "opened": (Directory, "make"),
        "leased": (Directory, "rename"),
        "handed over": (output, "create_partial"),
    }[when]
    monkeypatch.setattr(holder, name, after(getattr(holder, name)))
    with pytest.raises(KeyboardInterrupt):
        write(place)
    assert names(tmp_path) == ({"out"} if there else set())
    assert not there or names(place) == set()


def test_what_appears_meanwhile_stays(out: Path) -> None:
    with CheckpointWriter(out, PLAN) as writer:
        for name in "ab":
            writer.write(name, 0, bytes(1000))
        (out / "mine").write_text("mine")
        with pytest.raises(OutputExistsError, match="filled by somebody else while"):
            writer.commit()
    assert names(out) == {"mine"}


def test_two_fill_one_directory(out: Path) -> None:
    """The first to finish has it; the other one is told, and takes nothing of the first's away."""
    with CheckpointWriter(out, PLAN) as writer:
        for name in "ab":
            writer.write(name, 0, bytes(1000))
        write(out)
        with pytest.raises(OutputExistsError):
            writer.commit()
    assert names(out) == WHOLE
    assert reads(out)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_two_fill_one_directory_at_one_instant(
    out: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
    codes: list[str] = []

    def second() -> None:
        with pytest.raises(OutputExistsError):
            write(out)
        codes.append("refused")

    stopped_before_renaming("config.json", second, out)
    assert codes == ["refused"]
    assert names(out) == WHOLE
    assert reads(out)


def test_a_living_writer_is_waited_for(out: Path) -> None:
    def look() -> None:
        for attempt in (lambda: check_destination(out, PLAN), lambda: write(out)):
            with pytest.raises(OutputExistsError, match=f"being filled by process {os.getpid()}"):
                attempt()
        remove_dead(out)

    stopped_before_renaming("config.json", look, out)
    assert names(out) == WHOLE


def test_the_way_out_where_the_other_process_cannot_be_asked(out: Path) -> None:
    """As that of a container that is gone, whose name this one has not."""

    def die() -> None:
        (out / filling.CLAIM).write_text(
            (out / filling.CLAIM).read_text().replace(own_lease().host, "elsewhere")
        )
        os.kill(os.getpid(), 9)

    os.waitpid(start(lambda: stopped_before_renaming("config.json", die, out)), 0)
    with pytest.raises(OutputExistsError, match="on elsewhere") as caught:
        write(out)
    assert not reads(out)
    command = caught.value.hint.split("`")[1]
    assert os.system(command) == 0
    write(out)
    assert names(out) == WHOLE


def test_an_unfinished_output_of_a_process_that_cannot_be_asked_is_in_nobodys_way(
    out: Path,
) -> None:
    killed_at(OutputStep.RESERVED, lambda: write(out))
    (partial,) = out.glob(".partial-*")
    lease = partial / ".lease"
    lease.write_text(lease.read_text().replace(own_lease().host, "elsewhere"))
    check_destination(out, PLAN)
    write(out)
    assert names(out) == WHOLE | {partial.name}
    assert reads(out)


def forged(out: Path, **changes: Any) -> None:
    (out / "README.md").write_text("mine")
    (out / "folder").mkdir(exist_ok=True)
    (out / "folder" / "x").write_text("mine")
    (out.parent / "victim").write_text("mine")
    document = {
        "lease": asdict(replace(own_lease(), started="1", directory=out.stat().st_ino)),
        "partial": ".partial-000000000000",
        "names": [
            ["README.md", 1],
            ["folder", 1],
            ["../victim", (out.parent / "victim").stat().st_ino],
            ["config.json", 1],
        ],
    }
    (out / filling.CLAIM).write_text(json.dumps(document | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"names": [["README.md", 1], ["config.json", 2]]},
        {"names": [["..", 1]]},
        {"names": []},
        {"names": [["README.md"]]},
        {"names": {"README.md": 1}},
        {"names": 5},
        {"lease": {}},
        {"lease": None},
        {"partial": 5},
    ],
)
def test_a_claim_takes_nothing_away_that_its_process_did_not_put_there(
    out: Path, changes: dict[str, Any]
) -> None:
    forged(out, **changes)
    with pytest.raises(OutputExistsError):
        check_destination(out, PLAN)
    with pytest.raises(OutputExistsError):
        write(out)
    assert (out / "README.md").read_text() == "mine"
    assert (out / "folder" / "x").read_text() == "mine"
    assert (out.parent / "victim").read_text() == "mine"


def test_a_claim_of_another_directory_says_nothing(out: Path) -> None:
    """Somebody has copied what a killed process left, with all its numbers."""
    forged(out)
    mine = out / "README.md"
    lease = asdict(replace(own_lease(), started="1", directory=out.stat().st_ino + 1))
    forged(out, lease=lease, names=[["README.md", mine.stat().st_ino], ["config.json", 1]])
    with pytest.raises(OutputExistsError):
        write(out)
    assert mine.read_text() == "mine"


@as_root
def test_a_claim_of_another_user_says_nothing(out: Path) -> None:
    forged(out)
    mine = out / "README.md"
    forged(out, names=[["README.md", mine.stat().st_ino], ["config.json", 1]])
    os.chown(out / filling.CLAIM, 4001, 4001)
    with pytest.raises(OutputExistsError):
        write(out)
    assert mine.read_text() == "mine"


def test_an_output_that_is_moved_away_while_it_is_filled_is_no_success(
    out: Path, tmp_path: Path
) -> None:
    def swap() -> None:
        out.rename(tmp_path / "old")
        out.mkdir()

    with pytest.raises(CheckpointError, match="something else in the place of"):
        stopped_before_renaming("config.json", swap, out)
    assert names(out) == set()


@pytest.mark.parametrize("letter", ["x", "я"], ids=["ascii", "cyrillic"])
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_a_name_as_long_as_may_be(tmp_path: Path, letter: str, there: bool) -> None:
    """The names of what is unfinished are longer than the output's, and must not be too long."""
    place = tmp_path / (letter * (255 // len(letter.encode())))
    if there:
        place.mkdir()
    killed_at(OutputStep.WRITTEN, lambda: write(place))
    check_destination(place, PLAN)
    write(place)
    assert names(tmp_path) == {place.name}
    assert names(place) == WHOLE
    longer = tmp_path / (place.name + "xx")
    for attempt in (lambda: check_destination(longer, PLAN), lambda: write(longer)):
        with pytest.raises(UsageError, match="the name is too long"):
            attempt()
    deeper = tmp_path / "new" / longer.name
    for attempt in (lambda: check_destination(deeper, PLAN), lambda: write(deeper)):
        with pytest.raises(UsageError, match="the name is too long"):
            attempt()
    assert names(tmp_path) == {place.name}


def test_killed_again_and_again(out: Path) -> None:
    for step in FILLING[:-3]:
        assert is_killed_at(step, lambda: write(out))
        assert not reads(out)
    write(out)
    assert names(out) == WHOLE


def test_what_cannot_be_taken_away_of_the_dead_is_no_reason_to_take_more(
    out: Path, tmp_path: Path
) -> None:
    """The user has moved a file of the half-filled directory, and put one of his own there."""

    def die() -> None:
        os.kill(os.getpid(), 9)

    os.waitpid(start(lambda: stopped_before_renaming("config.json", die, out)), 0)
    shutil.move(out / "README.md", tmp_path / "kept")
    (out / "README.md").write_text("mine")
    with pytest.raises(OutputExistsError, match="something in it"):
        write(out)
    assert names(out) == {"README.md"}
    assert (out / "README.md").read_text() == "mine"
    assert stat.S_ISREG((tmp_path / "kept").stat().st_mode)
