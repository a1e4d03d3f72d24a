"""``deltastore tag``: give a version a tag."""

from __future__ import annotations

import click

from deltastore.cli import options
from deltastore.cli.session import Session


@options.command("tag")
@options.ref_argument
@click.argument("tag", metavar="TAG")
def command(session: Session, *, ref: str, tag: str) -> None:
    """Tag the version that REF means.

    A tag that the name already has moves.
    """
    from deltastore.operations.tag import tag as set_tag

    with session.open_store() as store:
        tagged = set_tag(store, ref, tag)
    version = f"{tagged.name}:v{tagged.version}"
    session.output.result(
        tagged, human=lambda: [f"{tagged.name}:{tag} is now {version}"], quiet=[version]
    )
