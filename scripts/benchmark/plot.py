"""The results as a picture."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.case import Case
from benchmark.report import (
    MEMORY_LIMIT_MB,
    RATIO_FROM_GB,
    RATIO_LIMITS,
    Results,
    size_limit,
    title,
)

COLOURS = ("#9ecae1", "#3182bd", "#08519c")
BUDGET: dict[str, Any] = {"colors": "#d62728", "linestyles": "--", "linewidth": 1.4}
FLOOR: dict[str, Any] = {"colors": "black", "linewidth": 1.0}
WIDTH = 0.8  # of the bars of one group together


def plot(results: Results, path: Path) -> None:
    """Draw time against `cp`, memory and size, each with its budget."""
    timed = [case for case in results.cases if case.usages]
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 3.8), layout="constrained")
        time, memory, size = figure.subplots(1, 3, width_ratios=(4, 3, 3))
        _draw_time(time, timed)
        _draw_memory(memory, timed)
        _draw_size(size, results.cases)
        handles, labels = time.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.savefig(path, dpi=160)


def _draw_time(axes: Axes, cases: list[Case]) -> None:
    commands = [command for command in cases[0].usages if command != "cp"]
    _bars(axes, commands, {title(c): [c.ratio(command) for command in commands] for c in cases})
    label = "budget"
    for number, case in enumerate(cases):
        if case.recipe.size_gb >= RATIO_FROM_GB:
            for command, limit in RATIO_LIMITS.items():
                at, width = _place(commands.index(command), number, len(cases))
                axes.hlines(limit, at - width / 2, at + width / 2, label=label, **BUDGET)
                label = "_"  # once in the legend
    axes.hlines(1, -0.5, len(commands) - 0.5, label="cp (left), joint entropy (right)", **FLOOR)
    axes.set_title("Wall time in multiples of cp")


def _draw_memory(axes: Axes, cases: list[Case]) -> None:
    commands = [command for command in cases[0].usages if command != "cp"]
    _bars(axes, commands, {title(c): [c.peak_mb(command) for command in commands] for c in cases})
    axes.set_yscale("log")
    axes.hlines(MEMORY_LIMIT_MB, -0.5, len(commands) - 0.5, **BUDGET)
    axes.set_title("Peak memory in MB (log scale)")


def _draw_size(axes: Axes, cases: list[Case]) -> None:
    places = np.arange(len(cases))
    bars = axes.bar(places, [case.bits_per_weight for case in cases], 0.6, color=COLOURS[1])
    labels = [f"{case.bits_per_weight:.2f}\n{case.overhead:+.1%}" for case in cases]
    axes.bar_label(bars, labels, label_type="center", color="white")
    for at, case in enumerate(cases):
        limit = case.joint_entropy * (1 + size_limit(case.recipe.relative_change))
        axes.hlines(case.joint_entropy, at - 0.4, at + 0.4, **FLOOR)
        axes.hlines(limit, at - 0.4, at + 0.4, **BUDGET)
    axes.set_xticks(places, [title(case).replace(", ", "\n") for case in cases])
    axes.set_title("Bits per weight, and over entropy")


def _bars(axes: Axes, groups: list[str], series: dict[str, list[float]]) -> None:
    for number, (label, values) in enumerate(series.items()):
        spots = [_place(group, number, len(series)) for group in range(len(groups))]
        colour = COLOURS[number % len(COLOURS)]
        bars = axes.bar(
            [at for at, _ in spots], values, spots[0][1] * 0.94, label=label, color=colour
        )
        labels = [f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in values]
        axes.bar_label(bars, labels, padding=1, fontsize=8)
    axes.set_xticks(range(len(groups)), groups)


def _place(group: int, number: int, count: int) -> tuple[float, float]:
    """The middle and the width of a bar: the `number`th of `count` in its group."""
    width = WIDTH / count
    return group + (number - (count - 1) / 2) * width, width
