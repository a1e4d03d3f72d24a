"""Where outputs may be: directories that other users made, mounts, closed parents; and dry runs.

Whatever a run refuses, it refuses at once, and the dry run with the same words and exit code.
"""

from __future__ import annotations

import os
import resource
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mounting import mounted
from other_users import ANN, BOB, TEAM, run_as
from safetensors.numpy import save_file

import deltastore
from deltastore.errors import DeltastoreError
from deltastore.testing.killing import start, succeeds

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users and mount")


@pytest.fixture
def world(public_path: Path) -> Path:
    """A pair of checkpoints and a store with it as ``m``, which everybody may read."""
    values = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    for name, change in (("base", 0.0), ("post", 1e-3)):
        place = public_path / name
        place.mkdir()
        save_file({"a.weight": values + change * values[::-1]}, place / "model.safetensors")
        (place / "model.safetensors").chmod(0o644)
        (place / "config.json").write_text('{"model_type": "llama"}')
    with deltastore.open(public_path / "store") as store:
        store.extract(public_path / "base", public_path / "post", name="m")
    (public_path / "store").chmod(0o755)
    return public_path


def apply(world: Path, out: Path, *, dry_run: bool = False) -> None:
    with deltastore.open(world / "store") as store:
        store.apply("m", base=world / "base", out=out, dry_run=dry_run, jobs=1)


def export(world: Path, out: Path) -> None:
    with deltastore.open(world / "store") as store:
        store.export("m", out)


def is_model(out: Path) -> bool:
    return {"config.json", "model.safetensors"} <= {path.name for path in out.iterdir()}


def said(action: Callable[[], None]) -> tuple[int, str]:
    """The exit code and the message of what ``action`` raises; 0 if nothing."""
    try:
        action()
    except DeltastoreError as error:
        return error.exit_code, error.message
    return 0, ""


def new(place: Path) -> Path:
    return place / "out"


def closed(place: Path, *, user: int, mode: int, inner: int | None = None) -> Path:
    """A directory of root's with this mode, and one in it of a user's with that."""
    outer = place / "outer"
    outer.mkdir()
    if inner is not None:
        (outer / "out").mkdir()
        os.chown(outer / "out", user, TEAM)
        (outer / "out").chmod(inner)
    outer.chmod(mode)
    return outer / "out"


def file_in_the_way(place: Path) -> Path:
    (place / "file").touch()
    return place / "file" / "out"


def full(place: Path) -> Path:
    (place / "full").mkdir()
    (place / "full" / "x").touch()
    return place / "full"


def looping(place: Path) -> Path:
    (place / "loop").symlink_to("loop")
    return place / "loop"


def of_another(place: Path) -> Path:
    """In a directory where everybody may make one."""
    place.chmod(0o1777)
    (place / "out").mkdir(mode=0o777)
    (place / "out").chmod(0o777)
    os.chown(place / "out", BOB, TEAM)
    return place / "out"


# What Ann meets: the exit code, and what is said of it.
PLACES: dict[str, tuple[Callable[[Path], Path], int, str]] = {
    "new": (new, 0, ""),
    "new, deep": (lambda place: place / "a" / "b" / "out", 0, ""),
    "hers, in what is closed to her": (
        lambda place: closed(place, user=ANN, mode=0o755, inner=0o2775),
        0,
        "",
    ),
    "new, in what is closed to her": (
        lambda place: closed(place, user=ANN, mode=0o755),
        60,
        "may not be written by this user",
    ),
    "another's, closed to her": (
        lambda place: closed(place, user=BOB, mode=0o755, inner=0o755),
        60,
        "may not be written by this user",
    ),
    "another's, of her group": (
        lambda place: closed(place, user=BOB, mode=0o755, inner=0o2775),
        0,
        "",
    ),
    "hers, not to be listed": (
        lambda place: closed(place, user=ANN, mode=0o755, inner=0o300),
        60,
        "look at",
    ),
    "hers, where she may not look": (
        lambda place: closed(place, user=ANN, mode=0o700, inner=0o755),
        60,
        "look at",
    ),
    "another's, where everybody may make one": (of_another, 67, "a directory of another user"),
    "a file on the way": (file_in_the_way, 67, "file is a file"),
    "a file": (lambda place: file_in_the_way(place).parent, 67, "is a file"),
    "full": (full, 67, "with something in it"),
    "a link to itself": (looping, 67, "leads back to itself"),
    "in the store": (lambda place: place.parent / "store" / "names" / "out", 2, "is in a store"),
    "the store's own": (lambda place: place.parent / "store" / "tmp", 2, "is in a store"),
    "the store": (lambda place: place.parent / "store", 2, "is in a store"),
    "a device's": (lambda place: Path("/dev/null"), 67, "is a file"),
    "too long a name": (lambda place: place / ("x" * 256), 2, "the name is too long"),
}


@as_root
@pytest.mark.parametrize("case", PLACES)
def test_a_dry_run_refuses_what_the_run_would(world: Path, case: str) -> None:
    place = world / "place"
    place.mkdir()
    os.chown(place, ANN, TEAM)
    arrange, code, words = PLACES[case]
    out = arrange(place)

    def attempt() -> None:
        before = sorted(place.rglob("*"))
        dry = said(lambda: apply(world, out, dry_run=True))
        assert sorted(place.rglob("*")) == before
        exported = said(lambda: export(world, out)) if code else (0, "")
        run = said(lambda: apply(world, out))
        assert dry == run
        assert exported == run
        assert run[0] == code, run
        assert words in run[1], run
        if code:
            assert sorted(place.rglob("*")) == before
        else:
            assert is_model(out)

    run_as(ANN, attempt)


