"""What is closed to this user: whose it is, and the command that opens it."""

from __future__ import annotations

import contextlib
import grp
import itertools
import os
import pwd
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from deltastore.errors import StoreClosedError
from deltastore.text import typed

_DEEPEST = 3
"""Files below ``names`` are in a directory of tags, in one of a name."""


def closed(path: Path, *trees: tuple[Path, Path]) -> StoreClosedError:
    """The error of what is there and closed to this user.

    Args:
        path: What cannot be read.
        trees: What is to be opened, as for ``reading``; ``path`` where nothing is given.
    """
    stop = closest(path)
    return StoreClosedError(
        f"{path} cannot be read: Permission denied ({described(stop, named=stop != path)}).",
        hint=f"{reading(trees or [(path, path)])}.",
        path=str(path),
    )


def reading(trees: Iterable[tuple[Path, Path]]) -> str:
    """Who types what to have this user read some trees, without a full stop at the end.

    Args:
        trees: Each, and what in it is closed: by that it is known for whom to open it. Where a
            directory above a tree bars the way, it alone is opened: what is in it cannot be seen.
    """
    steps: dict[str, list[Path]] = {}
    owners: set[str] = set()
    for tree, found in trees:
        stop = closest(found)
        whom = _whom(stop)
        owners.add(owner(stop))
        if stop in tree.parents:
            _add(steps, f"chmod {whom}+x", stop)
        elif os.path.isdir(tree):  # noqa: PTH112
            _add(steps, f"chmod -R {whom}+rX", tree)
        else:
            _add(steps, f"chmod {whom}+r", tree)
    return typed_by(owners, _joined(steps))


def writing(root: Path, paths: Iterable[Path]) -> str:
    """Who types what to have this user write in a store, without a full stop at the end.

    Args:
        root: The store's directory.
        paths: Those in it, or itself, that this user may not write.
    """
    stops = list(dict.fromkeys(stop for path in paths for stop in (closest(path), path)))
    if any(_whom(closest(stop)) == "o" for stop in stops):
        # What everybody may write is nobody's: it takes a group.
        return f"Have root run `{_grouped(root)}`"
    steps: dict[str, list[Path]] = {}
    for stop in stops:
        # Blobs are read-only for everybody, so that nothing is opened with all that is in it.
        _add(steps, f"chmod {_whom(closest(stop))}+rwX", stop)
    return typed_by({owner(closest(stop)) for stop in stops}, _joined(steps))


def _grouped(root: Path) -> str:
    status, where = root.stat(), typed(root)
    if status.st_mode & stat.S_IWGRP:
        return f"usermod -aG {group_name(status.st_gid)} {_login()}"
    return (
        f"chgrp -R {group_name(os.getegid())} {where} && chmod -R g+rX {where} && "
        f"find {where} -type d -exec chmod g+ws {{}} +"
    )


def _login() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def typed_by(owners: set[str], command: str) -> str:
    """``Run …``, or who is to be asked to."""
    if owners == {user_name(os.geteuid())}:
        return f"Run `{command}`"
    # What belongs to several users only root can change in one go.
    return f"Have {owners.pop() if len(owners) == 1 else 'root'} run `{command}`"


def closest(path: Path) -> Path:
    """What stops this user on the way to a path: a directory above it, or else the path itself."""
    path = path.absolute()
    for directory in reversed(path.parents):
        if not os.access(directory, os.X_OK):
            # Of what is not there nothing bars the way.
            return directory if os.path.lexists(directory) else path
    return path


def is_readable(path: Path) -> bool:
    """Whether this user may read a file, or list a directory and open what is in it.

    What is not there is not closed.
    """
    if os.access(path, os.R_OK):
        return os.access(path, os.X_OK) or not os.path.isdir(path)  # noqa: PTH112
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # where the way is barred nobody knows what is there
    return False


def first_closed(tree: Path, *, most: int) -> Path | None:
    """The first thing in a tree, or itself, that this user may not read.

    Args:
        tree: A file or directory of a store; it need not exist, and may be a link itself.
        most: How many entries are looked at.
    """
    found = itertools.islice(_within(tree), most)
    return next((path for path in found if not is_readable(path)), None)


def described(path: Path, *, named: bool = True) -> str:
    """Whose something is, and its permissions, for a sentence."""
    what = str(path) if named else "it"
    try:
        status = path.lstat()
    except OSError:
        return f"{what} cannot be looked at"
    mode = stat.S_IMODE(status.st_mode)
    return (
        f"{what} belongs to {user_name(status.st_uid)} and the group "
        f"{group_name(status.st_gid)}, with mode {mode:04o}"
    )


def is_mounted_read_only(path: Path) -> bool:
    """Whether nobody can write there, whatever the permissions say."""
    with contextlib.suppress(OSError):
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    return False


def owner(path: Path) -> str:
    """The name of the user whose something is; root where that cannot be seen."""
    try:
        return user_name(path.lstat().st_uid)
    except OSError:
        return "root"


def user_name(uid: int) -> str:
    """The name of a user; where there is none, the number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def group_name(gid: int) -> str:
    """The name of a group; where there is none, the number."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _within(tree: Path, *, deep: int = _DEEPEST) -> Iterator[Path]:
    """What a store may have in one of its directories; links in it lead to nothing of it."""
    yield tree
    if not deep:
        return
    try:
        names = sorted(os.listdir(tree))  # noqa: PTH208 - names alone
    except OSError:
        return
    for name in names:
        # os.path, as Path's raises an error of what may not be looked at.
        if not os.path.islink(tree / name):  # noqa: PTH114
            yield from _within(tree / name, deep=deep - 1)


def _whom(path: Path) -> str:
    """For whom a path has to be opened, as ``chmod`` calls it."""
    try:
        status = path.lstat()
    except OSError:
        return "go"
    if status.st_uid == os.geteuid():
        return "u"
    return "g" if status.st_gid in {os.getegid(), *os.getgroups()} else "o"


def _add(steps: dict[str, list[Path]], how: str, path: Path) -> None:
    paths = steps.setdefault(how, [])
    if path not in paths:
        paths.append(path)


def _joined(steps: dict[str, list[Path]]) -> str:
    return " && ".join(
        f"{how} {' '.join(typed(path) for path in paths)}" for how, paths in steps.items()
    )
