from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from deltastore.digest import sha256_digest
from deltastore.errors import RefNotFoundError
from deltastore.execution.progress import Silent
from deltastore.operations.verify import verify
from deltastore.store import Store, open_store
from deltastore.system.threads import Workers
from deltastore.testing.artifacts import flip, publish


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = open_store(tmp_path / "store")
    publish(opened, "a", 1, tags=("prod",))
    publish(opened, "a", 2)
    publish(opened, "b", 1)
    return opened


def blob_paths(store: Store, ref: str) -> list[Path]:
    digest = store.resolve(ref).digest
    manifest, _ = store.load(digest)
    return [store.blobs.path(d) for d in (digest, *(blob.digest for blob in manifest.blobs))]


def sql(store: Store, statement: str) -> None:
    with sqlite3.connect(store.path / "catalog.db") as connection:
        connection.execute(statement)
    connection.close()


def test_a_whole_store_has_no_problems_and_every_blob_is_read_once(store: Store) -> None:
    report = verify(store)
    files = list((store.path / "blobs" / "sha256").iterdir())
    assert report.problems == ()
    assert report.orphans == ()
    assert report.checked == len(files)
    assert report.bytes == sum(f.stat().st_size for f in files)


def test_progress_covers_what_is_read(store: Store) -> None:
    class Watch(Silent):
        total = done = 0

        def start(self, label: str, total_bytes: int) -> None:
            self.total += total_bytes

        def advance(self, done_bytes: int) -> None:
            self.done += done_bytes

    watch = Watch()
    verify(store, jobs=1, progress=watch)
    assert watch.done == watch.total > 0


def test_it_takes_the_processors_that_it_may_use(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    class Counted(Workers):
        def __init__(self, jobs: int, **others: str) -> None:
            found.append(jobs)
            super().__init__(jobs, **others)

    monkeypatch.setattr("deltastore.health.verification.Workers", Counted)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 5, 7})
    monkeypatch.setattr("os.cpu_count", lambda: 48)
    verify(store)
    assert found == [3]


@pytest.mark.parametrize(
    "index", range(6), ids=["manifest", "config", "part 0", "part 1", "samples", "file"]
)
@pytest.mark.parametrize(
    "damage",
    [flip, lambda path: flip(path, -1), Path.unlink, lambda path: cut(path)],
    ids=["first bit", "last bit", "gone", "cut"],
)
def test_damage_to_any_kind_of_blob_is_found(
    store: Store, index: int, damage: Callable[[Path], None]
) -> None:
    path = blob_paths(store, "a:v1")[index]
    everywhere = index >= 4
    damage(path)
    report = verify(store)
    (problem,) = report.problems
    assert problem.digest == f"sha256:{path.name}"
    assert problem.where == f"blobs/sha256/{path.name}"
    assert path.name in problem.problem
    assert problem.refs == (("a:v1", "b:v1", "a:v2") if everywhere else ("a:v1", "b:v1"))
    assert (verify(store, ["a:v2"]).problems != ()) == everywhere
    assert verify(store, ["a:v1"]).problems != ()


def cut(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])


def test_a_document_that_breaks_the_format_is_found(store: Store) -> None:
    """Bytes that have their digest, and yet are no manifest."""
    data = b'{"schemaVersion":2}'
    digest = store.blobs.put([data]).digest
    path = store.path / "names" / "a" / "v3.json"
    record = json.loads((path.parent / "v2.json").read_text())
    path.write_text(json.dumps(record | {"version": 3, "digest": digest}))
    assert digest == sha256_digest(data)
    problems = verify(store).problems
    assert {p.where for p in problems} == {f"blobs/sha256/{digest[7:]}"}
    assert any("mediaType" in p.problem for p in problems)


def test_only_what_is_named_is_checked(store: Store) -> None:
    store.blobs.put([b"orphan"])
    flip(blob_paths(store, "a:v2")[2])
    report = verify(store, ["a:prod", "b"])
    assert (report.checked, report.problems, report.orphans) == (6, (), ())
    assert verify(store, ["a"]).problems[0].refs == ("a:v2",)
    with pytest.raises(RefNotFoundError):
        verify(store, ["a", "nothing"])


def test_blobs_that_nothing_names_are_orphans_and_no_problem(store: Store) -> None:
    digest = store.blobs.put([b"orphan"]).digest
    report = verify(store)
    assert (report.problems, report.orphans) == ((), (digest,))


@pytest.mark.parametrize(
    ("statement", "said", "refs"),
    [
        ("DELETE FROM tags WHERE name = 'a'", "nothing in the catalog and v1", ("a:prod",)),
        ("UPDATE tags SET version = 2", "v2 in the catalog and v1", ("a:prod",)),
        ("DELETE FROM versions WHERE name = 'b'", "lacks b:v1", ("b:v1",)),
        (
            "UPDATE versions SET digest = (SELECT digest FROM versions WHERE version = 2) "
            "WHERE name = 'b'",
            "another digest for b:v1",
            ("b:v1",),
        ),
        ("UPDATE versions SET version = 7 WHERE name = 'b'", "lists b:v7", ("b:v7",)),
    ],
)
def test_a_catalog_that_disagrees_is_found_and_reindex_helps(
    store: Store, statement: str, said: str, refs: tuple[str, ...], no_change_is_seen: None
) -> None:
    sql(store, statement)
    problems = verify(store).problems
    assert any(said in p.problem and p.refs == refs for p in problems)
    assert all("deltastore reindex" in p.problem for p in problems)
    store.reindex()
    assert verify(store).problems == ()
