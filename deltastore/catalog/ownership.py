"""Whether a file is solely the user's: who else may write it, or put another one in its place.

SQLite trusts the files that it opens: what lies beside a database as its journal is played back,
and a journal may name any file to be deleted. So a database that somebody else may write is never
opened as it lies.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

from deltastore.system.permission import group_name, user_name

_ACL = "system.posix_acl_access"


def other_writer(path: Path, *, follow: bool = True) -> str:
    """Who besides the user may write a file or list names in a directory, as a sentence's end.

    Args:
        path: The file or directory.
        follow: Look at what a link leads to as well.

    Returns:
        Empty if nobody may, or there is no such file.
    """
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            if status.st_uid != os.geteuid():
                return _belongs(path, status)
            if not follow:
                # Whoever opens it refuses links.
                return ""
            status = path.stat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path} cannot be looked at: {error.strerror}"
    if status.st_uid != os.geteuid():
        return _belongs(path, status)
    return _also_written(path, status)


def other_mover(path: Path) -> str:
    """Who besides the user and root may put something else in the place of a real path.

    Args:
        path: Without links.

    Returns:
        Empty if nobody may.
    """
    for directory in path.parents:
        try:
            status = directory.stat()
        except OSError as error:
            return f"{directory} cannot be looked at: {error.strerror}"
        if status.st_uid not in (0, os.geteuid()):
            return _belongs(directory, status)
        # In a sticky directory only the owner of a file, or of the directory, may move it.
        if not status.st_mode & stat.S_ISVTX and (reason := _also_written(directory, status)):
            return reason
    return ""


def _belongs(path: Path, status: os.stat_result) -> str:
    return f"{path} belongs to {user_name(status.st_uid)}"


def _also_written(path: Path, status: os.stat_result) -> str:
    if status.st_mode & stat.S_IWOTH:
        return f"everybody may write {path}"
    # Where there is an access list, these bits are the most that it allows to anybody.
    if status.st_mode & stat.S_IWGRP:
        if not _is_private_group(status.st_gid):
            return f"the group {group_name(status.st_gid)} may write {path}"
        if _has_access_list(path):
            return f"{path} has an access list by which others may write it"
    return ""


def _is_private_group(gid: int) -> bool:
    """Whether a group is one that systems with a umask of 002 make for each user."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    alone = set(group.gr_mem) <= {user.pw_name}
    return alone and gid == user.pw_gid and group.gr_name == user.pw_name


def _has_access_list(path: Path) -> bool:
    if not hasattr(os, "getxattr"):
        return False
    try:
        os.getxattr(path, _ACL)
    except OSError as error:
        return error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.ENOSYS)
    return True
