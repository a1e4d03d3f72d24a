"""``list``: the artifacts of a store, by name, tag and source."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from deltastore.store import Artifact, Store


@dataclass(frozen=True, slots=True)
class Listing:
    """One line of the list: a version. ``created`` is ISO 8601 in UTC."""

    name: str
    version: int
    digest: str
    tags: tuple[str, ...]
    base: str
    post: str
    codec: str
    raw_bytes: int
    stored_bytes: int
    created: str


def list_artifacts(
    store: Store,
    *,
    base: str | None = None,
    post: str | None = None,
    name: str | None = None,
    tag: str | None = None,
) -> list[Listing]:
    """The versions that fit everything given, by name and version.

    Args:
        store: The store.
        base: A source base: its label or Hub id (with ``*`` and ``?``), a path, or the beginning
            of its content digest.
        post: A source post, likewise.
        name: A name, with ``*`` and ``?``.
        tag: A tag.

    Raises:
        CatalogError: The catalog failed.
    """
    base_source = None if base is None else _source(base)
    post_source = None if post is None else _source(post)
    return [
        listing(artifact)
        for artifact in store.artifacts()
        if (name is None or fnmatchcase(artifact.name, name))
        and (tag is None or tag in artifact.tags)
        and (
            base_source is None
            or _fits(base_source, artifact.base, artifact.base_repo, artifact.base_content)
        )
        and (
            post_source is None
            or _fits(post_source, artifact.post, artifact.post_repo, artifact.post_content)
        )
    ]


def listing(artifact: Artifact) -> Listing:
    """An artifact as a line of the list."""
    return Listing(
        artifact.name,
        artifact.version,
        artifact.digest,
        artifact.tags,
        artifact.base,
        artifact.post,
        artifact.codec,
        artifact.raw_bytes,
        artifact.stored_bytes,
        artifact.created,
    )


def _source(text: str) -> str:
    """A checkpoint's path is known by its last part, as labels are."""
    path = Path(text)
    return path.resolve().name.casefold() if path.exists() else text.casefold()


def _fits(source: str, label: str, repo: str | None, content: str) -> bool:
    # The hub does not tell case apart in ids.
    if fnmatchcase(label.casefold(), source):
        return True
    if repo is not None and fnmatchcase(repo.casefold(), source):
        return True
    return source.startswith("blake3:") and content.startswith(source)
