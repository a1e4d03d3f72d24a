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
import re
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deltastore.blobs import durable, spares
from deltastore.blobs.owner import is_alive, is_dead, token_of
from deltastore.blobs.regular import read_regular
from deltastore.digest import canonical_json
from deltastore.errors import ManifestInvalidError, RefSyntaxError, StoreError
from deltastore.manifest.parse import load_json
from deltastore.refs import parse_version, validate_name
from deltastore.store.bins import is_directory, is_nested, take_away
from deltastore.store.layout import now
from deltastore.store.records import printable
from deltastore.system import limits
from deltastore.system.directory import Directory, Place
from deltastore.system.threads import started

HEARTBEAT_S = 60.0
"""How often a process that holds a lease touches it."""

OVER_S = 3600.0
"""After how long without a heartbeat a process that cannot be asked counts as ended."""

GATE_WAIT_S = 10.0
"""How long a writer waits for a collector before it takes the collector's bin away."""

COLLECTOR = "gc"
FREEING = frozenset({"rm", "untag", COLLECTOR})
"""Purposes that free space, or need none: they go on to the last spare file."""
WITHOUT_BLOBS = frozenset({"tag", "untag", "rm", COLLECTOR})
"""Purposes that rely on no blob. Any other one counts as a writer, unknown ones included."""

_CLAIM = re.compile(r"(?P<name>.+)\.(?P<version>v[0-9]+)\.rm\Z", re.DOTALL)
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
        self._place = Place(directory)
        self._temps = Place(temp)
        self._writing: set[Path] = set()

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
        ended = threading.Event()
        heart: threading.Thread | None = None
        with durable.translated(self._directory):
            path, descriptor, spare = self._create(
                document, leaving=0 if purpose in FREEING else spares.KEPT
            )
        try:  # at once: starting a thread takes long enough for a signal to come
            beat = threading.Thread(
                target=_beat, args=(descriptor, ended), name="lease", daemon=True
            )
            # Where no thread can start, this machine still sees the process; others take the lease
            # for over after an hour.
            heart = beat if started(beat) else None
            if purpose not in WITHOUT_BLOBS:
                # Within another lease of a writer there is no need to wait, and a collector may
                # be waiting for that one to end. It is there, so whoever takes it away looks for
                # leases after that, and finds the new one.
                if not any(os.path.lexists(outer) for outer in self._writing):
                    self._wait_for_collectors()
                self._writing.add(path)
            yield path
        finally:
            self._writing.discard(path)
            ended.set()
            if heart is not None:
                heart.join()
            os.close(descriptor)
            # A lease that cannot be removed costs the next open a look at one name, no more.
            with contextlib.suppress(OSError, StoreError):
                self._drop(path.name, spare=spare)

    def drop(self, lease: Lease) -> None:
        """Remove the lease of a process that has ended."""
        self._drop(lease.path.name)

    def all(self) -> list[Lease]:
        """The leases that are there."""
        with _looked(self._place) as (held, names):
            # No deltastore makes a directory here; it is named among the strangers.
            found = [
                _read(held, name)
                for name in names
                if _is_lease(name) and not is_directory(held, name)
            ]
        return [lease for lease in found if lease is not None]

    def all_or_error(self) -> list[Lease]:
        """The leases that are there, where missing one would be a danger.

        Raises:
            StoreReadOnlyError: The user may not look.
            StoreError: The system refuses for another reason.
        """
        with durable.translated(self._directory, "read"):
            try:
                with self._place.hold() as held:
                    held.names()
            except FileNotFoundError:
                return []  # a copy without empty directories
        return self.all()

    def stale_temps(self) -> list[Path]:
        """Temporary files and bins whose process has provably ended."""
        with _looked(self._temps) as (temps, names):
            return [
                self._temp / name for name in names if is_dead(name) and not is_nested(temps, name)
            ]

    def old_temps(self, at: float, age_s: float) -> list[Path]:
        """Temporary files and bins of processes that cannot be asked, untouched for ``age_s``.

        Args:
            at: The time, in seconds on the file server's clock.
            age_s: How long, in seconds.
        """
        leased = {token_of(lease.path.name) for lease in self.all()}
        found = []
        with _looked(self._temps) as (temps, names):
            for name in names:
                token = token_of(name)
                if token is None or token in leased or is_alive(name):
                    continue
                with contextlib.suppress(OSError):
                    old = at - temps.status(name).st_mtime > age_s
                    if old and not is_nested(temps, name):
                        found.append(self._temp / name)
        return found

    def strangers(self) -> list[Path]:
        """What lies among leases and temporary files and was not made by any deltastore.

        That is, among others, a directory among the temporary files that has one in it. It stays.
        """
        with _looked(self._temps) as (temps, names):
            found = [
                self._temp / name
                for name in names
                if token_of(name) is None or is_nested(temps, name)
            ]
        with _looked(self._place) as (held, names):
            found += [
                self._directory / name
                for name in names
                if not (_is_lease(name) or is_claim(name)) or is_directory(held, name)
            ]
        return found

    def server_time(self) -> float:
        """The time on the file server's clock, in seconds: what a file made now is stamped with.

        Raises:
            StoreReadOnlyError: The user may not write.
            NoSpaceError: The disk is full.
        """
        with (
            durable.translated(self._temp),
            durable.write_temp(self._temp, [b"\0"], leaving=0) as temp,
        ):
            return os.fstat(temp.descriptor).st_mtime

    def fence(self, lease: Lease) -> None:
        """Take a lease away so that its process, even if it lives, can do no harm.

        First the lease goes, then what the process needs for its next irrevocable step: the
        temporary file that would become a record, the bin that blobs would be moved to. Both steps
        fail without it, and a process that makes it anew finds its lease gone.

        Raises:
            StoreError: Something of the process cannot be taken away.
        """
        with durable.translated(lease.path):
            self._drop(lease.path.name)
        token = token_of(lease.path.name)
        with durable.translated(self._temp), self._temps.hold() as temps:
            for name in temps.names():
                if token_of(name) != token:
                    continue
                try:
                    take_away(temps, name)
                except OSError:
                    # Of the dead nothing has to go.
                    if not is_dead(name):
                        raise

    def discard(self, temp: Path) -> int | None:
        """Remove a temporary file, or a bin with all that is in it, if that can be done.

        Returns:
            How many bytes that freed; None where it stays.
        """
        with contextlib.suppress(OSError), self._temps.hold() as temps:
            return take_away(temps, temp.name)
        return None

    @contextlib.contextmanager
    def bin(self) -> Iterator[Directory]:
        """A directory of this process for what is on its way out; emptied at the end.

        It is held open: blobs are moved into it whatever its name leads to, and no more once it is
        removed.
        """
        name = durable.temp_name()
        with durable.translated(self._temp), self._temps.make() as temps:
            spare = False
            try:
                bin_ = temps.make(name)
            except OSError as error:
                spare = error.errno in limits.NO_SPACE and spares.take_bin(self._temp, temps, name)
                if not spare:
                    raise
                bin_ = temps.open(name)
            with contextlib.suppress(OSError):
                # Whoever may take it away must be able to empty it.
                mode = stat.S_IMODE(os.fstat(temps.descriptor).st_mode)
                os.fchmod(bin_.descriptor, mode & ~stat.S_ISVTX | stat.S_IRWXU)
        with bin_:
            try:
                yield bin_
            finally:
                # Nothing refers to what is in it: if this fails, the next command tries again.
                with contextlib.suppress(OSError, StoreError), self._temps.hold() as temps:
                    bin_.clear(folders=0)
                    if not (spare and spares.give_bin_back(self._temp, temps, name, bin_)):
                        temps.remove(name, bin_)

    def has_bin(self, bin_: Directory) -> bool:
        """Whether a bin is still there: nobody has fenced this process off."""
        with _looked(self._temps) as (temps, _):
            return temps.leads_to(bin_.path.name, bin_)

    def _create(self, document: bytes, *, leaving: int) -> tuple[Path, int, bool]:
        """Put a lease down: where it is, its descriptor, and whether it was a spare file."""
        # Synced: after a power cut the record may be there, and then the lease must be too.
        with durable.write_temp(self._temp, [document], leaving=leaving) as temp:
            name = f"{temp.path.name}.json"
            try:
                temp.replace(self._place, name)
            except FileNotFoundError:
                self._place.make().close()
                temp.replace(self._place, name)
            return self._directory / name, os.dup(temp.descriptor), temp.spare

    def _drop(self, name: str, *, spare: bool = False) -> None:
        with self._place.hold() as leases:
            if not (spare and spares.give_back(self._temp, leases, name)):
                leases.unlink(name, missing_ok=True)

    def _has_bins(self, lease: Lease) -> bool:
        """Whether the process of a collector's lease has a bin, without which it deletes nothing.

        It makes the bin before the lease, and removes it after.
        """
        # A network file system's client that makes a file in a directory reads it anew.
        self.server_time()
        token = token_of(lease.path.name)
        with durable.translated(self._temp), self._temps.hold() as temps:
            return any(
                token_of(name) == token and is_directory(temps, name) for name in temps.names()
            )

    def _wait_for_collectors(self) -> None:
        """Wait until every collector is gone that may have looked before our lease was there.

        Those that come later see the lease. A collector that takes too long loses its bin, whether
        or not its process can be asked: it can delete nothing from then on. What says that it is
        a collector's lease, and has no bin, is not waited for.
        """
        deadline = time.monotonic() + GATE_WAIT_S
        waiting = {
            lease.path
            for lease in self.all()
            if lease.purpose == COLLECTOR and not lease.dead and self._has_bins(lease)
        }
        while waiting:
            present = [lease for lease in self.all() if lease.path in waiting and not lease.dead]
            if time.monotonic() > deadline:
                for lease in present:
                    self.fence(lease)
                return
            waiting = {lease.path for lease in present}
            if waiting:
                time.sleep(_POLL_S)


