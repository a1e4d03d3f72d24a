"""``deltastore export``: an artifact as an OCI image layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from deltastore.cli import options
from deltastore.cli.output import fields
from deltastore.cli.session import Session
from deltastore.cli.units import count, size

if TYPE_CHECKING:
    from deltastore.operations.export import ExportReport


@options.command("export")
@options.ref_argument
@click.argument("directory", metavar="DIR")
@click.option(
    "--link",
    is_flag=True,
    help="Hard links in place of copies, where that is safe: they take no room, and what is done "
    "to them is done to the store.",
)
def command(session: Session, *, ref: str, directory: str, link: bool) -> None:
    """Write an artifact as an OCI image layout.

    skopeo and oras read it. It is a copy: nothing that is done to it reaches the store. Where the
    file system can share the bytes of copies until they are changed, it takes no room.
    """
    from deltastore.operations.export import export

    with session.open_store() as store:
        exported = export(store, ref, directory, link=link)
    session.output.result(exported, human=lambda: _human(exported), quiet=[exported.directory])


def _human(exported: ExportReport) -> Iterator[str]:
    yield exported.directory
    yield from fields(
        [
            ("artifact", f"{exported.ref}  {exported.digest}"),
            ("blobs", _blobs(exported)),
        ]
    )


def _blobs(exported: ExportReport) -> str:
    """How many there are, and how they share their bytes with the store."""
    said = f"{count(exported.blobs, 'blob')} ({size(exported.bytes)})"
    if exported.linked:
        said += f", {exported.linked:,} of them hard links"
    if exported.cloned:
        said += f", {exported.cloned:,} of them sharing room with the store"
    return said
