"""The steps by which something enters or leaves the store, or an output appears, in their order.

``docs/durability.md`` says for each command which steps it takes and what is visible after each.
The order is the transaction: a process that dies between two steps leaves either something that
nobody refers to, or a record that the next open finishes. Tests stop a process at each step by
replacing ``reached``.
"""

from __future__ import annotations

from enum import Enum


class Step(Enum):
    """A state of a store from which everything must recover."""

    # extract
    TEMP = "a blob's temporary file is whole and synced"
    BLOB = "the blob has its name"
    # every command that changes a name
    LEASE = "a lease says which name is about to change"
    # extract: publish
    BLOBS = "every blob that the manifest names is there"
    MANIFEST = "the manifest is there"
    CLAIM = "the record's temporary file is whole, and the lease and all blobs were still there"
    RECORD = "the version's record is there: this is the commit"
    ROW = "the catalog has the version"
    TAGS = "all tags are there"
    # tag, untag, and the tags of extract
    TAG = "a tag's file is there or gone, its row is not yet"
    TAG_ROW = "the tag's row has followed"
    # rm
    CLAIMED = "one process has the claim to remove the version"
    UNTAGGED = "the version has no tags left, its record is still there"
    TOMBSTONE = "the record has become a tombstone, the row is still there"
    UNLISTED = "the catalog no longer has the version"
    # gc
    BIN = "the collector has its bin"
    GATE = "the collector's lease is there: a writer that begins now waits for it"
    STALE = "leases and temporary files of processes that ended are gone"
    BINNED = "a blob that nothing refers to is in the bin"
    OPENED = "the collector's lease is gone, the bin is still there"
    EMPTIED = "the bin is gone"
    # reindex
    DISCARDED = "a catalog that SQLite cannot read is gone"
    REFILLED = "the catalog's new rows are written, not committed"
    INDEXED = "the catalog's new rows are committed"
    # migrate
    UPGRADED = "the catalog has the new schema, not committed"
    MIGRATED = "the catalog's new schema is committed"


class OutputStep(Enum):
    """A state of an output from which the next writer for it must recover."""

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


def reached(step: Step | OutputStep) -> None:
    """Called when the disk is in the state that ``step`` names."""
