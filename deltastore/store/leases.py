"""Leases: what says that a process is about to change a name, or relies on blobs.

A lease is there from before the change until the catalog has it. One that outlived its process
tells the next one which name to look at, so that opening a store never has to compare all records
with the catalog; and while a lease of a writer is there, ``collecting`` deletes no blob.

Whether a lease's process lives is asked of the system where it runs on this machine. Of others
only the lease's heartbeat is known, its file's modification time on the file server's clock. A
clock may lie: whoever takes a lease away fences its process off (see ``fence``), so that a wrong
guess costs that process its work and the store nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deltastore.blobs import durable
from deltastore.blobs.owner import is_alive, is_dead, token_of
from deltastore.blobs.regular import read_regular
from deltastore.digest import canonical_json
from deltastore.errors import ManifestInvalidError, RefSyntaxError
from deltastore.manifest.parse import load_json
from deltastore.refs import validate_name
from deltastore.store.layout import now
from deltastore.store.records import printable

HEARTBEAT_S = 60.0
"""How often a process that holds a lease touches it."""

OVER_S = 3600.0
"""After how long without a heartbeat a process that cannot be asked counts as ended."""

GATE_WAIT_S = 60.0
"""How long a writer waits for a collector before it takes the collector's bin away."""

COLLECTOR = "gc"
WITHOUT_BLOBS = frozenset({"tag", "untag", "rm", COLLECTOR})
"""Purposes that rely on no blob. Any other one counts as a writer, unknown ones included."""

