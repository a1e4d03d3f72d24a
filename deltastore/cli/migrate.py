"""``deltastore migrate``: bring an older store up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltastore.cli import options
from deltastore.cli.session import Session

if TYPE_CHECKING:
    from deltastore.operations.migrate import Migrated


@options.command("migrate")
def command(session: Session) -> None:
    """Bring an older store's catalog to this version."""
    from deltastore.operations.migrate import migrate

    migrated = migrate(session.store_path, index=session.index)
    session.output.result(migrated, human=lambda: [_human(migrated)])


def _human(migrated: Migrated) -> str:
    if migrated.before == migrated.after:
        return f"nothing to do: the catalog's schema is {migrated.after} already"
    return f"migrated the catalog's schema from {migrated.before or 'none'} to {migrated.after}"
