"""What gives room where a disk is full: said with the error, by commands that work there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from deltastore.errors import MAKE_ROOM, DeltastoreError, NoSpaceError
from deltastore.store import open_store
from deltastore.store.collecting import Amount


def freeable_beside(error: NoSpaceError, path: Path, *, index: str | None) -> Amount | None:
    """What ``gc --grace 0`` would free where something did not fit.

    Args:
        error: What was said; its fact ``path`` is where.
        path: The store.
        index: Where its index is; see ``open_store``.

    Returns:
        None where the store is on another file system, or is not this user's to collect.
    """
    with contextlib.suppress(DeltastoreError, OSError):
        where = error.facts.get("path")
        if where is None or not _on_one_disk(Path(where), path):
            return None
        with open_store(path, create=False, index=index) as store:
            return store.freeable() if store.writable else None
    return None


def advice(error: NoSpaceError, found: Amount, shown: str) -> str:
    """The hint, with what was found.

    Args:
        error: What was said.
        found: What ``gc`` would free.
        shown: Its bytes, for people.
    """
    blobs = f"{found.blobs} blob{'' if found.blobs == 1 else 's'}"
    room = f"`deltastore gc --grace 0` frees {shown} there, {blobs} that no version uses."
    if not found.blobs:
        room = (
            "`deltastore gc` would free nothing there: `deltastore rm REF`, then `deltastore gc "
            "--grace 0`, frees a version, and `deltastore du` shows how large each is."
        )
    if MAKE_ROOM in error.hint:
        # In its place: one hint says once what gc would do.
        return error.hint.replace(MAKE_ROOM, room)
    return f"{error.hint} {room}".strip()


def _on_one_disk(one: Path, other: Path) -> bool:
    """Whether two places, of which the first need not exist, are on one file system."""
    place = next(parent for parent in (one, *one.parents) if os.path.lexists(parent))
    return place.stat().st_dev == other.stat().st_dev
