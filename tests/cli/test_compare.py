"""``deltastore compare``: the document, what people see, and what is said before the work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltastore.cli.main import main
from deltastore.testing.artifacts import flip
from tests.cli.conftest import write_checkpoint
from tests.cli.test_imports import imported

Call = Callable[..., Any]
Say = Callable[..., str]

UP, NORM = "model.layers.{}.mlp.up_proj.weight", "model.layers.{}.input_layernorm.weight"


def delta(*numbers: float) -> np.ndarray:
    """Enough elements that a cosine is no chance."""
    return np.array(numbers * 1024, np.float64)


@pytest.fixture(scope="module")
def deltas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with deltas whose cosines are 0, 0.6, -0.8, 1 and not defined."""
    root = tmp_path_factory.mktemp("deltas")
    base = {
        "lm_head.weight": delta(0, 0),
        UP.format(0): delta(0, 0),
        UP.format(1): delta(0, 0),
        NORM.format(0): delta(0, 0),
        NORM.format(1): delta(0, 0),
    }
    posts = {
        "first": base
        | {
            "lm_head.weight": delta(1, 0),
            UP.format(0): delta(1, 0),
            UP.format(1): delta(2, 0),
        },
        "second": base
        | {
            "lm_head.weight": delta(-2, 1.5),
            UP.format(0): delta(0.75, 1),
            UP.format(1): delta(0, 2.5),
        },
        "large": base | {"lm_head.weight": delta(1, 128), UP.format(0): delta(0, 256)},
        "other": base | {UP.format(1): delta(1, 2, 3)},
    }
    bases = dict.fromkeys(posts, base)
    bases["other"] = base | {UP.format(1): delta(0, 0, 0)}
    for tensors in (posts["other"], bases["other"]):
        del tensors["lm_head.weight"]
    for name, post in posts.items():
        sides = [
            write_checkpoint(root / side / name, tensors)
            for side, tensors in (("base", bases[name]), ("post", post))
        ]
        argv = ["extract", "--base", sides[0], "--post", sides[1], "--name", name]
        assert main(["-q", "--store", str(root / "store"), *argv]) == 0
    return root / "store"


