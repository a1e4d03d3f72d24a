"""Indexes outside the store: what one user publishes the others list, whatever happens to them."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from memory_blobs import damage

from deltastore.errors import RefNotFoundError, StoreError, UsageError
from deltastore.operations.gc import gc
from deltastore.operations.reindex import reindex
from deltastore.operations.verify import verify
from deltastore.store import Store, filesystem, indexing, open_store, refreshing
from deltastore.system.steps import Step
from deltastore.testing.artifacts import publish
from deltastore.testing.killing import killed_at, start, succeeds, together

Listed = dict[str, tuple[str, ...]]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A store whose files are older than the clock's grain."""
    path = tmp_path / "shared"
    open_as(path, "ann").close()
    return path


@pytest.fixture(autouse=True)
def fine_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories count as old at once; the tests that are about the grain set it."""
    monkeypatch.setattr(refreshing, "GRAIN_NS", 0)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are read again."""
    seen: list[str] = []
    index_name = indexing.index_name

    def watched(names, blobs, writer, name, **more):  # type: ignore[no-untyped-def]
        seen.append(name)
        return index_name(names, blobs, writer, name, **more)

    monkeypatch.setattr(indexing, "index_name", watched)
    return seen


def open_as(path: Path, user: str) -> Store:
    return open_store(path, index=str(path.parent / f"index-of-{user}"))


def index_of(path: Path, user: str) -> Path:
    (found,) = (path.parent / f"index-of-{user}").glob("*.db")
    return found


def listed(path: Path, user: str) -> Listed:
    with open_as(path, user) as store:
        return {artifact.ref: artifact.tags for artifact in store.artifacts()}


def age(path: Path, seconds: float = 60) -> None:
    """Make what is there look old. The times of changes cannot be set, the other ones can."""
    for directory in (path / "names").rglob("*"):
        if directory.is_dir():
            when = directory.stat().st_mtime - seconds
            os.utime(directory, (when, when))


# --- what one does the other sees ---------------------------------------------------------------


def test_what_one_does_the_other_lists_at_the_next_open(shared: Path) -> None:
    with open_as(shared, "ann") as ann:
        publish(ann, "m", 1, tags=("prod",))
        publish(ann, "m", 2)
        assert listed(shared, "bob") == {"m:v1": ("prod",), "m:v2": ()}
        with open_as(shared, "bob") as bob:
            bob.tag("m:v2", "prod")
            publish(bob, "n", 3)
        assert listed(shared, "ann") == {"m:v1": (), "m:v2": ("prod",), "n:v1": ()}
        with open_as(shared, "bob") as bob:
            bob.untag("m", "prod")
            bob.rm("m:v1")
        assert listed(shared, "ann") == {"m:v2": (), "n:v1": ()}
    shutil.rmtree(shared / "names" / "n")
    assert listed(shared, "ann") == listed(shared, "bob") == {"m:v2": ()}
    assert not (shared / "catalog.db").exists()


def test_nothing_is_read_again_where_nothing_changed(shared: Path, read: list[str]) -> None:
    with open_as(shared, "ann") as ann:
        for name in "abc":
            publish(ann, name, 1, tags=("t",))
    listed(shared, "bob")
    listed(shared, "bob")
    del read[:]
    assert len(listed(shared, "bob")) == 3
    assert read == []
    with open_as(shared, "ann") as ann:
        ann.tag("b:v1", "t")
    del read[:]
    listed(shared, "bob")
    assert read == ["b"]


def test_what_changed_within_the_clocks_grain_is_read_again(
    shared: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refreshing, "GRAIN_NS", 10**12)
    with open_as(shared, "ann") as ann:
        publish(ann, "a", 1)
    for _ in range(3):
        del read[:]
        listed(shared, "bob")
        assert read == ["a"]


def test_a_change_that_the_times_do_not_show_is_found_within_the_grain(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refreshing, "GRAIN_NS", 10**12)
    monkeypatch.setattr(refreshing.Names, "stamp", lambda *_: "always the same")
    for version in (1, 2):
        with open_as(shared, "ann") as ann:
            publish(ann, "a", version)
        assert len(listed(shared, "bob")) == version


