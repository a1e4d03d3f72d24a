"""What the hub's refusals and the network's failures mean to the user."""

from __future__ import annotations

import errno

from deltastore.checkpoint.hub.addresses import MisbehavedError, NoPartsError
from deltastore.checkpoint.hub.cache import cache_root
from deltastore.checkpoint.hub.exchange import RefusedError
from deltastore.checkpoint.hub.patience import TooSlowError
from deltastore.checkpoint.hub.retrying import is_transport, retry_after, status_of
from deltastore.errors import HubError, NoSpaceError
from deltastore.system.limits import NO_SPACE
from deltastore.text import typed

_NOT_A_HUB = "Check HF_ENDPOINT: {} does not behave as a model hub does."
_SAID = "X-Error-Message"
_BAD_LOGIN = "Invalid credentials in Authorization header"

_FULL = NO_SPACE | {errno.EFBIG}


def hub_error(
    error: Exception,
    *,
    repo: str,
    revision: str | None,
    doing: str,
    hint: str = "",
) -> HubError | NoSpaceError:
    """The error for a failure, to be used with ``raise ... from``.

    Args:
        error: What huggingface_hub or its transport raised.
        repo: The repository.
        revision: Branch, tag or commit; None if the user gave none.
        doing: The beginning of the sentence, up to the problem.
        hint: What to say where the hub did not answer.
    """
    cause = _cause(error)
    if isinstance(cause, OSError) and cause.errno in _FULL:
        return NoSpaceError(
            f"{doing} the file system of the hub's local cache is full ({cause.strerror}).",
            hint="Free some space, or put the cache elsewhere: `export HF_HOME=DIR`.",
            repo=repo,
        )
    if isinstance(cause, OSError) and cause.errno is not None and not is_transport(cause):
        return HubError(
            f"{doing} the hub's local cache cannot be used ({cause.strerror}).",
            hint=f"Check the permissions: `ls -ld {typed(cache_root())}`; or `export HF_HOME=DIR`.",
            repo=repo,
            revision=revision,
        )
    problem, help_ = _explained(cause, repo, revision, hint)
    return HubError(
        f"{doing} {problem}.",
        hint=help_ or hint or f"Fetch it while online: `{download_command(repo, revision)}`.",
        repo=repo,
        revision=revision,
        status=status_of(cause),
    )


def download_command(repo: str, revision: str | None) -> str:
    """The command that fetches a repository into the hub's local cache."""
    return f"hf download {repo}" + (f" --revision {typed(revision)}" if revision else "")


def _cause(error: BaseException) -> BaseException:
    """The failure itself, where the library has wrapped it in advice."""
    seen = 0
    while type(error).__name__ == "LocalEntryNotFoundError" and error.__cause__ and seen < 8:
        error, seen = error.__cause__, seen + 1
    return error


def _explained(error: BaseException, repo: str, revision: str | None, hint: str) -> tuple[str, str]:
    """What went wrong, and what helps: ``hint`` where the hub did not answer."""
    from huggingface_hub import constants

    if isinstance(error, MisbehavedError):
        trust = "" if isinstance(error, NoPartsError) else _NOT_A_HUB.format(constants.ENDPOINT)
        return f"the server {error}", trust
    if isinstance(error, TooSlowError):
        return f"the hub is too slow: {error}", hint
    kind, status = type(error).__name__, status_of(error)
    code = _code(error)
    if code == "GatedRepo":
        return (
            f"the hub wants its terms to be accepted first ({code})",
            f"Accept them at {constants.ENDPOINT}/{repo}, then `hf auth login`.",
        )
    if code == "RepoNotFound":
        return (
            f"the hub has no such repository, or it is private ({code})",
            "Check the id; for a private repository, `hf auth login`.",
        )
    if code == "RevisionNotFound":
        return (
            f"the hub has the repository but no revision {revision!r} ({code})",
            f"Check the revision after the @; see them at {constants.ENDPOINT}/{repo}/refs.",
        )
    if code == "EntryNotFound":
        return (
            f"the hub has no such file at this commit ({code})",
            f"See what there is: {constants.ENDPOINT}/{repo}/tree/{revision or 'main'}.",
        )
    if status in (401, 403):
        return (
            f"the hub refused it ({status})",
            "Check the token: `hf auth whoami`; log in again: `hf auth login`.",
        )
    if status == 429:
        after = retry_after(error)
        wait = f"; it asks to wait {after:.0f} s" if after is not None else ""
        return (
            f"the hub counts too many requests (429){wait}",
            "Wait, then run the command again; `hf auth login` raises the limit.",
        )
    if status is not None and status >= 500:
        return (
            f"the hub is out of order ({status})",
            "Run the command again later; `HF_HUB_OFFLINE=1` uses the local cache alone.",
        )
    if status is not None:
        return f"the hub refused it ({status})", ""
    if kind in ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "IncompleteSnapshotError"):
        return f"the hub's local cache does not hold it whole ({kind})", ""
    return (
        f"the hub cannot be reached ({_words(error)})",
        hint
        or "Check the connection; what was fetched before is read without one: "
        f"`{download_command(repo, revision)}`.",
    )


def _code(error: BaseException) -> str:
    """The hub's word for a refusal."""
    if not isinstance(error, RefusedError):
        return ""
    if error.status == 401 and not error.code and error.headers.get(_SAID) != _BAD_LOGIN:
        # A repository that is not there looks to strangers as a private one does.
        return "RepoNotFound"
    return error.code


def _words(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
