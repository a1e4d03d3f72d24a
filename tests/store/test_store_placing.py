"""A database is opened as it lies only where nobody but the user may write."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from other_users import ANN, BOB, TEAM, run_as

from deltastore.catalog import ownership
from deltastore.errors import StoreError
from deltastore.operations.doctor import doctor
from deltastore.operations.gc import gc
from deltastore.operations.reindex import reindex
from deltastore.operations.verify import verify
from deltastore.store import open_store
from deltastore.testing.artifacts import publish

pytestmark = pytest.mark.blob_files

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    before = os.umask(0o022)
    try:
        with open_store(tmp_path / "above" / "store") as store:
            publish(store, "m", 1, tags=("prod",))
            assert not store.parts.index.local
    finally:
        os.umask(before)
    return tmp_path / "above" / "store"


@pytest.fixture
def shared_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """No group is the user's own."""
    monkeypatch.setattr(ownership, "_is_private_group", lambda _: False)


PLACES = ["", "catalog.db", "store.json", "names", "blobs", "blobs/sha256", ".."]


@pytest.mark.usefixtures("shared_group")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("more", [0o020, 0o002])
def test_where_somebody_else_may_write_the_index_is_the_users(
    path: Path, place: str, more: int
) -> None:
    where = path / place
    where.chmod(where.stat().st_mode | more)
    with pytest.raises(StoreError, match="may write") as caught:
        open_store(path, index="store")
    assert "DELTASTORE_INDEX" in caught.value.hint
    with open_store(path) as store:
        index = store.parts.index
        assert (index.local, index.path.is_file()) == (True, True)
        assert "may write" in index.reason
        assert [(a.ref, a.tags) for a in store.artifacts()] == [("m:v1", ("prod",))]
    (check,) = (check for check in doctor(path).checks if check.what == "index")
    assert "may write" in check.found


@pytest.mark.parametrize("companion", ["-journal", "-wal", "-shm"])
def test_a_companion_that_others_may_write_is_not_opened_either(path: Path, companion: str) -> None:
    where = path / f"catalog.db{companion}"
    where.touch()
    where.chmod(0o666)
    with open_store(path) as store:
        assert store.parts.index.local
    assert where.read_bytes() == b""


@pytest.mark.usefixtures("shared_group")
def test_a_sticky_directory_above_is_safe(path: Path) -> None:
    path.parent.chmod(0o1777)
    with open_store(path) as store:
        assert not store.parts.index.local


def test_a_group_of_ones_own_is_nobody_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = pwd.getpwuid(os.geteuid())
    alone = SimpleNamespace(gr_name=user.pw_name, gr_mem=[])
    for found in (path, path / "catalog.db", path / "names"):
        os.chown(found, -1, user.pw_gid)
        found.chmod(found.stat().st_mode | 0o020)
    for group, local in (
        (alone, False),
        (SimpleNamespace(gr_name=user.pw_name, gr_mem=[user.pw_name]), False),
        (SimpleNamespace(gr_name=user.pw_name, gr_mem=["mallory"]), True),
        (SimpleNamespace(gr_name="users", gr_mem=[]), True),
    ):
        monkeypatch.setattr(grp, "getgrgid", lambda _, group=group: group)
        with open_store(path) as store:
            assert store.parts.index.local is local, group
        (path / "local-index").unlink(missing_ok=True)
    monkeypatch.setattr(grp, "getgrgid", lambda _: alone)

    # With an access list the group's bits are the most that it gives to anybody.
    def listed(place: Path, name: str) -> bytes:
        if name == "system.posix_acl_access" and Path(place) == path / "names":
            return b"\2\0\0\0"
        raise OSError(errno.ENODATA, "no data")

    monkeypatch.setattr(os, "getxattr", listed, raising=False)
    with open_store(path) as store:
        assert "access list" in store.parts.index.reason


