"""Heat maps: that the file is a picture, appears whole, and says what the comparison says."""

from __future__ import annotations

import errno
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from deltastore.comparison import plot
from deltastore.comparison.figures import Compared, Comparison, Group, PairFigures
from deltastore.errors import MissingExtraError, NoSpaceError, UsageError
from deltastore.system.directory import Directory

KINDS = ("input_layernorm", "mlp.up_proj", "self_attn.q_proj")


def group(layer: int | None, kind: str | None, cosine: float | None) -> Group:
    return Group(layer, kind, 1, 9, cosine, (1.0, 1.0), 1.0, 9, 0.5, 0)


def pair(first: str, second: str, layers: int, kinds: tuple[str, ...]) -> PairFigures:
    """Cosines that can be told apart by their hundredths."""
    cells = [
        group(layer, kind, None if kind == "input_layernorm" else (layer - 3 * i) / 100)
        for layer in range(layers)
        for i, kind in enumerate(kinds)
    ]
    return PairFigures(
        refs=(first, second),
        verdict="aligned",
        overall=group(None, None, 0.77),
        kinds=[
            *(group(None, kind, 0.5 + i / 100) for i, kind in enumerate(kinds)),
            group(None, "lm_head", -0.88),
        ],
        layers=[*(group(i, None, -0.6 - i / 1000) for i in range(layers)), group(None, None, 0.99)],
        cells=[*cells, group(None, "lm_head", -0.88)],
        left_out=[],
    )


def comparison(layers: int = 2, kinds: tuple[str, ...] = KINDS, refs: int = 2) -> Comparison:
    names = [f"name-{i}:v1" for i in range(refs)]
    pairs = [
        pair(names[i], names[j], layers, kinds) for i in range(refs) for j in range(i + 1, refs)
    ]
    return Comparison([Compared(name, "sha256:0") for name in names], pairs, 1.0)


def png_size(path: Path) -> tuple[int, int]:
    """Width and height, after every chunk's checksum was looked at."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, kinds = 8, []
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 4 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(body)
        kinds.append(kind)
        at += 12 + length
    assert kinds[-1] == b"IEND"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.parametrize(
    ("layers", "kinds", "refs", "least", "most"),
    [
        (2, KINDS, 2, (500, 250), (1000, 700)),
        (32, tuple(f"module.projection_{i}" for i in range(9)), 2, (800, 900), (1500, 1600)),
        (8, KINDS, 3, (900, 500), (2000, 1500)),
        (300, tuple(f"kind{i}" for i in range(60)), 2, (2000, 3000), (4000, 5000)),
        (9, tuple("k" * 999 + str(i) for i in range(9)), 2, (700, 700), (1500, 1500)),
        (0, (), 2, (400, 150), (1000, 500)),
    ],
    ids=["small", "usual", "three", "large", "long names", "no layers"],
)
def test_a_picture_of_a_size_to_look_at(
    tmp_path: Path,
    layers: int,
    kinds: tuple[str, ...],
    refs: int,
    least: tuple[int, int],
    most: tuple[int, int],
) -> None:
    path = tmp_path / "plot.png"
    plot.plot_comparison(comparison(layers, kinds, refs), path)
    width, height = png_size(path)
    assert least[0] <= width <= most[0], (width, height)
    assert least[1] <= height <= most[1], (width, height)
    assert width * height <= 41_000_000


def texts(path: Path) -> list[str]:
    return [
        "".join(element.itertext())
        for element in ElementTree.fromstring(path.read_text()).iter(
            "{http://www.w3.org/2000/svg}text"
        )
    ]


def test_every_cell_row_and_column_is_in_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    with mpl.rc_context({"svg.fonttype": "none"}):
        plot.plot_comparison(comparison(layers=12), path)
    found = texts(path)
    for label in (*KINDS, "lm_head", "all kinds", "all layers", *map(str, range(12))):
        assert label in found, label
    wanted = [f"{layer / 100 - 0.03 * i:.2f}" for layer in range(12) for i in (1, 2)]
    wanted += [
        "0.50",
        "0.51",
        "0.52",
        "-0.88",
        "0.77",
        *(f"{-0.6 - i / 1000:.2f}" for i in range(12)),
    ]
    numbers = [t.replace("−", "-") for t in found if re.fullmatch(r"−?\d\.\d\d", t)]
    assert sorted(numbers) == sorted(n.replace("-0.00", "0.00") for n in wanted)
    assert found.count("–") == 12
    said = " ".join(found)
    assert "name-0:v1" in said
    assert "cosine 0.77: aligned" in said


def test_a_pdf_is_one(tmp_path: Path) -> None:
    path = tmp_path / "plot.PDF"
    plot.plot_comparison(comparison(), path)
    assert path.read_bytes().startswith(b"%PDF-")


def test_names_of_any_letters_are_no_markup_and_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    with mpl.rc_context({"svg.fonttype": "none"}):
        plot.plot_comparison(comparison(2, ("$a_b$", "c$d", "名前", "\\frac{")), path)
    found = texts(path)
    assert {"$a_b$", "c$d", "名前", "\\frac{"} <= set(found)


def test_a_file_is_replaced_or_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plot.png"
    path.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(Directory, "write", full)
        with pytest.raises(NoSpaceError):
            plot.plot_comparison(comparison(), path)
    with monkeypatch.context() as patched:
        patched.setattr(Directory, "rename", full)
        with pytest.raises(NoSpaceError):
            plot.plot_comparison(comparison(), path)
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.glob("*plot*")] == ["plot.png"]
    assert list(tmp_path.glob(".*")) == []
    plot.plot_comparison(comparison(), path)
    assert png_size(path)[0] > 100
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plot.gif", "expected one of .png, .svg, .pdf"),
        ("plot", "expected one of .png, .svg, .pdf"),
        ("none/plot.png", "there is no directory"),
        ("file/plot.png", "there is no directory"),
        ("dir.png", "is a directory"),
    ],
)
def test_what_cannot_be_a_picture(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "dir.png").mkdir()
    (tmp_path / "file").write_text("")
    for check in (
        lambda path: plot.check_plot(path, 2),
        lambda path: plot.plot_comparison(comparison(), path),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            check(tmp_path / name)


def test_a_directory_that_cannot_be_written_to() -> None:
    with pytest.raises(UsageError, match=r"/proc/x\.png cannot be written"):
        plot.check_plot("/proc/x.png", 2)


def test_too_many_deltas_for_a_picture(tmp_path: Path) -> None:
    plot.check_plot(tmp_path / "plot.png", plot.MOST_REFS)
    with pytest.raises(UsageError, match="7 deltas make 21 heat maps"):
        plot.check_plot(tmp_path / "plot.png", plot.MOST_REFS + 1)


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="needs matplotlib") as caught:
        plot.check_plot(tmp_path / "plot.png", 2)
    assert "pip install 'deltastore[plot]'" in caught.value.hint
    assert caught.value.exit_code == 2
