from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from deltastore.blobs.durable import write_temp
from deltastore.health import installation, looks
from deltastore.health.check import Check, Diagnosis
from deltastore.operations.doctor import doctor
from deltastore.store import open_store
from deltastore.store.filesystem import file_system_type
from deltastore.testing.artifacts import publish
from deltastore.testing.killing import start, succeeds


def found(diagnosis: Diagnosis) -> dict[str, Check]:
    return {check.what: check for check in diagnosis.checks}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with open_store(tmp_path / "store") as store:
        publish(store)
    return tmp_path / "store"


def test_a_sound_store_is_healthy(path: Path) -> None:
    diagnosis = doctor(path)
    checks = found(diagnosis)
    assert diagnosis.healthy
    assert [c for c in diagnosis.checks if c.status == "fail"] == []
    assert checks["store"].found == str(path)
    assert checks["store access"].found == "read and write"
    assert checks["catalog"].found == "schema 0003, delete journal"
    assert checks["leases"].found == checks["temporary files"].found == "none"
    assert checks["torch"].found


def test_a_store_that_is_not_there_yet_is_only_a_warning(tmp_path: Path) -> None:
    diagnosis = doctor(tmp_path / "store")
    assert diagnosis.healthy
    assert found(diagnosis)["store format"].status == "warn"
    assert "deltastore extract" in found(diagnosis)["store format"].next
    assert not (tmp_path / "store").exists()


def test_what_is_broken_fails_with_what_to_type(path: Path) -> None:
    (path / "catalog.db").write_bytes(b"garbage" * 1000)
    diagnosis = doctor(path)
    assert not diagnosis.healthy
    assert "deltastore reindex" in found(diagnosis)["store format"].next
    (path / "store.json").write_text('{"format":9}')
    assert "Upgrade" in found(doctor(path))["store format"].next


def test_pages_that_are_broken_are_found(path: Path) -> None:
    data = bytearray((path / "catalog.db").read_bytes())
    data[-4096:] = b"\xff" * 4096
    (path / "catalog.db").write_bytes(data)
    check = found(doctor(path))["catalog"]
    assert check.status == "fail"
    assert "deltastore reindex" in check.next


def test_a_missing_package_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "PACKAGES", ("numpy", "no-such-package"))
    diagnosis = doctor(path)
    assert not diagnosis.healthy
    assert "pip install no-such-package" in found(diagnosis)["no-such-package"].next


def test_little_space_and_network_file_systems_are_warned_of(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "LOW_SPACE_BYTES", 1 << 62)
    monkeypatch.setattr(looks, "file_system_type", lambda _: "nfs4")
    # Where the index is nevertheless in the store.
    checks = found(doctor(path))
    assert checks["free space"].status == "warn"
    assert "deltastore du" in checks["free space"].next
    assert checks["file system"].status == "warn"


def test_who_is_at_work_is_shown_and_the_dead_are_gone(path: Path) -> None:
    succeeds(start(lambda: write_temp(path / "tmp", [b"left"]) and None))
    with open_store(path) as store, store.lease("extract"):
        checks = found(doctor(path))
    assert "extract by process" in checks["leases"].found
    assert checks["leases"].status == "ok"
    assert checks["temporary files"].found == "none"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_the_file_system_is_the_nearest_mount() -> None:
    assert file_system_type(Path("/proc")) == "proc"
    assert file_system_type(Path("/proc/self/fd")) == "proc"
    assert file_system_type(Path("/no/such/path")) is None


def lease_elsewhere(path: Path) -> Path:
    lease = path / "leases" / "0123456789abcdef01234567-12-345-0-0.json"
    lease.write_text('{"purpose": "extract", "host": "far", "pid": 12, "created": "then"}')
    return lease


def checked(path: Path, what: str) -> Check:
    (check,) = (check for check in doctor(path).checks if check.what == what)
    return check


def test_a_lease_of_another_machine_is_shown_and_stale_after_an_hour(path: Path) -> None:
    lease = lease_elsewhere(path)
    assert checked(path, "leases").status == "ok"
    assert "process 12 on far" in checked(path, "leases").found
    for when in (lease.stat().st_mtime - 7200, lease.stat().st_mtime + 7200):
        os.utime(lease, (when, when))
        check = checked(path, "leases")
        assert (check.status, "`deltastore gc`" in check.next) == ("warn", True)


def test_a_clock_that_differs_from_the_file_systems_is_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checked(path, "clock").status == "ok"
    real = time.time
    for shift, said in ((3600.0, "3600 s behind"), (-60.0, "60 s ahead")):
        monkeypatch.setattr(time, "time", lambda shift=shift: real() + shift)
        check = checked(path, "clock")
        assert (check.status, bool(check.next)) == ("warn", True)
        assert said in check.found


def test_a_part_of_the_store_that_cannot_be_written_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda place, mode: "sha256" not in str(place) and access(place, mode)
    )
    check = checked(path, "store access")
    assert (check.status, "blobs/sha256" in check.found) == ("fail", True)
    assert "chmod" in check.next


def test_it_says_where_the_index_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(path, "index").found == "catalog.db in the store"
    assert "alone may write" in checked(path, "sharing").found
    indexes = path.parent / "indexes"
    monkeypatch.setenv("DELTASTORE_INDEX", str(indexes))
    monkeypatch.setattr(looks, "file_system_type", lambda _: "nfs4")
    check = checked(path, "index")
    assert check.status == "ok"
    assert check.found.startswith(f"{indexes}/")
    assert "catalog.db in the store is not used" in check.found
    assert checked(path, "file system").status == "ok"
    monkeypatch.setenv("DELTASTORE_INDEX", f"{path}/store.json/indexes")
    check = checked(path, "index")
    assert (check.status, "DELTASTORE_INDEX" in check.next) == ("warn", True)
