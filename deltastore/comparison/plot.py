"""Comparisons as pictures. The one module that knows matplotlib, which is an optional package."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import warnings
from collections.abc import Sequence
from io import BytesIO
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deltastore.blobs.durable import temp_name, translated
from deltastore.comparison.figures import Comparison, PairFigures
from deltastore.errors import MissingExtraError, UsageError
from deltastore.system import places
from deltastore.system.directory import Directory
from deltastore.text import typed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
MOST_REFS = 6
"""More deltas than this would be more heat maps than a picture has room for."""

_CELL_INCHES = (0.52, 0.21)
_LETTER_INCHES = 0.085
_LONGEST_LABEL, _LONGEST_TITLE = 40, 48
_MOST_ROWS, _MOST_COLUMNS = 130, 40
"""Beyond this a heat map is drawn without numbers, and shrinks instead of growing."""
_DPI = 130
_MOST_PIXELS = 40_000_000
_UNDEFINED = (0xDD, 0xDD, 0xDD, 0xFF)
_TICKS = (-1.0, -0.5, -0.1, 0.0, 0.1, 0.5, 1.0)


def check_plot(path: str | PathLike[str], refs: int) -> None:
    """Make sure, before the work is done, that a picture of so many deltas can be written.

    Raises:
        UsageError: The file's suffix is none of ``SUFFIXES``, its directory is not there or cannot
            be written to, a directory is in its place, or there are too many deltas.
        MissingExtraError: matplotlib is not installed.
    """
    path = places.given(path, called="--plot")
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{path} has no suffix of a picture; expected one of {', '.join(SUFFIXES)}.",
            hint=f"For example: `--plot {typed(path.stem or 'compare')}.png`.",
            path=str(path),
        )
    if not os.path.isdir(path.parent):  # noqa: PTH112 - Path.is_dir fails for what is too long
        raise UsageError(
            f"{path} cannot be written: there is no directory {path.parent}.",
            hint=f"Make it: `mkdir -p {typed(path.parent)}`.",
            path=str(path),
        )
    if os.path.isdir(path):  # noqa: PTH112
        raise UsageError(
            f"{path} is a directory; expected a file or nothing.",
            hint="Give another `--plot`.",
            path=str(path),
        )
    try:
        with tempfile.TemporaryFile(dir=path.parent), contextlib.suppress(FileNotFoundError):
            path.lstat()  # fails for a name that is too long
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror} in {path.parent}.",
            hint="Give a `--plot` in a directory of yours.",
            path=str(path),
        ) from error
    if refs > MOST_REFS:
        raise UsageError(
            f"{refs} deltas make {math.comb(refs, 2)} heat maps; a picture has room for "
            f"{math.comb(MOST_REFS, 2)}, of {MOST_REFS} deltas.",
            hint="Compare fewer, or leave out `--plot`: tables and JSON take any number.",
        )
    _settle_directory()
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "A plot needs matplotlib, which is not installed.",
            hint="Install it: `pip install 'deltastore[plot]'`; or leave out `--plot`.",
            package="matplotlib",
        ) from error


def _settle_directory() -> None:
    """Have matplotlib keep its fonts where the user means, or nowhere that lasts.

    It takes a ``~`` that no shell has expanded for a name, and so it does with a lacking home.
    """
    variable = "MPLCONFIGDIR"
    given = os.environ.get(variable)
    try:
        if given:
            os.environ[variable] = str(places.given(given, called=variable))
        else:
            places.user_directory("config", instead="")
            places.user_directory("cache", instead="")
    except UsageError:
        os.environ[variable] = os.devnull  # no directory: matplotlib makes a temporary one


def plot_comparison(comparison: Comparison, path: str | PathLike[str]) -> None:
    """Draw a heat map of layers and kinds for each pair of deltas; a file there is replaced.

    Raises:
        UsageError: See ``check_plot``.
        MissingExtraError: matplotlib is not installed.
        NoSpaceError: The picture does not fit.
        StoreError: It cannot be written for another reason.
    """
    path = places.given(path, called="--plot")
    check_plot(path, len(comparison.refs))
    drawn = BytesIO()
    with warnings.catch_warnings():
        # A name in letters that the font lacks is drawn with boxes, which is enough.
        warnings.simplefilter("ignore", UserWarning)
        figure = _figure(comparison)
        width, height = figure.get_size_inches()
        dpi = min(_DPI, math.sqrt(_MOST_PIXELS / (width * height)))
        figure.savefig(drawn, format=path.suffix.lower()[1:], dpi=dpi)
    temp = f".{temp_name()}.partial"
    with translated(path), Directory.hold(path.parent) as directory:
        try:
            directory.write(temp, drawn.getvalue())
            directory.rename(temp, directory, path.name)
        except BaseException:
            with contextlib.suppress(OSError):
                directory.unlink(temp, missing_ok=True)
            raise


def _figure(comparison: Comparison) -> Figure:
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    grids = [_Grid(pair) for pair in comparison.pairs]
    width = max(grid.width for grid in grids)
    height = max(grid.height for grid in grids)
    across = _panels_across(len(grids), width / height)
    down = -(-len(grids) // across)
    figure = Figure(figsize=(across * width + 0.8, down * height), layout="constrained")
    axes: npt.NDArray[Any] = figure.subplots(down, across, squeeze=False)
    for place, grid in zip(axes.flat, grids, strict=False):
        grid.draw(place)
    for place in list(axes.flat)[len(grids) :]:
        place.axis("off")
    bar = figure.colorbar(
        ScalarMappable(_norm(), "RdBu"),
        ax=list(axes.flat),
        shrink=min(1.0, 4.0 / (down * height)),
        aspect=30,
        pad=0.01,
    )
    bar.set_ticks(list(_TICKS), labels=[f"{tick:g}".replace("-", "−") for tick in _TICKS])
    bar.set_label("cosine", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _panels_across(count: int, ratio: float) -> int:
    """How many panels of this ratio of width to height make a picture a little wider than high."""

    def distance(across: int) -> float:
        return abs(math.log(across * ratio / -(-count // across) / 1.4))

    return min(range(1, count + 1), key=distance)


def _norm() -> Any:
    """Colours by the square root: most cosines are near zero, where a straight scale is white."""
    from matplotlib.colors import FuncNorm

    def forward(cosine: Any) -> Any:
        return np.sign(cosine) * np.sqrt(np.abs(cosine))

    def backward(colour: Any) -> Any:
        return np.sign(colour) * np.square(colour)

    return FuncNorm((forward, backward), vmin=-1, vmax=1)


class _Grid:
    """One pair's cosines: layers down, kinds across, all together in the last row and column.

    Kinds outside of the layers stand in the last row alone.
    """

    def __init__(self, pair: PairFigures) -> None:
        first, second = pair.refs
        cosine = pair.overall.cosine
        said = "cosine not defined" if cosine is None else f"cosine {_number(cosine)}"
        between = "  and  " if len(first + second) < _LONGEST_TITLE else "\nand "
        self._title = f"{first}{between}{second}\n{said}: {pair.verdict}"
        layers = sorted({cell.layer for cell in pair.cells if cell.layer is not None})
        inside = {cell.kind for cell in pair.cells if cell.layer is not None}
        self._inside = len(inside)
        self._rows = [*map(str, layers), "all layers" if layers else "all"]
        self._columns = [*(str(group.kind) for group in pair.kinds), "all kinds"]
        last_row, last_column = len(layers), len(pair.kinds)
        row_of = {layer: i for i, layer in enumerate(layers)}
        column_of = {group.kind: i for i, group in enumerate(pair.kinds)}
        self._cells = {(last_row, last_column): pair.overall}
        for group in pair.kinds:
            self._cells[last_row, column_of[group.kind]] = group
        for group in pair.layers:
            if group.layer is not None:
                self._cells[row_of[group.layer], last_column] = group
        for cell in pair.cells:
            if cell.layer is not None:
                self._cells[row_of[cell.layer], column_of[cell.kind]] = cell

    @property
    def width(self) -> float:
        """Inches, with the labels."""
        title = _LETTER_INCHES * max(map(len, self._title.splitlines()))
        return max(_CELL_INCHES[0] * min(len(self._columns), _MOST_COLUMNS) + 1.0, title, 4.2)

    @property
    def height(self) -> float:
        """Inches, with labels and title."""
        below = _LETTER_INCHES * min(_LONGEST_LABEL, max(map(len, self._columns)))
        return _CELL_INCHES[1] * min(len(self._rows), _MOST_ROWS) + below + 0.9

    def draw(self, axes: Axes) -> None:
        """Draw the heat map with its title."""
        from matplotlib import colormaps

        cosines = np.full((len(self._rows), len(self._columns)), np.nan)
        undefined = np.zeros(cosines.shape, np.bool_)
        for at, group in self._cells.items():
            undefined[at] = group.cosine is None
            cosines[at] = np.nan if group.cosine is None else group.cosine
        # Given as colours: matplotlib would work them out anew for every pixel.
        colours = colormaps["RdBu"](_norm()(np.ma.masked_invalid(cosines)), bytes=True)
        colours[undefined] = _UNDEFINED
        axes.imshow(colours, aspect="auto", interpolation="nearest")
        if len(self._rows) <= _MOST_ROWS and len(self._columns) <= _MOST_COLUMNS:
            for (row, column), group in self._cells.items():
                _write(axes, row, column, group.cosine)
        line: dict[str, Any] = {"color": "black", "linewidth": 0.8}
        axes.axhline(len(self._rows) - 1.5, **line)
        axes.axvline(len(self._columns) - 1.5, **line)
        axes.axvline(self._inside - 0.5, **line)
        _label(axes.xaxis, self._columns, _MOST_COLUMNS)
        axes.tick_params(axis="x", labelrotation=90, length=2)
        _label(axes.yaxis, self._rows, _MOST_ROWS)
        axes.set_ylabel("layer", fontsize=8)
        axes.set_title(self._title, fontsize=9)


def _write(axes: Axes, row: int, column: int, cosine: float | None) -> None:
    axes.text(
        column,
        row,
        "–" if cosine is None else _number(cosine),
        ha="center",
        va="center",
        fontsize=6.5,
        color="black" if cosine is None or abs(cosine) < 0.45 else "white",
        # Nothing has to make room for it, and asking each how large it is takes most of the time.
        in_layout=False,
    )


def _label(axis: Any, names: Sequence[str], most: int) -> None:
    """Label every row or column, or as many as have room, and always the last."""
    step = -(-len(names) // most)
    places = [*range(0, len(names) - step, step), len(names) - 1]
    axis.set_ticks(places, [_shortened(names[i]) for i in places], fontsize=7)


def _shortened(name: str) -> str:
    """The end of a long name; names come from strangers' files, and no markup is meant by a $."""
    shown = name if len(name) <= _LONGEST_LABEL else f"…{name[1 - _LONGEST_LABEL :]}"
    return shown.replace("$", r"\$")


def _number(cosine: float) -> str:
    text = f"{cosine:.2f}"
    return ("0.00" if text == "-0.00" else text).replace("-", "−")
