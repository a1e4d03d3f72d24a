"""``deltastore rm``: remove a version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltastore.cli import options
from deltastore.cli.session import Session
from deltastore.cli.units import size

if TYPE_CHECKING:
    from deltastore.operations.rm import Removed


@options.command("rm")
@options.ref_argument
def command(session: Session, *, ref: str) -> None:
    """Remove the version that REF means.

    Its number is never used again. Other names and versions of the same artifact stay.
    """
    from deltastore.operations.rm import rm

    with session.open_store() as store:
        removed = rm(store, ref)
    version = f"{removed.name}:v{removed.version}"
    session.output.result(removed, human=lambda: _human(version, removed), quiet=[version])


def _human(version: str, removed: Removed) -> Iterator[str]:
    tags = f" and its tags {', '.join(removed.tags)}" if removed.tags else ""
    yield f"removed {version}{tags}"
    if removed.still_used:
        yield "  another version has the same artifact, which stays"
    else:
        # Of what could not be read nobody knows how much it was.
        blobs = f"its blobs ({size(removed.stored_bytes)})" if removed.stored_bytes else "its blobs"
        yield f"  {blobs} stay until `deltastore gc`"
