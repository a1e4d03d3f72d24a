"""Removing a version: the steps of publishing, in the reverse order.

Its blobs stay until they are collected.
"""

from __future__ import annotations

import contextlib

from deltastore.catalog import UNREADABLE, Artifact
from deltastore.errors import (
    FormatError,
    IntegrityError,
    RefNotFoundError,
    RefSyntaxError,
)
from deltastore.refs import parse_ref
from deltastore.store.changing import changing, rows_of
from deltastore.store.layout import now
from deltastore.store.parts import Parts, whoami
from deltastore.store.records import Tombstone, printable
from deltastore.system import steps
from deltastore.system.steps import Step


def unlisted(parts: Parts, ref: str) -> Artifact | None:
    """What stands for a version that the catalog lacks, as what should be its record is none.

    That is what is damaged, empty, foreign or of a newer format, a damaged tombstone, and nothing
    at all where a later version is there. To give it a tombstone is a way to be rid of it.

    Returns:
        None where ``ref`` does not name a version by its number, or there is none of it.
    """
    try:
        meant = parse_ref(ref)
    except RefSyntaxError:
        return None
    name, version = meant.name, meant.version
    if name is None or version is None or _is_tombstone(parts, name, version):
        return None
    if not (parts.names.has(name, version) or parts.names.is_gap(name, version)):
        return None
    return Artifact(
        name=name,
        version=version,
        digest=parts.names.digest_of_damaged(name, version),
        created=now(),
        created_by=UNREADABLE,
        tool=UNREADABLE,
        base="",
        post="",
    )


def remove(parts: Parts, artifact: Artifact) -> None:
    """See ``Store.rm``."""
    parts.require_writable()
    name, version = artifact.name, artifact.version
    with changing(parts, "rm", name):
        steps.reached(Step.LEASE)
        # All of it under the catalog's write lock, so that nobody who sees the catalog and the
        # records disagree adds the row again once it is gone. The claim is for those who have
        # another catalog, or none.
        with (
            parts.claims.hold(name, version, decided=lambda: _is_tombstone(parts, name, version)),
            rows_of(parts, name) as rows,
        ):
            steps.reached(Step.CLAIMED)
            _bury(parts, artifact)
            rows.committed = True
            steps.reached(Step.TOMBSTONE)
            rows.writer.remove_version(name, version)
        steps.reached(Step.UNLISTED)


def _bury(parts: Parts, artifact: Artifact) -> None:
    """Remove the version's tags, and put a tombstone in its record's place."""
    name, version = artifact.name, artifact.version
    if _is_tombstone(parts, name, version):
        # Another process was first. Nobody shall take its work for ours.
        raise RefNotFoundError(
            f"{artifact.ref} was removed meanwhile.",
            hint="`deltastore list` shows what there is.",
        )
    # Without a lock in common, a tag that is being set to another version could be taken
    # for one of this version. What means a removed version means nothing, so it may stay.
    for tag in () if parts.index.local else parts.names.tags(name):
        with contextlib.suppress(FormatError, IntegrityError):
            if parts.names.read_tag(name, tag).version == version:
                parts.names.remove_tag(name, tag)
    steps.reached(Step.UNTAGGED)
    parts.names.bury(
        Tombstone(
            name=name,
            version=version,
            digest=artifact.digest,
            removed=now(),
            removed_by=printable(whoami()),
        )
    )


def _is_tombstone(parts: Parts, name: str, version: int) -> bool:
    try:
        return isinstance(parts.names.read(name, version), Tombstone)
    except (FormatError, IntegrityError):
        # Damaged: removing it is a way to be rid of it.
        return False
