"""Leases: what says that a process is about to change a name, or is at work on blobs.

A lease is there from before the change until the catalog has it. One that outlived its process
tells the next one which name to look at, so that opening a store never has to compare all records
with the catalog.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deltastore.blobs import durable
from deltastore.blobs.owner import is_dead
from deltastore.blobs.regular import read_regular
from deltastore.digest import canonical_json
from deltastore.errors import ManifestInvalidError, RefSyntaxError
from deltastore.manifest.parse import load_json
from deltastore.refs import validate_name
from deltastore.store.layout import now
from deltastore.store.records import printable

_MAX_LEASE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease's file. ``dead``: the process that held it has provably ended."""

    path: Path
    purpose: str
    name: str | None
    host: str
    pid: int
    created: str
    dead: bool


class Leases:
    """The directory of leases, and of the temporary files that die with their processes.

    Args:
        directory: Holds one file per lease.
        temp: Where files are written first; on the same file system.
    """

    def __init__(self, directory: Path, temp: Path) -> None:
        self._directory = directory
        self._temp = temp

    @contextlib.contextmanager
    def hold(self, purpose: str, name: str | None = None) -> Iterator[Path]:
        """Hold a lease until the block ends, whichever way it ends.

        Raises:
            StoreReadOnlyError: The user may not write.
            NoSpaceError: The disk is full.
        """
        document = canonical_json(
            {
                "purpose": purpose,
                "name": name,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "created": now(),
            }
        )
        with durable.translated(self._directory):
            temp = durable.write_temp(self._temp, [document])
            path = self._directory / f"{temp.name}.json"
            # Synced: after a power cut the record may be there, and then the lease must be too.
            try:
                durable.replace(temp, path)
            except FileNotFoundError:
                self._directory.mkdir(exist_ok=True)
                durable.replace(durable.write_temp(self._temp, [document]), path)
        try:
            yield path
        finally:
            # A lease that cannot be removed costs the next open a look at one name, no more.
            with contextlib.suppress(OSError):
                path.unlink()

    def all(self) -> list[Lease]:
        """The leases that are there."""
        return [
            lease
            for path in _files(self._directory)
            if path.suffix == ".json" and (lease := _read(path)) is not None
        ]

    def stale_temps(self) -> list[Path]:
        """Temporary files whose process has provably ended."""
        return [path for path in _files(self._temp) if is_dead(path.name)]


def _files(directory: Path) -> list[Path]:
    try:
        return [directory / name for name in os.listdir(directory)]  # noqa: PTH208 - fewer objects
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _read(path: Path) -> Lease | None:
    """A lease; with nothing but its path where it cannot be read; None where it has just ended."""
    dead = is_dead(path.name)
    try:
        data = read_regular(path, limit=_MAX_LEASE_BYTES)
        fields = load_json(data, limit=_MAX_LEASE_BYTES, where=str(path))
    except FileNotFoundError:
        return None
    except (OSError, ManifestInvalidError):
        fields = None
    if not isinstance(fields, dict):
        fields = {}
    name = fields.get("name")
    try:
        name = validate_name(name) if isinstance(name, str) else None
    except RefSyntaxError:
        name = None
    pid = fields.get("pid")
    return Lease(
        path=path,
        purpose=_text(fields.get("purpose")),
        name=name,
        host=_text(fields.get("host")),
        pid=pid if isinstance(pid, int) and 0 < pid < 1 << 31 else 0,
        created=_text(fields.get("created")),
        dead=dead,
    )


def _text(value: object) -> str:
    return printable(value) if isinstance(value, str) else "unknown"
