"""``deltastore gc``: delete what no version refers to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from deltastore.cli import options
from deltastore.cli.output import fields
from deltastore.cli.session import Session
from deltastore.cli.units import count, duration, size

if TYPE_CHECKING:
    from deltastore.operations.gc import GcReport
    from deltastore.store.collecting import Amount


@options.command("gc")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted; delete nothing.")
@click.option(
    "--grace",
    type=float,
    metavar="S",
    help="Spare what became unused within S seconds.  [default: 86400, a day]",
)
def command(session: Session, *, dry_run: bool, grace: float | None) -> None:
    """Delete the blobs that no version refers to.

    They are what `rm` and interrupted commands leave. Safe beside any other command; while another
    process extracts, nothing is deleted. Where a record or a manifest is damaged, likewise.
    """
    from deltastore.operations.gc import DEFAULT_GRACE_S, gc

    with session.open_store() as store:
        report = gc(store, grace_s=DEFAULT_GRACE_S if grace is None else grace, dry_run=dry_run)
    session.output.result(report, human=lambda: _human(report), quiet=report.digests)


def _human(report: GcReport) -> Iterator[str]:
    verb = "would delete" if report.dry_run else "deleted"
    yield f"{verb} {count(report.removed, 'blob')} ({size(report.freed_bytes)})"
    yield from fields(
        [
            ("in use", _amount(report.referenced)),
            (
                "young",
                f"{_amount(report.spared.young)} unused for less than {duration(report.grace_s)}; "
                "`--grace 0` takes them"
                if report.spared.young.blobs
                else "",
            ),
            ("held", _amount(report.spared.held) if report.spared.held.blobs else ""),
            ("by", "; ".join(report.holders)),
            ("temporary", count(report.temp_files, "file") if report.temp_files else ""),
            ("leases", f"{report.leases} of processes that ended" if report.leases else ""),
            ("foreign", ", ".join(report.foreign)),
        ]
    )


def _amount(amount: Amount) -> str:
    return f"{count(amount.blobs, 'blob')} ({size(amount.bytes)})"
