"""What lies in a database's place and beside it: looked at before SQLite opens it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deltastore.catalog import Catalog, lying, sqlite
from deltastore.errors import CatalogError
from deltastore.testing.killing import start, succeeds

MAGIC = bytes.fromhex("d9d505f920a163d7")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "catalog.db"
    Catalog.at(found, read_only=False).prepare()
    return found


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside, which has to stay as it is."""
    found = tmp_path / "outside" / "thesis.txt"
    found.parent.mkdir()
    found.write_text("years of work")
    return found


def journal_of(database: Path, name: bytes = b"", *, pages: int | None = None) -> bytes:
    """A journal that SQLite plays back, with the name of a super-journal where one is given."""
    data = database.read_bytes()
    page = int.from_bytes(data[16:18], "big")
    count = len(data) // page if pages is None else pages
    head = (MAGIC + struct.pack(">5I", 0, 1, count, 512, page)).ljust(512, b"\0")
    if not name:
        return head
    checksum = sum(b - 256 if b > 127 else b for b in name) & 0xFFFFFFFF
    return head + struct.pack(">I", (1 << 30) // page + 1) + name + named(len(name), checksum)


def named(length: int, checksum: int) -> bytes:
    return struct.pack(">II", length, checksum) + MAGIC


def super_journal(path: Path, victim: Path) -> None:
    beside(path, "-journal").write_bytes(journal_of(path, os.fsencode(victim)))


def super_journal_of_odd_size(path: Path, victim: Path) -> None:
    """SQLite looks at the end, wherever that is."""
    name = os.fsencode(victim)
    checksum = sum(b - 256 if b > 127 else b for b in name) & 0xFFFFFFFF
    whole = journal_of(path) + b"\1" * 77 + name + named(len(name), checksum)
    beside(path, "-journal").write_bytes(whole)


def super_journal_alone(path: Path, victim: Path) -> None:
    name = os.fsencode(victim)
    beside(path, "-journal").write_bytes(name + named(len(name), sum(name)))


def huge_journal(path: Path, _victim: Path) -> None:
    beside(path, "-journal").write_bytes(journal_of(path, pages=2**32 - 1))


def linked(name: str) -> Callable[[Path, Path], None]:
    def change(path: Path, victim: Path) -> None:
        beside(path, name).unlink(missing_ok=True)
        beside(path, name).symlink_to(victim)

    return change


def hard_link(name: str) -> Callable[[Path, Path], None]:
    def change(path: Path, victim: Path) -> None:
        if not name:
            victim.write_bytes(path.read_bytes())
            path.unlink()
        os.link(victim, beside(path, name))

    return change


def written(name: str) -> Callable[[Path, Path], None]:
    return lambda path, _victim: beside(path, name).write_bytes(b"x")


def log_version(path: Path, _victim: Path) -> None:
    data = bytearray(path.read_bytes())
    data[18] = data[19] = 2
    path.write_bytes(data)


def pipe(path: Path, _victim: Path) -> None:
    os.mkfifo(beside(path, "-journal"))


def directory(path: Path, _victim: Path) -> None:
    beside(path, "-journal").mkdir()


def sparse(path: Path, _victim: Path) -> None:
    os.truncate(path, 1 << 42)


def beside(path: Path, companion: str) -> Path:
    return path.with_name(path.name + companion)


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "super-journal": super_journal,
    "super-journal of odd size": super_journal_of_odd_size,
    "super-journal without a header": super_journal_alone,
    "journal of many pages": huge_journal,
    "journal is a link": linked("-journal"),
    "journal is a dangling link": lambda path, victim: linked("-journal")(path, victim / "x"),
    "journal has two names": hard_link("-journal"),
    "journal is a pipe": pipe,
    "journal is a directory": directory,
    "log": written("-wal"),
    "log is a link": linked("-wal"),
    "shared memory": written("-shm"),
    "shared memory is a link": linked("-shm"),
    "log in the header": log_version,
    "database is a link": linked(""),
    "database has two names": hard_link(""),
    "database has holes": sparse,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_it_is_refused_and_can_be_removed(path: Path, victim: Path, kind: str) -> None:
    CHANGES[kind](path, victim)
    before = victim.read_bytes()
    for read_only in (True, False):
        catalog = Catalog.at(path, read_only=read_only)
        with pytest.raises(CatalogError) as caught:
            catalog.names()
        assert caught.value.facts["damaged"]
        assert "deltastore reindex" in caught.value.hint
    with pytest.raises(CatalogError), Catalog.at(path, read_only=False).writing():
        pass
    lying.discard_files(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["outside"]
    assert victim.read_bytes() == before
    catalog = Catalog.at(path, read_only=False)
    catalog.prepare()
    assert catalog.names() == []


def test_what_sqlite_would_do(path: Path, victim: Path) -> None:
    """The journals of this module are such as SQLite obeys, or the tests above would be empty."""
    for change in (super_journal, super_journal_of_odd_size):
        copy = path.with_name("copy.db")
        shutil.copy(path, copy)
        change(copy, victim)
        with sqlite3.connect(copy) as connection:
            connection.execute("SELECT * FROM sqlite_master").fetchall()
        connection.close()
        if change is super_journal:
            assert not victim.exists()
            victim.write_text("again")


def test_a_journal_of_a_process_that_was_killed_is_played_back(path: Path) -> None:
    def work() -> None:
        catalog = Catalog.at(path, read_only=False)
        with catalog.writing() as writer:
            session = writer._session
            session.run("PRAGMA cache_spill = 1")
            session.run("PRAGMA cache_size = 1")
            for number in range(500):
                session.run(
                    "INSERT INTO alembic_version (version_num) VALUES (:text)",
                    {"text": f"{number}" * 100},
                )
            shutil.copy(path, path.with_name("half.db"))
            shutil.copy(beside(path, "-journal"), path.with_name("half.db-journal"))
            os._exit(0)

    succeeds(start(work))
    half = path.with_name("half.db")
    journal = beside(half, "-journal")
    # As long as it is only in memory how many pages it has, SQLite writes none of them.
    data = bytearray(journal.read_bytes())
    if data[8:12] == b"\0\0\0\0":
        data[8:12] = b"\xff\xff\xff\xff"
        journal.write_bytes(data)
    assert Catalog.at(half, read_only=False).revision() is not None
    assert not journal.exists()


def test_a_process_that_writes_is_not_taken_for_an_attack(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its journal comes and goes while it is looked at."""
    monkeypatch.setattr(sqlite, "SYNCHRONOUS", "OFF")
    seconds = 1.5

    def work() -> None:
        catalog = Catalog.at(path, read_only=False)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with catalog.writing() as writer:
                writer._session.run("UPDATE alembic_version SET version_num = version_num")

    child = start(work)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        lying.check_files(path, header=True)
    succeeds(child)


def test_a_look_takes_no_lock_away(path: Path) -> None:
    """The system drops a process's locks on a file when it closes the file anywhere."""
    first, second = (Catalog.at(path, read_only=False) for _ in range(2))
    with first.writing() as writer:
        assert second.names() == []

        def elsewhere() -> None:
            other = sqlite3.connect(path, timeout=0, isolation_level=None)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            other.close()
            os._exit(0)

        succeeds(start(elsewhere))
        assert writer.versions("m") == {}
