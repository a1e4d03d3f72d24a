"""A hub id becomes one commit, before anything else is asked of the hub."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from deltastore.checkpoint.hub import limits
from deltastore.checkpoint.hub.addresses import MisbehavedError
from deltastore.checkpoint.hub.cache import read_ref, snapshot_folder
from deltastore.checkpoint.hub.downloads import Downloads, Unwatched
from deltastore.checkpoint.hub.exchange import Head, Hub, ask
from deltastore.checkpoint.hub.failures import hub_error
from deltastore.checkpoint.hub.listing import COMMIT, parse_listing
from deltastore.checkpoint.hub.patience import Patience
from deltastore.checkpoint.hub.retrying import is_transport, persist
from deltastore.checkpoint.hub.snapshot import Snapshot
from deltastore.errors import HubError, shown
from deltastore.system import places


def pin(
    repo: str,
    revision: str | None,
    *,
    hint: str = "",
    downloads: Downloads | None = None,
) -> Snapshot:
    """The commit that a revision means now, and the files it has: one request.

    Without a connection, or with ``HF_HUB_OFFLINE=1``, the commit and files of the local cache.

    Args:
        repo: ``org/name``.
        revision: Branch, tag or commit; the default branch if None.
        hint: What to tell a user whose id may be a misspelt path.
        downloads: Who is told of long waits, and may stop them.

    Raises:
        HubError: The hub cannot be reached and the cache has nothing of it, or the hub refuses.
    """
    from huggingface_hub import constants

    # Relative where there is no home: the cache would be in a directory called "~".
    places.given(constants.HF_HUB_CACHE, called="The hub's cache (HF_HOME)")
    what = f"{repo}@{revision}" if revision else repo
    doing = f"{what} is no local path, and"
    try:
        if not constants.HF_HUB_OFFLINE:
            try:
                return _ask(repo, revision, downloads or Unwatched())
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


def _ask(repo: str, revision: str | None, downloads: Downloads) -> Snapshot:
    from huggingface_hub import constants

    hub = Hub.at_hand()
    url = f"{hub.endpoint}/api/models/{repo}"
    if revision is not None:
        url += f"/revision/{quote(revision, safe='')}"
    patience = Patience(total_s=limits.LIST_S)
    data = bytearray()

    def begins(head: Head) -> int:
        data.clear()
        if head.status != 200:
            raise MisbehavedError(f"answers with status {head.status}")
        return limits.MAX_LIST_BYTES

    persist(
        lambda: ask(
            hub,
            f"{url}?blobs=True",
            begins=begins,
            takes=data.extend,
            patience=patience,
            tells=lambda _: downloads.advance_download(0),
            timeout_s=constants.HF_HUB_ETAG_TIMEOUT,
        ),
        patience,
        downloads,
        cut=False,
    )
    commit, files = parse_listing(bytes(data))
    if revision is not None and COMMIT.match(revision) and commit != revision:
        raise MisbehavedError(f"names the commit {shown(commit)}; expected {shown(revision)}")
    return Snapshot(repo, revision, commit, files, snapshot_folder(repo, commit), hub)


def _look(repo: str, revision: str | None) -> Snapshot:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    commit = revision or "main"
    if not COMMIT.match(commit):
        # Not by the library, which makes a path of whatever stands in the file.
        commit = read_ref(repo, commit) or commit
    if not COMMIT.match(commit):
        raise LocalEntryNotFoundError(f"no commit is known for {commit}")
    # That it is there, and whole as far as the library knows.
    folder = Path(huggingface_hub.snapshot_download(repo, revision=commit, local_files_only=True))
    # Nobody to ask: not even the token is looked for, which the library may have to renew.
    return Snapshot(repo, revision, commit, None, folder, Hub("", {}, None))
