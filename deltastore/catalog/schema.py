"""The schema's revision: made at head, checked at every open, moved by Alembic when asked."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path

from deltastore.catalog.failures import damaged, translated
from deltastore.catalog.sqlite import Session, SqliteDatabase
from deltastore.errors import CatalogError, StoreOutdatedError, StoreTooNewError

REVISIONS_KNOWN = ("0001", "0002", "0003")
"""Every released revision, oldest first."""

HEAD = REVISIONS_KNOWN[-1]

_DROPPED_AFTER = {
    "0001": (
        "CREATE TABLE files (path TEXT NOT NULL, size BIGINT NOT NULL, mtime_ns BIGINT NOT NULL, "
        "ctime_ns BIGINT NOT NULL, inode BIGINT NOT NULL, device BIGINT NOT NULL, "
        "seen_ns BIGINT NOT NULL, tensors TEXT NOT NULL, PRIMARY KEY (path))",
        "CREATE INDEX ix_files_seen ON files (seen_ns)",
    )
}
"""What the revision after this one dropped."""

_MADE_BY = {"0003": ("seen",)}
"""The tables that a revision made, after the first."""

_REVISION = re.compile(r"[0-9]{4}", re.ASCII)
_REVISIONS = (
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
    "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)
"""Alembic's own table, the same at all revisions."""

_Entry = tuple[str, str, str, str]
"""A row of sqlite_master: type, name, table, and the statement but for white space."""

_MADE = re.compile(r"CREATE (TABLE|INDEX) (\w+)(?: ON (\w+))?", re.ASCII)


def revision(session: Session, where: str) -> str | None:
    """The schema's revision; None where the database is empty.

    Args:
        session: Reads the database.
        where: Its place, for messages.

    Raises:
        CatalogError: The database holds something else.
    """
    if not (found := _schema(session)):
        return None
    # Before anything is asked of a table: a view of that name may have no end.
    if _entry(_REVISIONS) not in found:
        raise damaged(where, "it holds tables that are not deltastore's")
    rows = session.rows("SELECT version_num FROM alembic_version")
    if len(rows) == 1 and _REVISION.fullmatch(str(rows[0][0])):
        return str(rows[0][0])
    raise damaged(where, "its schema's revision is unreadable")


def check_tables(session: Session, more: Iterable[str] = (), *, at: str | None = None) -> None:
    """Refuse a database that has other tables than a catalog, or a view or a trigger.

    Args:
        session: Reads the database, which is of a known revision.
        more: Statements that make further tables.
        at: The revision; the newest if None.

    Raises:
        CatalogError: It has, with the fact ``damaged``.
    """
    check_only(session, (*statements_at(at or HEAD), *more))


def check_only(session: Session, statements: Iterable[str]) -> None:
    """Refuse a database that has anything but what these statements make.

    Raises:
        CatalogError: It has, with the fact ``damaged``.
    """
    if _schema(session) != set(map(_entry, statements)):
        raise damaged(session.where, "its tables are not those that deltastore makes")


def is_empty(session: Session) -> bool:
    """Whether nothing was made in a database yet."""
    return not _schema(session)


def check_revision(found: str, where: str) -> None:
    """Refuse a schema that is not at head.

    Raises:
        StoreOutdatedError: It is older.
        StoreTooNewError: It is of a revision that this version does not know.
    """
    if found == HEAD:
        return
    if found in REVISIONS_KNOWN:
        raise StoreOutdatedError(
            f"The catalog {where} has schema {found}; this deltastore needs {HEAD}.",
            hint="Run `deltastore migrate`.",
            found=found,
            expected=HEAD,
        )
    raise StoreTooNewError(
        f"The catalog {where} has schema {found!r}; this deltastore knows up to {HEAD}.",
        hint="Upgrade deltastore: `pip install -U deltastore`.",
        found=found,
        expected=HEAD,
    )


def create_schema(session: Session) -> None:
    """Make all tables, at head, within the session's transaction."""
    for statement in statements_at(HEAD):
        session.run(statement)
    session.run("INSERT INTO alembic_version (version_num) VALUES (:head)", {"head": HEAD})


def statements_at(revision: str) -> tuple[str, ...]:
    """What makes the schema of a revision."""
    older = [known for known in REVISIONS_KNOWN if known >= revision]
    newer = [known for known in REVISIONS_KNOWN if known > revision]
    lacks = {table for known in newer for table in _MADE_BY.get(known, ())}
    dropped = [statement for known in older for statement in _DROPPED_AFTER.get(known, ())]
    kept = [found for found in _statements_at_head() if _entry(found)[2] not in lacks]
    return (*kept, *dropped)


@functools.cache
def _statements_at_head() -> tuple[str, ...]:
    script = resources.files(__package__).joinpath("schema.sql").read_text("utf-8")
    lines = [line for line in script.splitlines() if not line.startswith("--")]
    return tuple(found.strip() for found in "\n".join(lines).split(";") if found.strip())


def migrations_directory() -> Path:
    """Where the migrations lie: inside the installed package, or beside it in a checkout.

    Raises:
        CatalogError: They are in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "migrations", package.parent / "migrations"):
        if (candidate / "env.py").is_file():
            return candidate
    raise CatalogError(
        f"The migrations are missing from the installation at {package}.",
        hint="Install deltastore again: `pip install --force-reinstall deltastore`.",
    )


def upgrade(database: SqliteDatabase, *, written: Callable[[], None] = lambda: None) -> None:
    """Bring the schema to head with Alembic. All or nothing.

    Args:
        database: The catalog's.
        written: Called when the new schema is there, before it is committed.

    Raises:
        StoreTooNewError: The schema is newer than this program.
        StoreReadOnlyError: The database cannot be written.
        CatalogError: The migrations are missing, or one of them failed.
    """
    # Half a second of imports that only this needs.
    from alembic import command
    from alembic.config import Config
    from sqlalchemy.exc import DBAPIError

    with database.reading() as session:
        found = revision(session, database.where)
        if found in REVISIONS_KNOWN:
            check_tables(session, at=found)
    if found is not None and found not in REVISIONS_KNOWN:
        check_revision(found, database.where)
    if found == "0001":
        # It has paths of its users. Nothing of them stays, neither in what was deleted before;
        # and the revision is moved only after that.
        database.rewrite("DELETE FROM files")
    config = Config()
    # Config reads "%" as an interpolation.
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    try:
        with translated(database.where), database.engine().begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            written()
    except DBAPIError as error:
        with translated(database.where):
            raise error.orig or error from error


def _schema(session: Session) -> set[_Entry]:
    rows = session.rows("SELECT type, name, tbl_name, sql FROM sqlite_master")
    # Those that SQLite makes for primary keys have no statement, and no name of their own.
    return {
        (str(kind), str(name), str(table), _normal(str(sql)))
        for kind, name, table, sql in rows
        if sql is not None or kind != "index"
    }


def _entry(statement: str) -> _Entry:
    match = _MADE.match(statement.strip())
    assert match is not None, statement
    kind, name, table = match.groups()
    return kind.lower(), name, table or name, _normal(statement)


def _normal(sql: str) -> str:
    """Alembic writes the same statements with other white space, and names that it changed quoted.

    Nothing else is made equal by this: deltastore's statements have no text in quotes.
    """
    return re.sub(r" ?([(),]) ?", r"\1", " ".join(sql.replace('"', "").split()))
