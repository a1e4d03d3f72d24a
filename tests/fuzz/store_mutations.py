"""Mutations of what a store has besides blobs: its database, and its small files."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from mutate import mutated_bytes, mutated_json

TEXTS = (
    "",
    "w",
    "x" * 5000,
    "\x1b[2J\x1b]0;title\x07",
    "line\nline",
    "nul\0nul",
    "\u202eesrever",
    "\u3164",
    "../../../etc/passwd",
    "-q",
    "--store=elsewhere",
    "w;id;#",
    "$(id)",
    "sha256:" + "0" * 64,
    "sha256:../../../etc/passwd",
    "SHA256:" + "F" * 64,
    "2025-01-31T12:00:00.000000Z",
    "yesterday",
    "exact",
    "unreadable",
    "org/name",
    "[x](javascript:alert(1))",
    "0",
    "1",
    "-1",
    "9" * 400,
    "1e999",
    "NaN",
    "{}",
    '{"a": 1}',
    "[[[[]]]]",
    "[" * 5000,
    "null",
)
NUMBERS = (0, 1, -1, 2, 7, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63), 1 << 53)
FLOATS = (0.5, -0.0, 1.5, 1e300, -1e300, 9e999, -9e999, 5e-324, 1.0, 2.0)
BLOBS = (b"", b"\0", b"\xff\xfe", b"w", b"\xc3", b"sha256:" + b"\xff" * 64, b"\0" * 70_000)


def value(draw: random.Random) -> Any:
    """A value of any storage class of SQLite."""
    return draw.choice(
        (
            lambda: None,
            lambda: draw.choice(NUMBERS),
            lambda: draw.choice(FLOATS),
            lambda: draw.choice(TEXTS),
            lambda: draw.choice(BLOBS),
            lambda: _Text(draw.choice((b"\xff\xfe", b"\xc3", b"a\xed\xa0\x80", b"w\xff\nw"))),
            lambda: "y" * draw.choice((200_000, 3_000_000)),
        )
    )()


class _Text(bytes):
    """Text that is no UTF-8: a cast makes it, the driver cannot."""


# --- the database -----------------------------------------------------------------------------


def mutate_database(draw: random.Random, path: Path) -> str:
    """Change one thing in a SQLite file, whatever it holds already; what was changed.

    Nothing is changed where the file is no database any more.
    """
    kind = draw.choices(tuple(_DATABASE), (8, 3, 4, 3))[0]
    try:
        return f"{kind}: {_DATABASE[kind](draw, path)}"
    except (sqlite3.Error, IndexError, UnicodeError, OverflowError) as error:
        return f"{kind}: not done, {error}"


def _value(draw: random.Random, path: Path) -> str:
    """Change a column of a row, or of all, whatever its type is said to be."""
    with untyped(path) as connection:
        columns = list(_columns(connection))
        draw.shuffle(columns)
        filled = ((of, name, _rows_of(connection, of)) for of, name in columns)
        table, column, rows = next((found for found in filled if found[2]), ("", "", []))
        new = value(draw)
        chosen = rows if draw.random() < 0.2 else [draw.choice(rows)]
        place = "CAST(? AS TEXT)" if isinstance(new, _Text) else "?"
        connection.executemany(
            f'UPDATE OR REPLACE "{table}" SET "{column}" = {place} WHERE rowid = ?',
            [(bytes(new) if isinstance(new, _Text) else new, row) for row in chosen],
        )
    return f"{table}.{column} of {len(chosen)} = {_shown(new)}"


def _rows_of(connection: sqlite3.Connection, table: str) -> list[int]:
    return [row for (row,) in connection.execute(f'SELECT rowid FROM "{table}"')]


def _row(draw: random.Random, path: Path) -> str:
    """Remove, repeat or make up rows, or exchange what two rows say."""
    with untyped(path) as connection:
        columns = list(_columns(connection))
        table = draw.choice(columns)[0]
        names = [column for of, column in columns if of == table]
        how = draw.choice(("remove", "remove all", "repeat", "many", "exchange", "make up"))
        rows = _rows_of(connection, table)
        row = draw.choice([*rows, 0])
        listed = ", ".join(f'"{name}"' for name in names)
        if how == "remove":
            connection.execute(f'DELETE FROM "{table}" WHERE rowid = ?', (row,))
        elif how == "remove all":
            connection.execute(f'DELETE FROM "{table}"')
        elif how == "exchange":
            column, other = draw.choice(names), draw.choice([*rows, 0])
            connection.execute(
                f'UPDATE OR REPLACE "{table}" SET "{column}" = '
                f'(SELECT "{column}" FROM "{table}" WHERE rowid = ?) WHERE rowid = ?',
                (other, row),
            )
        elif how == "make up":
            marks = ", ".join("?" for _ in names)
            made = [v if not isinstance(v := value(draw), _Text) else bytes(v) for _ in names]
            connection.execute(f'INSERT OR REPLACE INTO "{table}" VALUES ({marks})', made)
        else:
            key = draw.choice(names)
            chosen = ", ".join(f'"{name}"' + " || n" * (name == key) for name in names)
            connection.execute(
                f"WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?) "
                f'INSERT OR REPLACE INTO "{table}" ({listed}) '
                f'SELECT {chosen} FROM c, "{table}" WHERE "{table}".rowid = ?',
                (1 if how == "repeat" else 300, row),
            )
    return f"{how} in {table}"


_COUNT = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c{bound}) "
_ENDLESS = _COUNT.replace("{bound}", "")
_VIEWS = {
    "endless": _ENDLESS + "SELECT {columns} FROM c",
    "large": _COUNT.replace("{bound}", " WHERE n < 3000000") + "SELECT {columns} FROM c",
    "join": _COUNT.replace("{bound}", " WHERE n < 3000")
    + "SELECT {columns} FROM c, c AS d(m), c AS e(m), c AS f(m)",
    "huge": "WITH c(n) AS (SELECT zeroblob(900000000)) SELECT {columns} FROM c",
    "failing": "WITH c(n) AS (SELECT abs(-9223372036854775808)) SELECT {columns} FROM c",
}


def _schema(draw: random.Random, path: Path) -> str:
    """Change what tables, indices, views and triggers there are, or what is said of them."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA busy_timeout = 200")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA foreign_keys = OFF")
        columns = list(_columns(connection))
        table = draw.choice(columns)[0]
        names = [column for of, column in columns if of == table]
        listed = ", ".join(f'"{name}"' for name in names)
        column = draw.choice(names)
        how = draw.choice(_SCHEMA)
        if how.startswith("view"):
            body = _VIEWS[how.removeprefix("view ")]
            filled = ", ".join(f'n AS "{name}"' for name in names)
            connection.execute(f'ALTER TABLE "{table}" RENAME TO "was_{table}"')
            connection.execute(f'CREATE VIEW "{table}" AS {body.format(columns=filled)}')
        elif how == "same in a view":
            connection.execute(f'ALTER TABLE "{table}" RENAME TO "was_{table}"')
            connection.execute(f'CREATE VIEW "{table}" AS SELECT * FROM "was_{table}"')
        elif how.startswith("trigger"):
            event = draw.choice(("INSERT", "UPDATE", "DELETE"))
            body = {
                "trigger raise": "SELECT RAISE(ABORT, 'planted');",
                "trigger remove": f'DELETE FROM "{table}";',
                "trigger endless": f"SELECT count(*) FROM ({_ENDLESS} SELECT n FROM c);",
                "trigger huge": "SELECT zeroblob(900000000);",
            }[how]
            connection.execute(
                f'CREATE TRIGGER planted AFTER {event} ON "{table}" BEGIN {body} END'
            )
        elif how == "drop":
            connection.execute(f'DROP TABLE "{table}"')
        elif how == "drop column":
            connection.execute(f'ALTER TABLE "{table}" DROP COLUMN "{column}"')
        elif how == "rename column":
            connection.execute(f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO other')
        elif how == "add column":
            connection.execute(f'ALTER TABLE "{table}" ADD COLUMN more DEFAULT 7')
        elif how == "another order":
            order = ", ".join(f'"{name}"' for name in draw.sample(names, len(names)))
            connection.execute(f'CREATE TABLE other AS SELECT {order} FROM "{table}"')
            connection.execute(f'DROP TABLE "{table}"')
            connection.execute(f'ALTER TABLE other RENAME TO "{table}"')
        elif how == "computed column":
            connection.execute(f'CREATE TABLE other ({listed}, more AS (length(hex("{column}"))))')
            connection.execute(f'INSERT INTO other SELECT {listed} FROM "{table}"')
            connection.execute(f'DROP TABLE "{table}"')
            connection.execute(f'ALTER TABLE other RENAME TO "{table}"')
        elif how == "extra":
            connection.execute("CREATE TABLE extra (a, b)")
        elif how == "full text":
            connection.execute(f'DROP TABLE "{table}"')
            connection.execute(f'CREATE VIRTUAL TABLE "{table}" USING fts5({listed})')
        elif how == "drop index":
            found = connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
            ).fetchall()
            connection.execute(f'DROP INDEX "{draw.choice(found)[0]}"')
        elif how == "index of expressions":
            connection.execute(f'CREATE INDEX planted ON "{table}" (hex(quote("{column}")))')
        elif how == "statistics":
            connection.execute("ANALYZE")
            connection.execute("UPDATE sqlite_stat1 SET stat = '-1 x 99999999999999999999'")
        elif how == "revision":
            connection.execute("DELETE FROM alembic_version")
            for _ in range(draw.choice((0, 1, 2))):
                new = value(draw)
                connection.execute("INSERT INTO alembic_version VALUES (?)", (new,))
        elif how == "wal":
            connection.execute("PRAGMA journal_mode = WAL")
        elif how == "numbers":
            connection.execute(f"PRAGMA user_version = {draw.choice((1, -1, 1 << 30))}")
            connection.execute(f"PRAGMA application_id = {draw.choice((1, -1, 1 << 30))}")
        elif how == "vacuum":
            connection.execute(f"PRAGMA page_size = {draw.choice((512, 65536))}")
            connection.execute(f"PRAGMA auto_vacuum = {draw.choice((0, 1, 2))}")
            connection.execute("VACUUM")
        else:
            field = draw.choice(("sql", "rootpage", "type", "name", "tbl_name"))
            new = draw.choice(_SPEECH) if field != "rootpage" else draw.choice((*NUMBERS, 2, 3))
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute(f"UPDATE sqlite_master SET {field} = ? WHERE name = ?", (new, table))
            how = f"{field} = {_shown(new)}"
    return f"{how}, {table}.{column}"


