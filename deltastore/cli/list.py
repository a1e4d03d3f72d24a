"""``deltastore list``: what the store has."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

from deltastore.cli import options
from deltastore.cli.output import message, table
from deltastore.cli.session import Session
from deltastore.cli.units import count, size
from deltastore.errors import StoreClosedError, StoreNotFoundError

if TYPE_CHECKING:
    from deltastore.operations.list import Listing

_HEADER = ("REF", "TAGS", "BASE", "POST", "CODEC", "SIZE", "OF", "CREATED (UTC)")


@options.command("list")
@click.option(
    "--base", metavar="M", help="Only deltas that were measured on this base: a path, id or label."
)
@click.option("--post", metavar="M", help="Only deltas of this post-trained model, likewise.")
@click.option("--name", metavar="GLOB", help="Only names that match, as in 'llama3-*'.")
@click.option("--tag", metavar="T", help="Only versions with this tag.")
def command(
    session: Session, *, base: str | None, post: str | None, name: str | None, tag: str | None
) -> None:
    """List the stored artifacts."""
    from deltastore.operations.list import list_artifacts

    listings: list[Listing]
    try:
        store = session.open_store()
    except StoreNotFoundError:
        # Before the first `extract` there is no default store, which is a list without rows; a
        # store that was named and is not there is a mistake.
        if session.store:
            raise
        listings = []
    else:
        with store, session.progress() as progress:
            listings = list_artifacts(
                store, base=base, post=post, name=name, tag=tag, progress=progress
            )
            closed = [found for found in store.closed_names() if fnmatchcase(found[0], name or "*")]
        _warn_of_closed(closed)
    session.output.result(
        listings,
        human=lambda: _human(listings),
        quiet=(f"{listing.name}:v{listing.version}" for listing in listings),
    )


def _warn_of_closed(closed: list[tuple[str, StoreClosedError]]) -> None:
    """A list that lacks what is there says so."""
    if closed:
        first, error = closed[0]
        more = f" and {count(len(closed) - 1, 'other name')}" if len(closed) > 1 else ""
        message(
            "warning",
            f"Not all of {first}{more} is listed. {error.message} {error.hint}",
            colour="yellow",
        )


def _human(listings: list[Listing]) -> list[str]:
    if not listings:
        return ["no artifacts"]
    rows = [
        (
            f"{listing.name}:v{listing.version}",
            ",".join(listing.tags),
            listing.base,
            listing.post,
            listing.codec,
            size(listing.stored_bytes),
            size(listing.raw_bytes),
            listing.created[:16].replace("T", " "),
        )
        for listing in listings
    ]
    return table(_HEADER, rows, right="     rr")
