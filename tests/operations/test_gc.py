from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deltastore.cli.main import main
from deltastore.errors import (
    CatalogError,
    FormatError,
    IntegrityError,
    UsageError,
)
from deltastore.operations.gc import DEFAULT_GRACE_S, gc
from deltastore.operations.verify import verify
from deltastore.store import Store, collecting, open_store
from deltastore.testing.artifacts import flip, publish, put_artifact

DAY = 86400.0
# A process of another machine, of which only its heartbeat is known.
ELSEWHERE = "0123456789abcdef01234567-12-345"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = open_store(tmp_path / "store")
    publish(opened, "a", 1, tags=("prod",))
    publish(opened, "a", 2)
    publish(opened, "b", 1)
    return opened


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collectors do not wait long for leases that a test has made up."""
    monkeypatch.setattr(collecting, "DRAIN_S", 0.05)


def age(path: Path, seconds: float) -> None:
    """Make a file as old as that."""
    when = path.lstat().st_mtime - seconds
    os.utime(path, (when, when), follow_symlinks=False)


def age_all(store: Store, seconds: float) -> None:
    for path in store.path.rglob("*"):
        if path.is_file():
            age(path, seconds)


def blobs(store: Store) -> set[str]:
    return {path.name for path in (store.path / "blobs" / "sha256").iterdir()}


def files(store: Store) -> dict[str, bytes]:
    return {
        str(path.relative_to(store.path)): path.read_bytes()
        for path in store.path.rglob("*")
        if path.is_file() and path.name != "catalog.db"
    }


def test_what_a_record_refers_to_stays_and_all_else_goes(store: Store) -> None:
    orphan = store.blobs.put([b"orphan"]).digest
    kept = blobs(store) - {orphan[7:]}
    report = gc(store, grace_s=0)
    assert (report.removed, report.freed_bytes, report.digests) == (1, 6, (orphan,))
    assert report.referenced.blobs == len(kept)
    assert blobs(store) == kept
    assert verify(store).problems == ()
    assert gc(store, grace_s=0).removed == 0


def test_rm_then_gc_leaves_nothing_that_is_not_referred_to(store: Store) -> None:
    store.rm("a:v1")
    shared = blobs(store)
    assert gc(store, grace_s=0).removed == 0, "b:v1 has the same artifact"
    assert blobs(store) == shared
    store.rm("b:v1")
    assert gc(store, grace_s=0).removed == 4
    assert verify(store).orphans == verify(store).problems == ()
    store.rm("a:v2")
    gc(store, grace_s=0)
    assert blobs(store) == set()
    assert list((store.path / "tmp").iterdir()) == list((store.path / "leases").iterdir()) == []


def test_a_dry_run_says_the_same_and_deletes_nothing(store: Store) -> None:
    store.rm("a:v2")
    before = files(store)
    planned = gc(store, grace_s=0, dry_run=True)
    assert planned.dry_run
    assert files(store) == before
    done = gc(store, grace_s=0)
    assert not done.dry_run
    assert (done.removed, done.freed_bytes, done.digests) == (
        planned.removed,
        planned.freed_bytes,
        planned.digests,
    )
    assert done.removed == 4


def test_the_grace_period_counts_from_the_last_use(store: Store) -> None:
    store.rm("a:v2")
    age_all(store, 2 * DAY)
    store.blobs.put([b"fresh"])
    assert gc(store, grace_s=3 * DAY).removed == 0
    report = gc(store)
    assert (report.grace_s, report.removed, report.spared.young.blobs) == (DEFAULT_GRACE_S, 4, 1)
    # Put again: it is wanted, so the time counts anew.
    age_all(store, 2 * DAY)
    store.blobs.put([b"fresh"])
    assert gc(store).spared.young.blobs == 1


def test_what_was_removed_lately_is_young_however_old_its_blobs(store: Store) -> None:
    age_all(store, 300 * DAY)
    store.rm("a:v2")
    assert gc(store).spared.young.blobs == 4
    age(store.path / "names" / "a" / "v2.json", 2 * DAY)
    assert gc(store).removed == 4


def test_ages_are_those_of_the_file_server(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock is a year ahead; the store's files are stamped by another."""
    store.blobs.put([b"orphan"])
    real = store.parts.leases.server_time
    monkeypatch.setattr("time.time", lambda: real() + 365 * DAY)
    assert gc(store).spared.young.blobs == 1


