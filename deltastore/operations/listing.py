"""``list``: the artifacts of a store, by name, tag and source."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from deltastore.errors import RefAmbiguousError, RefNotFoundError
from deltastore.store import Artifact, Listing, Store

__all__ = ["Listing", "list_artifacts", "ref_of_pair"]


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


def ref_of_pair(store: Store, base: str, post: str) -> str:
    """The ref of the delta that was extracted from this pair: the newest version of its name.

    Args:
        store: The store.
        base: The source base, as in ``list_artifacts``.
        post: The source post, likewise.

    Raises:
        RefNotFoundError: There is none.
        RefAmbiguousError: Several names have different artifacts of such a pair.
    """
    found = list_artifacts(store, base=base, post=post)
    if not found:
        raise RefNotFoundError(
            f"There is no delta from {base} to {post} in the store at {store.path}.",
            hint="See the pairs that there are: `deltastore list`.",
        )
    newest = {row.name: row for row in found}  # ascending versions: the last one stays
    if len({row.digest for row in newest.values()}) > 1:
        refs = ", ".join(f"{row.name}:v{row.version}" for row in newest.values())
        raise RefAmbiguousError(
            f"There are {len(newest)} deltas from {base} to {post}: {refs}.",
            hint="Give one of these refs.",
        )
    row = found[-1]
    return f"{row.name}:v{row.version}"


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
