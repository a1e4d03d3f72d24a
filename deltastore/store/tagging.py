"""Tags: the movable names of versions. The file is the truth, the row follows."""

from __future__ import annotations

from deltastore.catalog import Record
from deltastore.errors import (
    FormatError,
    IntegrityError,
    RefError,
    RefNotFoundError,
    RefSyntaxError,
)
from deltastore.refs import parse_ref, validate_tag
from deltastore.store.changing import rows_of
from deltastore.store.layout import now
from deltastore.store.parts import Parts, whoami
from deltastore.store.records import Tag, printable
from deltastore.system import steps
from deltastore.system.steps import Step


def set_tag(parts: Parts, name: str, tag: str, version: int) -> None:
    """Make a tag mean a version. The caller holds a lease on the name.

    Raises:
        RefSyntaxError: It cannot be a tag.
        RefError: Another tag of the name differs only in case.
        RefNotFoundError: The name has no such version.
        IntegrityError: Its record cannot be read.
        FormatError: Its record is damaged.
    """
    validate_tag(tag)
    refuse_other_case(parts, name, tag)
    with rows_of(parts, name) as rows:
        # A record that cannot be read is not the same as none: its error says what is wrong.
        if version not in rows.writer.versions(name) or not isinstance(
            parts.names.read(name, version), Record
        ):
            raise RefNotFoundError(
                f"{name}:v{version} is not in the store.", hint="`deltastore list` shows what is."
            )
        parts.names.set_tag(
            Tag(
                name=name,
                tag=tag,
                version=version,
                created=now(),
                created_by=printable(whoami()),
            )
        )
        rows.committed = True
        steps.reached(Step.TAG)
        rows.writer.put_tag(name, tag, version)
    steps.reached(Step.TAG_ROW)


def remove_tag(parts: Parts, name: str, tag: str) -> None:
    """Remove a tag. The caller holds a lease on the name. Idempotent."""
    with rows_of(parts, name) as rows:
        parts.names.remove_tag(name, tag)
        rows.committed = True
        steps.reached(Step.TAG)
        rows.writer.remove_tag(name, tag)
    steps.reached(Step.TAG_ROW)


def name_with_file(parts: Parts, ref: str, tag: str) -> str | None:
    """The name in a ref, where there is a file of its tag, whatever that says; else None."""
    try:
        name = parse_ref(ref).name
        validate_tag(tag)
    except RefSyntaxError:
        return None
    return name if name is not None and parts.names.has_tag(name, tag) else None


def is_live(parts: Parts, name: str, version: int) -> bool:
    """Whether a version has a record: another machine may have removed it."""
    try:
        return isinstance(parts.names.read(name, version), Record)
    except (FormatError, IntegrityError):
        return False


def refuse_other_case(parts: Parts, name: str, tag: str) -> None:
    """Refuse a tag that only case tells from another.

    Raises:
        RefError: There is such a tag.
    """
    tags = parts.names.tags(name)
    for other in tags:
        if (
            other != tag
            and other.casefold() == tag.casefold()
            and tag not in tags
            and _means(parts, name, other)
        ):
            raise RefError(
                f"The tag {tag!r} differs from {other!r} only in upper and lower case, which some "
                "file systems do not tell apart.",
                hint=f"Use `{other}`, or another tag.",
                tag=tag,
            )


def _means(parts: Parts, name: str, tag: str) -> bool:
    """Whether a tag means anything; one that cannot be read may."""
    try:
        return is_live(parts, name, parts.names.read_tag(name, tag).version)
    except (FormatError, IntegrityError):
        return True
