"""Places where no output can be, and disks that it does not fit on."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hints_world import Ran, World, case


@case("checkpoint/destination.py:in_the_way:1")
def output_is_in_the_way(world: World) -> None:
    (world.root / "out").mkdir()
    (world.root / "out" / "file").write_text("")
    for command in (world.apply(), ["export", "m:v3", "out"]):
        assert "another directory" in world.fails(*command).hint
    world.works(*world.apply(out="another"))
    world.works("export", "m:v3", "layout")


@case("checkpoint/destination.py:_check_above:1")
def output_would_lie_below_a_file(world: World) -> None:
    (world.root / "file").write_text("")
    assert "another directory" in world.fails(*world.apply(out="file/out")).hint
    (world.root / "file").rename(world.root / "moved")
    world.works(*world.apply(out="file/out"))


@case("output/destination.py:check_output:1")
def output_is_an_empty_text(world: World) -> None:
    command = world.apply()[:-1]
    ran = world.fails(*command, "")
    assert ran.commands == ["."]
    (world.root / "empty").mkdir()
    world.monkeypatch.chdir(world.root / "empty")
    world.works(*command, *ran.commands)


@case("output/destination.py:check_output:2")
def output_would_lie_in_the_store(world: World) -> None:
    assert "outside" in world.fails(*world.apply(out="store/out")).hint
    world.works(*world.apply())


@case("checkpoint/files.py:file_error:1")
def output_has_too_long_a_name(world: World) -> None:
    assert "shorter" in world.fails(*world.apply(out="x" * 300)).hint
    world.works(*world.apply())


@case("checkpoint/destination.py:_check_empty:1")
def output_is_being_filled_by_somebody(world: World) -> None:
    (world.root / "out").mkdir()
    (world.root / "out" / ".filling").write_text("by whom?")
    world.follow(world.fails(*world.apply()))
    world.works(*world.apply())


@case("checkpoint/layout.py:_half_filled:1")
def output_was_filled_by_half(world: World) -> None:
    from deltastore.checkpoint.lease import own_lease

    out = world.root / "out"
    out.mkdir()
    shutil.copy(world.root / "new" / "config.json", out)
    # Of a process that had this one's number, and has ended.
    lease = replace(own_lease(), started="1", directory=out.stat().st_ino)
    config = (out / "config.json").stat().st_ino
    claim = {
        "lease": asdict(lease),
        "partial": ".partial-0123456789ab",
        "names": [["config.json", config], ["model.safetensors", 1]],
    }
    (out / ".filling").write_text(json.dumps(claim))
    ran = world.fails("extract", *world.pair("out", base="new"))
    assert ran.commands == ["deltastore apply"]
    world.works(*world.apply())
    world.works("extract", *world.pair("out", base="new"))


@contextmanager
def _unwritable(world: World) -> Iterator[None]:
    """This user may not write in the directory of the outputs."""
    access = os.access

    def refused(path: Any, mode: int, **options: Any) -> bool:
        return path != world.root and access(path, mode, **options)

    with world.monkeypatch.context() as patched:
        patched.setattr("os.access", refused)
        yield


@contextmanager
def _file_system(world: World, **fields: int) -> Iterator[None]:
    """The system says this of every file system."""
    found = os.statvfs(world.root)
    told = {name: getattr(found, name) for name in dir(found) if name.startswith("f_")} | fields
    with world.monkeypatch.context() as patched:
        patched.setattr("os.statvfs", lambda _: SimpleNamespace(**told))
        yield


@case("checkpoint/destination.py:_check_writable:1")
def output_is_mounted_read_only(world: World) -> None:
    with _unwritable(world), _file_system(world, f_flag=os.ST_RDONLY):
        assert "another file system" in world.fails(*world.apply()).hint
    world.works(*world.apply(out="elsewhere/out"))


@case("checkpoint/destination.py:_check_writable:2")
def output_may_not_be_written(world: World) -> None:
    with _unwritable(world):
        world.follow(world.fails(*world.apply()))
        # What the hint says besides: an empty directory of one's own.
        (world.root / "out").mkdir()
        world.works(*world.apply())


@case("checkpoint/output.py:Output._translated:1")
def output_was_exchanged(world: World) -> None:
    def exchanged(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "another process put something else in its place")

    (world.root / "out").mkdir()
    with world.monkeypatch.context() as patched:
        patched.setattr("deltastore.checkpoint.filling.fill", exchanged)
        world.follow(world.fails(*world.apply()))
    world.works(*world.apply())


@case(
    "checkpoint/destination.py:check_space:1",
    "cli/room.py:with_room:1",
    "store/room.py:advice:1",
    "store/room.py:advice:2",
)
def output_does_not_fit(world: World) -> None:
    usage = shutil.disk_usage(world.root)
    with world.monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: usage._replace(free=10))
        ran = world.fails(*world.apply())
        assert "another file system" in ran.hint
        world.follow(ran)
        ran = world.fails(*world.apply())
        assert "would free nothing" in ran.hint
        world.follow(_but_the_first(ran), fill={"REF": "m:v1"})
    world.works(*world.apply())


def _but_the_first(ran: Ran) -> Ran:
    """Without the command of which the hint says that it would do nothing."""
    first = f"`{ran.commands[0]}`"
    assert first == "`deltastore gc`"
    return replace(ran, err=ran.err.replace(first, "", 1))


@case("checkpoint/destination.py:check_space:2")
def no_inode_is_left_for_the_output(world: World) -> None:
    with _file_system(world, f_files=1000, f_favail=0):
        ran = world.fails(*world.apply())
    assert "another file system" in ran.hint
    world.follow(ran)
    world.works(*world.apply())


@case("remotes/oci_layout.py:_damaged:1")
def blob_for_an_export_is_damaged(world: World) -> None:
    part: Path = world.blob("part")
    part.write_bytes(bytes(part.stat().st_size))
    # Where the file system clones files, the bytes are compared in another place.
    world.monkeypatch.setattr("deltastore.remotes.oci_layout._clone", lambda *_: False)
    ran = world.fails("export", "m:v3", "layout")
    assert ran.commands == ["deltastore verify"]
    said = world.fails("verify")
    world.follow(Ran((), 40, said.out, ""), fill={"REF": "m:v3"})
    world.works("export", "m:v1", "layout")
    world.is_well()


@case()
def blob_for_an_export_is_cut_short(world: World) -> None:
    os.truncate(world.blob("part"), 10)
    world.follow(world.fails("export", "m:v3", "layout"))
    world.works("export", "m:v3", "layout")
    world.is_well()