def test_a_blob_from_the_future_is_young_until_asked_otherwise(store: Store) -> None:
    age(store.blobs.path(store.blobs.put([b"orphan"]).digest), -900 * DAY)
    assert gc(store).spared.young.blobs == 1
    assert gc(store, grace_s=0).removed == 1


def empty_record(store: Store) -> None:
    (store.path / "names" / "a" / "v2.json").write_bytes(b"")


def damaged_tombstone(store: Store) -> None:
    store.rm("a:v2")
    path = store.path / "names" / "a" / "v2.json"
    path.write_bytes(path.read_bytes()[:-5])


def missing_record(store: Store) -> None:
    (store.path / "names" / "a" / "v2.json").unlink()


def missing_older_record(store: Store) -> None:
    (store.path / "names" / "a" / "v1.json").unlink()
    store.reindex()


def missing_names(store: Store) -> None:
    shutil.rmtree(store.path / "names" / "b")


def newer_record(store: Store) -> None:
    path = store.path / "names" / "a" / "v2.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))


def directory_for_a_record(store: Store) -> None:
    missing_record(store)
    (store.path / "names" / "a" / "v2.json").mkdir()


def link_for_a_record(store: Store) -> None:
    path = store.path / "names" / "a" / "v2.json"
    path.symlink_to(path.rename(store.path.parent / "elsewhere"))


def copied_record(store: Store) -> None:
    path = store.path / "names" / "a"
    shutil.copy(path / "v2.json", path / "v2 (copy).json")


def record_in_capitals(store: Store) -> None:
    path = store.path / "names" / "a"
    shutil.copy(path / "v2.json", path / "V2.json")


def foreign_name(store: Store) -> None:
    (store.path / "names" / "not a name").mkdir()


def linked_name(store: Store) -> None:
    (store.path / "names" / "c").symlink_to(store.path / "names" / "a")


def manifest(store: Store) -> Path:
    return store.blobs.path(store.resolve("a:v2").digest)


DAMAGES: dict[Callable[[Store], object], str] = {
    empty_record: "v2.json",
    damaged_tombstone: "v2.json",
    missing_record: "v2.json",
    missing_older_record: "v1.json",
    missing_names: "b:v1",
    newer_record: "Upgrade",
    directory_for_a_record: "v2.json",
    link_for_a_record: "v2.json",
    copied_record: "(copy)",
    record_in_capitals: "V2.json",
    foreign_name: "not a name",
    linked_name: "names/c",
    lambda store: manifest(store).unlink(): "a:v2",
    lambda store: flip(manifest(store)): "a:v2",
    lambda store: flip(manifest(store), -1): "a:v2",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("dry_run", [False, True])
def test_what_is_not_understood_keeps_everything(
    store: Store, damage: Callable[[Store], object], dry_run: bool
) -> None:
    store.blobs.put([b"orphan"])
    damage(store)
    before = files(store)
    with pytest.raises((IntegrityError, FormatError)) as caught:
        gc(store, grace_s=0, dry_run=dry_run)
    assert 40 <= caught.value.exit_code < 60
    assert DAMAGES[damage] in caught.value.message + (caught.value.__cause__ or caught.value).hint
    assert "Nothing was deleted" in caught.value.hint
    assert files(store) == before


def test_what_tools_leave_is_passed_over(store: Store) -> None:
    for place in ("names", "names/a", "blobs/sha256", "tmp"):
        (store.path / place / ".nfs0001").touch()
    (store.path / "blobs" / "sha256" / "notes.txt").touch()
    (store.path / "tmp" / "mine").touch()
    store.blobs.put([b"orphan"])
    report = gc(store, grace_s=0)
    assert report.removed == 1
    assert {"blobs/sha256/notes.txt", "tmp/mine"} <= set(report.foreign)
    assert (store.path / "tmp" / "mine").exists()


def test_a_catalog_that_cannot_be_read_keeps_everything(store: Store) -> None:
    store.blobs.put([b"orphan"])
    before = blobs(store)
    (store.path / "catalog.db").write_bytes(b"garbage" * 3000)
    with pytest.raises(CatalogError):
        gc(store, grace_s=0)
    assert blobs(store) == before


def test_a_catalog_that_lacks_what_records_have_does_no_harm(store: Store) -> None:
    with store.parts.catalog.writing() as writer:
        writer.forget_all()
    assert gc(store, grace_s=0).removed == 0
    store.reindex()
    assert verify(store).problems == ()


def foreign_lease(store: Store, purpose: str = "extract", **fields: object) -> Path:
    """A lease as a process on another machine leaves it."""
    path = store.path / "leases" / f"{ELSEWHERE}-0-00000000.json"
    said = {"purpose": purpose, "name": None, "host": "far", "pid": 12, "created": "then"}
    path.write_text(json.dumps(said | fields))
    return path


@pytest.mark.parametrize("purpose", ["extract", "publish", "something new"])
def test_a_writer_elsewhere_holds_everything_until_its_heartbeat_is_over(
    store: Store, purpose: str
) -> None:
    store.blobs.put([b"orphan"])
    lease = foreign_lease(store, purpose)
    for dry_run in (True, False):
        report = gc(store, grace_s=0, dry_run=dry_run)
        assert (report.removed, report.spared.held.blobs) == (0, 1)
        assert report.holders == (f"{purpose} by process 12 on far since then",)
    age(lease, 7200)
    report = gc(store, grace_s=0)
    assert (report.removed, report.spared.held.blobs, report.leases) == (1, 0, 1)
    assert not lease.exists()


@pytest.mark.parametrize("purpose", ["tag", "untag", "rm", "gc"])
def test_who_relies_on_no_blob_holds_none(store: Store, purpose: str) -> None:
    store.blobs.put([b"orphan"])
    foreign_lease(store, purpose)
    assert gc(store, grace_s=0).removed == 1


def test_a_lease_from_the_future_counts_for_an_hour(store: Store) -> None:
    store.blobs.put([b"orphan"])
    lease = foreign_lease(store)
    age(lease, -1800)
    assert gc(store, grace_s=0).spared.held.blobs == 1
    age(lease, -90 * DAY)
    assert gc(store, grace_s=0).removed == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"purpose": 3}', b"\xff" * 99])
