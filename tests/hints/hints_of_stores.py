"""Where a store is, and where its index is."""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from unittest.mock import Mock

from hints_world import World, case


@case("store/layout.py:not_found:2")
def there_is_no_store(world: World) -> None:
    world.monkeypatch.setenv("DELTASTORE_STORE", str(world.root / "none"))
    ran = world.fails("list", "--store", str(world.root / "none"))
    assert ran.commands[0] == "deltastore extract"
    world.works("extract", *world.pair())
    world.works("list")


@case("store/layout.py:create:1", "store/layout.py:_refuse_foreign:1")
def there_is_something_else(world: World) -> None:
    (world.root / "file").write_text("")
    for place in ("file", "base"):
        ran = world.fails("--store", world.path(place), "extract", *world.pair())
        assert ran.commands == ["--store"]
    world.works("--store", world.path("another"), "extract", *world.pair())


@case("store/placing.py:_asked_for:1")
def index_is_no_place(world: World) -> None:
    world.monkeypatch.setenv("DELTASTORE_INDEX", "elsewhere")
    assert "Correct DELTASTORE_INDEX" in world.fails("list").hint
    world.monkeypatch.setenv("DELTASTORE_INDEX", "local")
    world.works("list")
    world.is_well()


@case("store/placing.py:_place:1", "store/placing.py:_place:2")
def index_cannot_lie_in_the_store(world: World) -> None:
    world.monkeypatch.setenv("DELTASTORE_INDEX", "store")
    world.store.chmod(0o777)
    assert "Unset DELTASTORE_INDEX" in world.fails("list").hint
    world.store.chmod(0o755)
    with world.monkeypatch.context() as patched:
        patched.setattr("deltastore.store.filesystem.file_system_type", lambda _: "nfs4")
        assert "Unset DELTASTORE_INDEX" in world.fails("list").hint
    world.store.chmod(0o777)
    world.monkeypatch.delenv("DELTASTORE_INDEX")
    world.is_well()


@case("store/placing.py:_place:4")
def users_have_indexes_of_their_own(world: World) -> None:
    (world.store / "local-index").write_text("")
    world.monkeypatch.setenv("DELTASTORE_INDEX", "store")
    ran = world.fails("list")
    (world.store / "local-index").unlink()
    world.follow(ran)
    world.is_well()


@case("health/looks.py:_index:1")
def index_is_in_memory(world: World) -> None:
    (world.root / "file").write_text("")
    world.monkeypatch.setenv("DELTASTORE_INDEX", str(world.root / "file") + "/")
    ran = world.works("doctor")
    assert "DELTASTORE_INDEX" in ran.out
    world.monkeypatch.setenv("DELTASTORE_INDEX", str(world.root / "own") + "/")
    assert "in memory" not in world.works("doctor").out
    world.is_well()


@case("blobs/durable.py:translated:1")
def disk_is_full(world: World) -> None:
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with world.monkeypatch.context() as patched:
        patched.setattr("deltastore.blobs.durable._write_all", full)
        ran = world.fails("extract", *world.pair("post4"))
    world.follow(ran)
    world.works("extract", *world.pair("post4"))


@case("blobs/durable.py:translated:6", "blobs/durable.py:translated:7")
def disk_fails(world: World) -> None:
    import errno

    for number in (errno.EIO, errno.EXDEV):
        error = OSError(number, os.strerror(number))
        with world.monkeypatch.context() as patched:
            patched.setattr("deltastore.blobs.durable._write_all", Mock(side_effect=error))
            ran = world.fails("extract", *world.pair("post4"))
        world.follow(ran)
    world.is_well()


@case("blobs/durable.py:translated:5")
def store_has_too_long_a_name(world: World) -> None:
    ran = world.fails("--store", world.path("x" * 300), "extract", *world.pair("post4"))
    assert "shorter" in ran.hint
    world.works("--store", world.path("x"), "extract", *world.pair("post4"))


