"""Several users in one directory: what the umask gives to whom, and what is said where it does not.

Users other than the one who runs the tests take root; what concerns the umask alone does not.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from other_users import ANN, BOB, TEAM, becoming, run_as

from deltastore.catalog import Record, Summary
from deltastore.errors import RefNotFoundError, StoreError, StoreReadOnlyError
from deltastore.health.check import Check
from deltastore.operations.doctor import doctor
from deltastore.operations.gc import gc
from deltastore.operations.verify import verify
from deltastore.store import Store, open_store
from deltastore.system.steps import Step
from deltastore.testing.artifacts import publish
from deltastore.testing.killing import killed_at, start, succeeds

pytestmark = pytest.mark.blob_files

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@pytest.fixture(params=["by itself", "in a directory"])
def team(
    public_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A directory of the team, as docs/sharing.md has it made."""
    path = public_path / "store"
    path.mkdir()
    os.chown(path, 0, TEAM)
    path.chmod(0o2775)
    # Each has a directory there that the other cannot write.
    (public_path / "indexes").mkdir()
    (public_path / "indexes").chmod(0o1777)
    kind = "XDG_CACHE_HOME" if request.param == "by itself" else "DELTASTORE_INDEX"
    monkeypatch.setenv(kind, f"{public_path}/indexes/{{uid}}")
    return path


def index_here() -> str | None:
    """The index of this user, where it is not left to itself."""
    for name in ("XDG_CACHE_HOME", "DELTASTORE_INDEX"):
        if name in os.environ:
            os.environ[name] = os.environ[name].replace("{uid}", str(os.geteuid()))
    return os.environ.get("DELTASTORE_INDEX")


def open_here(path: Path) -> Store:
    store = open_store(path, index=index_here())
    assert store.parts.index.path.is_file()
    assert not (path / "catalog.db").exists()
    return store


def everything(path: Path) -> Iterator[Path]:
    yield path
    yield from path.rglob("*")


def publishes(path: Path, name: str, seed: int, tags: tuple[str, ...] = ()) -> Callable[[], None]:
    def action() -> None:
        with open_here(path) as store:
            publish(store, name, seed, tags=tags)

    return action


def checked(path: Path, what: str) -> Check:
    (check,) = (check for check in doctor(path, index=index_here()).checks if check.what == what)
    return check


@pytest.mark.parametrize(
    ("umask", "directory", "file", "blob"),
    [(0o002, 0o775, 0o664, 0o444), (0o022, 0o755, 0o644, 0o444), (0o077, 0o700, 0o600, 0o400)],
)
@pytest.mark.parametrize("local", [False, True])
def test_all_that_is_made_is_as_the_umask_says(
    tmp_path: Path, umask: int, directory: int, file: int, blob: int, local: bool
) -> None:
    path = tmp_path / "store"

    def work() -> None:
        os.umask(umask)
        with open_store(path, index=str(tmp_path / "i") if local else None) as store:
            publish(store, "m", 1, tags=("prod",))
            publish(store, "m", 2)
            store.rm("m:v2")
            store.tag("m:v1", "other")
            gc(store, grace_s=0)
            with (
                store.lease("extract"),
                store.parts.claims.hold("m", 1, decided=lambda: False),
                store.parts.leases.bin(),
            ):
                os._exit(0)

    succeeds(start(work))
    kinds = set()
    for found in everything(path):
        mode = stat.S_IMODE(found.stat().st_mode)
        wanted = file
        if found.is_dir():
            wanted = directory
        elif found.parent.name == "sha256":
            wanted = blob
        assert mode == wanted, found
        kinds.update(found.relative_to(path).parts[:1])
    index = "local-index" if local else "catalog.db"
    assert kinds == {"names", "blobs", "leases", "spare", "tmp", "store.json", index}


def test_the_catalogs_journal_is_the_groups_as_well(tmp_path: Path) -> None:
    def work() -> None:
        os.umask(0o002)
        with open_store(tmp_path / "store") as store, store.parts.catalog.writing() as writer:
            writer.put_version(
                Record("m", 1, "sha256:", "now", "ann", "tool", "base", "post"),
                Summary(digest="sha256:"),
            )
            journal = tmp_path / "store" / "catalog.db-journal"
            (tmp_path / "mode").write_text(f"{stat.S_IMODE(journal.stat().st_mode):o}")

    succeeds(start(work))
    assert (tmp_path / "mode").read_text() == "664"


