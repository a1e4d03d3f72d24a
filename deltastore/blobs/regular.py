"""Reading a file of the store, if it is one: no link is followed, no pipe waited for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from deltastore.system.directory import Directory


def read_regular(path: Path, *, limit: int, within: Directory | None = None) -> bytes:
    """The file's bytes, of which at most one more than ``limit`` is read.

    Args:
        path: The file.
        limit: In bytes.
        within: The directory that it lies in, if that is held open.

    Raises:
        OSError: It cannot be read; ``ELOOP`` for a symbolic link, ``EINVAL`` for a directory, a
            pipe or a device.
    """
    # Without O_NONBLOCK the opening of a pipe would wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags) if within is None else within.read(path.name)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with open(descriptor, "rb") as file:
        return file.read(limit + 1)
