"""``deltastore compare``: whether deltas point the same way, cancel, or are orthogonal."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deltastore.cli import options
from deltastore.cli.output import fields, table
from deltastore.cli.session import Session
from deltastore.cli.units import count, duration
from deltastore.text import escaped

if TYPE_CHECKING:
    from deltastore.comparison.figures import Comparison, Group, PairFigures

_HEADER = ("KIND", "COSINE", "LOWEST", "LAYER", "HIGHEST", "LAYER", "NORM 1", "NORM 2", "SAME SIGN")
_NAMED = 3
_LISTED = 10
_DEVIATIONS = 3
_CAVEAT = (
    "Cosines say how the deltas lie to each other, not what their sum can do.",
    "Only a test of the result shows that.",
)
_MEANING = {
    "same": "one direction: adding both is like scaling one of them up",
    "aligned": "partly the same direction: added at full scale they go too far in what they share",
    "orthogonal": "nearly orthogonal: adding them disturbs neither much",
    "opposed": "partly opposed: added, they cancel in part",
    "opposite": "opposite: added, they cancel",
    "undefined": "no direction to compare: a delta is zero wherever both can be compared",
}


@options.command("compare")
@options.refs_argument(required=True)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw layers and kinds as a heat map: .png, .svg or .pdf.  [needs deltastore[plot]]",
)
@options.jobs_option
def command(
    session: Session, *, refs: tuple[str, ...], plot: Path | None, jobs: int | None
) -> None:
    """Compare the directions of two or more deltas.

    Gives the cosine of every two of them, over all and by layer and kind of module: the question
    before they are added.
    """
    if len(refs) < 2:
        raise click.UsageError("Give two REFs or more.", click.get_current_context())
    from deltastore.operations.compare import compare

    if plot is not None:
        from deltastore.comparison.plot import check_plot, plot_comparison

        check_plot(plot, len(refs))
    with session.open_store() as store, session.progress() as progress:
        comparison = compare(store, refs, jobs=jobs, progress=progress)
    if plot is not None:
        plot_comparison(comparison, plot)
    session.output.result(
        comparison,
        human=lambda: _human(comparison, plot),
        quiet=(
            f"{pair.refs[0]} {pair.refs[1]} {_cosine(pair.overall)}" for pair in comparison.pairs
        ),
    )


def _human(comparison: Comparison, plot: Path | None) -> Iterator[str]:
    refs = [compared.ref for compared in comparison.refs]
    rows = [(ref, *map(_number, row)) for ref, row in zip(refs, comparison.matrix, strict=True)]
    yield from table(("COSINE", *refs), rows, right=" " + "r" * len(refs))
    for pair in comparison.pairs:
        yield ""
        yield from _pair(pair)
    yield ""
    yield from _CAVEAT
    yield from fields(
        [
            ("plot", "" if plot is None else str(plot)),
            ("took", duration(comparison.seconds)),
        ]
    )


def _pair(pair: PairFigures) -> Iterator[str]:
    first, second = pair.refs
    overall = pair.overall
    yield escaped(f"{first} (1) and {second} (2): cosine {_cosine(overall)}")
    yield escaped(f"  {_verdict(pair)}")
    said = f"{count(overall.tensors, 'tensor')}, {count(overall.elements, 'element')}"
    if overall.same_sign is not None:
        share = overall.both_changed / overall.elements
        said += f"; both changed {share:.1%} of them, with the same sign in {overall.same_sign:.1%}"
    unusable = count(overall.not_finite, "element") if overall.not_finite else ""
    yield from fields(
        [
            ("compared", said),
            ("not finite", f"{unusable}, left out" if unusable else ""),
            ("left out", count(len(pair.left_out), "tensor") if pair.left_out else ""),
        ]
    )
    for item in pair.left_out[:_LISTED]:
        yield escaped(f"    {item.name}: {item.problem}")
    if len(pair.left_out) > _LISTED:
        yield f"    and {len(pair.left_out) - _LISTED:,} more, which --json lists"
    cells = defaultdict(list)
    for cell in pair.cells:
        if cell.layer is not None and cell.cosine is not None:
            cells[cell.kind].append((cell.cosine, cell.layer))
    rows = [_row(group, cells.get(group.kind, [])) for group in pair.kinds]
    yield from table(_HEADER, [*rows, _row(overall, [])], right=" rrrrrrrr")


def _row(group: Group, cells: list[tuple[float, int]]) -> tuple[str, ...]:
    """A kind of module, with the layers in which its cosine is lowest and highest."""
    lowest, low_layer = min(cells) if len(cells) > 1 else (None, "")
    highest, high_layer = max(cells) if len(cells) > 1 else (None, "")
    return (
        group.kind or "all",
        _number(group.cosine),
        "" if lowest is None else _number(lowest),
        str(low_layer),
        "" if highest is None else _number(highest),
        str(high_layer),
        f"{group.norms[0]:#.3g}",
        f"{group.norms[1]:#.3g}",
        "-" if group.same_sign is None else f"{group.same_sign:.1%}",
    )


def _verdict(pair: PairFigures) -> str:
    """The pair in words: what it is overall, and the kinds that are another case."""
    said = [_MEANING[pair.verdict]]
    overall = pair.overall
    if pair.verdict == "orthogonal" and overall.cosine is not None and overall.ratio:
        # The longer delta may move the shorter one far even at a small angle.
        shares = (overall.ratio, 1 / overall.ratio)
        longer = int(shares[1] > shares[0])
        share = overall.cosine * shares[longer]
        if abs(share) >= 0.1:
            said = [
                f"nearly orthogonal, but {pair.refs[1 - longer]} is so much larger that it moves "
                f"{pair.refs[longer]} by {share:+.0%} of its length"
            ]
    for words, verdicts in (
        ("opposed", ("opposed", "opposite")),
        ("aligned", ("aligned", "same")),
    ):
        if pair.verdict in verdicts:
            continue
        kinds = [g for g in pair.kinds if g.verdict in verdicts and not _may_be_chance(g)]
        kinds.sort(key=_weight, reverse=True)
        if kinds:
            names = ", ".join(f"{g.kind} ({_number(g.cosine)})" for g in kinds[:_NAMED])
            more = f" and {len(kinds) - _NAMED} more" if len(kinds) > _NAMED else ""
            said.append(f"{words} in {names}{more}")
    return "; ".join(said)


def _may_be_chance(group: Group) -> bool:
    """Whether n random numbers would have such a cosine: it scatters about zero by 1 / sqrt(n)."""
    return abs(group.cosine or 0) * math.sqrt(group.both_changed) < _DEVIATIONS


def _weight(group: Group) -> float:
    """How much a group says in the product of the two deltas."""
    return abs(group.cosine or 0) * group.norms[0] * group.norms[1]


def _cosine(group: Group) -> str:
    return "undefined" if group.cosine is None else _number(group.cosine)


def _number(cosine: float | None) -> str:
    """Three decimals, ``-`` where there is none; no zero has a sign."""
    if cosine is None:
        return "-"
    text = f"{cosine:.3f}"
    return "0.000" if text == "-0.000" else text
