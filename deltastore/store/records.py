"""Records, tombstones and tags as documents: what the files under ``names/`` say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltastore.catalog.rows import MAX_TEXT_CHARS, TIME, Record
from deltastore.digest import canonical_json, is_digest, sha256_digest
from deltastore.errors import ManifestInvalidError, shown
from deltastore.manifest.parse import load_json
from deltastore.refs import MAX_VERSION
from deltastore.text import is_shown_as_it_is

RECORD_FORMAT = 1
MAX_RECORD_BYTES = 64 << 10
UPGRADE = "Upgrade deltastore: `pip install -U deltastore`"

UNKNOWN = sha256_digest()
"""The digest in the tombstone of a version of which nobody knows the digest: that of no bytes."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What stays of a version that was removed, so that its number is never used again."""

    name: str
    version: int
    digest: str
    removed: str
    removed_by: str


@dataclass(frozen=True, slots=True)
class Tag:
    """What a tag's file says."""

    name: str
    tag: str
    version: int
    created: str
    created_by: str


def record_bytes(record: Record) -> bytes:
    """The record as a file."""
    return canonical_json(
        {
            "format": RECORD_FORMAT,
            "name": record.name,
            "version": record.version,
            "digest": record.digest,
            "created": record.created,
            "created_by": record.created_by,
            "tool": record.tool,
            "labels": {"base": record.base_label, "post": record.post_label},
        }
    )


def tombstone_bytes(tombstone: Tombstone) -> bytes:
    """The tombstone as a file."""
    return canonical_json(
        {
            "format": RECORD_FORMAT,
            "name": tombstone.name,
            "version": tombstone.version,
            "digest": tombstone.digest,
            "removed": tombstone.removed,
            "removed_by": tombstone.removed_by,
        }
    )


def tag_bytes(tag: Tag) -> bytes:
    """The tag as a file."""
    return canonical_json(
        {
            "format": RECORD_FORMAT,
            "name": tag.name,
            "tag": tag.tag,
            "version": tag.version,
            "created": tag.created,
            "created_by": tag.created_by,
        }
    )


def parse_record(data: bytes, *, name: str, version: int, where: str) -> Record | Tombstone:
    """Read a version's file, which must agree with the place where it lies.

    Raises:
        ManifestInvalidError: It is no record and no tombstone of that name and version.
    """
    fields = _document(data, where)
    _expect(fields, "name", name, where)
    _expect(fields, "version", version, where)
    digest = fields.get("digest")
    if not is_digest(digest):
        raise _invalid(where, "digest", "sha256:<64 hex digits>", digest)
    assert isinstance(digest, str)
    if "removed" in fields:
        return Tombstone(
            name=name,
            version=version,
            digest=digest,
            removed=_time(fields, "removed", where),
            removed_by=_text(fields, "removed_by", where),
        )
    labels = fields.get("labels")
    if not isinstance(labels, dict):
        raise _invalid(where, "labels", "an object", labels)
    return Record(
        name=name,
        version=version,
        digest=digest,
        created=_time(fields, "created", where),
        created_by=_text(fields, "created_by", where),
        tool=_text(fields, "tool", where),
        base_label=_text(labels, "base", where),
        post_label=_text(labels, "post", where),
    )


def digest_in(data: bytes) -> str:
    """The digest in what may be a damaged record, or one of a newer format; else ``UNKNOWN``."""
    try:
        fields = load_json(data, limit=MAX_RECORD_BYTES, where="")
    except ManifestInvalidError:
        return UNKNOWN
    digest = fields.get("digest") if isinstance(fields, dict) else None
    return digest if isinstance(digest, str) and is_digest(digest) else UNKNOWN


def parse_tag(data: bytes, *, name: str, tag: str, where: str) -> Tag:
    """Read a tag's file, which must agree with the place where it lies.

    Raises:
        ManifestInvalidError: It is no tag of that name.
    """
    fields = _document(data, where)
    _expect(fields, "name", name, where)
    _expect(fields, "tag", tag, where)
    version = fields.get("version")
    if type(version) is not int or not 0 < version <= MAX_VERSION:
        raise _invalid(where, "version", "a version's number", version)
    return Tag(
        name=name,
        tag=tag,
        version=version,
        created=_time(fields, "created", where),
        created_by=_text(fields, "created_by", where),
    )


def printable(label: str) -> str:
    """``label`` as a record can hold it: printable, not empty, not too long."""
    kept = "".join(c if c == " " or is_shown_as_it_is(c) else "?" for c in label)
    return kept[:MAX_TEXT_CHARS] or "?"


def _document(data: bytes, where: str) -> dict[str, Any]:
    fields = load_json(data, limit=MAX_RECORD_BYTES, where=where)
    if not isinstance(fields, dict):
        raise _invalid(where, "record", "an object", fields)
    found = fields.get("format")
    if isinstance(found, int) and found > RECORD_FORMAT:
        raise ManifestInvalidError(
            f"{where} is of format {shown(found)}; this deltastore reads format {RECORD_FORMAT}.",
            hint=f"{UPGRADE}.",
            found=found,
            expected=RECORD_FORMAT,
        )
    _expect(fields, "format", RECORD_FORMAT, where)
    return fields


def _expect(fields: Mapping[str, Any], field: str, wanted: object, where: str) -> None:
    value = fields.get(field)
    if value != wanted or type(value) is not type(wanted):
        raise _invalid(where, field, repr(wanted), value)


def _text(fields: Mapping[str, Any], field: str, where: str) -> str:
    value = fields.get(field)
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 1024:
        raise _invalid(where, field, "printable text of 1..1024 characters", value)
    return value


def _time(fields: Mapping[str, Any], field: str, where: str) -> str:
    value = fields.get(field)
    if not isinstance(value, str) or not TIME.match(value):
        raise _invalid(where, field, "a time such as 2025-01-31T12:00:00.000000Z", value)
    return value


def _invalid(where: str, field: str, expected: str, got: object) -> ManifestInvalidError:
    return ManifestInvalidError(
        f"{where}: field {field} should be {expected}, got {shown(got)}.",
        field=field,
    )