@pytest.fixture(autouse=True)
def in_store(deltas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTASTORE_STORE", str(deltas))


def test_the_document(call: Call) -> None:
    found = call("compare", "first", "second", "first")
    assert found.keys() == {"refs", "pairs", "seconds"}
    assert [ref["ref"] for ref in found["refs"]] == ["first:v1", "second:v1", "first:v1"]
    assert all(ref["digest"].startswith("sha256:") for ref in found["refs"])
    assert [pair["refs"] for pair in found["pairs"]] == [
        ["first:v1", "second:v1"],
        ["first:v1", "first:v1"],
        ["second:v1", "first:v1"],
    ]
    pair = found["pairs"][0]
    assert pair.keys() == {"refs", "verdict", "overall", "kinds", "layers", "cells", "left_out"}
    assert pair["overall"].keys() == {
        "layer",
        "kind",
        "tensors",
        "elements",
        "cosine",
        "norms",
        "ratio",
        "both_changed",
        "same_sign",
        "not_finite",
    }
    cosines = {(cell["layer"], cell["kind"]): cell["cosine"] for cell in pair["cells"]}
    assert cosines == {
        (0, "mlp.up_proj"): pytest.approx(0.6),
        (1, "mlp.up_proj"): 0,
        (0, "input_layernorm"): None,
        (1, "input_layernorm"): None,
        (None, "lm_head"): pytest.approx(-0.8),
    }
    assert found["pairs"][1]["overall"]["cosine"] == 1


GOLDEN = """\
COSINE     first:v1  second:v1
first:v1      1.000     -0.136
second:v1    -0.136      1.000

first:v1 (1) and second:v1 (2): cosine -0.136
  partly opposed: added, they cancel in part; aligned in mlp.up_proj (0.120)
  compared  5 tensors, 10,240 elements; both changed 20.0% of them, with the same sign in 50.0%
KIND             COSINE  LOWEST  LAYER  HIGHEST  LAYER  NORM 1  NORM 2  SAME SIGN
input_layernorm       -                                   0.00    0.00          -
mlp.up_proj       0.120   0.000      1    0.600      0    71.6    89.4     100.0%
lm_head          -0.800                                   32.0    80.0       0.0%
all              -0.136                                   78.4    120.      50.0%

Cosines say how the deltas lie to each other, not what their sum can do.
Only a test of the result shows that.
"""


def test_for_people(say: Say) -> None:
    text = say("compare", "first", "second")
    golden, took = text[: len(GOLDEN)], text[len(GOLDEN) :]
    assert golden == GOLDEN
    assert took.startswith("  took  ")


def test_the_verdict_names_what_is_otherwise(say: Say) -> None:
    text = say("compare", "first", "large")
    assert (
        "nearly orthogonal, but large:v1 is so much larger that it moves first:v1 by "
        "+17% of its length"
    ) in text
    assert "\nall               0.001" in text
    turned = say("compare", "large", "first")
    assert "but large:v1 is so much larger that it moves first:v1 by +17% of its length" in turned
    assert "one direction" in say("compare", "first", "first")


def test_what_is_left_out_is_listed(say: Say) -> None:
    text = say("compare", "second", "other")
    assert "  left out  2 tensors\n" in text
    assert "    lm_head.weight: only in second:v1\n" in text
    assert (
        "    model.layers.1.mlp.up_proj.weight: [2048] in second:v1, [3072] in other:v1\n" in text
    )
    assert "no direction to compare" in text
    assert "(2): cosine undefined" in text


def test_quiet_prints_refs_and_cosines(say: Say) -> None:
    assert say("-q", "compare", "first", "second", "first") == (
        "first:v1 second:v1 -0.136\nfirst:v1 first:v1 1.000\nsecond:v1 first:v1 -0.136\n"
    )


def test_a_plot_beside_the_table(tmp_path: Path, say: Say, call: Call) -> None:
    path = tmp_path / "plot.png"
    text = say("compare", "first", "second", "--plot", str(path))
    assert text.startswith(GOLDEN)
    assert f"  plot  {path}\n" in text
    assert path.read_bytes().startswith(b"\x89PNG")
    path.unlink()
    assert len(call("compare", "first", "second", "--plot", str(path))["pairs"]) == 1
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["first"], 2, "Give two REFs or more."),
        ([], 2, "Missing argument 'REF...'"),
        (["first", "nothing"], 22, "There is no nothing"),
        (["first", "second", "--plot", "x.gif"], 2, "expected one of .png, .svg, .pdf"),
        (["first", "second", "--plot", "/no/such/x.png"], 2, "there is no directory /no/such"),
        (["first"] * 7 + ["--plot", "x.png"], 2, "7 deltas make 21 heat maps"),
    ],
)
def test_refusals(
    argv: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *argv]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err


def test_a_plot_is_refused_before_the_work(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where the work would fail."""
    for blob in (store / "blobs" / "sha256").iterdir():
        flip(blob)
    assert main(["compare", "instruct", "instruct", "--plot", str(tmp_path / "x.jpg")]) == 2
    assert main(["compare", "instruct", "instruct", "--plot", str(tmp_path / "x.png")]) >= 40
    assert not (tmp_path / "x.png").exists()
    capsys.readouterr()


def test_without_matplotlib_only_a_plot_is_refused(deltas: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from deltastore.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "--store", str(deltas), "-q", "compare", "first"]
    assert subprocess.run([*command, "second"]).returncode == 0
    plot = tmp_path / "x.png"
    done = subprocess.run([*command, "second", "--plot", str(plot)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "A plot needs matplotlib" in done.stderr
    assert "pip install 'deltastore[plot]'" in done.stderr
    assert not plot.exists()


def test_comparing_needs_no_torch_and_no_matplotlib(tmp_path: Path) -> None:
    assert imported("compare", "first", "second") & {"torch", "matplotlib"} == set()
    plotted = imported("compare", "first", "second", "--plot", str(tmp_path / "x.png"))
    assert "torch" not in plotted
    assert "matplotlib" in plotted
    assert "matplotlib.pyplot" not in plotted
