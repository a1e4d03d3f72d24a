"""Damage to every kind of file of a store: verify names it, apply never uses it.

``test_corruption`` has the same for blobs, in more detail.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkpoints import Tensors, assert_same_bits, load, model, save, trained

import deltastore
from deltastore.cli.main import main
from deltastore.errors import DeltastoreError, RefNotFoundError, StoreReadOnlyError
from deltastore.operations.reindex import reindex
from deltastore.operations.verify import verify
from deltastore.store import Store, open_store
from deltastore.testing.artifacts import publish


@dataclass(frozen=True)
class World:
    directory: Path
    post: Tensors

    @property
    def store(self) -> Path:
        return self.directory / "store"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    directory = tmp_path_factory.mktemp("template")
    base = model("base")
    posts = {name: trained(base, name) for name in ("one", "two")}
    save(directory / "base", base, config={"model_type": "llama"})
    for name, post in posts.items():
        save(directory / name, post, config={"model_type": "llama"})
    with deltastore.open(directory / "store") as store:
        store.extract(directory / "base", directory / "one", name="x", tags=["t"])
        store.extract(directory / "base", directory / "two", name="x")
        store.rm("x:v2")
        store.extract(directory / "base", directory / "two", name="x")
        store.extract(directory / "base", directory / "two", name="y")
    return World(directory, posts["one"])


@pytest.fixture
def world(template: World, tmp_path: Path) -> World:
    shutil.copytree(template.store, tmp_path / "store")
    for name in ("base", "one", "two"):
        (tmp_path / name).symlink_to(template.directory / name)
    return World(tmp_path, template.post)


DOCUMENTS = ("names/x/v1.json", "names/x/v2.json", "names/x/tags/t.json", "store.json")


def reported(world: World, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What verify says, which must be that something is wrong."""
    assert main(["--store", str(world.store), "verify", *options]) != 0
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said
    return said


def assert_not_used(world: World, ref: str = "x:v1") -> None:
    """Either the right output or none."""
    out = world.directory / "out"
    with suppress(DeltastoreError), deltastore.open(world.store, create=False) as store:
        store.apply(ref, base=world.directory / "base", out=out)
    if out.exists():
        assert_same_bits(load(out), world.post)


@pytest.mark.parametrize("options", [(), ("--quick",)], ids=["whole", "quick"])
@pytest.mark.parametrize("how", ["cut", "emptied", "deleted", "no JSON", "newer"])
@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_damaged_document_is_named(
    world: World,
    document: str,
    how: str,
    options: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = world.store / document
    data = path.read_bytes()
    match how:
        case "cut":
            path.write_bytes(data[:-1])
        case "emptied":
            path.write_bytes(b"")
        case "deleted":
            path.unlink()
        case "no JSON":
            path.write_bytes(b"\0" * len(data))
        case "newer":
            path.write_text(json.dumps(json.loads(data) | {"format": 2}))
    if (document, how) == ("names/x/tags/t.json", "deleted"):
        # That is how a tag is removed.
        with open_store(world.store, create=False) as store:
            assert verify(store).problems == ()
            assert store.artifacts()[0].tags == ()
        return
    said = reported(world, capsys, *options)
    if (document, how) == ("store.json", "deleted"):
        assert "There is no store" in said
    elif (document, how) == ("store.json", "newer"):
        assert "Upgrade" in said
    else:
        assert document in said
    assert_not_used(world)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_any_flipped_byte_of_a_document_is_found_or_means_nothing(
    world: World, document: str, no_change_is_seen: None
) -> None:
    """What nothing depends on, and nothing repeats, may change unnoticed: times, hosts, ids."""
    path = world.store / document
    data = path.read_bytes()
    whole = json.loads(data)
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        try:
            with open_store(world.store, create=False) as store:
                problems = verify(store, quick=True).problems
        except DeltastoreError:
            continue
        if not problems:
            now = json.loads(path.read_bytes())
            changed = {key for key in now if now[key] != whole.get(key)}
            free = {"created", "created_by", "id", "removed", "removed_by"}
            if document == "names/x/v2.json":
                free |= {"digest"}
            assert changed <= free
            assert document != "names/x/v1.json", "the catalog repeats every field of a record"


def test_every_page_of_the_catalog_that_is_in_use(world: World) -> None:
    """Damage is found by opening or verifying, and gone after reindexing; or it means nothing."""
    path = world.store / "catalog.db"
    data = path.read_bytes()
    listed = _listed(world)
    found = 0
    for position in range(0, len(data), 97):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            with open_store(world.store, create=False) as store:
                problems = verify(store).problems
        except DeltastoreError:
            problems = ("cannot be opened",)
        if problems:
            found += 1
            assert_catalog_repaired(world)
        assert _listed(world) == listed, position
    assert found > 20


def assert_catalog_repaired(world: World) -> None:
    indexed = reindex(world.store)
    assert (indexed.versions, indexed.tags, indexed.problems) == (3, 1, ())
    with open_store(world.store, create=False) as store:
        assert verify(store).problems == ()


def _listed(world: World) -> list[object]:
    with open_store(world.store, create=False) as store:
        return list(store.artifacts())


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"garbage" * 3000),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(path.read_bytes()[:-4096]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["garbage", "a header", "a page less", "empty", "gone"],
)
def test_a_damaged_catalog_is_named_and_made_again(
    world: World, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    listed = _listed(world)
    damage(world.store / "catalog.db")
    code = main(["--store", str(world.store), "verify"])
    said = "".join(capsys.readouterr())
    # An empty or absent one is simply made from the records.
    assert code == 0 or "deltastore reindex" in said
    assert_not_used(world)
    assert_catalog_repaired(world)
    assert _listed(world) == listed


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE artifacts SET raw_bytes = raw_bytes + 1",
        "UPDATE artifacts SET base_content = 'blake3:' || base_content",
        "UPDATE versions SET tool = 'other'",
        "UPDATE versions SET base_label = 'other'",
    ],
)
def test_a_row_that_says_something_else_is_named(
    world: World, statement: str, no_change_is_seen: None
) -> None:
    with sqlite3.connect(world.store / "catalog.db") as connection:
        connection.execute(statement)
    connection.close()
    with open_store(world.store, create=False) as store:
        problems = verify(store).problems
        assert {problem.where for problem in problems} == {"catalog.db"}
        assert all("deltastore reindex" in problem.problem for problem in problems)
    assert_catalog_repaired(world)


