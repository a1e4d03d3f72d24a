"""``deltastore extract``: measure a delta and store it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from deltastore.cli import options
from deltastore.cli.output import fields, message
from deltastore.cli.session import Session
from deltastore.cli.units import count, duration, size

if TYPE_CHECKING:
    from deltastore.operations.extract import ExtractResult


@options.command("extract")
@click.option("--base", required=True, metavar="CKPT", help="The model before post-training.")
@click.option("--post", required=True, metavar="CKPT", help="The same model after it.")
@click.option("--name", metavar="NAME", help="Name in the store.  [default: last part of post]")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Tag it; repeatable.")
@click.option("--codec", default="exact", show_default=True, metavar="SPEC", help="Codec to use.")
@options.jobs_option
@click.option("--rehash", is_flag=True, help="Read files again whose digests are remembered.")
@click.option(
    "--restore-only",
    is_flag=True,
    help="Store quantised checkpoints, to be restored from their own base only.",
)
def command(
    session: Session,
    *,
    base: str,
    post: str,
    name: str | None,
    tags: tuple[str, ...],
    codec: str,
    jobs: int | None,
    rehash: bool,
    restore_only: bool,
) -> None:
    """Measure the delta between two checkpoints and store it.

    Creates the store if there is none. The same pair and codec again costs no work: the artifact
    that is stored is named once more.
    """
    from deltastore.operations.extract import extract

    with session.open_store(create=True) as store, session.progress() as progress:
        result = extract(
            store,
            base,
            post,
            name=name,
            tags=tags,
            codec=codec,
            jobs=jobs,
            rehash=rehash,
            restore_only=restore_only,
            progress=progress,
        )
    if result.resumed_bytes and not session.quiet:
        message(
            "resumed",
            f"{size(result.resumed_bytes)} of parts were in the store from a run that was stopped",
        )
    session.output.result(result, human=lambda: _human(result), quiet=[result.ref])


def _human(result: ExtractResult) -> Iterator[str]:
    yield f"{result.ref}  {result.digest}"
    yield from fields(
        [
            (
                "stored",
                f"{size(result.stored_bytes)} for {size(result.raw_bytes)} of weights "
                f"({result.bits_per_weight:.2f} bits per weight, codec {result.codec})",
            ),
            (
                "tensors",
                f"{count(result.tensors, 'tensor')}, {result.unchanged:,} unchanged, "
                f"{result.patched:,} with a restore patch",
            ),
            ("reused", "the store had this pair already" if result.reused else ""),
            ("took", duration(result.seconds)),
        ]
    )