def test_a_wrong_clock_costs_a_look_and_hides_nothing(
    shared: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refreshing, "GRAIN_NS", 2 * 10**9)
    with open_as(shared, "ann") as ann:
        publish(ann, "a", 1)
    age(shared, -1e7)
    for seed in (2, 3):
        assert len(listed(shared, "bob")) == seed - 1
        assert read.pop() == "a"
        with open_as(shared, "ann") as ann:
            publish(ann, "a", seed)


def test_a_time_to_come_of_one_name_proves_nothing_of_others(
    shared: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(leases: object) -> float:
        raise StoreError("a reader makes no file")

    monkeypatch.setattr(refreshing, "GRAIN_NS", 10**12)
    monkeypatch.setattr(refreshing.Leases, "server_time", refused)
    with open_as(shared, "ann") as ann:
        publish(ann, "a", 1)
        publish(ann, "b", 2)
    when = time.time() + 1e7
    os.utime(shared / "names" / "b", (when, when))
    for _ in range(2):
        del read[:]
        listed(shared, "bob")
        assert sorted(read) == ["a", "b"]


def test_what_cannot_be_read_is_looked_at_again(shared: Path) -> None:
    with open_as(shared, "ann") as ann:
        done = publish(ann, "a", 1)
        blobs = ann.blobs
    damage(blobs, done.digest)
    with open_as(shared, "bob") as bob:
        assert bob.resolve("a").codec == "unreadable"
    damage(blobs, done.digest)
    with open_as(shared, "bob") as bob:
        assert bob.resolve("a").codec == "exact"


def test_a_tag_of_a_removed_version_means_nothing(shared: Path) -> None:
    with open_as(shared, "ann") as ann:
        publish(ann, "m", 1, tags=("prod",))
        publish(ann, "m", 2)
        ann.rm("m:v1")
        assert listed(shared, "bob") == {"m:v2": ()}
        with pytest.raises(RefNotFoundError):
            ann.resolve("m:prod")
        # Neither in the way of another one, nor of itself.
        ann.tag("m:v2", "Prod")
        assert verify(ann).problems == ()


def test_a_stale_index_does_not_remove_or_tag_what_another_removed(shared: Path) -> None:
    with open_as(shared, "ann") as ann:
        publish(ann, "m", 1)
        with open_as(shared, "bob") as bob:
            ann.rm("m:v1")
            with pytest.raises(RefNotFoundError):
                bob.tag("m:v1", "t")
            with pytest.raises(RefNotFoundError, match="was removed"):
                bob.rm("m:v1")
            assert publish(bob, "m", 1).version == 2


def test_a_directory_that_is_seen_late_costs_no_number(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As clients of a network file system do."""
    with open_as(shared, "ann") as ann, open_as(shared, "bob") as bob:
        publish(ann, "m", 1)
        publish(ann, "m", 2)
        monkeypatch.setattr(type(bob.parts.names), "versions", lambda *_: [])
        assert publish(bob, "m", 3).version == 3


# --- at the same time ---------------------------------------------------------------------------


@pytest.mark.blob_files
def test_two_hosts_work_at_the_same_time(shared: Path, tmp_path: Path) -> None:
    rounds = 16

    def host(user: str, other: str) -> Callable[[], None]:
        def run() -> None:
            for turn in range(rounds):
                with open_as(shared, user) as store:
                    # As extract does: a collector spares what is stored and not yet listed.
                    with store.lease("extract"):
                        done = publish(store, "m", hash((user, turn)) % 10**6, tags=(user, "last"))
                        publish(store, f"of-{user}", turn, tags=("t",))
                    (tmp_path / f"{user}-{turn}").write_text(done.ref)
                    if turn % 4 == 1:
                        store.rm(f"of-{user}:v{turn}")
                        gc(store, grace_s=0)
                seen = {p.read_text() for p in tmp_path.glob(f"{other}-*")} - {""}
                assert seen <= listed(shared, user).keys()

        return run

    together(tmp_path, [host("ann", "bob"), host("bob", "ann")])
    found = listed(shared, "ann")
    assert found == listed(shared, "bob") == listed(shared, "new")
    assert [f"m:v{n + 1}" for n in range(2 * rounds)] == sorted(
        (ref for ref in found if ref.startswith("m:")), key=lambda ref: int(ref[3:])
    )
    assert sum("last" in tags for tags in found.values()) == 1
    with open_as(shared, "new") as store:
        assert verify(store).problems == ()
        gc(store, grace_s=0)
        assert verify(store).problems == ()
    assert list((shared / "leases").iterdir()) == list((shared / "tmp").iterdir()) == []


def test_of_many_who_remove_a_version_one_does(shared: Path, tmp_path: Path) -> None:
    with open_as(shared, "ann") as ann:
        for seed in range(4):
            publish(ann, "m", seed)

    def remove(user: str) -> None:
        with open_as(shared, user) as store:
            for version in range(1, 5):
                try:
                    store.rm(f"m:v{version}")
                except RefNotFoundError:
                    continue
                (tmp_path / f"did-{version}-{user}").touch()

    users = [f"user{n}" for n in range(6)]
    for user in users:
        listed(shared, user)
    together(tmp_path, [lambda user=user: remove(user) for user in users])  # type: ignore[misc]
    assert [len(list(tmp_path.glob(f"did-{v}-*"))) for v in range(1, 5)] == [1] * 4
    assert listed(shared, "ann") == {}
    assert list((shared / "leases").iterdir()) == []


@pytest.mark.parametrize("step", [Step.LEASE, Step.CLAIMED, Step.TOMBSTONE])
def test_a_remover_that_was_killed_is_in_nobodys_way(shared: Path, step: Step) -> None:
    with open_as(shared, "ann") as ann:
        publish(ann, "m", 1)

    def remove(user: str) -> None:
        with open_as(shared, user) as store:
            store.rm("m:v1")

    killed_at(step, lambda: remove("ann"))
    if step is not Step.TOMBSTONE:
        assert listed(shared, "bob") == {"m:v1": ()}
        remove("bob")
    assert listed(shared, "bob") == listed(shared, "ann") == {}
    assert list((shared / "leases").iterdir()) == []


def test_a_remover_that_runs_is_waited_for(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltastore.store import claims

    monkeypatch.setattr(claims, "WAIT_S", 0.1)
    with open_as(shared, "ann") as ann, open_as(shared, "bob") as bob:
        publish(ann, "m", 1)
        bob.parts.names.all()
        with (
            ann.parts.claims.hold("m", 1, decided=lambda: False),
            pytest.raises(StoreError, match="being removed"),
        ):
            ann.rm("m:v1")
        assert ann.rm("m:v1").version == 1


@pytest.mark.parametrize("step", [Step.RECORD, Step.ROW, Step.TAG])
def test_what_a_killed_publisher_finished_is_listed(shared: Path, step: Step) -> None:
    def work() -> None:
        with open_as(shared, "ann") as store:
            publish(store, "m", 1, tags=("prod",))

    killed_at(step, work)
    tags = ("prod",) if step is Step.TAG else ()
    assert listed(shared, "bob") == listed(shared, "ann") == {"m:v1": tags}
    work()
    assert listed(shared, "bob") == {"m:v1": ("prod",)}


# --- an index that is no good -------------------------------------------------------------------


def empty(index: Path) -> None:
    index.write_bytes(b"")


def garbage(index: Path) -> None:
    index.write_bytes(b"garbage" * 3000)


def older(index: Path) -> None:
    with sqlite3.connect(index) as database:
        database.execute("UPDATE alembic_version SET version_num = '0000'")


def newer(index: Path) -> None:
    with sqlite3.connect(index) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")


def of_another_store(index: Path) -> None:
    with sqlite3.connect(index) as database:
        database.execute("UPDATE local_store SET id = 'another'")
        database.execute("DELETE FROM versions")


def without_its_tables(index: Path) -> None:
    with sqlite3.connect(index) as database:
        database.execute("DROP TABLE seen")


def torn(index: Path) -> None:
    data = bytearray(index.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    index.write_bytes(data)


@pytest.mark.parametrize(
    "spoil", [Path.unlink, empty, garbage, older, newer, of_another_store, without_its_tables, torn]
)
def test_an_index_that_is_no_good_is_made_anew(shared: Path, spoil: Callable[[Path], None]) -> None:
    with open_as(shared, "ann") as ann:
        publish(ann, "m", 1, tags=("prod",))
    before = listed(shared, "ann")
    spoil(index_of(shared, "ann"))
    assert listed(shared, "ann") == before == {"m:v1": ("prod",)}
    with open_as(shared, "ann") as ann:
        publish(ann, "m", 2)
    assert len(listed(shared, "ann")) == 2


def test_many_find_the_index_damaged_at_once(shared: Path, tmp_path: Path) -> None:
    with open_as(shared, "ann") as ann:
        publish(ann, "m", 1)
    garbage(index_of(shared, "ann"))

    def look() -> None:
        assert listed(shared, "ann") == {"m:v1": ()}

    together(tmp_path, [look] * 6)


def test_where_no_index_can_be_the_records_are_read(shared: Path, tmp_path: Path) -> None:
    with open_as(shared, "ann") as ann:
        publish(ann, "m", 1)
    (tmp_path / "file").touch()
    with open_store(shared, index=f"{tmp_path}/file/indexes") as store:
        assert [a.ref for a in store.artifacts()] == ["m:v1"]
        assert store.parts.index.reason.startswith("in memory")
        publish(store, "m", 2)
    assert len(listed(shared, "ann")) == 2


def test_reindex_makes_a_local_index_anew(shared: Path) -> None:
    with open_as(shared, "ann") as ann:
        publish(ann, "m", 1, tags=("prod",))
    with sqlite3.connect(index_of(shared, "ann")) as database:
        database.execute("UPDATE versions SET post_label = 'wrong'")
    assert reindex(shared, index=str(shared.parent / "index-of-ann")).versions == 1
    with open_as(shared, "ann") as ann:
        assert verify(ann).problems == ()
    assert not (shared / "catalog.db").exists()


# --- where the index is -------------------------------------------------------------------------


def test_on_a_network_file_system_the_index_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "store") as store:
        publish(store, "m", 1)
    assert (tmp_path / "store" / "catalog.db").exists()
    monkeypatch.setattr(filesystem, "file_system_type", lambda _: "nfs4")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with open_store(tmp_path / "store") as store:
        assert [a.ref for a in store.artifacts()] == ["m:v1"]
        assert store.parts.index.path.is_relative_to(tmp_path / "cache")
        publish(store, "m", 2)
    with pytest.raises(StoreError, match="on nfs4, a network file system") as caught:
        open_store(tmp_path / "store", index="store")
    assert "DELTASTORE_INDEX" in caught.value.hint
    # The server, which sees a disk, has to look at the records as well.
    monkeypatch.setattr(filesystem, "file_system_type", lambda _: "ext4")
    with open_store(tmp_path / "store") as store:
        assert [a.ref for a in store.artifacts()] == ["m:v1", "m:v2"]
    with pytest.raises(StoreError, match="local-index") as caught:
        open_store(tmp_path / "store", index="store")
    (tmp_path / "store" / "local-index").unlink()
    reindex(tmp_path / "store")
    with open_store(tmp_path / "store", index="store") as store:
        assert not store.parts.index.local
        assert len(store.artifacts()) == 2


def test_the_environment_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTASTORE_INDEX", str(tmp_path / "indexes"))
    with open_store(tmp_path / "store") as store:
        assert store.parts.index.path.parent == tmp_path / "indexes"
    monkeypatch.setenv("DELTASTORE_INDEX", "elsewhere")
    with pytest.raises(UsageError, match="'elsewhere'"):
        open_store(tmp_path / "store")


def test_a_copy_of_a_store_has_an_index_of_its_own(shared: Path, tmp_path: Path) -> None:
    with open_as(shared, "ann") as ann:
        publish(ann, "m", 1)
    shutil.copytree(shared, tmp_path / "copy")
    with open_as(tmp_path / "copy", "ann") as copy:
        copy.rm("m:v1")
    assert listed(shared, "ann") == {"m:v1": ()}


def test_one_users_processes_share_an_index(shared: Path) -> None:
    with open_as(shared, "ann") as ann:

        def elsewhere() -> None:
            with open_as(shared, "ann") as same:
                publish(same, "m", 1)

        succeeds(start(elsewhere))
        assert [a.ref for a in ann.artifacts()] == ["m:v1"]
