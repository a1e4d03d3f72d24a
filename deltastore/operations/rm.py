"""``rm``: take a version off the list. Its blobs stay until they are collected."""

from __future__ import annotations

from dataclasses import dataclass

from deltastore.store import Store


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed. ``still_used``: another version has the same artifact."""

    name: str
    version: int
    digest: str
    tags: tuple[str, ...]
    stored_bytes: int
    still_used: bool


def rm(store: Store, ref: str) -> Removed:
    """Remove the version that ``ref`` means, and its tags. Its number is never used again.

    Raises:
        RefError: ``ref`` means no version, or several.
        StoreError: The store cannot be written.
    """
    artifact = store.rm(ref)
    return Removed(
        name=artifact.name,
        version=artifact.version,
        digest=artifact.digest,
        tags=artifact.tags,
        stored_bytes=artifact.stored_bytes,
        still_used=any(other.digest == artifact.digest for other in store.artifacts()),
    )
