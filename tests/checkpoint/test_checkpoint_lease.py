"""What killed writers leave, and which of it the next one may take away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from deltastore.checkpoint import CheckpointWriter, ShardPlan, TensorSpec, open_checkpoint
from deltastore.checkpoint.lease import (
    Lease,
    Partial,
    create_partial,
    is_dead,
    own_lease,
    release,
    remove_dead_partials,
    remove_partial,
)
from deltastore.system.directory import Directory

PLAN = (ShardPlan("model.safetensors", (TensorSpec("t", "U8", (1000,)),)),)
WRITER = """
import os, signal, sys
from deltastore.checkpoint import CheckpointWriter, TensorSpec, ShardPlan
import deltastore.checkpoint.lease as module

def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

when, out = sys.argv[1:]
plan = (ShardPlan("model.safetensors", (TensorSpec("t", "U8", (1000,)),)),)
if when == "created":
    CheckpointWriter._create = die
if when == "released":
    real = module.release
    module.release = lambda path: (real(path), die())
if when == "renamed":
    from deltastore.system.directory import Directory
    Directory.unlink = die
with CheckpointWriter(out, plan) as writer:
    writer.write("t", 0, bytes(500))
    if when == "writing":
        die()
    if when == "waiting":
        print("ready", flush=True)
        sys.stdin.read()
    writer.write("t", 500, bytes(500))
    writer.write_file("sub/config.json", b"{}")
    if when == "written":
        die()
    writer.commit()
