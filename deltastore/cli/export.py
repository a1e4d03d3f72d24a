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
def command(session: Session, *, ref: str, directory: str) -> None:
    """Write an artifact as an OCI image layout.

    skopeo and oras read it. Blobs are hard links where the file system allows it, and take no
    room.
    """
    from deltastore.operations.export import export

    with session.open_store() as store:
        exported = export(store, ref, directory)
    session.output.result(exported, human=lambda: _human(exported), quiet=[exported.directory])


def _human(exported: ExportReport) -> Iterator[str]:
    yield exported.directory
    yield from fields(
        [
            ("artifact", f"{exported.ref}  {exported.digest}"),
            (
                "blobs",
                f"{count(exported.blobs, 'blob')} ({size(exported.bytes)}), "
                f"{exported.linked:,} of them hard links",
            ),
        ]
    )
