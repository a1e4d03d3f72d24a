"""Removing a version: the steps of publishing, in the reverse order.

Its blobs stay until they are collected.
"""

from __future__ import annotations

import contextlib

from deltastore.blobs import steps
from deltastore.blobs.steps import Step
from deltastore.catalog import Artifact
from deltastore.errors import FormatError, IntegrityError, RefNotFoundError
from deltastore.store.changing import changing
from deltastore.store.layout import now
from deltastore.store.parts import Parts, whoami
from deltastore.store.records import Tombstone, printable


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
            parts.catalog.writing() as writer,
        ):
            steps.reached(Step.CLAIMED)
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
            steps.reached(Step.TOMBSTONE)
            writer.remove_version(name, version)
        steps.reached(Step.UNLISTED)


def _is_tombstone(parts: Parts, name: str, version: int) -> bool:
    try:
        return isinstance(parts.names.read(name, version), Tombstone)
    except (FormatError, IntegrityError):
        # Damaged: removing it is a way to be rid of it.
        return False
