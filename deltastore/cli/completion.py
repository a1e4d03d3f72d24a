"""Completes refs at the shell's prompt by reading the store."""

from __future__ import annotations

import click

from deltastore.cli.session import Session


def complete_ref(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Refs that begin with ``incomplete``: names, and versions and tags once a colon is typed.

    Never fails: what goes wrong here would appear in the middle of the line being typed.
    """
    try:
        from deltastore.operations.list import list_artifacts

        session = ctx.find_object(Session) or Session()
        with session.open_store() as store:
            listings = list_artifacts(store)
    except Exception:  # noqa: BLE001
        return []
    refs: set[str] = set()
    for listing in listings:
        if ":" in incomplete:
            refs.add(f"{listing.name}:v{listing.version}")
            refs.update(f"{listing.name}:{tag}" for tag in listing.tags)
        else:
            refs.add(listing.name)
    return sorted(ref for ref in refs if ref.startswith(incomplete))