"""


def start(when: str, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, when, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "home")


def write(out: Path) -> None:
    with CheckpointWriter(out, PLAN) as writer:
        writer.write("t", 0, b"x" * 1000)
        writer.commit()


@pytest.mark.parametrize("when", ["created", "writing", "written", "released"])
def test_a_killed_writer_is_cleaned_up_after(tmp_path: Path, when: str) -> None:
    out = tmp_path / "out"
    with start(when, out) as process:
        assert process.wait() == -signal.SIGKILL
    left = entries(tmp_path)
    assert left
    assert all(name.startswith(".out.partial-") for name in left)
    write(out)
    assert entries(tmp_path) == ["out"]
    assert entries(out) == ["model.safetensors"]


def test_a_writer_killed_after_its_renaming_has_delivered(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with start("renamed", out) as process:
        assert process.wait() == -signal.SIGKILL
    with open_checkpoint(out) as checkpoint:
        assert list(checkpoint.tensors) == ["t"]
    assert entries(out) == ["model.safetensors", "sub"]
    assert len(entries(tmp_path)) == 2
    assert len(remove_dead_partials(out)) == 1
    assert entries(tmp_path) == ["out"]


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with start("waiting", out) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert remove_dead_partials(out) == []
        write(tmp_path / "other")
        (partial,) = (name for name in entries(tmp_path) if name.startswith(".out"))
        assert set(entries(tmp_path / partial)) == {".lease", "model.safetensors"}
        lease = json.loads((tmp_path / partial / ".lease").read_text())
        assert lease["pid"] == process.pid
        process.communicate("")
        assert process.returncode == 0
    assert entries(tmp_path) == ["other", "out"]


def test_two_writers_of_one_process_do_not_take_each_other_away(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with CheckpointWriter(out, PLAN) as first:
        with CheckpointWriter(out, PLAN) as second:
            second.write("t", 0, bytes(1000))
            second.commit()
        first.write("t", 0, bytes(1000))
    assert entries(tmp_path) == ["out"]


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("change", "dead"),
    [
        ({}, False),
        ({"pid": 1}, True),
        ({"pid": None}, True),
        ({"pid": None, "host": "elsewhere"}, False),
        ({"pid": None, "machine": "elsewhere"}, False),
        ({"pid": None, "namespace": "pid:[1]"}, False),
        ({"boot": "another"}, True),
        ({"boot": "another", "host": "elsewhere"}, False),
        ({"boot": "another", "namespace": "pid:[1]"}, True),
        ({"boot": "", "pid": None}, False),
        ({"boot": ""}, False),
        ({"started": "1"}, True),
        ({"started": ""}, False),
    ],
)
def test_who_is_dead(change: dict[str, Any], dead: bool) -> None:
    if change.get("pid", 0) is None:
        change = change | {"pid": dead_pid()}
    # Process 1 lives, but started at another time than this process did.
    assert is_dead(replace(own_lease(), **change)) is dead


def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.read()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_dead(replace(own_lease(), pid=process.pid, started=""))
    finally:
        process.communicate()


def leave(out: Path, lease: Lease | str | None, name: str = "0123456789ab") -> Path:
    partial = out.with_name(f".{out.name}.partial-{name}")
    (partial / "sub").mkdir(parents=True)
    if isinstance(lease, Lease):
        lease = replace(lease, directory=partial.stat().st_ino)
    (partial / "model.safetensors").write_bytes(b"x")
    (partial / "sub" / "x").touch()
    if lease is not None:
        text = lease if isinstance(lease, str) else json.dumps(asdict(lease))
        (partial / ".lease").write_text(text)
    return partial


def dead_lease() -> Lease:
    return replace(own_lease(), pid=dead_pid())


def test_the_leavings_of_the_dead_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    partial = leave(out, dead_lease())
    assert remove_dead_partials(out) == [partial]
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    "lease",
    [None, "", "{", "[]", '{"pid": 1}', "x" * 100_000, json.dumps({"pid": -1})],
)
def test_a_directory_without_a_readable_lease_stays(tmp_path: Path, lease: str | None) -> None:
    out = tmp_path / "out"
    leave(out, lease)
    assert remove_dead_partials(out) == []
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("change", [{"pid": -1}, {"pid": 0}, {"pid": "1"}, {"boot": 5}])
def test_a_hostile_lease_is_unreadable(tmp_path: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "out"
    partial = leave(out, None)
    fields = asdict(dead_lease()) | {"directory": partial.stat().st_ino} | change
    (partial / ".lease").write_text(json.dumps(fields))
    assert remove_dead_partials(out) == []


def test_only_partials_of_the_same_output_are_looked_at(tmp_path: Path) -> None:
    lease = dead_lease()
    for name in ("other", "out.partial-0123456789ab", "ou", "o.t"):
        leave(tmp_path / name, lease)
    leave(tmp_path / "out", lease, "not-ours")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".lease").write_text(json.dumps(asdict(lease)))
    (tmp_path / ".out.partial-00000000000a").symlink_to("elsewhere")
    before = sorted(tmp_path.rglob("*"))
    assert remove_dead_partials(tmp_path / "out") == []
    assert sorted(tmp_path.rglob("*")) == before


def test_links_in_a_partial_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").touch()
    partial = leave(tmp_path / "out", dead_lease())
    (partial / "link").symlink_to(tmp_path / "precious")
    (partial / "sub" / "link").symlink_to(tmp_path / "precious")
    assert remove_dead_partials(tmp_path / "out") == [partial]
    assert entries(tmp_path) == ["precious"]
    assert (tmp_path / "precious" / "x").exists()


def test_the_lease_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = []
    unlink = Directory.unlink

    def spy(directory: Directory, name: str, *, missing_ok: bool = False) -> None:
        removed.append(name)
        unlink(directory, name, missing_ok=missing_ok)

    partial = leave(tmp_path / "out", dead_lease())
    monkeypatch.setattr(Directory, "unlink", spy)
    with Directory.hold(tmp_path) as parent:
        remove_partial(Partial(parent, partial.name, parent.open(partial.name)))
    assert sorted(removed[:2]) == ["model.safetensors", "x"]
    assert removed[2:] == [f"{partial.name}.lease"]
    assert entries(tmp_path) == []


def test_a_released_lease_still_speaks_for_its_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Directory.hold(tmp_path) as parent, create_partial(parent, "out").directory as held:
        release(Partial(parent, held.path.name, held))
        assert entries(held.path) == []
        assert remove_dead_partials(out) == []
        lease = replace(dead_lease(), directory=held.path.stat().st_ino)
        held.path.with_name(f"{held.path.name}.lease").write_text(json.dumps(asdict(lease)))
        assert remove_dead_partials(out) == [held.path]
    assert entries(tmp_path) == []


def test_no_parent_no_partials(tmp_path: Path) -> None:
    assert remove_dead_partials(tmp_path / "nowhere" / "out") == []
