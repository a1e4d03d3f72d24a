"""``deltastore compose``: deltas that follow one another as one."""

from __future__ import annotations

import click

from deltastore.cli import options, stored
from deltastore.cli.session import Session


@options.command("compose")
@options.refs_argument(required=True)
@click.option(
    "--base",
    metavar="CKPT",
    help="The base of the first REF.  [default: where the store or the artifact knows it to be]",
)
@options.name_option("names of the REFs, with hyphens")
@options.tag_option
@options.jobs_option
def command(
    session: Session,
    *,
    refs: tuple[str, ...],
    base: str | None,
    name: str | None,
    tags: tuple[str, ...],
    jobs: int | None,
) -> None:
    """Store deltas that follow one another as one.

    Each REF must have been extracted from the model that the one before it leads to. The result
    is the delta that `extract` would measure from the first base to the last post, to the bit.
    Of the models themselves only the first base must be there.
    """
    from deltastore.operations.compose import compose

    with session.open_store() as store, session.progress() as progress:
        result = compose(store, refs, base=base, name=name, tags=tags, jobs=jobs, progress=progress)
    stored.show(session, result, [("composed", ", then ".join(result.composed))])
