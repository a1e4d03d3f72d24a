"""What the files of a name looked like when they were read.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "seen",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("files", sa.Text, nullable=False),
        sa.Column("stamp", sa.Text, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("seen")
