"""A sample of ``scripts/fuzz_store``, always the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CASES = 150
ROOT = Path(__file__).parents[2]


def test_a_store_whose_fields_are_mutated() -> None:
    places = (ROOT, ROOT / "tests" / "adversary")
    ended = subprocess.run(
        [sys.executable, "tests/fuzz/store_fuzz.py", "--cases", str(CASES), "--seed", "1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{CASES} cases" in ended.stdout
