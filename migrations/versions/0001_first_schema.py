"""Artifacts, versions, tags, remembered files.

Revision ID: 0001
Revises: none
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.String(71), primary_key=True),
        sa.Column("base_content", sa.String(71), nullable=False),
        sa.Column("post_content", sa.String(71), nullable=False),
        sa.Column("base_fingerprint", sa.String(71), nullable=False),
        sa.Column("base_repo", sa.Text),
        sa.Column("base_revision", sa.Text),
        sa.Column("post_repo", sa.Text),
        sa.Column("post_revision", sa.Text),
        sa.Column("codec", sa.Text, nullable=False),
        sa.Column("exactness", sa.String(16), nullable=False),
        sa.Column("restore_only", sa.Boolean, nullable=False),
        sa.Column("raw_bytes", sa.BigInteger, nullable=False),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.Column("tensors", sa.Integer, nullable=False),
        sa.Column("unchanged", sa.Integer, nullable=False),
        sa.Column("bits_per_weight", sa.Float, nullable=False),
    )
    op.create_index("ix_artifacts_pair", "artifacts", ["base_content", "post_content", "codec"])
    op.create_index("ix_artifacts_base_fingerprint", "artifacts", ["base_fingerprint"])
    op.create_table(
        "versions",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(71), sa.ForeignKey("artifacts.digest"), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("tool", sa.Text, nullable=False),
        sa.Column("base_label", sa.Text, nullable=False),
        sa.Column("post_label", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_versions"),
    )
    op.create_index("ix_versions_digest", "versions", ["digest"])
    op.create_table(
        "tags",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("tag", sa.String(128), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", "tag", name="pk_tags"),
        sa.ForeignKeyConstraint(
            ["name", "version"],
            ["versions.name", "versions.version"],
            name="fk_tags_versions",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "files",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("mtime_ns", sa.BigInteger, nullable=False),
        sa.Column("ctime_ns", sa.BigInteger, nullable=False),
        sa.Column("inode", sa.BigInteger, nullable=False),
        sa.Column("device", sa.BigInteger, nullable=False),
        sa.Column("seen_ns", sa.BigInteger, nullable=False),
        sa.Column("tensors", sa.Text, nullable=False),
    )
    op.create_index("ix_files_seen", "files", ["seen_ns"])


def downgrade() -> None:
    for table in ("files", "tags", "versions", "artifacts"):
        op.drop_table(table)
