"""What is remembered of local files and of what was made: the user's own, and never in a store."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from deltastore.catalog import DigestMemory, FileIdentity, digests


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "own" / "digests.db"


@pytest.fixture
def memory(path: Path) -> DigestMemory:
    return DigestMemory(path)


def settled(path: Path, text: str = "data") -> FileIdentity:
    """A file that was last changed long ago, as far as its identity says."""
    path.write_text(text)
    found = FileIdentity.of(path)
    return dataclasses.replace(found, seen_ns=found.seen_ns + 10**11)


def test_a_file_is_remembered_by_its_content(memory: DigestMemory) -> None:
    memory.remember([(FileIdentity.of_content("ab" * 32, 7), {"a": "00"})])
    again = FileIdentity.of_content("ab" * 32, 7)
    assert memory.remembered([again]) == {"sha256:" + "ab" * 32: {"a": "00"}}
    for other in (FileIdentity.of_content("ab" * 32, 8), FileIdentity.of_content("ac" * 32, 7)):
        assert memory.remembered([other]) == {}


def test_an_unchanged_file_is_remembered(memory: DigestMemory, tmp_path: Path) -> None:
    file = settled(tmp_path / "shard")
    assert memory.remembered([file]) == {}
    memory.remember([(file, {"a": "00", "b": "11"})])
    again = FileIdentity.of(tmp_path / "shard")
    assert memory.remembered([again]) == {str(tmp_path / "shard"): {"a": "00", "b": "11"}}
    memory.remember([(file, {"a": "22"})])
    assert memory.remembered([again]) == {again.path: {"a": "22"}}


@pytest.mark.parametrize("damage", ['{"a": "0', "7", "null", '[["a", "b", "c"]]', ""])
def test_damaged_digests_are_not_remembered(
    memory: DigestMemory, tmp_path: Path, damage: str
) -> None:
    file = settled(tmp_path / "shard")
    memory.remember([(file, {"a": "00"})])
    with sqlite3.connect(tmp_path / "own" / "digests.db") as connection:
        connection.execute("UPDATE files SET tensors = ?", [damage])
    connection.close()
    assert memory.remembered([file]) == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("other"),
        lambda path: os.utime(path, ns=(0, 0)),
        lambda path: path.chmod(0o600),
        lambda path: (path.rename(path.with_name("old")), path.write_text("data")),
    ],
    ids=["bytes", "mtime", "ctime", "inode"],
)
def test_a_changed_file_is_not(
    memory: DigestMemory, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    path = tmp_path / "shard"
    memory.remember([(settled(path), {"a": "00"})])
    change(path)
    assert memory.remembered([FileIdentity.of(path)]) == {}


def test_a_file_changed_just_before_it_was_looked_at_proves_nothing(
    memory: DigestMemory, tmp_path: Path
) -> None:
    path = tmp_path / "shard"
    path.write_text("data")
    fresh = FileIdentity.of(path)
    memory.remember([(fresh, {"a": "00"})])
    assert memory.remembered([fresh]) == {}
    # The time of the bytes may be set at will; that of the last change of any kind may not.
    os.utime(path, ns=(0, 0))
    backdated = FileIdentity.of(path)
    memory.remember([(backdated, {"a": "00"})])
    assert memory.remembered([backdated]) == {}


def test_a_file_is_known_by_its_real_path(memory: DigestMemory, tmp_path: Path) -> None:
    file = settled(tmp_path / "shard")
    (tmp_path / "link").symlink_to("shard")
    memory.remember([(file, {"a": "00"})])
    assert memory.remembered([FileIdentity.of(tmp_path / "link")]) == {file.path: {"a": "00"}}


@pytest.mark.parametrize(
    "change",
    [{"mtime_ns": 1 << 63}, {"mtime_ns": -(1 << 63) - 1}, {"inode": 1 << 63}, {"size": 1 << 63}],
)
def test_numbers_that_no_database_takes_are_passed_over(
    memory: DigestMemory, tmp_path: Path, change: dict[str, int]
) -> None:
    """A file's time may be after 2262."""
    file = dataclasses.replace(settled(tmp_path / "shard"), **change, seen_ns=1 << 65)
    memory.remember([(file, {"a": "00"})])
    assert memory.remembered([file]) == {}


