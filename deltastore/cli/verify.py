"""``deltastore verify``: read every stored byte again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from deltastore.cli import options
from deltastore.cli.session import Session
from deltastore.cli.units import count, size
from deltastore.errors import IntegrityError
from deltastore.text import escaped

if TYPE_CHECKING:
    from deltastore.health.verification import VerifyReport


@options.command("verify")
@options.refs_argument(required=False)
@click.option("--quick", is_flag=True, help="Do not read parts: presence and sizes alone.")
@options.jobs_option
def command(session: Session, *, refs: tuple[str, ...], quick: bool, jobs: int | None) -> None:
    """Check every byte of some artifacts or of the whole store.

    Exits with 40 when something is wrong; orphans, which no artifact uses, are not.
    """
    from deltastore.operations.verify import verify

    with session.open_store() as store, session.progress() as progress:
        report = verify(store, refs, jobs=jobs, quick=quick, progress=progress)
    affected = sorted({ref for problem in report.problems for ref in problem.refs})
    session.output.result(report, human=lambda: _human(report), quiet=affected)
    if report.problems:
        click.get_current_context().exit(IntegrityError.exit_code)


def _human(report: VerifyReport) -> Iterator[str]:
    for problem in report.problems:
        affects = f"  (affects {', '.join(problem.refs)})" if problem.refs else ""
        yield escaped(f"{problem.where}: {problem.problem}{affects}")
    yield (
        f"checked {count(report.checked, 'blob')} ({size(report.bytes)}): "
        f"{count(len(report.problems), 'problem') if report.problems else 'all is well'}"
    )
    if any(problem.digest and problem.where != "catalog.db" for problem in report.problems):
        yield (
            "`deltastore extract --rehash` of the same pair writes its blobs anew; "
            "`deltastore rm REF` gives a version up"
        )
    if report.orphans:
        yield f"{count(len(report.orphans), 'orphan')}: blobs that no artifact uses"
