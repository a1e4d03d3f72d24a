"""Whether an output can be put where the user wants it, asked before any work is done."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

from deltastore.checkpoint.destination import check_place, resolved
from deltastore.checkpoint.output import remove_dead
from deltastore.errors import UsageError
from deltastore.store import Store
from deltastore.store.layout import is_store
from deltastore.system import places


def check_output(
    store: Store, out: str | PathLike[str], *, called: str, dry_run: bool = False
) -> Path:
    """Refuse a place where no output can be.

    What processes that were killed have left there goes first, even where an output is in the way.

    Args:
        store: From which the output is made.
        out: The directory that the user gave.
        called: How the user gave it, for messages.
        dry_run: Remove nothing, and say what would be said if it had been.

    Returns:
        Where that is, through links.

    Raises:
        UsageError: It is an empty text, needs a home or a working directory that is not there, or
            is in the store.
        OutputExistsError: Something is there already.
        CheckpointError: This user cannot write there, or cannot look.
    """
    text = os.fspath(out)
    if not text:
        raise UsageError(
            "The directory for the output was given as an empty text; expected a path.",
            hint="Give a new or an empty directory; `.` is the one that you are in.",
        )
    place = resolved(places.given(text, called=called))
    # The store's own directories may be links; a directory may be in another store as well.
    own = [Path(os.path.realpath(path)) for path in store.parts.layout.directories]
    if any(place.is_relative_to(path) for path in own) or any(map(is_store, place.parents)):
        raise UsageError(
            f"{place} is in a store, where every file has its meaning; expected a directory "
            "elsewhere.",
            hint="Give a new or an empty directory outside of the store.",
        )
    if not dry_run:
        remove_dead(place)
    check_place(place, settled=not dry_run)
    return place
