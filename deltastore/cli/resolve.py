"""``deltastore resolve``: which stored deltas fit a base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from deltastore.cli import options
from deltastore.cli.output import table
from deltastore.cli.session import Session
from deltastore.text import escaped

if TYPE_CHECKING:
    from deltastore.operations.resolve import Candidate

_HEADER = ("REF", "FITS", "LINEAGE", "COSINE", "DISTANCE")


@options.command("resolve")
@click.option("--base", required=True, metavar="CKPT", help="The base to find deltas for.")
def command(session: Session, *, base: str) -> None:
    """Rank the stored deltas for a base, nearest lineage first."""
    from deltastore.operations.resolve import resolve

    with session.open_store() as store, session.progress() as progress:
        candidates = resolve(store, base, progress=progress)
    session.output.result(
        candidates,
        human=lambda: _human(candidates),
        quiet=[candidate.ref for candidate in candidates if candidate.compatible],
    )


def _human(candidates: list[Candidate]) -> Iterator[str]:
    if not candidates:
        yield "no artifacts"
        return
    yield from table(_HEADER, [_row(candidate) for candidate in candidates], right="   rr")
    for candidate in candidates:
        for reason in candidate.reasons:
            yield escaped(f"{candidate.ref}: {reason}")


def _row(candidate: Candidate) -> tuple[str, ...]:
    fits = "yes" if candidate.compatible else "no"
    lineage = candidate.lineage
    if lineage is None or lineage["cosine"] is None:
        return (candidate.ref, fits, lineage["verdict"] if lineage else "", "", "")
    return (
        candidate.ref,
        fits,
        lineage["verdict"],
        f"{lineage['cosine']:.4f}",
        f"{lineage['distance']:.3g}",
    )
