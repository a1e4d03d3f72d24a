"""Who removes a version, where several processes want to: the one that makes the claim's file.

Publishing needs nothing of the kind, as the record's exclusive creation decides. A tombstone takes
the record's place by a rename, which succeeds for everybody; so of those who would remove one
version, one is chosen first, by an exclusive creation as well. There is no lock that two machines
could share.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from deltastore.blobs import durable
from deltastore.blobs.owner import is_alive, is_dead, owner_token
from deltastore.blobs.regular import read_regular
from deltastore.errors import StoreError
from deltastore.store.leases import OVER_S

WAIT_S = 30.0
"""How long a process waits for another that is removing the same version."""

_SUFFIX = ".rm"
_MAX_BYTES = 4096
_POLL_S = 0.02


class Claims:
    """The claims in the directory of leases.

    Args:
        directory: Holds one file per version that is being removed.
        temp: Where files are written first; on the same file system.
    """

    def __init__(self, directory: Path, temp: Path) -> None:
        self._directory = directory
        self._temp = temp

    @contextlib.contextmanager
    def hold(self, name: str, version: int, *, decided: Callable[[], bool]) -> Iterator[None]:
        """Be the one that removes a version, until the block ends.

        Args:
            name: The name.
            version: The version.
            decided: Whether somebody else has removed it; then the block begins without a claim.

        Raises:
            StoreError: Another process has the claim, and does not come to an end.
        """
        path = self._directory / f"{name}.v{version}{_SUFFIX}"
        deadline = time.monotonic() + WAIT_S
        with durable.translated(path):
            while not (mine := self._take(path)):
                if decided():
                    break
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
                with contextlib.suppress(OSError):
                    path.unlink()

    def sweep(self, at: float | None = None) -> int:
        """Remove the claims of processes that ended; how many.

        Args:
            at: The time on the file server's clock, to judge processes that cannot be asked.
        """
        swept = 0
        with contextlib.suppress(OSError):
            for path in self._directory.glob(f"*{_SUFFIX}"):
                if self._over(path, at):
                    path.unlink()
                    swept += 1
        return swept

    def _take(self, path: Path) -> bool:
        temp = durable.write_temp(self._temp, [owner_token().encode()])
        try:
            durable.create(temp, path)
        except FileNotFoundError:
            self._directory.mkdir(exist_ok=True)
            return False
        except FileExistsError:
            self._break(path)
            return False
        return True

    def _break(self, path: Path) -> None:
        """Take the claim of a process that ended away."""
        if not self._over(path, self._server_time()):
            return
        # By a rename, so that of several processes one takes it away.
        mine = durable.temp_path(self._temp)
        with contextlib.suppress(FileNotFoundError):
            path.rename(mine)
            mine.unlink(missing_ok=True)

    def _over(self, path: Path, at: float | None) -> bool:
        try:
            touched = path.lstat().st_mtime
            token = read_regular(path, limit=_MAX_BYTES).decode("ascii", "replace")
        except OSError:
            return False
        if is_dead(token):
            return True
        return at is not None and not is_alive(token) and abs(at - touched) > OVER_S

    def _server_time(self) -> float:
        temp = durable.write_temp(self._temp, [b"\0"])
        try:
            return temp.stat().st_mtime
        finally:
            temp.unlink(missing_ok=True)