_SCHEMA = (
    "view endless",
    "view large",
    "view join",
    "view huge",
    "view failing",
    "same in a view",
    "trigger raise",
    "trigger remove",
    "trigger endless",
    "trigger huge",
    "drop",
    "drop column",
    "rename column",
    "add column",
    "another order",
    "computed column",
    "extra",
    "full text",
    "drop index",
    "index of expressions",
    "statistics",
    "revision",
    "wal",
    "numbers",
    "vacuum",
    "speech",
    "speech",
    "speech",
)
_SPEECH = (
    None,
    "",
    "garbage",
    "CREATE TABLE versions (a)",
    "CREATE TABLE artifacts (digest COLLATE unknown)",
    "CREATE TABLE versions (name CHECK (randomblob(1000000000)))",
    "CREATE VIEW versions AS SELECT * FROM versions",
    "CREATE TABLE tags (name, tag, version) WITHOUT ROWID",
    "CREATE VIRTUAL TABLE files USING nothing(a)",
    "CREATE TABLE files (" + ", ".join(f"c{i}" for i in range(1500)) + ")",
    b"\xff\0",
    7,
)


def _raw(draw: random.Random, path: Path) -> str:
    """Change bytes: of the header, of a page's header, anywhere; or how many there are."""
    data = bytearray(path.read_bytes() or b"\0")  # an earlier change may have emptied it
    how = draw.choice(("header", "page", "anywhere", "cut", "longer", "empty", "pages", "noise"))
    page = int.from_bytes(data[16:18], "big") or 4096
    if how == "header":
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(min(100, len(data)))
            data[at] = draw.choice((0, 1, 2, 255, draw.randrange(256)))
    elif how == "page":
        start = page * draw.randrange(max(1, len(data) // page))
        at = start + (100 if start == 0 else 0) + draw.randrange(16)
        data[min(at, len(data) - 1)] = draw.choice((0, 2, 5, 10, 13, 255))
    elif how == "anywhere":
        data = bytearray(mutated_bytes(draw, bytes(data)))
    elif how == "cut":
        del data[draw.randrange(len(data)) :]
    elif how == "longer":
        data += draw.randbytes(draw.choice((1, page)))
    elif how == "empty":
        data = bytearray(draw.choice((b"", b"\0", b"SQLite format 3\0")))
    elif how == "pages":
        count = max(1, len(data) // page)
        one, two = (page * draw.randrange(count) for _ in range(2))
        data[one : one + page] = data[two : two + page]
    else:
        for _ in range(30):
            data[draw.randrange(len(data))] = draw.randrange(256)
    path.write_bytes(data)
    return how


_DATABASE: dict[str, Callable[[random.Random, Path], str]] = {
    "value": _value,
    "row": _row,
    "schema": _schema,
    "bytes": _raw,
}


@contextlib.contextmanager
def untyped(path: Path) -> Iterator[sqlite3.Connection]:
    """The database with columns that take anything; afterwards it says of them what it did before.

    SQLite converts values as they are stored, not as they are read, and looks at NOT NULL likewise.
    """
    said = _say(
        path,
        {
            name: f'CREATE TABLE "{name}" ({", ".join(columns)})'
            for name, columns in _tables(path).items()
        },
    )
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")
    finally:
        _say(path, said)


def _tables(path: Path) -> dict[str, list[str]]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        found: dict[str, list[str]] = {}
        for table, column in _columns(connection):
            found.setdefault(table, []).append(f'"{column}"')
        return found


def _say(path: Path, sentences: dict[str, str]) -> dict[str, str]:
    """Have the schema say this of tables; what it said of them."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA writable_schema = ON")
        before = dict(
            connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        )
        for name, sentence in sentences.items():
            # A primary key has an index that the sentence must go on asking for.
            keys = [
                column
                for *_, column in (
                    row
                    for row in connection.execute(
                        "SELECT pk, name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk",
                        (name,),
                    )
                )
            ]
            if keys and sentence.startswith(f'CREATE TABLE "{name}" ('):
                listed = ", ".join(f'"{key}"' for key in keys)
                sentence = f"{sentence[:-1]}, PRIMARY KEY ({listed}))"
            connection.execute(
                "UPDATE sqlite_master SET sql = ? WHERE type = 'table' AND name = ?",
                (sentence, name),
            )
        return before


def _columns(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    found = connection.execute(
        "SELECT m.name, c.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c "
        "WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'"
    )
    yield from found.fetchall()


def _shown(new: Any) -> str:
    return repr(new)[:60]


# --- documents --------------------------------------------------------------------------------


def mutate_document(draw: random.Random, data: bytes) -> bytes:
    """A small file with one thing changed: a value of its JSON, its text, its bytes."""
    how = draw.random()
    if how < 0.45:
        with contextlib.suppress(RecursionError):
            return mutated_json(draw, data)
    if how < 0.6:
        return mutated_bytes(draw, data)
    return draw.choice(_DOCUMENTS)(draw, data)


def _any_value(draw: random.Random, data: bytes) -> bytes:
    """One member of the object becomes a value of any kind."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    if not isinstance(document, dict) or not document:
        return data
    new = value(draw)
    document[draw.choice(list(document))] = new.decode("latin-1") if isinstance(new, bytes) else new
    return json.dumps(document).encode()


_DOCUMENTS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _any_value,
    _any_value,
    _any_value,
    lambda _, data: b"",
    lambda _, data: b"\xef\xbb\xbf" + data,
    lambda _, data: data.decode("latin-1").encode("utf-16"),
    lambda draw, data: data[: draw.randrange(len(data) + 1)],
    lambda _, data: data + data,
    lambda _, data: data + b"\0" * 70_000,
    lambda _, data: b" " * 65_530 + data,
    lambda _, data: data.replace(b'"', b"'"),
    lambda _, data: data[:-1] + b',"format":1}',
    lambda _, data: data[:-1] + b',"x":' + b"[" * 40_000 + b"]" * 20_000 + b"}",
    lambda _, data: data[:-1] + b',"x":' + b"[" * 900 + b"]" * 900 + b"}",
    lambda _, data: data[:-1] + b',"x":' + b"9" * 5000 + b"}",
    lambda _, data: data[:-1] + b',"x":NaN,"y":-Infinity}',
    lambda _, data: data[:-1] + b',"\\ud800":"\\udfff"}',
    lambda _, data: data.replace(b":", b':"\xff\xfe"', 1),
    lambda _, data: b"[" + data + b"]",
    lambda _, data: b"null",
    lambda _, data: b"true",
    lambda _, data: b"1e400",
    lambda _, data: b'"' + data.replace(b'"', b'\\"') + b'"',
    lambda draw, data: draw.randbytes(200),
)
