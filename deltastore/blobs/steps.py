"""The steps by which something becomes part of the store, in the order they reach the disk.

The order is the transaction: a process that dies between two steps leaves either something that
nobody refers to, or a record that the next open finishes. Tests stop a process at each step by
replacing ``reached``.
"""

from __future__ import annotations

from enum import Enum


class Step(Enum):
    """A state of the disk from which everything must recover."""

    TEMP = "a blob's temporary file is whole and synced"
    BLOB = "the blob has its name"
    LEASE = "a lease says which name is about to change"
    BLOBS = "every blob that the manifest names is there"
    MANIFEST = "the manifest is there"
    RECORD = "the version's record is there: this is the commit"
    ROW = "the catalog has the version"
    TAG = "a tag's file is there, its row is not"
    TAGS = "all tags are there"
    TOMBSTONE = "the record has become a tombstone, the row is still there"
    UNLISTED = "the catalog no longer has the version"


def reached(step: Step) -> None:
    """Called when the disk is in the state that ``step`` names."""
