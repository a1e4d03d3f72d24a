"""Runs the migrations on the connection that ``deltastore.catalog.schema.upgrade`` hands over."""

from __future__ import annotations

from alembic import context

connection = context.config.attributes["connection"]
# SQLite cannot alter a table in most ways: batch mode makes it anew and copies the rows.
context.configure(connection=connection, render_as_batch=True)
# The caller's transaction: either every migration is done or none.
context.run_migrations()