@pytest.mark.parametrize("how", ["cut", "deleted"])
def test_quick_finds_what_is_missing_or_short(world: World, how: str) -> None:
    with open_store(world.store, create=False) as store:
        manifest, _ = store.load(store.resolve("x:v1").digest)
        for blob in manifest.blobs:
            path = store.blobs.path(blob.digest)
            data = path.read_bytes()
            path.unlink()
            if how == "cut":
                path.write_bytes(data[:-1])
            (problem,) = (p for p in verify(store, quick=True).problems if p.digest == blob.digest)
            assert "x:v1" in problem.refs
            path.unlink(missing_ok=True)
            path.write_bytes(data)
        assert verify(store, quick=True).problems == ()


def test_quick_reads_no_part(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(world.store, create=False) as store:
        monkeypatch.setattr(type(store.blobs), "check", lambda *_: pytest.fail("a part was read"))
        whole = verify(store, quick=True)
    assert (whole.problems, whole.checked > 4) == ((), True)


@pytest.mark.parametrize(
    ("name", "said"),
    [("v1 (copy).json", "(copy)"), ("V1.json", "V1.json"), ("v01.json", "v01.json")],
)
def test_two_records_of_one_version_are_named(world: World, name: str, said: str) -> None:
    path = world.store / "names" / "x"
    shutil.copy(path / "v1.json", path / name)
    with open_store(world.store, create=False) as store:
        (problem,) = verify(store).problems
        assert said in problem.where
        assert "second one" in problem.problem
        assert [artifact.ref for artifact in store.artifacts()] == ["x:v1", "x:v3", "y:v1"]


def test_a_record_that_names_a_missing_manifest(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world.store / "names" / "x" / "v1.json"
    wrong = "sha256:" + "0" * 64
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": wrong}))
    assert wrong in reported(world, capsys)
    reindex(world.store)
    assert wrong in reported(world, capsys)
    assert main(["--store", str(world.store), "gc", "--grace", "0"]) == 42
    base, out = str(world.directory / "base"), str(world.directory / "out")
    assert main(["--store", str(world.store), "apply", "x:v1", "--base", base, "--out", out]) == 42
    assert not Path(out).exists()


@pytest.mark.parametrize("command", ["gc", "verify", "list"])
def test_a_directory_that_is_no_store(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").touch()
    assert main(["--store", str(tmp_path / "letters"), command]) == 11
    assert "There is no store" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["dear.txt"]


def test_a_store_of_a_newer_format_is_not_collected(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world.store / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    before = sorted((world.store / "blobs" / "sha256").iterdir())
    assert main(["--store", str(world.store), "gc", "--grace", "0"]) == 13
    assert "Upgrade" in capsys.readouterr().err
    assert sorted((world.store / "blobs" / "sha256").iterdir()) == before


def test_a_store_that_cannot_be_written_is_not_collected(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK and access(path, mode))
    with deltastore.open(world.store, create=False) as store:
        with pytest.raises(StoreReadOnlyError):
            store.gc(grace_s=0)
        assert store.verify().problems == ()


def test_a_clock_that_jumped_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records get their time from it, and nothing else hangs on it."""
    times = iter(
        ["2031-01-01T00:00:00.000000Z", "1999-01-01T00:00:00.000000Z"] * 20,
    )
    for module in ("publishing", "leases", "removing", "tagging"):
        monkeypatch.setattr(f"deltastore.store.{module}.now", lambda: next(times))
    with open_store(tmp_path / "store") as store:
        assert [publish(store, "a", seed, tags=("t",)).version for seed in range(4)] == [1, 2, 3, 4]
        assert store.resolve("a").version == store.resolve("a:t").version == 4
        store.rm("a:v4")
        with pytest.raises(RefNotFoundError):
            store.resolve("a:t")
        assert publish(store, "a", 9).version == 5
        _collected(store)


def _collected(store: Store) -> None:
    store.collect(grace_s=0)
    report = verify(store)
    assert (report.problems, report.orphans) == ((), ())
