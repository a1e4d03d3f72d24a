"""Directories of a store that are on another disk, or mounted on their own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mounting import mounted

from deltastore.errors import StoreError
from deltastore.health.check import Check
from deltastore.operations.doctor import doctor
from deltastore.operations.gc import gc
from deltastore.operations.reindex import reindex
from deltastore.operations.verify import verify
from deltastore.store import Store, mounts, open_store
from deltastore.testing.artifacts import publish

pytestmark = pytest.mark.blob_files

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
Action = Callable[[Store], object]


ACTIONS: dict[str, Action] = {
    "publish": lambda store: publish(store, "n", 2),
    "lease": lambda store: store.lease("extract").__enter__(),
    "tag": lambda store: store.tag("m", "t"),
    "untag": lambda store: store.untag("m", "old"),
    "rm": lambda store: store.rm("m"),
    "gc": lambda store: gc(store, grace_s=0),
}
REFUSED = {
    "blobs": {"publish", "lease", "gc"},
    "blobs/sha256": {"publish", "lease", "gc"},
    "names": {"publish", "lease", "tag", "untag", "rm"},
    "names/m": {"tag", "untag", "rm"},
    "leases": set(ACTIONS),
    "tmp": set(ACTIONS),
}


def the_check(path: Path) -> Check:
    (check,) = [check for check in doctor(path).checks if check.what == "mounts"]
    return check


@as_root
@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize("part", REFUSED)
def test_what_cannot_work_is_refused_at_once(store: Store, tmp_path: Path, part: str) -> None:
    """A volume of its own on the same disk is enough: nothing can be renamed into it."""
    publish(store, "m", 1, tags=["old"])
    place = store.path / part
    with mounted(place, "--bind", str(place)):
        for name, action in ACTIONS.items():
            with open_store(store.path) as opened:
                if name not in REFUSED[part]:
                    continue
                with pytest.raises(StoreError, match="on another file system or mount than") as e:
                    action(opened)
                assert e.value.exit_code == 10
        check = the_check(store.path)
        assert (check.status, part in check.found) == ("fail", True)
        with open_store(store.path) as opened:
            assert [found.ref for found in opened.artifacts()] == ["m:v1"]
            assert not verify(opened).problems
            assert opened.resolve("m:old").version == 1
            assert not opened.parts.leases.all()
        reindex(store.path)
        # The way out, as it is typed.
        copy, flag = check.next.split("`")[1], check.next.split("`")[3]
        subprocess.run(shlex.split(copy), check=True)
        _, path = shlex.split(flag)
    with open_store(Path(path)) as opened:
        for action in ACTIONS.values():
            action(opened)
    assert all(check.what != "mounts" for check in doctor(path).checks)


@as_root
@pytest.mark.usefixtures("may_mount")
def test_what_does_work_is_done(store: Store, tmp_path: Path) -> None:
    publish(store, "m", 1, tags=["old"])
    blobs = store.path / "blobs"
    with mounted(blobs, "--bind", str(blobs)), open_store(store.path) as opened:
        for name in ("tag", "untag", "rm"):
            ACTIONS[name](opened)
    names = store.path / "names"
    with mounted(names, "--bind", str(names)), open_store(store.path) as opened:
        ACTIONS["gc"](opened)
    assert not list((blobs / "sha256").iterdir())


@as_root
@pytest.mark.usefixtures("may_mount")
def test_a_link_to_another_disk(tmp_path: Path) -> None:
    """Of a store that is to be made: it is refused before it has anything."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").mkdir()
    with mounted(tmp_path / "disk", "-t", "tmpfs", "tmpfs"):
        (tmp_path / "disk" / "blobs").mkdir()
        (tmp_path / "store" / "blobs").symlink_to(tmp_path / "disk" / "blobs")
        with open_store(tmp_path / "store") as opened:
            with pytest.raises(StoreError, match="blobs/sha256 is on another file system"):
                opened.lease("extract").__enter__()
            with pytest.raises(StoreError, match="it is on another file system or mount than"):
                publish(opened, "m", 1)  # without a lease before
        assert the_check(tmp_path / "store").status == "fail"


def test_a_store_on_one_mount_is_not_mentioned(store: Store) -> None:
    assert mounts.all_apart(store.parts.layout) == []
    assert all(check.what != "mounts" for check in doctor(store.path).checks)


def test_without_proc_devices_are_compared(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert mounts.all_apart(store.parts.layout) == []
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        return
    shutil.rmtree(store.path / "leases")
    (store.path / "leases").symlink_to(shared)
    assert mounts.all_apart(store.parts.layout) == [store.path / "leases"]
