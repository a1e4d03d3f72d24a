"""``deltastore compose`` as it is typed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deltastore.cli.main import main
from tests.cli.conftest import write_checkpoint
from tests.cli.test_imports import imported

if TYPE_CHECKING:
    from tests.cli.conftest import Call, Models

Say = Callable[..., str]


@pytest.fixture
def chain(models: Models, store: Path, tmp_path: Path, call: Call) -> dict[str, Any]:
    """A store with instruct and what follows it, further; what extracting both at once says."""
    random = np.random.default_rng(2)
    shapes = {"embed.weight": (96, 64), "layer.0.weight": (64, 64), "norm.weight": (64,)}
    further = {name: random.normal(0, 0.02, shape) for name, shape in shapes.items()}
    path = write_checkpoint(tmp_path / "further", further)
    call("extract", "--base", models.post, "--post", path, "--force")
    whole = ["--base", models.base, "--post", path, "--force"]
    expected: dict[str, Any] = call("--store", str(tmp_path / "other"), "extract", *whole)
    return expected


def test_the_result_is_that_of_extract(
    chain: dict[str, Any], models: Models, store: Path, call: Call, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "further")
    arguments = ["--base", models.base, "--name", "both", "--tag", "a", "--tag", "b", "--jobs", "1"]
    result = call("compose", "instruct", "further", *arguments)
    assert result.keys() == chain.keys() | {"composed"}
    assert result["composed"] == ["instruct:v1", "further:v1"]
    own = {"name": "both", "composed": result["composed"], "seconds": result["seconds"]}
    assert result == chain | own
    (found,) = call("list", "--name", "both")
    assert (found["tags"], found["base"], found["post"]) == (["a", "b"], "base", "further")


def test_what_people_and_scripts_are_told(chain: dict[str, Any], models: Models, say: Say) -> None:
    lines = say("compose", "instruct", "further:v1", "--base", models.base).splitlines()
    assert lines[0] == f"instruct-further:v1  {chain['digest']}"
    assert lines[1].split(maxsplit=1) == ["composed", "instruct:v1, then further:v1"]
    again = ["compose", "instruct", "further:v1"]
    assert "the store had this pair already" in say(*again)
    assert say("-q", *again) == "instruct-further:v1\n"


@pytest.mark.parametrize(
    ("refs", "code"),
    [
        ([], 2),
        (["instruct"], 2),
        (["further", "instruct"], 30),
        (["instruct", "nothing"], 22),
    ],
    ids=str,
)
def test_refused(
    chain: dict[str, Any],
    models: Models,
    refs: list[str],
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert main(["compose", *refs, "--base", models.base]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "error:" in printed.err.lower()


def test_without_torch(chain: dict[str, Any], models: Models) -> None:
    arguments = ["compose", "instruct", "further", "--base", models.base]
    assert "torch" not in imported(*arguments)
