"""The schema's revision: made at head, checked at every open, moved by Alembic when asked."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, select

from deltastore.catalog.failures import damaged
from deltastore.catalog.tables import METADATA, REVISION_METADATA, REVISIONS
from deltastore.errors import CatalogError, StoreOutdatedError, StoreTooNewError

REVISIONS_KNOWN = ("0001",)
"""Every released revision, oldest first."""

HEAD = REVISIONS_KNOWN[-1]


def revision(connection: Connection, where: str) -> str | None:
    """The schema's revision; None where the database is empty.

    Args:
        connection: To the database.
        where: Its place, for messages.

    Raises:
        CatalogError: The database holds something else.
        SQLAlchemyError: The database failed.
    """
    tables = inspect(connection).get_table_names()
    if REVISIONS.name in tables:
        found = connection.execute(select(REVISIONS.c.version_num)).scalars().all()
        if len(found) == 1:
            return str(found[0])
    elif not tables:
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


def create_schema(connection: Connection) -> None:
    """Make all tables, at head, within the connection's transaction."""
    METADATA.create_all(connection, checkfirst=False)
    REVISION_METADATA.create_all(connection, checkfirst=False)
    connection.execute(REVISIONS.insert().values(version_num=HEAD))


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


def upgrade(connection: Connection) -> None:
    """Bring the schema to head with Alembic, within the connection's transaction.

    Raises:
        CatalogError: The migrations are missing.
        SQLAlchemyError: A migration failed.
    """
    # Half a second of imports that only this needs.
    from alembic import command
    from alembic.config import Config

    config = Config()
    # Config reads "%" as an interpolation.
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
