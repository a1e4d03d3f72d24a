"""``deltastore apply``: add stored deltas to a new base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from deltastore.cli import options
from deltastore.cli.output import fields
from deltastore.cli.session import Session
from deltastore.cli.units import count, duration, size
from deltastore.text import escaped

if TYPE_CHECKING:
    from deltastore.operations.apply import ApplyResult


@options.command("apply")
@options.refs_argument(required=False)
@click.option(
    "--from-base",
    metavar="M",
    help="With --from-post, in place of a REF: the base that the delta was measured on.",
)
@click.option("--from-post", metavar="M", help="The post-trained model that it was measured with.")
@click.option("--base", required=True, metavar="CKPT", help="The new base.")
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    help="The directory to write; must not exist, or be empty.",
)
@click.option(
    "--scale",
    "scales",
    multiple=True,
    type=options.Scale(),
    metavar="X",
    help="What a delta is multiplied by: once for all, or once per REF.  [default: 1]",
)
@click.option(
    "--scale-for",
    "scale_rules",
    multiple=True,
    metavar="'PATTERN=X'",
    help="The scale of tensors whose names match, as in 'model.layers.*.mlp.*=0.7': one for all "
    "REFs, or X,Y,… with one per REF. The last that matches counts.",
)
@click.option(
    "--map",
    "renames",
    multiple=True,
    metavar="'OLD=NEW'",
    help="What the new base calls the delta's tensors: OLD is a regular expression, replaced "
    "by NEW wherever it is found in a name.",
)
@click.option(
    "--dtype", metavar="D", help="Dtype of the output, as in bfloat16.  [default: the new base's]"
)
@click.option("--partial", is_flag=True, help="Leave out tensors that do not match.")
@click.option(
    "--skip-embeddings",
    is_flag=True,
    help="Leave the new base's embeddings and output head as they are.",
)
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
    from_base: str | None,
    from_post: str | None,
    base: str,
    out: str,
    scales: tuple[float, ...],
    scale_rules: tuple[str, ...],
    renames: tuple[str, ...],
    dtype: str | None,
    partial: bool,
    skip_embeddings: bool,
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
    context = click.get_current_context()
    if (from_base is None) != (from_post is None):
        raise click.UsageError("--from-base and --from-post go together.", context)
    if bool(refs) == (from_base is not None):
        raise click.UsageError("Give one REF or more, or --from-base and --from-post.", context)
    expected = len(refs) or 1
    if len(scales) not in (0, 1, expected):
        raise click.UsageError(
            f"{count(expected, 'REF')} and {count(len(scales), '--scale', '--scale')}: "
            "give one for all, or one per REF.",
            context,
        )
    from deltastore.merging.planning import MergeOptions
    from deltastore.operations.apply import apply
    from deltastore.tensor_names.selectors import Renaming, ScaleRule

    # Before anything is opened: what is mistyped is said at once.
    renaming, rules = Renaming.parse(renames), [ScaleRule.parse(rule) for rule in scale_rules]

    with session.open_store() as store, session.progress() as progress:
        if from_base is not None and from_post is not None:
            from deltastore.operations.list import ref_of_pair

            refs = (ref_of_pair(store, from_base, from_post, progress=progress),)
        result = apply(
            store,
            refs,
            base=base,
            out=out,
            options=MergeOptions(
                scales=scales * len(refs) if len(scales) == 1 else scales,
                scale_rules=rules,
                renaming=renaming,
                dtype=dtype,
                partial=partial,
                skip_embeddings=skip_embeddings,
                force=force,
                max_shard_bytes=max_shard_size,
            ),
            dry_run=dry_run,
            fsync=fsync,
            jobs=jobs,
            progress=progress,
        )
    session.output.result(result, human=lambda: _human(result), quiet=[result.out])


def _human(result: ApplyResult) -> Iterator[str]:
    yield f"{result.out}  (dry run: nothing was written)" if result.dry_run else result.out
    deltas = zip(result.refs, result.lineage, strict=True)
    yield from fields(
        [
            ("base", result.base["label"]),
            *(
                ("delta" if len(result.refs) == 1 else f"delta {number}", _delta(ref, lineage))
                for number, (ref, lineage) in enumerate(deltas, 1)
            ),
            ("size", f"{count(result.tensors, 'tensor')}, {size(result.bytes)}"),
            ("restored", _restored(result) if result.restored else ""),
            (
                "overflowed",
                count(result.overflowed, "element") if result.overflowed else "",
            ),
            *(("tokens", words) for words in map(_tokens, result.vocabulary) if words),
            ("skipped", ", ".join(result.skipped)),
            ("left out", count(len(result.left_out), "tensor") if result.left_out else ""),
            ("files", _files(result)),
            (
                "config",
                f"{count(len(result.config_left), 'field')} that post changed and that "
                f"{'stays' if len(result.config_left) == 1 else 'stay'} the new base's"
                if result.config_left
                else "",
            ),
            ("took", duration(result.seconds)),
        ]
    )
    for item in result.left_out:
        yield escaped(f"    {item['name']}: {item['problem']}")
    for row in result.config_left:
        yield escaped(f"    {row['field']}: {row['output']}; post has {row['post']}")


def _restored(result: ApplyResult) -> str:
    """What is proven of the output, and how much of post it lacks all the same."""
    missing = sum(row["of"] != "new base" for row in result.not_copied)
    but = f", without {count(missing, 'file')} beside its weights" if missing else ""
    return f"the post checkpoint, digest verified{but}"


def _files(result: ApplyResult) -> str:
    """The small files, by whose they are."""
    groups: dict[str, list[str]] = {}
    for row in result.files:
        groups.setdefault(row["from"], []).append(row["name"])
    return "; ".join(f"{origin}: {', '.join(names)}" for origin, names in sorted(groups.items()))


def _delta(ref: dict[str, Any], lineage: dict[str, Any]) -> str:
    """A delta with its scale, and how near the new base is to the one it was measured on."""
    if lineage["same"]:
        near = "equal to its own base at every sample"
    elif lineage["cosine"] is None:
        near = "not comparable with its own base"
    else:
        near = (
            f"{lineage['verdict']}: cosine {lineage['cosine']:.4f}, "
            f"distance {lineage['distance']:.3f} of the new base from its own"
        )
    return f"{ref['scale']:g} x {ref['ref']}, {near}"


def _tokens(vocabulary: dict[str, Any]) -> str:
    """How rows were matched; nothing where they are those of the delta's own base."""
    if vocabulary["verdict"] != "matched":
        return ""
    said = [
        f"{vocabulary['matched']:,} of the new base's {vocabulary['tokens']:,} matched by string"
    ]
    for key, what in (("added", "added"), ("renamed", "renamed"), ("lost", "without a row")):
        listed = vocabulary[key]
        if listed["count"]:
            names = [" → ".join(t) if isinstance(t, list) else t for t in listed["tokens"][:3]]
            more = ", …" if listed["count"] > len(names) else ""
            said.append(f"{listed['count']:,} {what} ({', '.join(names)}{more})")
    return escaped("; ".join(said))
