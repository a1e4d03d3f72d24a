"""``deltastore reindex``: rebuild the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltastore.cli import options
from deltastore.cli.session import Session
from deltastore.cli.units import count
from deltastore.text import escaped

if TYPE_CHECKING:
    from deltastore.operations.reindex import Indexed


@options.command("reindex")
def command(session: Session) -> None:
    """Rebuild the catalog from records and manifests."""
    from deltastore.operations.reindex import reindex

    indexed = reindex(session.store_path, index=session.index)
    session.output.result(indexed, human=lambda: _human(indexed))


def _human(indexed: Indexed) -> Iterator[str]:
    yield (
        f"indexed {count(indexed.versions, 'version')} of {count(indexed.artifacts, 'artifact')} "
        f"and {count(indexed.tags, 'tag')}"
    )
    for problem in indexed.problems:
        yield escaped(f"  not readable: {problem}")