def test_a_link_of_ones_own_leads_to_the_place_that_counts(path: Path) -> None:
    outer = path.parent.parent
    (outer / "names").mkdir()
    shutil.copytree(path / "names", outer / "names", dirs_exist_ok=True)
    shutil.rmtree(path / "names")
    (path / "names").symlink_to(outer / "names")
    (outer / "link").symlink_to(path)
    with open_store(outer / "link") as store:
        assert not store.parts.index.local
        assert store.parts.index.path == path.resolve() / "catalog.db"
    (outer / "names").chmod(0o777)
    with open_store(outer / "link") as store:
        assert store.parts.index.local


# --- two users ----------------------------------------------------------------------------------


@pytest.fixture
def team(public_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = public_path / "store"
    path.mkdir()
    os.chown(path, 0, TEAM)
    path.chmod(0o2775)
    (public_path / "caches").mkdir()
    (public_path / "caches").chmod(0o1777)
    return path


def as_user(team: Path, action: Callable[[], object]) -> Callable[[], None]:
    def act() -> None:
        os.environ["XDG_CACHE_HOME"] = f"{team.parent}/caches/{os.geteuid()}"
        action()

    return act


def plant(database: Path, victim: Path, suffix: str) -> None:
    """Something beside a database that SQLite would obey; with no suffix, in the database."""
    data = bytearray(database.read_bytes())
    if suffix == "":
        database.unlink()
        database.symlink_to(victim)
        return
    if suffix != "-journal":
        data[18] = data[19] = 2
        database.write_bytes(data)
        database.with_name(f"catalog.db{suffix}").symlink_to(victim)
        return
    page, magic = int.from_bytes(data[16:18], "big"), bytes.fromhex("d9d505f920a163d7")
    head = (magic + struct.pack(">5I", 0, 1, len(data) // page, 512, page)).ljust(512, b"\0")
    name = os.fsencode(victim)
    named = name + struct.pack(">II", len(name), sum(name)) + magic
    journal = head + struct.pack(">I", (1 << 30) // page + 1) + named
    database.with_name("catalog.db-journal").write_bytes(journal)


def everything(team: Path) -> None:
    """What looks at a store, and what changes it."""
    with open_store(team, create=False) as store:
        assert store.parts.index.local
        assert [a.ref for a in store.artifacts()] == ["m:v1"]
        assert verify(store).problems == ()
        store.tag("m", "seen")
        gc(store, grace_s=0)
    assert doctor(team).checks
    reindex(team)


@as_root
@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm", ""])
def test_what_one_plants_the_other_does_not_play_back(team: Path, suffix: str) -> None:
    """A journal that names another user's file, which he may not even read."""
    with open_store(team.parent / "of-root") as store:
        publish(store, "m", 1)
    database = (team.parent / "of-root" / "catalog.db").read_bytes()
    precious = team.parent / "id_ed25519"
    precious.write_text("private")
    os.chown(precious, BOB, BOB)
    precious.chmod(0o600)

    def ann() -> None:
        with open_store(team) as store:
            publish(store, "m", 1)
        (team / "catalog.db").write_bytes(database)
        plant(team / "catalog.db", precious, suffix)

    run_as(ANN, as_user(team, ann))
    run_as(BOB, as_user(team, lambda: everything(team)))
    assert precious.read_text() == "private"


@as_root
def test_a_store_of_another_is_read_by_an_index_of_ones_own(public_path: Path) -> None:
    path = public_path / "store"
    (public_path / "caches").mkdir()
    (public_path / "caches").chmod(0o1777)
    with open_store(path) as store:
        publish(store, "m", 1)
    before = (path / "catalog.db").stat().st_mtime_ns

    def look() -> None:
        with open_store(path, create=False) as store:
            assert "belongs to" in store.parts.index.reason
            assert [a.ref for a in store.artifacts()] == ["m:v1"]
            assert verify(store).problems == ()

    run_as(BOB, as_user(path, look))
    assert not (path / "local-index").exists()
    assert (path / "catalog.db").stat().st_mtime_ns == before
    with open_store(path) as store:
        assert not store.parts.index.local
