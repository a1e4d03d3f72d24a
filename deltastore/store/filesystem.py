"""What kind of file system a directory is on."""

from __future__ import annotations

import os
import re
from pathlib import Path

NETWORK_TYPES = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
        "virtiofs",
        "wekafs",
    }
)


def file_system_type(path: Path) -> str | None:
    """The type of the file system that ``path`` is on, as the kernel calls it; None elsewhere."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        device = path.stat().st_dev
    except OSError:
        return None
    numbers = f"{os.major(device)}:{os.minor(device)}"
    by_device = by_path = None
    longest = -1
    real = path.resolve()
    for line in mounts.splitlines():
        # "36 35 98:0 /root /mount/point options [tags] - type source options"
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split(" ", 1)[0]
        if len(fields) < 5:
            continue
        if fields[2] == numbers:
            by_device = kind
        point = _unescaped(fields[4])
        if real.is_relative_to(point) and len(point) >= longest:
            by_path, longest = kind, len(point)
    # btrfs and overlays give files other numbers than the mount has.
    return by_device or by_path


def mount_points() -> list[Path]:
    """Where this process sees something mounted; nothing where the kernel does not tell."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return [
        Path(_unescaped(line.split()[4])) for line in mounts.splitlines() if line.count(" ") > 4
    ]


def _unescaped(text: str) -> str:
    r"""Blanks and backslashes stand as ``\040`` and the like."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
