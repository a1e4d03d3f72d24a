"""``tag`` and ``untag``: the movable names of versions."""

from __future__ import annotations

from dataclasses import dataclass

from deltastore.refs import parse_ref
from deltastore.store import Artifact, Store


@dataclass(frozen=True, slots=True)
class Tagged:
    """A version and the tags it has now. No version: the tag that was removed meant none."""

    name: str
    version: int | None
    digest: str | None
    tags: tuple[str, ...]


def tag(store: Store, ref: str, tag: str) -> Tagged:
    """Make ``tag`` mean the version that ``ref`` means, whatever it meant before.

    Raises:
        RefError: ``ref`` means no artifact or several, or ``tag`` cannot be a tag.
        StoreError: The store cannot be written.
    """
    return _tagged(store.tag(ref, tag))


def untag(store: Store, ref: str, tag: str) -> Tagged:
    """Remove ``tag`` from the name that ``ref`` has.

    Returns:
        The version that the tag meant.

    Raises:
        RefError: ``ref`` means no artifact or several, or there is no such tag.
        StoreError: The store cannot be written.
    """
    artifact = store.untag(ref, tag)
    return (
        Tagged(parse_ref(ref).name or "", None, None, ()) if artifact is None else _tagged(artifact)
    )


def _tagged(artifact: Artifact) -> Tagged:
    return Tagged(artifact.name, artifact.version, artifact.digest, artifact.tags)