@as_root
@pytest.mark.parametrize("make", [apply, export])
def test_a_prepared_directory_keeps_all_that_it_has(
    world: Path, make: Callable[[Path, Path], None]
) -> None:
    """The administrator's work is not undone by root either."""
    out = world / "scratch" / "ann"
    out.mkdir(parents=True)
    os.chown(out, ANN, TEAM)
    out.chmod(0o2770)
    before = out.stat()
    if make is apply:
        run_as(ANN, lambda: make(world, out))
    else:
        make(world, out)
    after = out.stat()
    for name in ("st_ino", "st_dev", "st_mode", "st_uid", "st_gid"):
        assert getattr(after, name) == getattr(before, name)
    inner = list(out.rglob("*"))
    assert {path.stat().st_gid for path in inner} == {TEAM}
    assert all(path.stat().st_mode & stat.S_ISGID for path in inner if path.is_dir())


@as_root
@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize("kind", ["disk", "new disk", "same disk"])
def test_a_mount_is_filled(world: Path, kind: str) -> None:
    """A volume of a container, be it another disk or a directory of the same."""
    out, other = world / "out", world / "other"
    out.mkdir()
    other.mkdir()
    how = ["--bind", str(other)] if kind == "same disk" else ["-t", "tmpfs", "tmpfs"]
    for make in (apply, export):
        with mounted(out, *how):
            if kind == "new disk":
                (out / "lost+found").mkdir(mode=0o700)
            device = out.stat().st_dev
            make(world, out)
            assert out.stat().st_dev == device
            left = {path.name for path in out.iterdir()} - {"lost+found"}
            assert left == {"README.md", "config.json", "deltastore.json", "model.safetensors"} or (
                left == {"blobs", "index.json", "oci-layout"}
            )
            assert not (out / "lost+found").exists() or kind == "new disk"
            if kind == "same disk":
                subprocess.run(["rm", "-r", *map(str, out.iterdir())], check=True)
        assert not list(out.iterdir())


@as_root
@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("size=12k", 16, "are free"),
        ("size=3m,nr_inodes=1", 16, "no inode left"),
        ("size=3m,ro", 60, "mounted read-only"),
        ("size=3m,ro,nr_inodes=1", 60, "mounted read-only"),
    ],
)
@pytest.mark.parametrize("below", [False, True], ids=["itself", "in it"])
def test_a_mount_that_cannot_take_it(
    world: Path, options: str, code: int, words: str, below: bool
) -> None:
    """It is its own room that counts, and not that of the disk that it is mounted on."""
    place = world / "out"
    place.mkdir()
    out = place / "out" if below else place
    with mounted(place, "-t", "tmpfs", "-o", options, "tmpfs"):
        dry = said(lambda: apply(world, out, dry_run=True))
        run = said(lambda: apply(world, out))
        assert dry == run
        assert run[0] == code, run
        assert words in run[1], run
        assert not list(place.iterdir())
        exported = said(lambda: export(world, out))
        assert exported[0] == code, exported
        assert not list(place.iterdir())


def test_a_limit_on_the_size_of_files(world: Path) -> None:
    def attempt() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        dry = said(lambda: apply(world, world / "out", dry_run=True))
        assert dry == said(lambda: apply(world, world / "out"))
        assert dry[0] == 16
        assert "no file may be so large" in dry[1]

    # Those that the store has to write for itself have been made.
    apply(world, world / "first")
    succeeds(start(attempt))
    assert not (world / "out").exists()


def test_a_part_that_is_missing_is_missed_at_once(world: Path) -> None:
    with deltastore.open(world / "store") as store:
        artifact = store._store.resolve("m")
        manifest, _ = store._store.load(artifact.digest)
        store._store.blobs.delete(manifest.layers[0].digest)
    (world / "base" / "model.safetensors").unlink()  # is looked at later
    for dry_run in (True, False):
        code, message = said(lambda dry=dry_run: apply(world, world / "out", dry_run=dry))  # type: ignore[misc]
        assert code == 42, message


def test_an_output_that_is_in_the_way_is_told_before_the_base_is_looked_at(world: Path) -> None:
    (world / "base" / "model.safetensors").unlink()
    assert said(lambda: apply(world, world / "post"))[0] == 67


@pytest.mark.parametrize("what", ["out", "base", "directory"])
def test_an_empty_text_is_no_directory(
    world: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a variable that is not set; to the system it would be the one that one is in."""
    (world / "here").mkdir()
    monkeypatch.chdir(world / "here")
    with deltastore.open(world / "store") as store:
        calls: dict[str, Callable[[], Any]] = {
            "out": lambda: store.apply("m", base=world / "base", out=""),
            "base": lambda: store.apply("m", base="", out=world / "out"),
            "directory": lambda: store.export("m", ""),
        }
        code, message = said(calls[what])
    assert code == 2
    assert "empty text" in message
    assert not list((world / "here").iterdir())
