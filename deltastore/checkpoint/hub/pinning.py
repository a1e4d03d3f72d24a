"""A hub id becomes one commit, before anything else is asked of the hub."""

from __future__ import annotations

import re
from pathlib import Path

from deltastore.checkpoint.hub.failures import hub_error
from deltastore.checkpoint.hub.retrying import is_transport, retrying
from deltastore.checkpoint.hub.snapshot import SHA256, HubFile, Snapshot
from deltastore.errors import HubError

COMMIT = re.compile(r"[0-9a-f]{40}\Z")


def pin(repo: str, revision: str | None, *, offline: bool, hint: str = "") -> Snapshot:
    """The commit that a revision means now, and the files it has: one request.

    Without a connection, the commit and files of the local cache.

    Args:
        repo: ``org/name``.
        revision: Branch, tag or commit; the default branch if None.
        offline: Ask only the local cache. So does ``HF_HUB_OFFLINE=1``.
        hint: What to tell a user whose id may be a misspelt path.

    Raises:
        HubError: The hub cannot be reached and the cache has nothing of it, or the hub refuses.
    """
    from huggingface_hub import constants

    what = f"{repo}@{revision}" if revision else repo
    doing = f"{what} is no local path, and"
    try:
        if not (offline or constants.HF_HUB_OFFLINE):
            try:
                return retrying(lambda: _ask(repo, revision))
            except Exception as error:
                # An answer is final; without one the cache may have it.
                if not is_transport(error):
                    raise
                try:
                    snapshot = _look(repo, revision)
                except Exception:  # noqa: BLE001 - the reason is that there is no connection
                    raise error from None
                snapshot.unreachable = f"{type(error).__name__}: {error}"
                return snapshot
        return _look(repo, revision)
    except HubError:
        raise
    except Exception as error:
        raise hub_error(error, repo=repo, revision=revision, doing=doing, hint=hint) from error


def _ask(repo: str, revision: str | None) -> Snapshot:
    import huggingface_hub
    from huggingface_hub import constants

    info = huggingface_hub.model_info(
        repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    if not COMMIT.match(info.sha or ""):
        raise HubError(
            f"{constants.ENDPOINT} names the commit {str(info.sha)[:60]!r} for {repo}; expected "
            "40 hexadecimal digits.",
            hint="Check HF_ENDPOINT: it does not look like a model hub.",
            repo=repo,
        )
    assert info.sha is not None
    files = {}
    for file in info.siblings or ():
        sha256 = file.lfs.sha256 if file.lfs is not None else None
        known = sha256 if isinstance(sha256, str) and SHA256.match(sha256) else None
        files[file.rfilename] = HubFile(file.rfilename, file.size, known)
    return Snapshot(repo, revision, info.sha, files, _folder(repo, info.sha))


def _look(repo: str, revision: str | None) -> Snapshot:
    import huggingface_hub

    folder = Path(huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True))
    name = folder.name
    commit = name if COMMIT.match(name) else (revision or "")
    return Snapshot(repo, revision, commit, None, folder)


def _folder(repo: str, commit: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    storage = repo_folder_name(repo_id=repo, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / storage / "snapshots" / commit
