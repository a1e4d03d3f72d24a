"""What is said where a disk is full: how much ``gc`` would free there."""

from __future__ import annotations

import contextlib

from deltastore.cli.session import Session
from deltastore.cli.units import size
from deltastore.errors import DeltastoreError, NoSpaceError


def with_room(error: NoSpaceError, session: Session) -> NoSpaceError:
    """The same error with what frees space where it did not fit, if that is the store's disk."""
    from deltastore.store.room import advice, freeable_beside

    with contextlib.suppress(DeltastoreError):
        found = freeable_beside(error, session.store_path, index=session.index)
        if found is not None:
            facts = error.facts | {"freed_by_gc": found.bytes}
            hint = advice(error, found, size(found.bytes))
            return type(error)(error.message, hint=hint, **facts)
    return error
