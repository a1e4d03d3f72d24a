"""``deltastore apply``: add stored deltas to a new base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from deltastore.cli import options
from deltastore.cli.output import fields
from deltastore.cli.session import Session
from deltastore.cli.units import count, duration, size

if TYPE_CHECKING:
    from deltastore.operations.apply import ApplyResult


@options.command("apply")
@options.refs_argument(required=True)
@click.option("--base", required=True, metavar="CKPT", help="The new base.")
@click.option("--out", required=True, metavar="DIR", help="The model to write; must not exist.")
@click.option(
    "--scale",
    "scales",
    multiple=True,
    type=options.Scale(),
    metavar="X",
    help="What a delta is multiplied by: once for all, or once per REF.  [default: 1]",
)
@click.option("--dtype", metavar="D", help="Dtype of the output.  [default: the new base's]")
@click.option("--partial", is_flag=True, help="Leave out tensors that do not match.")
@click.option("--force", is_flag=True, help="Accept a base of another lineage.")
@click.option("--dry-run", is_flag=True, help="Check everything, write nothing.")
@click.option("--fsync", is_flag=True, help="Return only when the output is on the disk.")
@options.jobs_option
@click.option(
    "--max-shard-size",
    type=options.Size(),
    metavar="SIZE",
    help="Cut the output into shards of at most this size, as in 5GB.  [default: as the new base]",
)
def command(
    session: Session,
    *,
    refs: tuple[str, ...],
    base: str,
    out: str,
    scales: tuple[float, ...],
    dtype: str | None,
    partial: bool,
    force: bool,
    dry_run: bool,
    fsync: bool,
    jobs: int | None,
    max_shard_size: int | None,
) -> None:
    """Add the deltas of one or more REFs to a new base.

    Checks structure, lineage and space before the first byte is written, and every byte it reads
    from the store before the output becomes visible.
    """
    if len(scales) not in (0, 1, len(refs)):
        raise click.UsageError(
            f"{count(len(refs), 'REF')} and {count(len(scales), '--scale', '--scale')}: "
            "give one for all, or one per REF.",
            click.get_current_context(),
        )
    from deltastore.operations.apply import apply

    with session.open_store() as store, session.progress() as progress:
        result = apply(
            store,
            refs,
            base=base,
            out=out,
            scales=scales * len(refs) if len(scales) == 1 else scales,
            dtype=dtype,
            partial=partial,
            force=force,
            dry_run=dry_run,
            fsync=fsync,
            jobs=jobs,
            max_shard_bytes=max_shard_size,
            progress=progress,
        )
    session.output.result(result, human=lambda: _human(result), quiet=[str(result.out)])


def _human(result: ApplyResult) -> Iterator[str]:
    yield str(result.out)
    yield from fields(
        [
            ("tensors", count(result.tensors, "tensor")),
            ("size", size(result.bytes)),
            ("took", duration(result.seconds)),
        ]
    )
