"""Hostile stores: records, tags, leases and ``store.json``, and links and pipes in their place."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attack import Action, attack
from hostile_artifacts import RECORD, honest

import deltastore
from deltastore.blobs.owner import owner_token
from deltastore.operations.doctor import doctor
from deltastore.store.maintenance import rebuild_catalog

Change = Callable[[Path], object]

TOKEN = f"{'f' * 24}-4242-99"
"""Of a process on another machine."""

DEAD = f"{owner_token().rpartition('-')[0]}-1"
"""Of a process on this machine that has ended."""


def opened(name: str, change: Change, *, do: str = "apply") -> None:
    """Register an attack: change a store, and use it in one way."""

    @attack(name)
    def make(place: Path) -> Action:
        shutil.copytree(honest() / "store", place / "store")
        shutil.copytree(honest() / "base", place / "base")
        outside = place / "outside"
        outside.mkdir()
        (outside / "v1.json").write_bytes((place / "store/names/honest/v1.json").read_bytes())
        change(place / "store")

        def action() -> None:
            if do == "doctor":
                assert doctor(place / "store").checks
                return
            if do == "reindex":
                rebuild_catalog(place / "store")
                return
            with deltastore.open(place / "store", create=False) as store:
                if do == "apply":
                    store.apply("honest", base=place / "base", out=place / "out")
                elif do == "evil":
                    store.apply("evil:v1", base=place / "base", out=place / "out")
                elif do == "list":
                    assert [row.name for row in store.list()] == ["honest"]
                elif do == "tag":
                    store.tag("honest", "good")
                elif do == "untag":
                    store.untag("honest", "good")
                elif do == "verify":
                    assert store.verify().problems
                elif do == "gc":
                    store.gc(grace_s=0)
                elif do == "rm":
                    store.rm("honest:v1")
                elif do == "extract":
                    store.extract(place / "base", honest() / "post", name="other")
                else:
                    store.extract(place / "base", place / "base", name="evil", force=True)

        return action


def record(content: dict[str, Any] | bytes) -> Change:
    """Give ``evil`` a record."""

    def change(store: Path) -> None:
        (store / "names/evil").mkdir()
        good = json.loads((store / "names/honest/v1.json").read_text())
        if isinstance(content, dict):
            document = {k: v for k, v in (good | RECORD | content).items() if v is not ...}
            data = json.dumps(document).encode()
        else:
            data = content
        (store / "names/evil/v1.json").write_bytes(data)

    return change


RECORDS: dict[str, dict[str, Any] | bytes] = {
    "format-new": {"format": 2},
    "format-bool": {"format": True},
    "format-huge": {"format": 10**4000},
    "name-other": {"name": "honest"},
    "version-other": {"version": 2},
    "version-float": {"version": 1.0},
    "digest-algorithm": {"digest": "md5:0"},
    "digest-path": {"digest": "sha256:../../store.json"},
    "digest-missing": {"digest": "sha256:" + "0" * 64},
    "digest-none": {"digest": ...},
    "created-control": {"created": "\x1b[2J"},
    "created-long": {"created": "2" * 10_000},
    "author-control": {"created_by": "eve\x1b]0;x\x07"},
    "author-direction": {"created_by": "eve\u202e"},
    "tool-long": {"tool": "x" * 2000},
    "labels-list": {"labels": []},
    "labels-surrogate": {"labels": {"base": "\ud800", "post": "p"}},
    "labels-deep": {"labels": json.loads("[" * 100 + "]" * 100)},
    "tombstone-without-time": {"removed": None},
    "deep": b'{"a":' * 900 + b"1" + b"}" * 900,
    "large": b'{"a":"' + b"x" * (64 << 10) + b'"}',
    "not-utf8": b"\xff\xfe",
    "bom": b"\xef\xbb\xbf{}",
    "twice": b'{"format":1,"format":1}',
    "list": b"[]",
    "empty": b"",
    "config-as-manifest": {},
}


def _config_as_manifest(store: Path) -> None:
    good = json.loads((store / "names/honest/v1.json").read_text())
    blobs = store / "blobs/sha256"
    manifest = json.loads((blobs / good["digest"].removeprefix("sha256:")).read_text())
    record({"digest": manifest["config"]["digest"]})(store)


for _name, _content in RECORDS.items():
    _change = _config_as_manifest if _name == "config-as-manifest" else record(_content)
    opened(f"record-{_name}", _change, do="evil")


def linked(path: str, target: str) -> Change:
    """Put a symbolic link at ``path``; ``target`` is relative to the store's parent."""

    def change(store: Path) -> None:
        where = store / path
        if where.is_dir() and not where.is_symlink():
            shutil.rmtree(where)
        where.unlink(missing_ok=True)
        where.parent.mkdir(exist_ok=True)
        where.symlink_to(store.parent / target)

    return change


