"""Whether the directories of a store are on one file system, and there on one mount.

A file gets its name by a rename or a link from the directory of temporary files, which the system
does within one mount alone: not to another disk, and not to a directory that is mounted on its own,
as a container's volume is, even where that is on the same disk.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from deltastore.errors import StoreError
from deltastore.store.filesystem import mount_points
from deltastore.store.layout import Layout
from deltastore.text import typed

_MOUNT = re.compile(r"^mnt_id:\s*([0-9]+)$", re.MULTILINE)


def apart(layout: Layout, paths: Iterable[Path]) -> list[Path]:
    """Those directories to which nothing can be renamed from the temporary files.

    What is not there, or cannot be looked at, is not among them.
    """
    temp = _mount(layout.temp)
    if temp is None:
        return []
    return [path for path in paths if (found := _mount(path)) is not None and found != temp]


def all_apart(layout: Layout) -> list[Path]:
    """The same of all directories of the store, those of single names included."""
    own = (layout.root, layout.blobs, layout.names, layout.leases)
    found = apart(layout, own)
    below = (layout.blobs, layout.names, layout.leases)
    roots = [os.path.realpath(path) for path in below]
    inner = [
        point
        for point in mount_points()
        if any(point != Path(root) and point.is_relative_to(root) for root in roots)
    ]
    return found + inner


def require_together(layout: Layout, paths: Iterable[Path]) -> None:
    """Refuse at once what could not be given its name in the end.

    Raises:
        StoreError: One of the directories is apart.
    """
    if found := apart(layout, paths):
        raise StoreError(
            f"{found[0]} is on another file system or mount than {layout.temp}, so that nothing "
            "can be renamed into it; expected all of a store on one.",
            hint=on_one(layout),
            path=str(found[0]),
        )


def on_one(layout: Layout) -> str:
    """How a store gets onto one file system, as a hint."""
    root, copy = typed(layout.root), typed(f"{layout.root}-on-one")
    return f"Copy it to one, as with `cp -aL {root} {copy}`, and use the copy: `--store {copy}`."


def _mount(path: Path) -> tuple[int, str] | None:
    """What a directory is on: the device, and which of its mounts where the system tells."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        device, mount = os.fstat(descriptor).st_dev, ""
        with contextlib.suppress(OSError):
            text = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
            if (found := _MOUNT.search(text)) is not None:
                mount = found[1]
    finally:
        os.close(descriptor)
    return device, mount
