"""Who may only read needs nothing of the store but to read; what is closed is said, and opens."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from other_users import ANN, BOB, NOBODY, TEAM, run_as

from deltastore.catalog import sqlite
from deltastore.errors import StoreClosedError, StoreReadOnlyError
from deltastore.operations.doctor import doctor
from deltastore.operations.du import du
from deltastore.operations.export import export
from deltastore.operations.gc import gc
from deltastore.operations.migrate import migrate
from deltastore.operations.reindex import reindex
from deltastore.operations.show import show
from deltastore.operations.verify import verify
from deltastore.store import Store, open_store
from deltastore.system import permission
from deltastore.testing.artifacts import publish
from deltastore.testing.killing import start, succeeds

pytestmark = pytest.mark.blob_files

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
PARTS = (".", "blobs", "blobs/sha256", "names", "names/m", "tmp", "leases", "store.json")


@pytest.fixture
def anns(public_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of Ann's, who belongs to the team, that all others may read."""
    home = public_path / "home"
    home.mkdir()
    home.chmod(0o1777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "{uid}"))
    path = public_path / "store"
    path.mkdir()
    os.chown(path, ANN, TEAM)

    def work() -> None:
        _at_home()
        with open_store(path) as store:
            publish(store, "m", 1, tags=("prod",))
            publish(store, "m", 2)
            publish(store, "gone", 3)
            store.rm("gone")

    run_as(ANN, work, umask=0o022)
    return path


def _at_home() -> None:
    os.environ["XDG_CACHE_HOME"] = os.environ["XDG_CACHE_HOME"].replace("{uid}", str(os.geteuid()))


def looks(path: Path) -> dict[str, tuple[int, ...]]:
    """What a reader would change, if he changed anything."""
    found = {}
    for entry in [path, *path.rglob("*")]:
        status = entry.lstat()
        found[str(entry)] = (status.st_ino, status.st_ctime_ns, status.st_size, status.st_nlink)
    return found


def reads_all(path: Path, out: Path) -> None:
    """All that changes nothing works."""
    with open_store(path, create=False) as store:
        assert not store.writable
        assert [found.ref for found in store.artifacts()] == ["m:v1", "m:v2"]
        assert show(store, "m:prod").version == 1
        assert verify(store).problems == ()
        assert verify(store, quick=True).problems == ()
        assert len(du(store).versions) == 2
        assert gc(store, grace_s=0, dry_run=True).removed > 0
        export(store, "m", out)
    checks = {check.what: check for check in doctor(path).checks if check.status != "ok"}
    assert not checks.keys() & {"store format", "reading", "catalog", "leases", "temporary files"}


def refused(path: Path) -> None:
    """All that would change something is refused, whatever else is wrong with it."""
    with open_store(path, create=False) as store:
        for change in (
            lambda: store.lease("extract"),
            lambda: store.tag("nothing", "x"),
            lambda: store.untag("nothing", "x"),
            lambda: store.rm("nothing"),
            lambda: gc(store, grace_s=0),
        ):
            with pytest.raises(StoreReadOnlyError):
                change()


@as_root
@pytest.mark.parametrize("reader", [BOB, NOBODY])
def test_a_reader_of_anothers_store_needs_nothing(anns: Path, reader: int) -> None:
    before = looks(anns)

    def read() -> None:
        _at_home()
        reads_all(anns, anns.parent / "home" / str(reader) / "out")
        refused(anns)
        # His own index is no matter of the store's.
        assert reindex(anns).versions == 2
        assert migrate(anns).before == migrate(anns).after

    run_as(reader, read)
    assert looks(anns) == before


@as_root
@pytest.mark.parametrize("part", [part for part in PARTS if part != "store.json"])
def test_permission_to_write_a_part_of_it_alone_is_none(anns: Path, part: str) -> None:
    for other in PARTS:
        if other != part:
            (anns / other).chmod((anns / other).stat().st_mode | 0o022)
    (anns / "names" / "m").chmod(0o755)
    # One name costs that name; and nothing is put beside the blobs' own directory.
    spared = part in ("names/m", "blobs")
    before = looks(anns)

    def read() -> None:
        _at_home()
        with open_store(anns) as store:
            assert store.writable == spared
        if not spared:
            reads_all(anns, anns.parent / "home" / str(BOB) / "out")
            refused(anns)

    run_as(BOB, read)
    assert spared or looks(anns) == before