def pipe(path: str) -> Change:
    def change(store: Path) -> None:
        where = store / path
        where.unlink(missing_ok=True)
        where.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(where)

    return change


def plain_file(path: str) -> Change:
    """Put a file in place of a directory."""

    def change(store: Path) -> None:
        shutil.rmtree(store / path)
        (store / path).write_bytes(b"x")

    return change


def part(store: Path) -> Path:
    """The artifact's first layer, relative to the store."""
    good = json.loads((store / "names/honest/v1.json").read_text())
    blobs = Path("blobs/sha256")
    manifest = json.loads((store / blobs / good["digest"].removeprefix("sha256:")).read_text())
    return blobs / manifest["layers"][0]["digest"].removeprefix("sha256:")


def blob_is_link(store: Path) -> None:
    where = store / part(store)
    shutil.copy(where, store.parent / "outside" / "blob")
    linked(str(part(store)), "outside/blob")(store)


LINKS: list[tuple[str, Change, str]] = [
    ("link-blob", blob_is_link, "apply"),
    ("link-name", linked("names/evil", "outside"), "evil"),
    ("link-name-write", linked("names/evil", "outside"), "new"),
    ("link-record", linked("names/evil/v1.json", "outside/v1.json"), "evil"),
    ("link-tags-write", linked("names/honest/tags", "outside"), "tag"),
    ("link-tags-remove", linked("names/honest/tags", "outside"), "untag"),
    ("link-store-json", linked("store.json", "outside/v1.json"), "apply"),
    ("link-store-json-device", linked("store.json", "/dev/zero"), "apply"),
    ("link-catalog", linked("catalog.db", "outside/other.db"), "apply"),
    ("link-catalog-reindex", linked("catalog.db", "outside/other.db"), "reindex"),
    ("link-lease", linked(f"leases/{TOKEN}-0-x.json", "outside/v1.json"), "apply"),
    ("link-temp", linked("tmp/x", "outside"), "extract"),
    ("pipe-blob", lambda store: pipe(str(part(store)))(store), "apply"),
    ("pipe-record", pipe("names/evil/v1.json"), "evil"),
    ("pipe-tag", pipe("names/honest/tags/good.json"), "reindex"),
    ("pipe-store-json", pipe("store.json"), "apply"),
    ("pipe-catalog", pipe("catalog.db"), "apply"),
    ("pipe-lease", pipe(f"leases/{TOKEN}-0-x.json"), "doctor"),
    ("pipe-temp", pipe("tmp/x"), "extract"),
]
LINKS += [
    ("file-names", plain_file("names"), "apply"),
    ("file-names-write", plain_file("names"), "extract"),
    ("file-blobs", plain_file("blobs/sha256"), "verify"),
    ("file-blobs-write", plain_file("blobs/sha256"), "extract"),
    ("file-temp", plain_file("tmp"), "extract"),
    ("file-leases", plain_file("leases"), "extract"),
    ("link-names-dangling", linked("names", "nowhere"), "apply"),
    ("link-blobs-dangling", linked("blobs/sha256", "nowhere"), "verify"),
]
for _name, _linked, _do in LINKS:
    opened(_name, _linked, do=_do)


def written(path: str, data: bytes) -> Change:
    def change(store: Path) -> None:
        (store / path).parent.mkdir(exist_ok=True)
        (store / path).unlink(missing_ok=True)
        (store / path).write_bytes(data)

    return change


