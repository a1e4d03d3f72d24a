"""``deltastore extract``: measure a delta and store it."""

from __future__ import annotations

import click

from deltastore.cli import options, stored
from deltastore.cli.session import Session


@options.command("extract")
@click.option("--base", required=True, metavar="CKPT", help="The model before post-training.")
@click.option("--post", required=True, metavar="CKPT", help="The same model after it.")
@options.name_option("last part of post")
@options.tag_option
@click.option("--codec", default="exact", show_default=True, metavar="SPEC", help="Codec to use.")
@options.jobs_option
@click.option("--rehash", is_flag=True, help="Read files again whose digests are remembered.")
@click.option(
    "--restore-only",
    is_flag=True,
    help="Store quantised checkpoints, to be restored from their own base only.",
)
@click.option(
    "--map",
    "renames",
    multiple=True,
    metavar="'OLD=NEW'",
    help="What base calls post's tensors: OLD is a regular expression, replaced by NEW wherever "
    "it is found in a name.",
)
@click.option("--force", is_flag=True, help="Take a pair that does not look like one.")
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
    renames: tuple[str, ...],
    force: bool,
) -> None:
    """Measure the delta between two checkpoints and store it.

    Creates the store if there is none. The same pair and codec again costs no work: the artifact
    that is stored is named once more.
    """
    from deltastore.operations.extract import extract
    from deltastore.tensor_names.selectors import Renaming

    # Before anything is opened: what is mistyped is said at once.
    renaming = Renaming.parse(renames)
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
            renaming=renaming,
            force=force,
            progress=progress,
        )
    stored.show(session, result)
