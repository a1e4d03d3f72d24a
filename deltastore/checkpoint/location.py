"""Where a checkpoint is: a local path, or a snapshot of a Hub repository at one commit."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from deltastore.checkpoint.small_files import SMALL_FILES
from deltastore.errors import CheckpointNotFoundError, HubError, MissingExtraError

_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95})(@(?P<revision>[^\s@]{1,200}))?\Z",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")


@dataclass(frozen=True, slots=True)
class Location:
    """A local directory or file; ``repo`` and ``revision`` (a commit) if it is the Hub's."""

    path: Path
    repo: str | None = None
    revision: str | None = None


def locate(
    source: str | os.PathLike[str], *, revision: str | None = None, offline: bool = False
) -> Location:
    """Resolve what a user calls a checkpoint; an existing local path wins over a Hub id.

    Args:
        source: A local path, or ``org/name[@revision]``.
        revision: Branch, tag or commit; only for a Hub id without ``@``.
        offline: Look only into the Hub's local cache. So does ``HF_HUB_OFFLINE=1``.

    Raises:
        CheckpointNotFoundError: No such path, and no Hub id either.
        HubError: The Hub cannot be reached, or has no such repository or revision.
        MissingExtraError: huggingface_hub is not installed.
    """
    text = os.fspath(source)
    # Not Path.expanduser, which fails where there is no such user.
    path = Path(os.path.expanduser(text))  # noqa: PTH111
    if os.path.lexists(path):
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
    return _snapshot(match["repo"], match["revision"] or revision, offline, path)


def _not_found(path: Path) -> CheckpointNotFoundError:
    parent = path.parent
    if not os.path.isdir(parent):  # noqa: PTH112 - Path.is_dir fails for names that are too long
        hint = f"There is no directory {parent} either; check the path."
    else:
        near = _near(path)
        hint = (
            f"Did you mean {', '.join(near)}?"
            if near
            else f"See what there is: `ls {parent}`; or give a Hub id such as org/name."
        )
    return CheckpointNotFoundError(f"{path} does not exist.", hint=hint, path=str(path))


def _near(path: Path) -> list[str]:
    try:
        names = sorted(child.name for child in path.parent.iterdir())
    except OSError:
        return []
    return [str(path.parent / name) for name in difflib.get_close_matches(path.name, names, n=3)]


def _snapshot(repo: str, revision: str | None, offline: bool, path: Path) -> Location:
    try:
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise MissingExtraError(
            f"{path} is no local path, and huggingface_hub, which fetches Hub ids, is missing.",
            hint="Install it: `pip install huggingface_hub`.",
        ) from error
    offline = offline or constants.HF_HUB_OFFLINE
    commit, patterns = revision, None
    try:
        if not offline:
            try:
                info = huggingface_hub.model_info(repo, revision=revision)
                commit = info.sha
                patterns = _wanted([file.rfilename for file in info.siblings or ()])
            except HfHubHTTPError:
                # The Hub answered: the repository is gated, missing or has no such revision.
                raise
            except Exception:  # noqa: BLE001 - any transport's failure: the cache may have it
                offline = True
        folder = huggingface_hub.snapshot_download(
            repo, revision=commit, allow_patterns=patterns, local_files_only=offline
        )
    except Exception as error:
        raise _hub_error(error, repo, revision, offline, path) from error
    name = Path(folder).name
    return Location(Path(folder), repo, name if _COMMIT.match(name) else commit)


def _wanted(names: list[str]) -> list[str]:
    top = [name for name in names if "/" not in name]
    safe = any(name.endswith(".safetensors") for name in top)
    suffixes = (".safetensors", ".safetensors.index.json") if safe else (".bin", ".bin.index.json")
    return [name for name in top if name.endswith(suffixes)] + list(SMALL_FILES)


def _hub_error(
    error: Exception, repo: str, revision: str | None, offline: bool, path: Path
) -> HubError:
    what = f"{repo}@{revision}" if revision else repo
    kind = type(error).__name__
    where = "the Hub's local cache does not hold it whole" if offline else "the Hub refused it"
    hints = {
        "GatedRepoError": f"Accept the terms at https://huggingface.co/{repo} and `hf auth login`.",
        "RevisionNotFoundError": "Check the revision after the @.",
        "RepositoryNotFoundError": "Check the id; for a private repository, `hf auth login`.",
    }
    near = _near(path)
    hint = hints.get(kind, f"Fetch it while online: `hf download {repo}`.")
    if near and kind not in hints:
        hint = f"If a local path was meant: {', '.join(near)}; else: `hf download {repo}`."
    return HubError(
        f"{what} is no local path, and {where} ({kind}).", hint=hint, repo=repo, revision=revision
    )