STORE = {"format": 1, "id": "x", "created": "2025-01-31T12:00:00.000000Z"}
MARKERS: dict[str, bytes] = {
    "new": json.dumps(STORE | {"format": 2}).encode(),
    "format-bool": json.dumps(STORE | {"format": True}).encode(),
    "format-huge": json.dumps(STORE | {"format": 10**4000}).encode(),
    "id-control": json.dumps(STORE | {"id": "\x1b[2J"}).encode(),
    "id-long": json.dumps(STORE | {"id": "x" * 9999}).encode(),
    "large": b" " * (65 << 10),
    "deep": b"[" * 900 + b"]" * 900,
    "empty": b"",
}
for _name, _data in MARKERS.items():
    opened(f"store-json-{_name}", written("store.json", _data))

LEASE = {"purpose": "\x1b[2J" * 99, "name": "../..", "host": ["\ud800"], "pid": 10**30}
opened("lease-fields", written(f"leases/{TOKEN}-0-x.json", json.dumps(LEASE).encode()), do="doctor")
opened("lease-deep", written(f"leases/{TOKEN}-0-x.json", b"[" * 60_000), do="doctor")
opened("lease-large", written(f"leases/{TOKEN}-0-x.json", b" " * (1 << 20)), do="doctor")
TAG = {"format": 1, "name": "honest", "tag": "good", "version": 10**400}
opened("tag-version", written("names/honest/tags/good.json", json.dumps(TAG).encode()), do="tag")
opened("catalog-is-no-database", written("catalog.db", b"x" * 9999))


# --- what others put into a store that they may write to ------------------------------------------


def last_version(name: str) -> Change:
    """A record with the last number that a version can have."""

    def change(store: Path) -> None:
        good = json.loads((store / "names/honest/v1.json").read_text())
        fields = {"name": name, "version": 999_999_999, "digest": f"sha256:{'0' * 64}"}
        data = json.dumps(good | fields).encode()
        written(f"names/{name}/v999999999.json", data)(store)

    return change


def nested(path: str) -> Change:
    def change(store: Path) -> None:
        (store / path / "a/b/c/d").mkdir(parents=True)

    return change


def old_files_behind(path: str) -> Change:
    """A link of the user's own to a directory with old files, as a store's directory."""

    def change(store: Path) -> None:
        outside = store.parent / "outside"
        for name in ("a.json", "photo.rm", "thesis.v1.rm", "thesis.txt"):
            (outside / name).write_bytes(b"mine")
            os.utime(outside / name, (1, 1))
        linked(path, "outside")(store)

    return change


def collector_without_bin(store: Path) -> None:
    """What says that it is a collector's lease, and has no bin."""
    text = json.dumps({"purpose": "gc", "name": None, "host": "x", "pid": 1, "created": "x"})
    written(f"leases/{TOKEN}-0-x.json", text.encode())(store)


def bin_is_nested(store: Path) -> None:
    collector_without_bin(store)
    nested(f"tmp/{TOKEN}-0-x")(store)


opened("version-last", last_version("honest"), do="verify")
opened("version-last-gc", last_version("honest"), do="gc")
opened("version-last-extract", last_version("other"), do="extract")
opened("temp-nested", nested(f"tmp/{DEAD}-0-x"), do="tag")
opened("temp-nested-gc", nested(f"tmp/{DEAD}-0-x"), do="gc")
opened("link-leases-own", old_files_behind("leases"), do="gc")
opened("link-temp-own", old_files_behind("tmp"), do="gc")
opened("claim-without-token", written("leases/honest.v1.rm", b'{"purpose": "rm"}'), do="rm")
opened("claim-directory", nested("leases/honest.v1.rm"), do="rm")
opened("claim-of-another-host", written("leases/honest.v1.rm", TOKEN.encode()), do="rm")
opened("collector-of-another-host", collector_without_bin, do="extract")
opened("collector-bin-nested", bin_is_nested, do="extract")


# --- the catalog and what lies beside it ----------------------------------------------------------


