"""Kernels are compiled anew when anything that is compiled into them has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import deltastore
from deltastore import jit

PACKAGE = Path(deltastore.__file__).parent

_ADD = """
import numpy as np
from deltastore.delta import Term, add
from deltastore.tokens import escapes_in

out = np.empty(2, np.uint8)
add(np.zeros(2, np.uint8), "BF16", [Term(np.zeros(1, np.uint32), 1.0)], "BF16", out)
print(escapes_in(np.zeros(3, np.uint8), 1))
"""


def ran(package_parent: Path) -> str:
    # Numba's own variables would have kernels kept elsewhere, or not compiled.
    environment = {name: value for name, value in os.environ.items() if "NUMBA" not in name}
    # What was on the path stays there: the libraries may be.
    path = [str(package_parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    done = subprocess.run(
        [sys.executable, "-c", _ADD],
        cwd=package_parent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def cached(package_parent: Path) -> set[str]:
    return {path.name for path in package_parent.rglob("*.nbi")}


def test_every_module_with_kernels_is_among_the_sources() -> None:
    known = {path for pattern in jit.SOURCES for path in PACKAGE.glob(pattern)}
    with_kernels = {
        path
        for path in PACKAGE.rglob("*.py")
        if "import kernel" in path.read_text() or "@kernel" in path.read_text()
    }
    assert with_kernels
    assert with_kernels <= known


def test_a_changed_callee_or_constant_compiles_its_callers_again(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "deltastore", ignore=shutil.ignore_patterns("*.nb?"))
    assert ran(tmp_path) == "0"
    first = cached(tmp_path)
    assert first
    assert ran(tmp_path) == "0"
    assert cached(tmp_path) == first, "an unchanged kernel should be found again"
    source = tmp_path / "deltastore" / "tokens.py"
    source.write_text(source.read_text().replace("TOKEN_ESCAPE = 255", "TOKEN_ESCAPE = 0"))
    assert ran(tmp_path) == "3"
    again = cached(tmp_path) - first
    assert {name.split("-")[0] for name in again} == {name.split("-")[0] for name in first}
