-- The schema at head, as a new catalog gets it. migrations/ has the same as steps; a test compares
-- both. The columns of a row are named by the fields of a record in rows.py.

CREATE TABLE artifacts (
    digest VARCHAR(71) NOT NULL,
    base_content VARCHAR(71) NOT NULL,
    post_content VARCHAR(71) NOT NULL,
    base_fingerprint VARCHAR(71) NOT NULL,
    base_repo TEXT,
    base_revision TEXT,
    post_repo TEXT,
    post_revision TEXT,
    codec TEXT NOT NULL,
    exactness VARCHAR(16) NOT NULL,
    restore_only BOOLEAN NOT NULL,
    raw_bytes BIGINT NOT NULL,
    stored_bytes BIGINT NOT NULL,
    parameters BIGINT NOT NULL,
    tensors INTEGER NOT NULL,
    unchanged INTEGER NOT NULL,
    bits_per_weight FLOAT NOT NULL,
    PRIMARY KEY (digest)
);
CREATE INDEX ix_artifacts_base_fingerprint ON artifacts (base_fingerprint);
CREATE INDEX ix_artifacts_pair ON artifacts (base_content, post_content, codec);

CREATE TABLE versions (
    name VARCHAR(128) NOT NULL,
    version INTEGER NOT NULL,
    digest VARCHAR(71) NOT NULL,
    created VARCHAR(32) NOT NULL,
    created_by TEXT NOT NULL,
    tool TEXT NOT NULL,
    base_label TEXT NOT NULL,
    post_label TEXT NOT NULL,
    CONSTRAINT pk_versions PRIMARY KEY (name, version),
    FOREIGN KEY (digest) REFERENCES artifacts (digest)
);
CREATE INDEX ix_versions_digest ON versions (digest);

CREATE TABLE tags (
    name VARCHAR(128) NOT NULL,
    tag VARCHAR(128) NOT NULL,
    version INTEGER NOT NULL,
    CONSTRAINT pk_tags PRIMARY KEY (name, tag),
    CONSTRAINT fk_tags_versions FOREIGN KEY (name, version)
        REFERENCES versions (name, version) ON DELETE CASCADE
);

CREATE TABLE seen (
    name VARCHAR(128) NOT NULL,
    files TEXT NOT NULL,
    stamp TEXT NOT NULL,
    PRIMARY KEY (name)
);

CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