CLOSED: dict[str, Callable[[Path], list[Path]]] = {
    "the directory above": lambda path: [path.parent],
    "the store": lambda path: [path],
    "store.json": lambda path: [path / "store.json"],
    "names": lambda path: [path / "names"],
    "blobs": lambda path: [path / "blobs"],
    "all of it": lambda path: list(path.rglob("*")),
    "a name": lambda path: [path / "names" / "m"],
    "its newest record": lambda path: [path / "names" / "m" / "v2.json"],
    "its tags": lambda path: [path / "names" / "m" / "tags"],
    "a tag": lambda path: [path / "names" / "m" / "tags" / "prod.json"],
    "the blobs themselves": lambda path: list((path / "blobs" / "sha256").iterdir()),
}


def close(path: Path, what: str) -> None:
    for found in CLOSED[what](path):
        found.chmod(found.stat().st_mode & ~0o077)


def _looks_for_all(path: Path) -> None:
    with open_store(path) as store:
        problems = verify(store).problems
        assert problems
        # Nothing is said to be damaged.
        assert all(found.digest is None and "chmod" in found.problem for found in problems)
        verify(store, quick=True)
        show(store, "m")
        show(store, "m:prod")


def advice(what: BaseException) -> str:
    assert isinstance(what, StoreClosedError), what
    assert what.exit_code == 15
    (command,) = re.findall(r"`(chmod [^`]*)`", what.hint)
    return str(command)


@as_root
@pytest.mark.parametrize("what", CLOSED)
@pytest.mark.parametrize("reader", [BOB, NOBODY])
def test_what_is_closed_is_named_with_the_command_that_opens_it(
    anns: Path, what: str, reader: int
) -> None:
    if what == "the directory above":
        os.chown(anns.parent, ANN, TEAM)
    said = anns.parent.parent / f"said-{anns.parent.name}"
    close(anns, what)

    def is_told(file: int) -> None:
        _at_home()
        with pytest.raises(StoreClosedError) as caught:
            _looks_for_all(anns)
        os.write(file, advice(caught.value).encode())
        # The diagnosis is whole whatever is closed, and has the command as well.
        assert any("chmod" in check.next for check in doctor(anns).checks)

    def reads() -> None:
        _at_home()
        reads_all(anns, anns.parent / "home" / str(reader) / "out")

    try:
        with said.open("w+b") as file:
            run_as(reader, lambda: is_told(file.fileno()))
            file.seek(0)
            command = file.read().decode()
        owner = {"user": ANN, "group": ANN, "extra_groups": [TEAM]}
        subprocess.run(["bash", "-ec", command], check=True, **owner)
        run_as(reader, reads)
    finally:
        said.unlink()
        anns.parent.chmod(0o755)


@as_root
@pytest.mark.parametrize("mode", [0o2775, 0o2770, 0o3775])
def test_the_first_users_umask_closes_what_he_publishes_and_no_more(anns: Path, mode: int) -> None:
    path = anns.parent / "team"
    path.mkdir()
    os.chown(path, 0, TEAM)
    path.chmod(mode)

    def ann() -> None:
        _at_home()
        with open_store(path) as store:
            publish(store, "secret", 1, tags=("t",))

    def bob() -> None:
        _at_home()
        with open_store(path) as store:
            assert store.artifacts() == []
            ((name, error),) = store.closed_names()
            assert name == "secret"
            assert "chmod -R g+rX" in error.hint
            with pytest.raises(StoreClosedError):
                show(store, "secret")
            with pytest.raises(StoreClosedError):
                gc(store, grace_s=0)
            # Its blobs as well, which are Ann's and closed.
            publish(store, "open", 1)
            store.tag("open", "prod")
            assert show(store, "open:prod").version == 1
            report = verify(store)
            assert [problem.where for problem in report.problems] == ["names/secret"]
            assert report.orphans == ()
            store.rm("open")

    run_as(ANN, ann, umask=0o077)
    run_as(BOB, bob)
    assert (path / "names" / "secret").stat().st_mode & 0o077 == 0


