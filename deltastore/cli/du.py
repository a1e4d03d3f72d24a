"""``deltastore du``: where the store's bytes are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltastore.cli import options
from deltastore.cli.output import fields, table
from deltastore.cli.session import Session
from deltastore.cli.units import count, size

if TYPE_CHECKING:
    from deltastore.operations.du import Usage

_HEADER = ("REF", "STORED", "OWN")


@options.command("du")
def command(session: Session) -> None:
    """Show how much room the store takes.

    OWN is what no other artifact shares: what removing all versions of this one would free.
    """
    from deltastore.operations.du import du

    with session.open_store() as store:
        usage = du(store)
    session.output.result(usage, human=lambda: _human(usage), quiet=[str(usage.total_bytes)])


def _human(usage: Usage) -> Iterator[str]:
    if usage.versions:
        rows = [
            (f"{v.name}:v{v.version}", _size(v.stored_bytes), _size(v.own_bytes))
            for v in usage.versions
        ]
        yield from table(_HEADER, rows, right=" rr")
        yield ""
    yield f"{size(usage.total_bytes)} in all"
    yield from fields(
        [
            (
                "shared",
                f"{size(usage.shared_bytes)} by several artifacts" if usage.shared_bytes else "",
            ),
            (
                "orphans",
                f"{size(usage.unreferenced_bytes)} in {count(usage.unreferenced, 'blob')}"
                if usage.unreferenced
                else "",
            ),
            ("unreadable", ", ".join(usage.unreadable)),
        ]
    )


def _size(n_bytes: int | None) -> str:
    """A size, or what stands for the size of an artifact that cannot be read."""
    return "?" if n_bytes is None else size(n_bytes)
