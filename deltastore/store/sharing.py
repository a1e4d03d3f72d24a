"""Whether a group can share a store: what ``doctor`` says of permissions and the umask."""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deltastore.blobs import FileBlobs
from deltastore.errors import StoreError
from deltastore.store import Store
from deltastore.system.permission import group_name, user_name
from deltastore.text import typed

_NAMES_LOOKED_AT = 1000
_FILES_LOOKED_AT = 1000


@dataclass(frozen=True, slots=True)
class Sharing:
    """What was found, and what to do about it; ``next`` is empty where all is in order."""

    found: str
    next: str = ""


def look_at_sharing(store: Store) -> Sharing:
    """Look at the store's permissions, which the umask of whoever made each file decided on."""
    root = store.path
    own = root.stat()
    # Where the index is in the store, nobody else may write: its group has no other member.
    if not store.parts.index.local or not own.st_mode & stat.S_IWGRP:
        return Sharing(
            f"{user_name(own.st_uid)} alone may write (mode {stat.S_IMODE(own.st_mode):04o})"
        )
    group = group_name(own.st_gid)
    closed = [
        (path, problem)
        for path, status in _looked_at(store)
        if (problem := _closed(path, status, own.st_gid, root=path == root))
    ]
    if closed:
        path, problem = closed[0]
        owners = sorted({user_name(path.lstat().st_uid) for path, _ in closed})
        more = f" ({len(closed) - 1} more)" if len(closed) > 1 else ""
        return Sharing(
            f"for the group {group}, but {path.relative_to(root)} {problem}{more}",
            f"Have {' and '.join(owners)} run {_repair(store, group, sticky=_is_sticky(closed))}",
        )
    umask = _umask()
    if umask is not None and umask & 0o070:
        return Sharing(
            f"for the group {group}, but this user's umask is {umask:03o}",
            "Type `umask 002` first, or put it into ~/.profile: with this one the group cannot "
            "change what you add.",
        )
    return Sharing(f"for the group {group}")


def _looked_at(store: Store) -> Iterator[tuple[Path, os.stat_result]]:
    """Directories first, and not more of a large store than takes a moment."""
    layout = store.parts.layout
    for path in (layout.root, layout.blobs.parent, layout.blobs, layout.names):
        yield from _status(path)
    for path in (layout.temp, layout.leases):
        yield from _status(path)
    for name in store.parts.names.all()[:_NAMES_LOOKED_AT]:
        directory = layout.names / name
        yield from _status(directory)
        yield from _status(directory / "tags")
        try:
            versions = store.parts.names.versions(name)
        except StoreError:
            continue
        for version in versions:
            yield from _status(store.parts.names.path(name, version))
    if isinstance(store.blobs, FileBlobs):
        for blob in itertools.islice(store.blobs.digests(), _FILES_LOOKED_AT):
            yield from _status(store.blobs.path(blob))


def _status(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        yield path, path.lstat()
    except OSError:
        return


def _closed(path: Path, status: os.stat_result, group: int, *, root: bool) -> str:
    # Files are replaced, not written: for that the directory is what counts.
    mode = status.st_mode
    shown = f"of {user_name(status.st_uid)} has mode {stat.S_IMODE(mode):04o}"
    needed = stat.S_IRGRP
    if stat.S_ISDIR(mode):
        needed = stat.S_IRWXG
        if mode & stat.S_ISVTX and not root:
            return f"{shown}: nobody can replace or remove in it what others made"
        if not mode & stat.S_ISGID:
            return f"{shown}: new files in it do not belong to the group"
    if mode & needed != needed:
        return shown
    return "" if status.st_gid == group else f"belongs to the group {group_name(status.st_gid)}"


def _is_sticky(closed: list[tuple[Path, str]]) -> bool:
    return any(path.lstat().st_mode & stat.S_ISVTX for path, _ in closed)


def _repair(store: Store, group: str, *, sticky: bool) -> str:
    path = typed(store.path)
    steps = [
        f"chgrp -R {group} {path}",
        f"chmod -R g+rX {path}",
        f"find {path} -type d -exec chmod g+ws {{}} +",
    ]
    if sticky:
        # In the store's own directory the bit does no harm.
        steps.append(f"find {path} -mindepth 1 -type d -exec chmod -t {{}} +")
    return f"`{' && '.join(steps)}`, and have everybody use `umask 002`."


def _umask() -> int | None:
    """The process's umask, where it can be known without changing it."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    match = re.search(r"^Umask:\s*([0-7]+)$", text, re.MULTILINE)
    return int(match[1], 8) if match else None
