"""``deltastore untag``: take a tag away."""

from __future__ import annotations

import click

from deltastore.cli import options
from deltastore.cli.session import Session


@options.command("untag")
@options.ref_argument
@click.argument("tag", metavar="TAG")
def command(session: Session, *, ref: str, tag: str) -> None:
    """Take a tag away from the name in REF.

    The version that the tag meant stays.
    """
    from deltastore.operations.tag import untag

    with session.open_store() as store:
        tagged = untag(store, ref, tag)
    version = f"{tagged.name}:v{tagged.version}"
    session.output.result(
        tagged, human=lambda: [f"{version} is no longer {tagged.name}:{tag}"], quiet=[version]
    )
