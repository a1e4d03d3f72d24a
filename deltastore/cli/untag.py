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
    ref = f"{tagged.name}:{tag}"
    if tagged.version is None:
        said, quiet = f"removed {ref}, which meant no version", []
    else:
        version = f"{tagged.name}:v{tagged.version}"
        said, quiet = f"{version} is no longer {ref}", [version]
    session.output.result(tagged, human=lambda: [said], quiet=quiet)
