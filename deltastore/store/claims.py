"""Who removes a version, where several processes want to: the one that makes the claim's file.

Publishing needs nothing of the kind, as the record's exclusive creation decides. A tombstone takes
the record's place by a rename, which succeeds for everybody; so of those who would remove one
version, one is chosen first, by an exclusive creation as well. There is no lock that two machines
could share.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from deltastore.blobs import durable
from deltastore.blobs.owner import is_alive, is_dead, owner_token, token_of
from deltastore.blobs.regular import read_regular
from deltastore.errors import StoreError
from deltastore.store.leases import OVER_S, is_claim
from deltastore.system.directory import Directory, Place

WAIT_S = 5.0
"""How long a process waits for another that is removing the same version: that takes moments."""

_MAX_BYTES = 4096
_POLL_S = 0.02


class Claims:
    """The claims in the directory of leases.

    A claim's file holds the token of its process. What holds none is no claim: nobody made it to
    remove a version, and nobody takes it away.

    Args:
        directory: Holds one file per version that is being removed.
        temp: Where files are written first; on the same file system.
    """

    def __init__(self, directory: Path, temp: Path) -> None:
        self._directory = directory
        self._place = Place(directory)
        self._temp = temp

    @contextlib.contextmanager
    def hold(self, name: str, version: int, *, decided: Callable[[], bool]) -> Iterator[None]:
        """Be the one that removes a version, until the block ends.

        Args:
            name: The name.
            version: The version.
            decided: Whether somebody else has removed it; then the block begins without a claim.

        Raises:
            StoreError: Another process has the claim, and does not come to an end; or what is in
                its place is no claim.
        """
        path = self._directory / f"{name}.v{version}.rm"
        deadline = time.monotonic() + WAIT_S
        with durable.translated(path):
            while not (mine := self._take(path)):
                if decided():
                    break
                self._require_claim(path)
                if time.monotonic() > deadline:
                    break
                time.sleep(_POLL_S)
        if not mine and not decided():
            raise StoreError(
                f"{name}:v{version} is being removed by another process: {path} is its claim.",
                hint="Run the same command again when that process has ended; the claim of one "
                "that was stopped on another machine is taken away after an hour.",
                path=str(path),
            )
        try:
            yield
        finally:
            if mine:
                with contextlib.suppress(OSError, StoreError), self._place.hold() as leases:
                    leases.unlink(path.name)

    def sweep(self, at: float | None = None) -> int:
        """Remove the claims of processes that ended; how many.

        Args:
            at: The time on the file server's clock, to judge processes that cannot be asked.
        """
        swept = 0
        with contextlib.suppress(OSError), self._place.hold() as leases:
            for name in leases.names():
                if is_claim(name) and self._over(leases, name, at):
                    leases.unlink(name)
                    swept += 1
        return swept

    def _take(self, path: Path) -> bool:
        with durable.write_temp(self._temp, [owner_token().encode()], leaving=0) as temp:
            try:
                temp.create(self._place, path.name, frees=True)
            except FileNotFoundError:
                self._place.make().close()
                return False
            except FileExistsError:
                self._break(path.name)
                return False
        return True

    def _break(self, name: str) -> None:
        """Take the claim of a process that ended away."""
        at = self._server_time()
        with self._place.hold() as leases:
            if not self._over(leases, name, at):
                return
            # By a rename, so that of several processes one takes it away.
            mine = durable.temp_name()
            with contextlib.suppress(FileNotFoundError), Place(self._temp).hold() as temp:
                leases.rename(name, temp, mine)
                temp.unlink(mine, missing_ok=True)

    def _require_claim(self, path: Path) -> None:
        with self._place.hold() as leases:
            try:
                data = read_regular(path, limit=_MAX_BYTES, within=leases)
            except FileNotFoundError:
                return
            except OSError:
                data = b"no file"
        # Without hard links a claim is empty for a moment.
        if data and token_of(data.decode("ascii", "replace")) is None:
            raise StoreError(
                f"{path} is in the place of a claim and is none: it does not begin with the token "
                "of a process.",
                hint=f"No deltastore made it. {durable.way_of_removal(path)}",
                path=str(path),
            )

    def _over(self, leases: Directory, name: str, at: float | None) -> bool:
        try:
            touched = leases.status(name).st_mtime
            token = self._token(leases, name)
        except OSError:
            return False
        silent = at is not None and abs(at - touched) > OVER_S
        if not token:
            # Without hard links a claim is empty for a moment, and stays so if its process ends.
            return token is not None and silent
        return is_dead(token) or (not is_alive(token) and silent)

    def _token(self, leases: Directory, name: str) -> str | None:
        """The token in a claim; empty where the claim is, None where it is none."""
        data = read_regular(self._directory / name, limit=_MAX_BYTES, within=leases)
        return token_of(data.decode("ascii", "replace")) if data else ""

    def _server_time(self) -> float:
        with durable.write_temp(self._temp, [b"\0"], leaving=0) as temp:
            return os.fstat(temp.descriptor).st_mtime
