"""Which stored artifacts were extracted from a model that somebody names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from deltastore.digest import fingerprint
from deltastore.errors import FormatError, IntegrityError
from deltastore.execution.progress import Progress, Silent, Staged
from deltastore.store import Artifact, Store
from deltastore.system import places

Side = Literal["base", "post"]

_CONTENT = "blake3:"
_COMMIT = re.compile(r"[0-9a-f]{7,40}\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Source:
    """A model as somebody named it.

    Attributes:
        text: What was given.
        said: What it means, for messages.
        label: What the model would be called by if it were extracted now.
        fits: Whether an artifact was extracted from it.
    """

    text: str
    said: str
    label: str
    fits: Callable[[Artifact], bool]


def find_source(
    store: Store,
    text: str,
    side: Side,
    artifacts: Iterable[Artifact],
    progress: Progress | None = None,
) -> Source:
    """Find out which model is meant.

    An existing path wins, as it does where a checkpoint is opened, and means what lies there: not
    the last part of the path, which another model may have too.

    Args:
        store: Which remembers files by their tensors.
        text: A path, Hub id, label (both with ``*`` and ``?``), or the beginning of a content
            digest.
        side: On which side of artifacts it is looked for.
        artifacts: Those that there are.
        progress: Who is told how far the reading of a checkpoint is.

    Raises:
        CheckpointError: A path is no checkpoint, or does not exist.
        HubError: A Hub id has a branch or tag, and the commit cannot be had.
    """
    if _is_path(text):
        return _at_path(store, text, side, artifacts, progress)
    if text.startswith(_CONTENT):
        return Source(text, text, text, lambda a: _content(a, side).startswith(text))
    # The hub does not tell case apart in ids.
    wanted, _, revision = text.casefold().partition("@")
    if revision and "/" in wanted:
        commit = revision if _COMMIT.match(revision) else _commit(text)
        return Source(text, text, text, lambda a: _is_at(a, side, wanted, commit))
    return Source(text, text, text, lambda a: _is_called(a, side, text.casefold()))


def _is_path(text: str) -> bool:
    """Whether there is something, or what was given can be nothing but a path."""
    # Not Path.expanduser, which fails where there is no such user.
    if places.exists(os.path.expanduser(text)):  # noqa: PTH111
        return True
    rooted = text.startswith(("/", "./", "../", "~")) or text.endswith("/")
    return (rooted or text.count("/") > 1) and not set(text) & {"*", "?"}


def _at_path(
    store: Store, text: str, side: Side, artifacts: Iterable[Artifact], progress: Progress | None
) -> Source:
    # Only here: a list by label reads no checkpoint.
    from deltastore.checkpoint import open_checkpoint
    from deltastore.lineage.calling import unwrapped
    from deltastore.lineage.digests import content_of, find_digests

    watcher = Staged(progress or Silent())
    with open_checkpoint(text, downloads=watcher, look_only=True) as opened:
        checkpoint = unwrapped(opened, (), Silent())
        label = checkpoint.title

        size = (checkpoint.nbytes, checkpoint.parameters)

        def alike() -> bool:
            structure = fingerprint((t.name, t.shape) for t in checkpoint.tensors.values())
            for artifact in artifacts:
                if side == "base" and artifact.base_fingerprint == structure:
                    return True
                # The catalog has no fingerprint of post, but how large it is.
                if side == "post" and size == (artifact.raw_bytes, artifact.parameters):
                    return True
            return False

        known = find_digests(store, checkpoint, watcher, worthwhile=alike)
    if known is None:
        said = f"{text} (no stored delta has a {side} of its structure)"
        return Source(text, said, label, lambda _: False)
    content = content_of(checkpoint, known)
    tensors = sorted((t.dtype, t.shape, known[t.name]) for t in checkpoint.tensors.values())

    def fits(artifact: Artifact) -> bool:
        if _content(artifact, side) == content:
            return True
        # Post may have been given its base's names as the delta was extracted.
        same_size = size == (artifact.raw_bytes, artifact.parameters)
        return side == "post" and same_size and _post_tensors(store, artifact) == tensors

    return Source(text, f"{text} ({content})", label, fits)


def _post_tensors(store: Store, artifact: Artifact) -> list[tuple[str, tuple[int, ...], str]]:
    """Dtype, shape and BLAKE3 hex of all tensors of an artifact's post; none if it is damaged."""
    try:
        _, config = store.load(artifact.digest)
    except (IntegrityError, FormatError):
        return []
    posts = [entry.post for entry in config.tensors if entry.post is not None]
    return sorted((post.dtype, post.shape, post.blake3) for post in posts)


def _commit(text: str) -> str:
    from deltastore.checkpoint import locate

    return locate(text).revision or ""


def _content(artifact: Artifact, side: Side) -> str:
    return artifact.base_content if side == "base" else artifact.post_content


def _names(artifact: Artifact, side: Side) -> tuple[str, str | None, str | None]:
    """Label, repository and commit."""
    if side == "base":
        return artifact.base, artifact.base_repo, artifact.base_revision
    return artifact.post, artifact.post_repo, artifact.post_revision


def _is_called(artifact: Artifact, side: Side, wanted: str) -> bool:
    label, repo, _ = _names(artifact, side)
    names = [name.casefold() for name in (label, repo) if name is not None]
    return any(name == wanted or fnmatchcase(name, wanted) for name in names)


def _is_at(artifact: Artifact, side: Side, repo: str, commit: str) -> bool:
    _, own, revision = _names(artifact, side)
    if own is None or revision is None:
        return False
    return fnmatchcase(own.casefold(), repo) and revision.startswith(commit)
