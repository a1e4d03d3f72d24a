"""What a command finds around it: the home, the working directory, limits, memory and mounts."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

from hints_world import Ran, World, case


@case("system/places.py:_expanded:1", "system/places.py:given:1")
def path_is_none(world: World) -> None:
    command = world.apply()[:-1]
    world.monkeypatch.delenv("DELTASTORE_CONFIG", raising=False)
    assert "./~" in world.fails(*command, "~nobody-of-this-name/out").hint
    world.works(*command, "./~nobody-of-this-name")
    world.monkeypatch.setenv("HOME", "nowhere")
    assert "set HOME" in world.fails(*command, "~/out").hint
    world.monkeypatch.setenv("HOME", str(world.root))
    world.works(*command, "~/out")
    assert "Correct it" in world.fails(*command, "a\0b").hint
    world.works(*command, "ab")


@case("system/places.py:given:2")
def working_directory_is_gone(world: World) -> None:
    command = world.apply()[:-1]
    (world.root / "gone").mkdir()
    world.monkeypatch.chdir(world.root / "gone")
    (world.root / "gone").rmdir()
    assert "`cd`" in world.fails(*command, "out").hint
    world.works(*command, str(world.root / "out"))
    world.monkeypatch.chdir(world.root)
    world.works(*command, "out2")


@case(
    "system/places.py:user_directory:1",
    "system/places.py:user_directory:2",
    "store/placing.py:_asked_for:2",
)
def user_has_no_home(world: World) -> None:
    world.monkeypatch.setenv("DELTASTORE_INDEX", "local")
    world.monkeypatch.setenv("XDG_CACHE_HOME", "nowhere")
    assert "unset XDG_CACHE_HOME" in world.fails("list").hint
    world.monkeypatch.delenv("XDG_CACHE_HOME")
    world.monkeypatch.setenv("HOME", "nowhere")
    assert "Set HOME, or name a directory in DELTASTORE_INDEX" in world.fails("list").hint
    world.monkeypatch.setenv("DELTASTORE_INDEX", str(world.root / "indexes"))
    world.works("list")
    world.monkeypatch.setenv("DELTASTORE_INDEX", "local")
    world.monkeypatch.setenv("HOME", str(world.root))
    world.works("list")


@case("checkpoint/location.py:locate:1")
def checkpoint_is_an_empty_text(world: World) -> None:
    ran = world.fails("extract", "--base", world.path("base"), "--post", "")
    assert ran.commands == ["."]
    world.monkeypatch.chdir(world.root / "post4")
    world.works("extract", "--base", world.path("base"), "--post", *ran.commands, "--name", "m")


def _limited(world: World, error: BaseException) -> Ran:
    """An extract in which the system, or a library, meets a limit."""

    def fails(*_: object) -> None:
        raise error

    with world.monkeypatch.context() as patched:
        patched.setattr("deltastore.extraction.storing._require_space", fails)
        return world.fails("extract", *world.pair("post4"))


@case(
    "system/limits.py:as_limit:1",
    "system/limits.py:as_limit:2",
    "system/limits.py:of_call:1",
    "system/limits.py:too_little_memory:1",
)
def limit_of_the_system_is_met(world: World) -> None:
    for error in (
        MemoryError(),
        RuntimeError("can't start new thread"),
        OSError(errno.EMFILE, "Too many open files"),
    ):
        # A limit is raised in the shell, or read.
        world.follow(_limited(world, error))
    assert "raise the quota" in _limited(world, OSError(errno.EDQUOT, "Disk quota exceeded")).hint
    world.works("extract", *world.pair("post4"), "--jobs", "1")


@case("system/limits.py:too_little_memory:1")
def memory_is_limited(world: World) -> None:
    with world.monkeypatch.context() as patched:
        patched.setattr("deltastore.cli.limits.address_space", lambda: 1 << 20)
        ran = world.fails("extract", *world.pair("post4"))
    world.follow(ran)
    world.works("extract", *world.pair("post4"))


@case("store/mounts.py:on_one:1", "store/mounts.py:require_together:1")
def names_are_on_another_mount(world: World) -> None:
    from deltastore.store import mounts

    mount = mounts._mount

    def apart(path: Path) -> Any:
        return (0, "another") if path == world.names else mount(path)

    world.monkeypatch.setattr("deltastore.store.mounts._mount", apart)
    ran = world.fails("extract", *world.pair("post4"))
    world.follow(ran)
    copy = f"{world.store}-on-one"
    assert Path(copy).is_dir()
    assert "m:v3" in world.works("--store", copy, "list").out
    world.works("--store", copy, "extract", *world.pair("post4"))
    shutil.rmtree(copy)
    world.follow(Ran((), 10, "", f"hint: {_next(world, 'mounts')}"))


def _next(world: World, what: str) -> str:
    """What ``doctor`` says to do about something."""
    checks = json.loads(world.fails("--json", "doctor").out)["checks"]
    (told,) = [check["next"] for check in checks if check["what"] == what]
    return str(told)
