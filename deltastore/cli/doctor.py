"""``deltastore doctor``: whether this machine and this store are in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from deltastore.cli import options
from deltastore.cli.output import table
from deltastore.cli.session import Session
from deltastore.errors import StoreError

if TYPE_CHECKING:
    from deltastore.health.check import Diagnosis

_HEADER = ("CHECK", "STATUS", "FOUND")


@options.command("doctor")
def command(session: Session) -> None:
    """Check the installation and the store.

    Exits with 10 when a check fails; a warning is no failure.
    """
    from deltastore.operations.doctor import doctor

    diagnosis = doctor(session.store_path, index=session.index)
    failed = [check.what for check in diagnosis.checks if check.status == "fail"]
    session.output.result(diagnosis, human=lambda: _human(diagnosis), quiet=failed)
    if not diagnosis.healthy:
        click.get_current_context().exit(StoreError.exit_code)


def _human(diagnosis: Diagnosis) -> Iterator[str]:
    yield from table(_HEADER, [(c.what, c.status, c.found) for c in diagnosis.checks])
    todo = [check for check in diagnosis.checks if check.next]
    if todo:
        yield ""
        yield from table(("TO DO", ""), [(check.what, check.next) for check in todo])
