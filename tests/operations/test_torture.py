"""The random experiments of ``scripts/torture``, in small."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "torture"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--kills", "30", "--processes", "0"], "kills: 30 moments"),
        (["--kills", "0", "--processes", "4", "--seconds", "5"], "crowd: 4 processes for 5 s"),
        (
            ["--kills", "0", "--processes", "4", "--seconds", "4", "--killed-every", "0"],
            "crowd: 4 processes for 4 s, 0 killed",
        ),
    ],
    ids=["kills", "crowd with kills", "crowd"],
)
def test_random_moments(options: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
    assert "all is well" in done.stdout
