"""Where a checkpoint is: a local path, or a snapshot of a Hub repository at one commit."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from deltastore.checkpoint.hub import Downloads, Snapshot, pin
from deltastore.checkpoint.hub.failures import download_command
from deltastore.errors import CheckpointNotFoundError, MissingExtraError, UsageError
from deltastore.suggesting import nearest
from deltastore.system import places
from deltastore.text import typed

_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95})(@(?P<revision>[^\s@]{1,200}))?\Z",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Location:
    """A local directory or file; ``repo`` and ``revision`` (a commit) if it is the Hub's.

    ``path`` is then where the Hub's local cache keeps this commit, as far as it has it, and
    ``snapshot`` fetches the rest.
    """

    path: Path
    repo: str | None = None
    revision: str | None = None
    snapshot: Snapshot | None = field(default=None, compare=False)


def locate(
    source: str | os.PathLike[str],
    *,
    downloads: Downloads | None = None,
) -> Location:
    """Resolve what a user calls a checkpoint; an existing local path wins over a Hub id.

    With ``HF_HUB_OFFLINE=1`` only the Hub's local cache is asked.

    Args:
        source: A local path, or ``org/name[@revision]``.
        downloads: Who is told where the Hub lets us wait.

    Raises:
        UsageError: It is an empty text.
        CheckpointNotFoundError: No such path, and no Hub id either.
        HubError: The Hub cannot be reached, or has no such repository or revision.
        MissingExtraError: huggingface_hub is not installed.
    """
    text = os.fspath(source)
    if not text:
        # To Path it would be the directory one is in.
        raise UsageError(
            "A checkpoint was given as an empty text; expected a path or a Hub id.",
            hint="`.` is the directory that you are in.",
        )
    # Not Path.expanduser, which fails where there is no such user.
    path = Path(os.path.expanduser(text))  # noqa: PTH111
    if places.exists(path):
        if path.exists():
            return Location(path)
        raise CheckpointNotFoundError(
            f"{path} is a symbolic link to {path.readlink()}, which does not exist.",
            hint="Fetch the checkpoint again, or give the path of its directory.",
            path=text,
        )
    match = _HUB_ID.match(text) if isinstance(source, str) else None
    if match is None:
        raise _not_found(path)
    return _pinned(match["repo"], match["revision"], path, downloads)


def _not_found(path: Path) -> CheckpointNotFoundError:
    places.given(path, called="a checkpoint's path")  # says so where the working directory is gone
    parent = path.parent
    if not os.path.isdir(parent):  # noqa: PTH112 - Path.is_dir fails for names that are too long
        hint = f"There is no directory {parent} either; check the path."
    else:
        near = _near(path)
        hint = (
            f"Did you mean {', '.join(near)}?"
            if near
            else f"See what there is: `ls {typed(parent)}`; or give a Hub id such as org/name."
        )
    return CheckpointNotFoundError(f"{path} does not exist.", hint=hint, path=str(path))


def _near(path: Path) -> list[str]:
    try:
        names = sorted(child.name for child in path.parent.iterdir())
    except OSError:
        return []
    return [str(path.parent / name) for name in nearest(path.name, names, most=3, cutoff=0.6)]


def _pinned(repo: str, revision: str | None, path: Path, downloads: Downloads | None) -> Location:
    near = _near(path)
    fetch = f"`{download_command(repo, revision)}`"
    hint = f"If a local path was meant: {', '.join(near)}; else: {fetch}." if near else ""
    try:
        snapshot = pin(repo, revision, hint=hint, downloads=downloads)
    except ImportError as error:
        raise MissingExtraError(
            f"{path} is no local path, and huggingface_hub, which fetches Hub ids, is missing.",
            hint="Install it: `pip install huggingface_hub`.",
        ) from error
    return Location(snapshot.folder, repo, snapshot.commit, snapshot)