_MAX_LEASE_BYTES = 64 << 10
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease's file.

    ``dead``: the process that held it has provably ended. ``alive``: it provably runs.
    ``touched``: the last heartbeat, in seconds on the file server's clock.
    """

    path: Path
    purpose: str
    name: str | None
    host: str
    pid: int
    created: str
    dead: bool
    alive: bool
    touched: float

    def over(self, at: float) -> bool:
        """Whether its process counts as ended ``at`` a time of the file server's clock.

        A heartbeat far in the future is as over as one far in the past: the clock jumped, and a
        process that lives would have touched the lease since.
        """
        return self.dead or (not self.alive and abs(at - self.touched) > OVER_S)

    @property
    def writes(self) -> bool:
        """Whether its process relies on blobs."""
        return self.purpose not in WITHOUT_BLOBS

    @property
    def holder(self) -> str:
        """Who holds it, for people."""
        return f"{self.purpose} by process {self.pid} on {self.host} since {self.created}"


class Leases:
    """The directory of leases, and of the temporary files that die with their processes.

    Args:
        directory: Holds one file per lease.
        temp: Where files are written first; on the same file system.
    """

    def __init__(self, directory: Path, temp: Path) -> None:
        self._directory = directory
        self._temp = temp
        self._writing: set[Path] = set()
        self._left: set[Path] = set()

    @contextlib.contextmanager
    def hold(self, purpose: str, name: str | None = None) -> Iterator[Path]:
        """Hold a lease until the block ends, whichever way it ends.

        A writer's block begins when no collector is left that may not have seen the lease.

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
        ended = threading.Event()
        heart = threading.Thread(target=_beat, args=(path, ended), name="lease", daemon=True)
        heart.start()
        try:
            if purpose not in WITHOUT_BLOBS:
                # Within another lease of a writer there is no need to wait, and a collector may
                # be waiting for that one to end. It is there, so whoever takes it away looks for
                # leases after that, and finds the new one.
                if not any(outer.exists() for outer in self._writing):
                    self._wait_for_collectors()
                self._writing.add(path)
            yield path
        finally:
            self._writing.discard(path)
            ended.set()
            heart.join()
            # A lease that cannot be removed costs the next open a look at one name, no more.
            if path not in self._left:
                with contextlib.suppress(OSError):
                    path.unlink()

    def leave(self, lease: Path) -> None:
        """Let a lease that is held outlast its block: the next command has something to do."""
        self._left.add(lease)

    def all(self) -> list[Lease]:
        """The leases that are there."""
        return [
            lease
            for path in _files(self._directory)
            if path.suffix == ".json" and (lease := _read(path)) is not None
        ]

    def all_or_error(self) -> list[Lease]:
        """The leases that are there, where missing one would be a danger.

        Raises:
            StoreReadOnlyError: The user may not look.
            StoreError: The system refuses for another reason.
        """
        with durable.translated(self._directory):
            os.listdir(self._directory)  # noqa: PTH208 - only whether it can be read
        return self.all()

    def stale_temps(self) -> list[Path]:
        """Temporary files and bins whose process has provably ended."""
        return [path for path in _files(self._temp) if is_dead(path.name)]

    def old_temps(self, at: float, age_s: float) -> list[Path]:
        """Temporary files and bins of processes that cannot be asked, untouched for ``age_s``.

        Args:
            at: The time, in seconds on the file server's clock.
            age_s: How long, in seconds.
        """
        leased = {token_of(lease.path.name) for lease in self.all()}
        found = []
        for path in _files(self._temp):
            token = token_of(path.name)
            if token is None or token in leased or is_alive(path.name):
                continue
            with contextlib.suppress(OSError):
                if at - path.lstat().st_mtime > age_s:
                    found.append(path)
        return found

    def strangers(self) -> list[Path]:
        """What lies among the temporary files and was not made by any deltastore."""
        return [path for path in _files(self._temp) if token_of(path.name) is None]

    def server_time(self) -> float:
        """The time on the file server's clock, in seconds: what a file made now is stamped with.

        Raises:
            StoreReadOnlyError: The user may not write.
            NoSpaceError: The disk is full.
        """
        with durable.translated(self._temp):
            temp = durable.write_temp(self._temp, [b"\0"])
            try:
                return temp.stat().st_mtime
            finally:
                temp.unlink(missing_ok=True)

    def fence(self, lease: Lease) -> None:
        """Take a lease away so that its process, even if it lives, can do no harm.

        First the lease goes, then what the process needs for its next irrevocable step: the
        temporary file that would become a record, the bin that blobs would be moved to. Both steps
        fail without it, and a process that makes it anew finds its lease gone.
        """
        with durable.translated(lease.path):
            lease.path.unlink(missing_ok=True)
        token = token_of(lease.path.name)
        if token is None:
            return
        with durable.translated(self._temp):
            for name in os.listdir(self._temp):  # noqa: PTH208 - fewer objects
                if token_of(name) == token:
                    self._take_away(self._temp / name)

    def discard(self, temp: Path) -> int:
        """Remove a temporary file, or a bin with all that is in it, if that can be done.

        Returns:
            How many bytes that freed.
        """
        with contextlib.suppress(OSError):
            return self._take_away(temp)
        return 0

    def _take_away(self, temp: Path) -> int:
        try:
            if temp.is_symlink() or not temp.is_dir():
                size = temp.lstat().st_size
                temp.unlink()
                return size
            # Renamed first: its process, if it lives, must find it gone at once.
            mine = temp.rename(durable.temp_path(self._temp))
        except FileNotFoundError:
            return 0
        size = 0
        with contextlib.suppress(OSError):
            size = sum(path.lstat().st_size for path in mine.iterdir())
        shutil.rmtree(mine, ignore_errors=True)
        return size

    @contextlib.contextmanager
    def bin(self) -> Iterator[Path]:
        """A directory of this process for what is on its way out; emptied at the end."""
        path = durable.temp_path(self._temp)
        with durable.translated(path):
            try:
                path.mkdir()
            except FileNotFoundError:
                self._temp.mkdir(exist_ok=True)
                path.mkdir()
        try:
            yield path
        finally:
            # Nothing refers to what is in it: if this fails, the next command tries again.
            shutil.rmtree(path, ignore_errors=True)

    def _wait_for_collectors(self) -> None:
        """Wait until every collector is gone that may have looked before our lease was there.

        Those that come later see the lease. A collector that takes too long, or whose process
        cannot be asked, loses its bin: it can delete nothing from then on.
        """
        deadline = time.monotonic() + GATE_WAIT_S
        waiting = {lease.path for lease in self.all() if lease.purpose == COLLECTOR}
        while waiting:
            present = [lease for lease in self.all() if lease.path in waiting and not lease.dead]
            if time.monotonic() > deadline:
                for lease in present:
                    self.fence(lease)
                return
            waiting = {lease.path for lease in present}
            if waiting:
                time.sleep(_POLL_S)


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_S):
        try:
            # Without times of ours: a file server then takes its own clock.
            os.utime(path)
        except FileNotFoundError:
            # Somebody took the lease away. The commit looks for itself.
            return
        except OSError:
            continue


def _files(directory: Path) -> list[Path]:
    try:
        return [directory / name for name in os.listdir(directory)]  # noqa: PTH208 - fewer objects
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _read(path: Path) -> Lease | None:
    """A lease; with nothing but its path where it cannot be read; None where it has just ended."""
    dead, alive = is_dead(path.name), is_alive(path.name)
    fields = None
    touched = 0.0
    try:
        touched = path.lstat().st_mtime
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
        alive=alive,
        touched=touched,
    )


def _text(value: object) -> str:
    return printable(value) if isinstance(value, str) else "unknown"
