"""What is damaged, missing or foreign in a store: ``gc`` and all else work again afterwards."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import hints_world
from hints_world import World, case, edit, in_its_place

_SILENT = 7200


def _way_out(world: World) -> None:
    """Do what ``gc`` says until it has nothing to say, then look whether all is well."""
    assert world.fails("verify").code == 40
    for _ in range(3):
        ran = world.run("gc", "--grace", "0")
        if ran.code == 0:
            break
        world.follow(ran)
    world.works("gc", "--grace", "0")
    if (ran := world.run("verify")).code:
        world.follow(ran)
    world.is_well()


@case(
    "store/names.py:_read:2",
    "store/names.py:_way:1",
    "store/references.py:References._read:1",
    "store/references.py:References._read:2",
)
def record_is_empty(world: World) -> None:
    world.record(1).write_bytes(b"")
    world.fails("tag", "m:v1", "new")
    _way_out(world)


@case("manifest/parse.py:load_json:3", "store/names.py:_led_out:1")
def record_is_no_json(world: World) -> None:
    world.record(1).write_bytes(b'{"digest":')
    world.works("reindex")
    world.follow(world.fails("show", "m:v1"))
    world.is_well()


@case("manifest/parse.py:load_json:3")
def record_is_too_deep(world: World) -> None:
    world.record(1).write_text('{"a":' * 900 + "1" + "}" * 900)
    _way_out(world)


@case("manifest/parse.py:load_json:1")
def record_is_too_long(world: World) -> None:
    edit(world.record(1), tool="x" * (70 << 10))
    _way_out(world)


@case("store/records.py:_document:1")
def record_is_of_a_newer_format(world: World) -> None:
    edit(world.record(1), format=2)
    ran = world.fails("gc")
    assert ran.commands[0] == "pip install -U deltastore"
    world.works(*ran.commands[1].split()[1:])
    world.is_well()


@case("store/names.py:_read:1", "store/references.py:References.update:1")
def record_is_a_directory(world: World) -> None:
    in_its_place(world.record(1))
    world.fails("tag", "m:v1", "new")
    _way_out(world)
    kept = [path for path in (world.store / "tmp").iterdir() if path.name.startswith("foreign-")]
    assert [(path / "found").read_text() for path in kept] == ["by somebody"]


@case()
def record_is_a_link(world: World) -> None:
    world.record(3).unlink()
    world.record(3).symlink_to("/etc/hostname")
    world.works("reindex")
    _way_out(world)
    assert Path("/etc/hostname").exists()


@case()
def record_is_missing(world: World) -> None:
    world.record(1).unlink()
    _way_out(world)


@case("store/names.py:Names._way_out_of_gap:2")
def several_records_are_missing(world: World) -> None:
    world.record(1).unlink()
    world.record(2).unlink()
    _way_out(world)


@case("store/names.py:Names._way_out_of_gap:1", "store/names.py:Names.create:1")
def gap_that_no_deltastore_leaves(world: World) -> None:
    edit(world.record(3), version=999_999_999)
    world.record(3).rename(world.record(999_999_999))
    ran = world.fails("extract", *world.pair("post4"))
    assert ran.commands == ["--name", "deltastore verify"]
    world.works("extract", *world.pair("post4", name="another"))
    world.fails("verify")
    _way_out(world)


@case("store/references.py:References.update:2")
def newest_record_is_missing(world: World) -> None:
    world.record(3).unlink()
    world.works("list")
    _way_out(world)
    assert json.loads(world.record(3).read_bytes())["removed"]


@case()
def tombstone_is_empty(world: World) -> None:
    world.record(2).write_bytes(b"")
    _way_out(world)
    assert json.loads(world.record(2).read_bytes())["digest"] == (
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


@case()
def tombstone_is_damaged_and_says_its_digest(world: World) -> None:
    digest = json.loads(world.record(2).read_bytes())["digest"]
    edit(world.record(2), removed="yesterday")
    _way_out(world)
    assert json.loads(world.record(2).read_bytes())["digest"] == digest


@case()
def tombstone_is_a_directory(world: World) -> None:
    in_its_place(world.record(2))
    _way_out(world)


@case("blobs/durable.py:way_of_removal:1")
def foreign_file_among_records(world: World) -> None:
    (world.names / "m" / "v1 (a copy).json").write_text("{}")
    _way_out(world)


@case()
def foreign_directory_among_records(world: World) -> None:
    (world.names / "m" / "old" / "older").mkdir(parents=True)
    _way_out(world)


@case()
def second_record_of_a_version(world: World) -> None:
    shutil.copy(world.record(1), world.names / "m" / "v01.json")
    _way_out(world)


@case()
def file_in_the_place_of_a_name(world: World) -> None:
    shutil.rmtree(world.names / "m")
    (world.names / "m").write_text("")
    world.works("reindex")
    world.fails("extract", *world.pair())
    _way_out(world)


@case()
def directory_that_cannot_be_a_name(world: World) -> None:
    (world.names / "sha256").mkdir()
    _way_out(world)


@case("blobs/durable.py:translated:4")
def file_in_the_place_of_tags(world: World) -> None:
    shutil.rmtree(world.names / "m" / "tags")
    (world.names / "m" / "tags").write_text("")
    assert "rm -r" in world.fails("verify").out
    world.follow(world.fails("tag", "m:v1", "new"))
    world.works("tag", "m:v1", "new")
    world.is_well()


@case("store/names.py:Names.read_tag:1")
def tag_is_empty(world: World) -> None:
    (world.names / "m" / "tags" / "t1.json").write_bytes(b"")
    world.works("reindex")
    ran = world.fails("verify")
    world.follow(ran, fill={"REF": "m:v1"})
    world.is_well()
    assert "t1" in world.works("list").out


@case()
def tag_is_a_directory(world: World) -> None:
    in_its_place(world.names / "m" / "tags" / "t1.json")
    world.works("reindex")
    world.works("untag", "m", "t1")
    world.is_well()
    in_its_place(world.names / "m" / "tags" / "t3.json")
    world.works("tag", "m:v3", "t3")
    world.is_well()


@case()
def tag_of_a_version_that_never_was(world: World) -> None:
    edit(world.names / "m" / "tags" / "t1.json", version=77)
    world.works("reindex")
    world.follow(world.fails("verify"))
    world.is_well()


@case("store/claims.py:Claims._require_claim:1")
def claim_is_none(world: World) -> None:
    (world.store / "leases").mkdir(exist_ok=True)
    (world.store / "leases" / "m.v1.rm").write_text("anything")
    world.follow(world.fails("rm", "m:v1"))
    world.works("rm", "m:v1")
    world.is_well()


@case("store/claims.py:Claims.hold:1")
def claim_is_empty(world: World) -> None:
    claim = world.store / "leases" / "m.v1.rm"
    claim.parent.mkdir(exist_ok=True)
    claim.write_bytes(b"")
    world.monkeypatch.setattr("deltastore.store.claims.WAIT_S", 0.05)
    assert "an hour" in world.fails("rm", "m:v1").hint
    long_ago = claim.stat().st_mtime - _SILENT
    os.utime(claim, (long_ago, long_ago))
    world.works("rm", "m:v1")
    world.is_well()


@case("health/looks.py:_temps:1")
def lease_is_a_directory(world: World) -> None:
    from deltastore.blobs.owner import owner_token

    lease = world.store / "leases" / f"{owner_token()}-0-00000000.json"
    lease.mkdir(parents=True)
    assert "leases/" in world.works("gc", "--grace", "0").out
    ran = world.works("doctor")
    world.follow(ran, codes=(0,))
    world.is_well()


@case("health/looks.py:_leases:2")
def lease_is_damaged_and_silent(world: World) -> None:
    lease = world.store / "leases" / f"{'0' * 24}-4026531836-1-1-0-00000000.json"
    lease.parent.mkdir(exist_ok=True)
    lease.write_bytes(b"{")
    long_ago = lease.stat().st_mtime - _SILENT
    os.utime(lease, (long_ago, long_ago))
    assert "`deltastore gc`" in world.works("doctor").out
    world.works("gc")
    assert not lease.exists()
    world.is_well()


def _again(world: World, *argv: str) -> None:
    """What was read was damaged: extracting the pair again mends it."""
    assert world.fails("verify").code == 40
    world.follow(world.fails(*argv))
    world.works(*argv)
    world.is_well()


@case("blobs/checking.py:missing:1")
def blob_is_missing(world: World) -> None:
    world.blob("part").unlink()
    _again(world, *world.apply())


@case("blobs/local.py:LocalBlobs._open:1")
def blob_is_a_directory(world: World) -> None:
    in_its_place(world.blob("part"))
    _again(world, *world.apply())


@case("blobs/checking.py:require_size:1")
def blob_is_cut_short(world: World) -> None:
    os.truncate(world.blob("part"), 10)
    _again(world, *world.apply())


@case("blobs/checking.py:require_bytes:1", "artifact/reader.py:blaming:1")
def manifest_is_damaged(world: World) -> None:
    path = world.blob("manifest")
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    _again(world, *world.apply())


@case("blobs/local.py:_unreadable:1")
def config_is_a_link(world: World) -> None:
    path = world.blob("config")
    path.unlink()
    path.symlink_to("/etc/hostname")
    _again(world, "show", "m:v3")


@case("blobs/checking.py:ends_early:1")
def blob_is_cut_short_while_it_is_open(world: World) -> None:
    from deltastore.blobs import LocalBlobs
    from deltastore.errors import BlobCorruptError

    path = world.blob("part")
    with LocalBlobs(path.parent, world.store / "tmp").open(
        f"sha256:{path.name}", path.stat().st_size
    ) as reader:
        os.truncate(path, 10)
        try:
            reader.read(0, reader.size)
        except BlobCorruptError as error:
            world.follow(hints_world.Ran((), 41, "", f"hint: {error.hint}"))
    world.is_well()


@case("store/references.py:References._read:3")
def manifest_is_missing(world: World) -> None:
    world.blob("manifest").unlink()
    ran = world.fails("gc")
    assert ran.commands[-1] == "deltastore rm m:v3"
    world.works("rm", "m:v3")
    world.is_well()


@case("manifest/parse.py:Reader.fail:1")
def manifest_breaks_the_format(world: World) -> None:
    from deltastore.digest import sha256_digest

    data = b'{"schemaVersion":2}'
    (world.store / "blobs" / "sha256" / sha256_digest(data)[7:]).write_bytes(data)
    edit(world.record(3), digest=sha256_digest(data))
    world.works("reindex")
    ran = world.fails("show", "m:v3")
    world.follow(ran, fill={"REF": "m:v3"})
    world.is_well()


@case("store/layout.py:_damaged:1")
def marker_is_empty(world: World) -> None:
    (world.store / "store.json").write_bytes(b"")
    world.follow(world.fails("list"))
    assert "m:v3" in world.works("list").out
    world.is_well()


@case()
def marker_is_a_directory(world: World) -> None:
    in_its_place(world.store / "store.json")
    world.follow(world.fails("list"))
    world.is_well()


@case("store/layout.py:not_found:1")
def marker_is_missing(world: World) -> None:
    (world.store / "store.json").unlink()
    (world.store / "lost+found").mkdir()
    world.follow(world.fails("list"))
    world.is_well()


@case()
def files_in_the_place_of_directories(world: World) -> None:
    for name in ("tmp", "leases", "names", "blobs/sha256"):
        shutil.rmtree(world.store / name, ignore_errors=True)
        (world.store / name).write_text("")
        assert world.fails("doctor").code == 10
        world.follow(world.fails("list"))
        world.works("list")
        if name == "blobs/sha256":
            break
        world.works("reindex")
    world.works("gc")
    world.is_well()


@case("catalog/failures.py:damaged:1")
def catalog_is_damaged(world: World) -> None:
    (world.store / "catalog.db").write_bytes(b"x" * 5000)
    world.follow(world.fails("list"))
    world.is_well()


@case()
def catalog_is_a_directory(world: World) -> None:
    in_its_place(world.store / "catalog.db")
    (reindex,) = world.fails("list").commands
    world.follow(world.fails(*reindex.split()[1:]))
    world.works(*reindex.split()[1:])
    world.is_well()


@case("blobs/durable.py:translated:2")
def name_is_a_link(world: World) -> None:
    (world.names / "m").rename(world.root / "elsewhere")
    (world.names / "m").symlink_to(world.root / "elsewhere")
    world.fails("tag", "m:v1", "new")
    (world.names / "m").unlink()
    (world.root / "elsewhere").rename(world.names / "m")
    world.works("reindex")
    world.is_well()
