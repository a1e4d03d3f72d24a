"""A schema revision that no release has yet, for tests of what becomes of older stores."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deltastore.catalog import HEAD, schema


def with_note(statement: str) -> str:
    """What Alembic makes of the statement for a table to which it adds a column."""
    if not statement.startswith("CREATE TABLE versions"):
        return statement
    return statement.replace(
        "CONSTRAINT pk_versions", "note TEXT DEFAULT '' NOT NULL, CONSTRAINT pk_versions"
    )


def later_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this deltastore one that needs a schema with one more column."""
    migrations = tmp_path / "migrations"
    shutil.copytree(schema.migrations_directory(), migrations)
    (migrations / "versions" / "9000_more.py").write_text(
        "import sqlalchemy as sa\n"
        "from alembic import op\n"
        f"revision, down_revision = '9000', {HEAD!r}\n"
        "def upgrade():\n"
        "    with op.batch_alter_table('versions') as table:\n"
        "        table.add_column(sa.Column('note', sa.Text, server_default='', nullable=False))\n"
    )
    monkeypatch.setattr(schema, "migrations_directory", lambda: migrations)
    monkeypatch.setattr(schema, "REVISIONS_KNOWN", (*schema.REVISIONS_KNOWN, "9000"))
    monkeypatch.setattr(schema, "HEAD", "9000")
    later = tuple(map(with_note, schema.statements_at(HEAD)))
    before = schema.statements_at
    monkeypatch.setattr(
        schema, "statements_at", lambda found: later if found == "9000" else before(found)
    )
    monkeypatch.setattr("deltastore.store.maintenance.HEAD", "9000")