@contextmanager
def mounted_read_only(path: Path) -> Iterator[None]:
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "--bind", path, path], check=False).returncode:
        pytest.skip("may not mount")
    try:
        options = "remount,bind,ro"
        if subprocess.run([mount, "-o", options, path], check=False).returncode:
            pytest.skip("may not mount read-only")
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def _hot_journal(path: Path) -> None:
    def die() -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN IMMEDIATE")
        for number in range(400):
            connection.execute(
                "INSERT INTO seen VALUES (?, ?, ?)", (f"n{number}", "x" * 900, "x" * 900)
            )
        os._exit(0)

    succeeds(start(die))
    assert path.with_name("catalog.db-journal").exists()


def _log(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.close()


def _log_of_the_dead(path: Path) -> None:
    def die() -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("DELETE FROM tags")
        os._exit(0)

    succeeds(start(die))
    assert path.with_name("catalog.db-wal").exists()


def _cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def _a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _older(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE seen")
    connection.execute("UPDATE alembic_version SET version_num = '0002'")
    connection.commit()
    connection.close()


LEFT: dict[str, Callable[[Path], None]] = {
    "all well": lambda path: None,
    "no catalog": lambda path: path.unlink(),
    "an empty one": lambda path: os.truncate(path, 0),
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000) and None,
    "a catalog cut short": _cut_short,
    "a directory": _a_directory,
    "a hot journal": _hot_journal,
    "a log": _log,
    "a log that was not written back": _log_of_the_dead,
    "an older schema": _older,
    "a closed catalog": lambda path: path.chmod(0),
}


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("bare", [False, True])
def test_an_own_store_that_cannot_be_written_is_read_whatever_sqlite_left(
    store: Store, tmp_path: Path, left: str, bare: bool
) -> None:
    publish(store, "m", 1, tags=("prod",))
    publish(store, "m", 2)
    publish(store, "gone", 3)
    store.rm("gone")
    LEFT[left](store.path / "catalog.db")
    if bare:
        for directory in ("tmp", "leases"):
            (store.path / directory).rmdir()
    with mounted_read_only(store.path):
        before = looks(store.path)
        reads_all(store.path, tmp_path / "out")
        refused(store.path)
        assert looks(store.path) == before


def test_a_writer_that_holds_the_catalog_keeps_no_reader_waiting(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "m", 1, tags=("prod",))
    publish(store, "m", 2)
    publish(store, "gone", 3)
    store.rm("gone")
    monkeypatch.setattr(sqlite, "READER_TIMEOUT_S", 0.05)
    connection = sqlite3.connect(store.path / "catalog.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    # In one process SQLite keeps its files open until all connections are closed.
    with mounted_read_only(store.path), contextlib.closing(connection):
        reads_all(store.path, tmp_path / "out")


def test_what_a_writer_does_after_the_opening_reaches_no_reader(store: Store) -> None:
    publish(store, "m", 1)
    mirror = store.path.with_name("mirror")
    mirror.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "--bind", store.path, mirror], check=False).returncode
    ):
        pytest.skip("may not mount")
    try:
        subprocess.run([mount, "-o", "remount,bind,ro", mirror], check=True)
        with open_store(mirror) as reader:
            assert not reader.writable
            # Not all of it is read anew for an index of his own.
            assert not reader.parts.index.local
            publish(store, "m", 2, tags=("prod",))
            _hot_journal(store.path / "catalog.db")
            assert reader.resolve("m:prod").version == 2
            assert [found.ref for found in reader.artifacts()] == ["m:v1", "m:v2"]
    finally:
        subprocess.run(["umount", mirror], check=True)


def test_what_is_looked_for_closed_things_is_what_a_store_may_have(tmp_path: Path) -> None:
    """Neither what a link leads to, nor what is deeper than a store is."""
    tree = tmp_path / "names"
    (tree / "x" / "tags").mkdir(parents=True)
    (tree / "x" / "tags" / "t.json").touch()
    outside = tmp_path / "outside"
    (outside / "more").mkdir(parents=True)
    (tree / "x" / "link").symlink_to(outside)
    (tree / "loop").symlink_to(tree)
    deep = os.open(tree, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    found = {str(path.relative_to(tmp_path)) for path in permission._within(tree)}
    assert found == {
        "names",
        *("names/d", "names/d/d", "names/d/d/d"),
        *("names/x", "names/x/tags", "names/x/tags/t.json"),
    }
    assert permission.first_closed(tree, most=100) is None
    subprocess.run(["rm", "-rf", tree], check=True)
