"""The catalog's tables, as SQLAlchemy and Alembic see them.

``schema.sql`` has the same for a new catalog and ``migrations/`` as steps; tests compare them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

METADATA = MetaData()

ARTIFACTS = Table(
    "artifacts",
    METADATA,
    Column("digest", String(71), primary_key=True),
    Column("base_content", String(71), nullable=False),
    Column("post_content", String(71), nullable=False),
    Column("base_fingerprint", String(71), nullable=False),
    Column("base_repo", Text),
    Column("base_revision", Text),
    Column("post_repo", Text),
    Column("post_revision", Text),
    Column("codec", Text, nullable=False),
    Column("exactness", String(16), nullable=False),
    Column("restore_only", Boolean, nullable=False),
    Column("raw_bytes", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("parameters", BigInteger, nullable=False),
    Column("tensors", Integer, nullable=False),
    Column("unchanged", Integer, nullable=False),
    Column("bits_per_weight", Float, nullable=False),
    Index("ix_artifacts_pair", "base_content", "post_content", "codec"),
    Index("ix_artifacts_base_fingerprint", "base_fingerprint"),
)
"""One row per artifact; read from its manifest and config."""

VERSIONS = Table(
    "versions",
    METADATA,
    Column("name", String(128), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String(71), ForeignKey("artifacts.digest"), nullable=False),
    Column("created", String(32), nullable=False),
    Column("created_by", Text, nullable=False),
    Column("tool", Text, nullable=False),
    Column("base_label", Text, nullable=False),
    Column("post_label", Text, nullable=False),
    PrimaryKeyConstraint("name", "version", name="pk_versions"),
    Index("ix_versions_digest", "digest"),
)
"""One row per record that is no tombstone. The primary key is UNIQUE(name, version)."""

TAGS = Table(
    "tags",
    METADATA,
    Column("name", String(128), nullable=False),
    Column("tag", String(128), nullable=False),
    Column("version", Integer, nullable=False),
    PrimaryKeyConstraint("name", "tag", name="pk_tags"),
    ForeignKeyConstraint(
        ["name", "version"],
        ["versions.name", "versions.version"],
        name="fk_tags_versions",
        ondelete="CASCADE",
    ),
)
"""One row per tag file whose version exists."""

SEEN = Table(
    "seen",
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("files", Text, nullable=False),
    Column("stamp", Text, nullable=False),
)
"""One row per name: its files, and what the system said of them when they were read."""

REVISION_METADATA = MetaData()
REVISIONS = Table(
    "alembic_version",
    REVISION_METADATA,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""The schema's revision, where Alembic keeps it."""