def test_a_lease_that_cannot_be_read_holds_everything(store: Store, content: bytes) -> None:
    store.blobs.put([b"orphan"])
    foreign_lease(store).write_bytes(content)
    assert gc(store, grace_s=0).spared.held.blobs == 1


def test_temporary_files_of_others_are_left_until_their_process_counts_as_ended(
    store: Store,
) -> None:
    temp = store.path / "tmp" / f"{ELSEWHERE}-1-00000000"
    temp.write_bytes(b"12345")
    assert gc(store, grace_s=0).temp_files == 0
    age(temp, 7200)
    lease = foreign_lease(store, "tag")
    assert gc(store, grace_s=0).temp_files == 0
    lease.unlink()
    assert gc(store, grace_s=0, dry_run=True).temp_files == 1
    assert temp.exists()
    report = gc(store, grace_s=0)
    assert (report.temp_files, report.freed_bytes) == (1, 5)
    assert not temp.exists()


@pytest.mark.parametrize("grace", [-1.0, float("nan"), float("inf")])
def test_a_grace_period_is_a_number_of_seconds(store: Store, grace: float) -> None:
    with pytest.raises(UsageError):
        gc(store, grace_s=grace)


def test_the_command_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.rm("a:v2")
    where = ["--store", str(store.path)]
    assert main([*where, "gc", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["removed"] == 0
    assert said["spared"]["young"]["blobs"] == 4
    assert main([*where, "gc", "--grace", "0", "--dry-run"]) == 0
    assert "would delete 4 blobs" in capsys.readouterr().out
    assert main([*where, "-q", "gc", "--grace", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main([*where, "gc", "--grace", "-3"]) == 2
    (store.path / "names" / "a" / "v1.json").write_bytes(b"")
    assert main([*where, "gc", "--grace", "0"]) == 51
    assert "Nothing was deleted" in capsys.readouterr().err


def test_a_writer_that_put_and_did_not_publish_loses_only_its_blobs(store: Store) -> None:
    manifest, config = put_artifact(store, 9)
    gc(store, grace_s=0)
    labels = {"base": "x", "post": "y"}
    with pytest.raises(IntegrityError, match="is not in the store"):
        store.publish(manifest, config, name="a", labels=labels)
    put_artifact(store, 9)
    assert store.publish(manifest, config, name="a", labels=labels).version == 3
    assert verify(store).problems == ()