@contextlib.contextmanager
def _looked(place: Place) -> Iterator[tuple[Directory, list[str]]]:
    """A directory and the names in it; none where it is not there or may not be listed."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(durable.translated(place.path, "read"))
        held, names = Directory(-1, place.path), []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            held = stack.enter_context(place.hold())
            names = held.names()
        yield held, names


def _beat(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):
            # Somebody took the lease away. The commit looks for itself.
            if os.fstat(descriptor).st_nlink == 0:
                return
            # By its descriptor: the name may be another file's by now. Without times of ours: a
            # file server then takes its own clock.
            os.utime(descriptor)


def _is_lease(name: str) -> bool:
    """Whether a file's name is that of a lease: without a token it is nobody's."""
    return name.endswith(".json") and token_of(name) is not None


def is_claim(name: str) -> bool:
    """Whether a file's name is that of a claim to remove a version; see ``Claims``."""
    match = _CLAIM.match(name)
    if match is None or parse_version(match["version"]) is None:
        return False
    try:
        validate_name(match["name"])
    except RefSyntaxError:
        return False
    return True


def _read(leases: Directory, file: str) -> Lease | None:
    """A lease; with nothing but its path where it cannot be read; None where it has just ended."""
    path = leases.path / file
    dead, alive = is_dead(file), is_alive(file)
    fields = None
    touched = 0.0
    try:
        touched = leases.status(file).st_mtime
        data = read_regular(path, limit=_MAX_LEASE_BYTES, within=leases)
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
