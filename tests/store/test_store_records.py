from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltastore.catalog import Record
from deltastore.errors import DeltastoreError, ManifestInvalidError
from deltastore.operations.verify import verify
from deltastore.store import Store, open_store
from deltastore.store.records import (
    Tag,
    Tombstone,
    parse_record,
    parse_tag,
    record_bytes,
    tag_bytes,
    tombstone_bytes,
)
from deltastore.testing.artifacts import publish

DIGEST = "sha256:" + "a" * 64
TIME = "2025-01-31T12:00:00.000000Z"
RECORD = Record("m", 3, DIGEST, TIME, "ann@host", "deltastore 0.1.0", "org/base", "post")
TOMBSTONE = Tombstone("m", 3, DIGEST, TIME, "ann@host")
TAG = Tag("m", "prod", 3, TIME, "ann@host")


def read(document: Any) -> Record | Tombstone:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_record(data, name="m", version=3, where="v3.json")


def test_what_is_written_is_read_back() -> None:
    assert read(record_bytes(RECORD)) == RECORD
    assert read(tombstone_bytes(TOMBSTONE)) == TOMBSTONE
    assert parse_tag(tag_bytes(TAG), name="m", tag="prod", where="x") == TAG


def test_fields_of_later_versions_are_passed_over() -> None:
    assert read(json.loads(record_bytes(RECORD)) | {"signature": {"by": "x"}}) == RECORD


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": "1"},
        {"format": True},
        {"format": None},
        {"name": "n"},
        {"version": 4},
        {"version": 3.0},
        {"version": True},
        {"digest": "sha256:abc"},
        {"digest": None},
        {"digest": ["x"]},
        {"created": "yesterday"},
        {"created": TIME + "\n"},
        {"created_by": ""},
        {"created_by": "a\nb"},
        {"tool": 5},
        {"labels": []},
        {"labels": {"base": "x"}},
        {"labels": {"base": "x", "post": "y" * 1025}},
        {"labels": {"base": "x", "post": "\x1b[2J"}},
        {"removed": 5},
        {"removed": TIME},
    ],
)
def test_a_record_that_breaks_a_rule_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ManifestInvalidError, match=r"v3\.json"):
        read(json.loads(record_bytes(RECORD)) | change)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"{}",
        b'{"format":1',
        b'{"format":1,"format":1}',
        b'{"format":NaN}',
        b"[" * 60000,
        b" " * 70000,
    ],
)
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    with pytest.raises(ManifestInvalidError):
        read(data)


@pytest.mark.parametrize("version", [0, -1, "3", None, True, 10**12, 1.0])
def test_a_tag_must_have_a_version(version: object) -> None:
    document = json.loads(tag_bytes(TAG)) | {"version": version}
    with pytest.raises(ManifestInvalidError):
        parse_tag(json.dumps(document).encode(), name="m", tag="prod", where="x")


def test_a_damaged_record_hides_nothing_else_and_keeps_its_number(store: Store) -> None:
    publish(store, "m", 1)
    publish(store, "m", 2)
    publish(store, "n", 3)
    (store.path / "names" / "m" / "v2.json").write_bytes(b"{")
    assert publish(store, "m", 4).version == 3
    indexed = store.reindex()
    assert len(indexed.problems) == 1
    assert [a.ref for a in store.artifacts()] == ["m:v1", "m:v3", "n:v1"]
    (problem,) = verify(store).problems
    assert (problem.where, problem.refs) == ("names/m/v2.json", ("m:v2",))


def test_strange_files_among_the_names_are_passed_over_and_named(store: Store) -> None:
    """They are no versions; a collection stops at them, so verify says which they are."""
    publish(store, "m", 1)
    names = store.path / "names"
    for name in ("v01.json", "v0.json", "v2.json~", "README", ".v2.json.swp", "vx.json"):
        (names / "m" / name).touch()
    (names / ".DS_Store").touch()
    (names / "not a name").mkdir()
    (names / "link").symlink_to("m")
    (names / "m" / "tags").mkdir()
    (names / "m" / "tags" / "v1.json").touch()
    assert publish(store, "m", 2).version == 2
    store.reindex()
    with open_store(store.path) as again:
        assert [a.ref for a in again.artifacts()] == ["m:v1", "m:v2"]
        named = {Path(problem.where).name for problem in verify(again).problems}
    assert named == {"v01.json", "v0.json", "v2.json~", "README", "vx.json", "not a name", "link"}


def test_a_records_digest_cannot_lead_out_of_the_store(store: Store) -> None:
    publish(store, "m", 1)
    path = store.path / "names" / "m" / "v1.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"digest": "sha256:../../../etc/passwd"}))
    (store.path / "catalog.db").unlink()
    with open_store(store.path) as again, pytest.raises(DeltastoreError):
        again.resolve("m")


def test_a_tag_of_a_version_that_is_gone_means_nothing(store: Store) -> None:
    """What is left where a tag was set while its version was being removed elsewhere."""
    publish(store, "m", 1)
    publish(store, "m", 2)
    store.rm("m:v1")
    (store.path / "names" / "m" / "tags").mkdir(exist_ok=True)
    (store.path / "names" / "m" / "tags" / "prod.json").write_bytes(
        tag_bytes(Tag("m", "prod", 1, TIME, "ann@host"))
    )
    assert verify(store).problems == ()
    indexed = store.reindex()
    assert (indexed.tags, indexed.problems) == (0, ())
    assert store.tag("m", "prod").version == 2
    assert verify(store).problems == ()
