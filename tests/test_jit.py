"""Kernels are compiled anew when anything that is compiled into them has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numba
import pytest

import deltastore
from deltastore.kernels import jit

PACKAGE = Path(deltastore.__file__).parent

_ADD = """
import numpy as np
from deltastore.delta import Term, add
from deltastore.kernels.palette import escapes_in

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
    source = tmp_path / "deltastore" / "kernels/palette.py"
    source.write_text(source.read_text().replace("TOKEN_ESCAPE = 255", "TOKEN_ESCAPE = 0"))
    assert ran(tmp_path) == "3"
    again = cached(tmp_path) - first
    assert {name.split("-")[0] for name in again} == {name.split("-")[0] for name in first}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package in a directory of its own, and kernels compiled there."""
    place = tmp_path_factory.mktemp("package")
    shutil.copytree(PACKAGE, place / "deltastore", ignore=shutil.ignore_patterns("*.nb?"))
    assert ran(place) == "0"
    return place


def cut_short(data: bytes) -> bytes:
    return data[: len(data) // 2]


def with_zeros(data: bytes) -> bytes:
    """As after a power cut: some blocks never came, in the machine code here."""
    at = data.index(b"\x7fELF")
    return data[: at + 600] + bytes(200) + data[at + 800 :]


@pytest.mark.parametrize(
    ("kind", "damage"), [("nbi", cut_short), ("nbc", cut_short), ("nbc", with_zeros)]
)
def test_a_damaged_kernel_is_compiled_again(
    compiled: Path, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    files = list(compiled.rglob(f"*.{kind}"))
    assert files
    for path in files:
        path.write_bytes(damage(path.read_bytes()))
    damaged = {path: path.read_bytes() for path in files}
    assert ran(compiled) == "0"
    assert all(path.read_bytes() != data for path, data in damaged.items()), "and kept again"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")  # noqa: PTH110
def test_kernels_that_cannot_be_kept_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The device takes no byte, as a disk that is full."""
    monkeypatch.setattr(jit, "_warned", False)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def double(x: int) -> int:
        return 2 * x

    kernel = jit.kernel(double)

    def full(*_: object) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    kernel._cache._cache_file.save = full  # type: ignore[attr-defined]
    assert kernel(4) == 8
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "NUMBA_CACHE_DIR" in said
