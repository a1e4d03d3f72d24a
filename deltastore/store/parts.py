"""What a store is made of, for the modules that each do one thing with it."""

from __future__ import annotations

import getpass
import socket
from dataclasses import dataclass

from deltastore.blobs import LocalBlobs
from deltastore.catalog import Catalog
from deltastore.errors import StoreReadOnlyError
from deltastore.store.layout import Layout, StoreInfo
from deltastore.store.leases import Leases
from deltastore.store.names import Names


@dataclass(frozen=True, slots=True)
class Recovered:
    """What opening a store removed: leases and temporary files of processes that ended."""

    leases: int = 0
    temp_files: int = 0
    temp_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Parts:
    """An open store's parts."""

    layout: Layout
    info: StoreInfo
    blobs: LocalBlobs
    names: Names
    leases: Leases
    catalog: Catalog
    writable: bool
    recovered: Recovered = Recovered()

    def require_writable(self) -> None:
        """Refuse to change a store that cannot be changed.

        Raises:
            StoreReadOnlyError: It cannot.
        """
        if not self.writable:
            raise StoreReadOnlyError(
                f"The store at {self.layout.root} cannot be written by this user.",
                hint="Ask its owner for write permission, or use `--store` with another one.",
                path=str(self.layout.root),
            )


def whoami() -> str:
    """The user and the host, as records name them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container's user id without a name.
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
