"""``list``: the artifacts of a store, by name, tag and source."""

from __future__ import annotations

from fnmatch import fnmatchcase

from deltastore.errors import RefAmbiguousError, RefNotFoundError
from deltastore.execution.progress import Progress
from deltastore.lineage.sources import Side, Source, find_source
from deltastore.store import Artifact, Listing, Store
from deltastore.text import typed

__all__ = ["Listing", "list_artifacts", "ref_of_pair"]


def list_artifacts(
    store: Store,
    *,
    base: str | None = None,
    post: str | None = None,
    name: str | None = None,
    tag: str | None = None,
    progress: Progress | None = None,
) -> list[Listing]:
    """The versions that fit everything given, by name and version.

    Args:
        store: The store.
        base: A source base: an existing path, which means the checkpoint there by its content; its
            Hub id, at whatever commit or with ``@`` at one; its label (both with ``*`` and ``?``);
            or the beginning of its content digest.
        post: A source post, likewise.
        name: A name, with ``*`` and ``?``.
        tag: A tag.
        progress: Who is told how far the reading of a checkpoint is.

    Raises:
        CheckpointError: A path is no checkpoint, or does not exist.
        HubError: A Hub id has a branch or tag, and the commit cannot be had.
        CatalogError: The catalog failed.
    """
    if base is None and post is None:
        found = store.listings()
    else:
        artifacts = store.artifacts()
        for side, text in _given(base, post):
            source = find_source(store, text, side, artifacts, progress)
            artifacts = [artifact for artifact in artifacts if source.fits(artifact)]
        found = [Listing.of(artifact) for artifact in artifacts]
    if name is not None:
        found = [row for row in found if fnmatchcase(row.name, name)]
    if tag is not None:
        found = [row for row in found if tag in row.tags]
    return found


def ref_of_pair(store: Store, base: str, post: str, *, progress: Progress | None = None) -> str:
    """The ref of the delta that was extracted from this pair: the newest version of its name.

    Args:
        store: The store.
        base: The source base, as in ``list_artifacts``.
        post: The source post, likewise.
        progress: Who is told how far the reading of a checkpoint is.

    Raises:
        RefNotFoundError: There is none.
        RefAmbiguousError: Several names have different artifacts of such a pair.
        CheckpointError: A path is no checkpoint, or does not exist.
        HubError: A Hub id has a branch or tag, and the commit cannot be had.
    """
    artifacts = store.artifacts()
    before, after = (
        find_source(store, text, side, artifacts, progress) for side, text in _given(base, post)
    )
    found = [artifact for artifact in artifacts if before.fits(artifact) and after.fits(artifact)]
    if not found:
        raise RefNotFoundError(
            f"There is no delta from {before.said} to {after.said} in the store at {store.path}.",
            hint=_near(artifacts, before, after),
        )
    newest = {artifact.name: artifact for artifact in found}  # ascending versions: the last stays
    if len({artifact.digest for artifact in newest.values()}) > 1:
        refs = ", ".join(artifact.ref for artifact in newest.values())
        raise RefAmbiguousError(
            f"There are {len(newest)} deltas from {base} to {post}: {refs}.",
            hint="Give one of these refs.",
        )
    return found[-1].ref


def _given(base: str | None, post: str | None) -> list[tuple[Side, str]]:
    sides: list[tuple[Side, str | None]] = [("base", base), ("post", post)]
    return [(side, text) for side, text in sides if text is not None]


def _near(artifacts: list[Artifact], before: Source, after: Source) -> str:
    """The hint where no delta has both: those that have one of them, or the same names."""
    for source, side in ((before, "base"), (after, "post")):
        if any(map(source.fits, artifacts)):
            option = f"--{side} {typed(source.text)}"
            return f"See what there is of that {side}: `deltastore list {option}`."
    for artifact in artifacts:
        if artifact.base == before.label and artifact.post == after.label:
            return (
                f"{artifact.ref} is of models of these names with other weights; give that ref if "
                "it is meant."
            )
    return "See the pairs that there are: `deltastore list`."