def journal(store: Path, *, pages: int | None = None) -> None:
    """A journal that SQLite plays back; it names a file outside as its super-journal."""
    data = (store / "catalog.db").read_bytes()
    page, magic = int.from_bytes(data[16:18], "big"), bytes.fromhex("d9d505f920a163d7")
    count = len(data) // page if pages is None else pages
    head = (magic + struct.pack(">5I", 0, 1, count, 512, page)).ljust(512, b"\0")
    name = os.fsencode(store.parent / "outside" / "v1.json")
    named = struct.pack(">I", (1 << 30) // page + 1) + name
    named += struct.pack(">II", len(name), sum(name)) + magic
    (store / "catalog.db-journal").write_bytes(head + (named if pages is None else b""))


def write_ahead_log(store: Path) -> None:
    """A database that says that it has a log, which is a link."""
    data = bytearray((store / "catalog.db").read_bytes())
    data[18] = data[19] = 2
    (store / "catalog.db").write_bytes(data)
    linked("catalog.db-wal", "outside/log")(store)


def second_name(store: Path) -> None:
    """A database that is a hard link to another one."""
    (store / "catalog.db").rename(store.parent / "outside" / "other.db")
    os.link(store.parent / "outside" / "other.db", store / "catalog.db")


def sql(script: str) -> Change:
    def change(store: Path) -> None:
        with sqlite3.connect(store / "catalog.db") as connection:
            connection.executescript(script)
        connection.close()

    return change


ENDLESS = (
    "DROP TABLE tags; ALTER TABLE versions RENAME TO v; CREATE TABLE tags (name, tag, version);"
    "CREATE VIEW versions AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) "
    "SELECT 'honest' AS name, n AS version, (SELECT digest FROM artifacts) AS digest, "
    "'2025-01-31T12:00:00.000000Z' AS created, 'x' AS created_by, 'x' AS tool, "
    "'b' AS base_label, 'p' AS post_label FROM r"
)
CATALOGS: dict[str, Change] = {
    "super-journal": journal,
    "journal-huge": lambda store: journal(store, pages=2**32 - 1),
    "journal-link": linked("catalog.db-journal", "outside/v1.json"),
    "journal-pipe": pipe("catalog.db-journal"),
    "journal-directory": lambda store: (store / "catalog.db-journal").mkdir(),
    "log": write_ahead_log,
    "shared-memory-link": linked("catalog.db-shm", "outside/v1.json"),
    "second-name": second_name,
    "sparse": lambda store: os.truncate(store / "catalog.db", 1 << 42),
    "view-endless": sql(ENDLESS),
    "trigger": sql("CREATE TRIGGER t AFTER INSERT ON tags BEGIN DELETE FROM versions; END"),
    "table-more": sql("CREATE TABLE more (a)"),
    "version-text": sql("UPDATE versions SET version = 'one'"),
    "name-shell": sql("UPDATE versions SET name = 'honest;id;#'"),
    "name-control": sql("UPDATE versions SET name = 'honest' || char(27, 10)"),
    "label-blob": sql("UPDATE versions SET post_label = x'c3'"),
    "label-huge": sql("UPDATE versions SET post_label = hex(zeroblob(4000000))"),
    "label-not-utf8": sql("UPDATE versions SET post_label = CAST(x'c328' AS TEXT)"),
    "digest-path": sql("UPDATE versions SET digest = '../x'; UPDATE artifacts SET digest = '../x'"),
    "number-infinite": sql("UPDATE artifacts SET stored_bytes = 9e999"),
    "number-negative": sql("UPDATE artifacts SET raw_bytes = -5"),
}
for _name, _change in CATALOGS.items():
    opened(f"catalog-{_name}", _change, do="list")
    opened(f"catalog-{_name}-reindex", _change, do="reindex")


def for_everybody(change: Change) -> Change:
    """The same, where somebody else may write: the catalog is not opened."""

    def make(store: Path) -> None:
        change(store)
        store.chmod(0o777)

    return make


for _name in ("super-journal", "view-endless", "digest-path"):
    opened(f"catalog-{_name}-shared", for_everybody(CATALOGS[_name]), do="list")


# --- outputs --------------------------------------------------------------------------------------


def partial(change: Callable[[Path], object]) -> Change:
    """Something that looks like an earlier output that was not finished."""

    def make(store: Path) -> None:
        directory = store.parent / ".out.partial-000000000000"
        directory.mkdir()
        change(directory / ".lease")

    return make


opened("output-is-link", lambda store: (store.parent / "out").symlink_to(store.parent / "outside"))
opened("output-lease-pipe", partial(os.mkfifo))
opened("output-lease-deep", partial(lambda lease: lease.write_bytes(b"[" * 4000)))
opened("output-lease-link", partial(lambda lease: lease.symlink_to("/dev/zero")))
opened("output-lease-fields", partial(lambda lease: lease.write_bytes(b'{"pid": -1}')))