@case("blobs/durable.py:translated:3")
def store_may_not_be_written(world: World) -> None:
    import errno

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with world.monkeypatch.context() as patched:
        patched.setattr("deltastore.blobs.durable._write_all", refused)
        assert "--store" in world.fails("extract", *world.pair("post4")).commands
    world.works("--store", world.path("another"), "extract", *world.pair("post4"))


@case("health/looks.py:_freeable:1")
def space_is_low(world: World) -> None:
    world.monkeypatch.setattr("deltastore.health.looks.LOW_SPACE_BYTES", 1 << 62)
    assert "`deltastore gc --grace 0` frees " in world.works("doctor").out
    world.works("gc", "--grace", "0")
    said = world.works("doctor").out
    assert "`deltastore gc" not in said
    assert "`deltastore du`" in said
    world.works("du")


@case("extraction/storing.py:_require_space:1")
def store_has_too_little_space(world: World) -> None:
    # Of a model that has no blob in common with what is there.
    world.works("gc", "--grace", "0")
    pair = world.pair("stranger2", base="stranger")
    with world.monkeypatch.context() as patched:
        patched.setattr("deltastore.store.Store.free_bytes", lambda _: 10)
        ran = world.fails("extract", *pair)
    assert "would free nothing" in ran.hint
    assert "--store" in ran.commands
    assert len(ran.commands) == 5
    world.follow(ran, fill={"REF": "m:v1"})
    world.works("--store", world.path("another"), "extract", *pair)
    world.works("extract", *pair)


@case("store/sharing.py:look_at_sharing:1")
def group_is_kept_out(world: World) -> None:
    world.store.chmod(0o777)
    checks = json.loads(world.works("--json", "doctor").out)["checks"]
    (told,) = [check["next"] for check in checks if check["what"] == "sharing"]
    world.said.append(told)
    (command, _) = re.findall(r"`([^`]+)`", told)
    assert subprocess.run(["bash", "-c", command]).returncode == 0
    checks = json.loads(world.works("--json", "doctor").out)["checks"]
    assert "but names" not in str(checks)
    assert "but blobs" not in str(checks)


@case("store/sharing.py:look_at_sharing:2")
def umask_keeps_the_group_out(world: World) -> None:
    group_is_kept_out(world)
    before = os.umask(0o077)
    try:
        assert "`umask 002`" in world.works("doctor").out
        os.umask(0o002)
        assert "`umask 002` first" not in world.works("doctor").out
    finally:
        os.umask(before)


@case("catalog/schema.py:check_revision:1")
def catalog_is_of_an_older_deltastore(world: World) -> None:
    from deltastore.catalog import schema

    catalog = sqlite3.connect(world.store / "catalog.db")
    catalog.executescript(
        ";".join(schema.statements_at("0001")[-2:])
        + ";DROP TABLE seen;UPDATE alembic_version SET version_num = '0001'"
    )
    catalog.close()
    world.follow(world.fails("list"))
    world.works("reindex")
    world.is_well()


@case("catalog/failures.py:_from_driver:1")
def catalog_is_locked(world: World) -> None:
    catalog = sqlite3.connect(world.store / "catalog.db", isolation_level=None)
    catalog.execute("BEGIN EXCLUSIVE")
    with world.monkeypatch.context() as patched:
        patched.setattr("deltastore.catalog.sqlite.BUSY_TIMEOUT_S", 0.1)
        assert "when the other one has finished" in world.fails("list").hint
    catalog.execute("ROLLBACK")
    catalog.close()
    world.works("list")


@case("cli/output.py:unwritable:1")
def output_device_is_full(world: World) -> None:
    command = f"{shlex.quote(sys.executable)} -m deltastore list"
    ran = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True)
    assert (ran.returncode, "Redirect it" in ran.stderr) == (3, True)
    assert subprocess.run(["bash", "-c", f"{command} > listed"]).returncode == 0
    world.shows("cli/output.py:unwritable:1")
