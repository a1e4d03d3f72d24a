"""The steps by which an output checkpoint appears, in the order they reach the disk.

``docs/durability.md`` says what is there after each. Tests stop a process at each step by
replacing ``reached``.
"""

from __future__ import annotations

from enum import Enum


class Step(Enum):
    """A state of the disk from which the next writer for the same output must recover."""

    LEASED = "the lease stands beside where the directory will be"
    BARE = "the directory is there, and its lease is still beside it"
    OWNED = "the directory has its lease"
    RESERVED = "every weight file has its header and its full size"
    WRITTEN = "every tensor and small file is whole"
    RELEASED = "the lease stands beside the whole directory"
    NAMED = "the directory has its name: this is the commit"
    FILLING = "`.filling` is in the directory that is there already: all that follows is renaming"
    FILLED = "the last file has its name there: this is the commit"
    DONE = "the lease is gone"
    CLEARED = "the unfinished directory is empty, and its lease stands beside it"


def reached(step: Step) -> None:
    """Called when the disk is in the state that ``step`` names."""
