"""The schema's revision: made at head, checked at every open, moved by Alembic when asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from deltastore.catalog.failures import damaged, translated
from deltastore.catalog.sqlite import Session, SqliteDatabase
from deltastore.errors import CatalogError, StoreOutdatedError, StoreTooNewError

REVISIONS_KNOWN = ("0001",)
"""Every released revision, oldest first."""

HEAD = REVISIONS_KNOWN[-1]
_REVISION = re.compile(r"[0-9]{4}", re.ASCII)


def revision(session: Session, where: str) -> str | None:
    """The schema's revision; None where the database is empty.

    Args:
        session: Reads the database.
        where: Its place, for messages.

    Raises:
        CatalogError: The database holds something else.
    """
    tables = {name for (name,) in session.rows("SELECT name FROM sqlite_master")}
    if "alembic_version" in tables:
        found = session.rows("SELECT version_num FROM alembic_version")
        if len(found) == 1 and _REVISION.fullmatch(str(found[0][0])):
            return str(found[0][0])
        raise damaged(where, "its schema's revision is unreadable")
    if not tables:
        return None
    raise damaged(where, "it holds tables that are not deltastore's")


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
    script = resources.files(__package__).joinpath("schema.sql").read_text("utf-8")
    lines = [line for line in script.splitlines() if not line.startswith("--")]
    for statement in "\n".join(lines).split(";"):
        session.run(statement)
    session.run("INSERT INTO alembic_version (version_num) VALUES (:head)", {"head": HEAD})


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
    if found is not None and found not in REVISIONS_KNOWN:
        check_revision(found, database.where)
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
