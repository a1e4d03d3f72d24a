"""What a store is made of, for the modules that each do one thing with it."""

from __future__ import annotations

import getpass
import socket
from dataclasses import dataclass
from pathlib import Path

from deltastore.blobs import BlobStore
from deltastore.catalog import Catalog, DigestMemory
from deltastore.errors import StoreReadOnlyError
from deltastore.store.claims import Claims
from deltastore.store.layout import Layout, StoreInfo
from deltastore.store.leases import Leases
from deltastore.store.mounts import require_together
from deltastore.store.names import Names
from deltastore.store.placing import IndexPlace
from deltastore.store.refreshing import Sources
from deltastore.system.permission import is_mounted_read_only


@dataclass(frozen=True, slots=True)
class Recovered:
    """What opening a store removed: leases and temporary files of processes that ended."""

    leases: int = 0
    temp_files: int = 0
    temp_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Parts:
    """An open store's parts. ``closed``: the places in it that this user may not write."""

    layout: Layout
    info: StoreInfo
    blobs: BlobStore
    names: Names
    leases: Leases
    claims: Claims
    catalog: Catalog
    sources: Sources
    digests: DigestMemory
    index: IndexPlace
    closed: tuple[Path, ...]
    recovered: Recovered = Recovered()

    @property
    def writable(self) -> bool:
        """Whether this user may change the store."""
        return not self.closed

    def require_writable(self) -> None:
        """Refuse to change a store that cannot be changed.

        Raises:
            StoreReadOnlyError: It cannot.
        """
        if not self.writable:
            raise StoreReadOnlyError(
                f"The store at {self.layout.root} cannot be written by this user: {self._shown()}.",
                hint="`deltastore doctor` says what its owner can do about it; or use `--store` "
                "with another one.",
                path=str(self.layout.root),
            )

    def require_together(self, *paths: Path) -> None:
        """Refuse to change a store in which these directories cannot be written by renaming.

        Raises:
            StoreError: One of them, or that of the leases, is on another file system or mount.
        """
        require_together(self.layout, (*paths, self.layout.leases))

    def _shown(self) -> str:
        if is_mounted_read_only(self.layout.root):
            return "its file system is mounted read-only"
        names = [str(path.relative_to(self.layout.root)) for path in self.closed]
        shown = ", ".join("its directory" if name == "." else name for name in names)
        return f"permission is missing for {shown}"


def whoami() -> str:
    """The user and the host, as records name them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container's user id without a name.
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
