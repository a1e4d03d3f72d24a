"""``list``: the artifacts of a store, by name, tag and source."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from deltastore.store import Artifact, Listing, Store

__all__ = ["Listing", "list_artifacts"]


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
    if base is None and post is None:
        found = store.listings()
    else:
        base_source = None if base is None else _source(base)
        post_source = None if post is None else _source(post)
        found = [
            _listing(artifact)
            for artifact in store.artifacts()
            if _fits(base_source, artifact.base, artifact.base_repo, artifact.base_content)
            and _fits(post_source, artifact.post, artifact.post_repo, artifact.post_content)
        ]
    if name is not None:
        found = [row for row in found if fnmatchcase(row.name, name)]
    if tag is not None:
        found = [row for row in found if tag in row.tags]
    return found


def _listing(artifact: Artifact) -> Listing:
    return Listing(
        name=artifact.name,
        version=artifact.version,
        digest=artifact.digest,
        base=artifact.base,
        post=artifact.post,
        codec=artifact.codec,
        raw_bytes=artifact.raw_bytes,
        stored_bytes=artifact.stored_bytes,
        created=artifact.created,
        tags=artifact.tags,
    )


def _source(text: str) -> str:
    """A checkpoint's path is known by its last part, as labels are."""
    path = Path(text)
    return path.resolve().name.casefold() if path.exists() else text.casefold()


def _fits(source: str | None, label: str, repo: str | None, content: str) -> bool:
    if source is None:
        return True
    # The hub does not tell case apart in ids.
    if fnmatchcase(label.casefold(), source):
        return True
    if repo is not None and fnmatchcase(repo.casefold(), source):
        return True
    return source.startswith("blake3:") and content.startswith(source)