def test_names_that_are_no_text_are_passed_over(memory: DigestMemory, tmp_path: Path) -> None:
    file = settled(tmp_path / os.fsdecode(b"bad\xff"))
    memory.remember([(file, {"a": "00"})])
    assert memory.remembered([file]) == {}


def test_the_files_seen_longest_ago_are_forgotten(
    memory: DigestMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "FILES_KEPT", 3)
    first = settled(tmp_path / "0")
    files = [dataclasses.replace(first, path=f"/{i}", seen_ns=first.seen_ns + i) for i in range(5)]
    for file in files:
        memory.remember([(file, {})])
    assert sorted(memory.remembered(files)) == ["/2", "/3", "/4"]


def test_it_is_the_users_alone_whatever_the_umask(path: Path, memory: DigestMemory) -> None:
    before = os.umask(0)
    try:
        memory.remember([(settled(path.parent.parent / "shard"), {"a": "00"})])
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()} == {0o600}


def test_asking_makes_no_file(path: Path, memory: DigestMemory) -> None:
    assert memory.remembered([FileIdentity.of_content("ab" * 32, 7)]) == {}
    assert memory.files_with("00") == []
    assert memory.all_made() == memory.made("a", "b", "exact") == set()
    assert not path.parent.exists()


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 3000)


def other_table(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE more (a)")


def journal(path: Path) -> None:
    name = os.fsencode(path.parent.parent / "shard")
    magic = bytes.fromhex("d9d505f920a163d7")
    path.with_name("digests.db-journal").write_bytes(
        name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big") + magic
    )


def linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("../shard")


@pytest.mark.parametrize("spoil", [garbage, other_table, journal, linked, lambda p: p.chmod(0o666)])
def test_one_that_is_no_good_is_made_anew(
    path: Path, memory: DigestMemory, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    file = settled(tmp_path / "shard")
    memory.remember([(file, {"a": "00"})])
    spoil(path)
    # Whether it was open already or not.
    for user in (memory, DigestMemory(path)):
        user.remembered([file])
    again = DigestMemory(path)
    again.remember([(file, {"a": "11"})])
    assert DigestMemory(path).remembered([file]) == {file.path: {"a": "11"}}
    assert path.is_file()
    assert (tmp_path / "shard").read_text() == "data"


@pytest.mark.parametrize("mode", [0o777, 0o757])
def test_where_somebody_else_may_write_nothing_is_kept(
    path: Path, memory: DigestMemory, tmp_path: Path, mode: int
) -> None:
    file = settled(tmp_path / "shard")
    memory.remember([(file, {"a": "00"})])
    for directory in (path.parent, tmp_path):
        before = directory.stat().st_mode
        directory.chmod(mode)
        other = DigestMemory(path)
        assert other.remembered([file]) == {}
        other.remember([(file, {"a": "11"})])
        assert other.remembered([file]) == {file.path: {"a": "11"}}  # as long as it lasts
        directory.chmod(before)
    assert DigestMemory(path).remembered([file]) == {file.path: {"a": "00"}}


def test_what_was_made_is_known_by_its_pair(path: Path, memory: DigestMemory) -> None:
    first, second = (f"sha256:{letter * 64}" for letter in "ab")
    memory.remember_made("base", "post", "exact", first)
    memory.remember_made("base", "post", "exact", first)
    memory.remember_made("base", "other", "exact", second)
    again = DigestMemory(path)
    assert again.made("base", "post", "exact") == {first}
    assert again.made("base", "post", "quant") == again.made("post", "base", "exact") == set()
    assert again.all_made() == {first, second}


def test_what_was_made_longest_ago_is_forgotten(
    memory: DigestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "MADE_KEPT", 3)
    made = [f"sha256:{number:064x}" for number in range(5)]
    for digest in made:
        memory.remember_made("base", "post", "exact", digest)
    assert memory.all_made() == set(made[2:])
