"""Somebody who may write beside an output gives the unfinished one's name to something else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from deltastore.checkpoint import CheckpointWriter, ShardPlan, TensorSpec, lease
from deltastore.checkpoint.lease import own_lease, remove_dead_partials
from deltastore.errors import CheckpointError, OutputExistsError
from deltastore.system import steps
from deltastore.system.steps import OutputStep

PLAN = (ShardPlan("model.safetensors", (TensorSpec("t", "U8", (1000,)),)),)
NAMES = ("README.md", "config.json", "model.safetensors", "sub/x", ".lease")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory with files of the names that outputs have."""
    for name in NAMES:
        path = tmp_path / "victim" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    return tmp_path / "victim"


def check_untouched(directory: Path) -> None:
    found = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}
    assert found == set(NAMES)
    assert all((directory / name).read_text() == "mine" for name in NAMES)


def write(out: Path) -> None:
    with CheckpointWriter(out, PLAN) as writer:
        writer.write("t", 0, b"x" * 1000)
        writer.write_file("README.md", b"card")
        writer.write_file("sub/y", b"y")
        writer.commit(fsync=True)


def link(partial: Path, victim: Path) -> Path:
    partial.rename(partial.with_name("old"))
    partial.symlink_to(victim)
    return victim


def directory(partial: Path, victim: Path) -> Path:
    partial.rename(partial.with_name("old"))
    victim.rename(partial)
    return partial


@pytest.mark.parametrize("swap", [link, directory])
@pytest.mark.parametrize(
    "step",
    [
        OutputStep.BARE,
        OutputStep.OWNED,
        OutputStep.RESERVED,
        OutputStep.WRITTEN,
        OutputStep.RELEASED,
    ],
)
def test_nothing_is_written_or_removed_where_its_name_leads(
    tmp_path: Path,
    victim: Path,
    step: OutputStep,
    swap: Callable[[Path, Path], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = victim

    def reached(at: OutputStep) -> None:
        nonlocal theirs
        if at is step:
            (partial,) = tmp_path.glob("place/.out.partial-????????????")
            theirs = swap(partial, victim)

    monkeypatch.setattr(steps, "reached", reached)
    with pytest.raises(CheckpointError, match="something else in the place of") as caught:
        write(tmp_path / "place" / "out")
    assert "ls -ld" in caught.value.hint
    check_untouched(theirs)
    assert not os.path.lexists(tmp_path / "place" / "out")
    # What this process made is empty, wherever it is.
    assert list((tmp_path / "place" / "old").iterdir()) == []


def test_an_output_that_is_swapped_at_the_last_instant_is_no_success(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look at the name and the renaming of it."""
    rename = os.rename

    def renamed(source: str, target: str, **more: int) -> None:
        if target == "out":
            link(tmp_path / source, victim)
        rename(source, target, **more)

    monkeypatch.setattr(os, "rename", renamed)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda path, to: rename(path, to))
        with pytest.raises(CheckpointError, match="something else in the place of"):
            write(tmp_path / "out")
    check_untouched(victim)
    assert (tmp_path / "out").readlink() == victim


def forged(place: Path, victim: Path, *, number: int, owner: int | None = None) -> Path:
    """The victim's directory under an unfinished output's name, and a lease of the dead beside."""
    partial = place / ".out.partial-0123456789ab"
    victim.rename(partial)
    (partial / ".lease").rename(place / "mine")
    text = json.dumps(asdict(replace(own_lease(), started="1", directory=number)))
    beside = place / f"{partial.name}.lease"
    beside.write_text(text)
    if owner is not None:
        os.chown(beside, owner, owner)
    return partial


def test_a_lease_of_the_dead_speaks_for_its_own_directory_alone(
    tmp_path: Path, victim: Path
) -> None:
    for number in (0, victim.stat().st_ino + 1):
        partial = forged(tmp_path, victim, number=number)
        assert remove_dead_partials(tmp_path / "out") == []
        (tmp_path / "mine").rename(partial / ".lease")
        check_untouched(partial)
        partial.rename(victim)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_lease_of_another_user_speaks_for_nothing(tmp_path: Path, victim: Path) -> None:
    partial = forged(tmp_path, victim, number=victim.stat().st_ino, owner=4001)
    assert remove_dead_partials(tmp_path / "out") == []
    (tmp_path / "mine").rename(partial / ".lease")
    check_untouched(partial)


def test_what_is_deeper_than_an_output_stays(tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial-0123456789ab"
    deep = partial / "/".join("abcdefg")
    deep.mkdir(parents=True)
    for name in ("x", "a/x", "a/b/x", "a/b/c/x"):
        (partial / name).touch()
    made = replace(own_lease(), started="1", directory=partial.stat().st_ino)
    (partial / lease.LEASE).write_text(json.dumps(asdict(made)))
    remove_dead_partials(tmp_path / "out")
    left = {str(path.relative_to(partial)) for path in partial.rglob("*")}
    assert left == {
        "a",
        "a/b",
        "a/b/c",
        "a/b/c/x",
        *("/".join("abcdefg"[:n]) for n in (4, 5, 6, 7)),
    }
    assert (tmp_path / f"{partial.name}.lease").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="links of another user are made by root")
@pytest.mark.parametrize("through", [False, True], ids=["direct", "by a link of one's own"])
def test_a_link_of_another_user_is_not_followed(tmp_path: Path, through: bool) -> None:
    """It may lead to where only the user may write."""
    (tmp_path / "private").mkdir()
    out = tmp_path / "out"
    out.symlink_to(tmp_path / "private" / "new")
    os.chown(out, 12345, 12345, follow_symlinks=False)
    if through:
        (tmp_path / "own").symlink_to("out")
        out = tmp_path / "own"
    with pytest.raises(OutputExistsError, match="link of another user"):
        write(out)
    assert not list((tmp_path / "private").iterdir())


def test_links_of_the_user_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to(tmp_path / "place" / "c")
    write(tmp_path / "a")
    assert (tmp_path / "place" / "c" / "README.md").read_bytes() == b"card"
    assert (tmp_path / "a").is_symlink()
