"""What a command imports: libraries that compute are slow to start, and wait for work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import deltastore

if TYPE_CHECKING:
    from tests.cli.conftest import Models

HEAVY = {"torch", "numba", "numpy", "transformers", "huggingface_hub", "rich", "matplotlib"}

PROBE = """
import sys
from deltastore.cli.main import main
code = main(sys.argv[1:])
print("\\n" + " ".join(sorted(name for name in sys.modules if "." not in name)), file=sys.stderr)
sys.exit(code)
"""


def imported(*argv: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *argv], capture_output=True, text=True, check=True
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "argv",
    [["list"], ["list", "--json"], ["show", "instruct"], ["--help"]],
    ids=" ".join,
)
def test_looking_needs_nothing_that_computes(store: Path, argv: list[str]) -> None:
    assert imported(*argv) & HEAVY == set()


@pytest.mark.parametrize("command", ["extract", "apply", "verify", "compare"])
def test_help_needs_not_even_the_store(command: str) -> None:
    assert imported(command, "--help") & (HEAVY | {"sqlalchemy", "sqlite3"}) == set()


def test_extract_and_apply_need_no_torch(models: Models, store: Path, tmp_path: Path) -> None:
    pair = ["--base", models.base, "--post", models.post, "--name", "again", "--rehash"]
    assert "torch" not in imported("extract", *pair)
    out = str(tmp_path / "out")
    assert "torch" not in imported("apply", "instruct", "--base", models.base, "--out", out)


def test_neither_do_old_pickles(models: Models, store: Path, tmp_path: Path) -> None:
    """torch is imported to write them, and not to read them."""
    from safetensors.torch import load_file

    place = tmp_path / "pickled"
    place.mkdir()
    for path in Path(models.post).iterdir():
        if path.suffix == ".safetensors":
            torch.save(load_file(path), place / "pytorch_model.bin")
        elif not path.name.endswith(".index.json"):
            (place / path.name).write_bytes(path.read_bytes())
    pair = ["--base", models.base, "--post", str(place), "--name", "pickled", "--rehash"]
    assert "torch" not in imported("extract", *pair)


def test_what_reads_pickles_imports_next_to_nothing() -> None:
    """It is started for each file."""
    script = "import sys; sys.path.append(sys.argv[1]); import deltastore.pickles.child; "
    root = Path(deltastore.__file__).parents[1]
    command = [sys.executable, "-I", "-S", "-c", f"{script}print(*sys.modules)", root]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"json", "re", "zipfile", "pickle", "subprocess"} == set()


def test_the_package_itself_costs_nothing() -> None:
    script = "import sys; n = set(sys.modules); import deltastore; print(len(set(sys.modules) - n))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert int(done.stdout) < 20