@as_root
def test_what_one_publishes_the_other_uses_changes_and_collects(team: Path) -> None:
    run_as(ANN, publishes(team, "m", 1, ("prod",)))

    def bob() -> None:
        with open_here(team) as store:
            assert [(a.ref, a.tags) for a in store.artifacts()] == [("m:v1", ("prod",))]
            store.load(store.resolve("m:prod").digest)
            assert publish(store, "m", 1).reused
            assert publish(store, "m", 2).version == 2
            store.tag("m:v2", "prod")
            store.untag("m", "prod")
            store.tag("m:v1", "mine")
            publish(store, "m", 3)
            store.rm("m:v1")
            assert gc(store, grace_s=0).removed > 0
            assert verify(store).problems == ()

    run_as(BOB, bob)

    def ann() -> None:
        with open_here(team) as store:
            assert [a.ref for a in store.artifacts()] == ["m:v2", "m:v3"]
            store.rm("m:v2")
            gc(store, grace_s=0)
            assert verify(store).problems == ()
            check = checked(team, "sharing")
            assert (check.status, check.next) == ("ok", "")

    run_as(ANN, ann)
    for found in everything(team):
        assert found.stat().st_gid == TEAM, found


@as_root
@pytest.mark.parametrize("step", [Step.BLOB, Step.RECORD, Step.BINNED])
def test_what_one_left_when_killed_the_other_finishes(team: Path, step: Step) -> None:
    def work() -> None:
        with open_here(team) as store:
            publish(store, "m", 1)
            if step is Step.BINNED:
                store.rm("m:v1")
                gc(store, grace_s=0)

    killed_at(step, becoming(ANN, 0o002, work))

    def bob() -> None:
        with open_here(team) as store:
            assert publish(store, "m", 1).version == (2 if step is Step.BINNED else 1)
            gc(store, grace_s=0)
            assert verify(store).problems == verify(store).orphans == ()

    run_as(BOB, bob)
    assert list((team / "tmp").iterdir()) == list((team / "leases").iterdir()) == []


@as_root
def test_what_a_umask_of_022_closes_is_said_and_can_be_opened(team: Path) -> None:
    run_as(ANN, publishes(team, "m", 1, ("prod",)), umask=0o022)

    def refused() -> None:
        with open_here(team) as store:
            assert [a.ref for a in store.artifacts()] == ["m:v1"]
            store.load(store.resolve("m:prod").digest)
            for change in (
                lambda: store.tag("m", "x"),
                lambda: store.rm("m"),
                lambda: publish(store, "m", 3),
            ):
                with pytest.raises(StoreReadOnlyError, match="names/m"):
                    change()
            publish(store, "other", 4)
            assert verify(store).problems == ()
        check = checked(team, "sharing")
        assert check.status == "warn"
        (team.parent / "advice").write_text(check.next)

    (team.parent / "advice").touch()
    (team.parent / "advice").chmod(0o666)
    run_as(BOB, refused)
    (command,) = re.findall(r"`(chgrp [^`]*)`", (team.parent / "advice").read_text())
    subprocess.run(["bash", "-ec", command], check=True)
    run_as(BOB, publishes(team, "m", 2))

    def advised() -> None:
        assert "umask" in checked(team, "sharing").next

    run_as(BOB, advised, umask=0o022)


@as_root
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_name_that_one_closed_to_the_others_costs_them_that_name_only(
    team: Path, umask: int
) -> None:
    run_as(ANN, publishes(team, "open", 1))
    run_as(ANN, publishes(team, "closed", 2, ("t",)), umask=umask)

    def bob() -> None:
        with open_here(team) as store:
            with pytest.raises(StoreReadOnlyError):
                publish(store, "closed", 3)
            with pytest.raises((StoreReadOnlyError, RefNotFoundError)):
                store.rm("closed")
            if umask == 0o077:
                with pytest.raises(StoreError, match="Permission denied"):
                    gc(store, grace_s=0)
            store.load(store.resolve("open").digest)
            publish(store, "open", 3)
        check = checked(team, "sharing")
        assert check.status == "warn"
        assert f"user {ANN}" in check.found + check.next

    run_as(BOB, bob)

    def ann() -> None:
        with open_here(team) as store:
            assert len(store.artifacts()) == 3
            assert verify(store).problems == ()

    run_as(ANN, ann)


@as_root
def test_a_read_only_mount_is_read_and_left_as_it_is(public_path: Path) -> None:
    path, mounted = public_path / "store", public_path / "mounted"
    with open_store(path) as store:
        publish(store, "m", 1, tags=("prod",))
    mounted.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "--bind", path, mounted], check=False).returncode:
        pytest.skip("may not mount")
    try:
        options = "remount,bind,ro"
        if subprocess.run([mount, "-o", options, mounted], check=False).returncode:
            pytest.skip("may not mount read-only")
        before = {p: p.stat().st_mtime_ns for p in everything(path)}
        with open_store(mounted) as store:
            assert not store.writable
            assert [a.ref for a in store.artifacts()] == ["m:v1"]
            store.load(store.resolve("m:prod").digest)
            assert verify(store).problems == ()
            with pytest.raises(StoreReadOnlyError):
                publish(store, "m", 2)
        assert {p: p.stat().st_mtime_ns for p in everything(path)} == before
    finally:
        subprocess.run(["umount", mounted], check=True)
