"""A short run of ``scripts/adversary``, and that what it looks for would be seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import judging
import pytest
from judging import Ended, Fault, faults

ROOT = Path(__file__).parents[2]
MINUTES = 0.4
SKIPPED = 77


def test_two_users_on_one_store(tmp_path: Path) -> None:
    places = (ROOT, ROOT / "tests" / "fuzz", ROOT / "tests" / "store")
    command = [sys.executable, "tests/adversary/adversary.py", "--seed", "1"]
    ended = subprocess.run(
        [*command, "--minutes", str(MINUTES), "--found", str(tmp_path / "found")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))},
        capture_output=True,
        text=True,
        check=False,
    )
    said = ended.stdout + ended.stderr
    if ended.returncode == SKIPPED:
        pytest.skip(said.strip().splitlines()[-1].removeprefix("skipped: "))
    assert ended.returncode == 0, said
    assert "nothing found" in said


TRACEBACK = """Traceback (most recent call last):
  File "/somewhere/deltastore/cli/main.py", line 1, in main
  File "/somewhere/deltastore/cli/units.py", line 25, in size
  File "/elsewhere/json.py", line 1, in dumps
TypeError: no number
error: This is a bug in deltastore.
"""


@pytest.mark.parametrize(
    ("ended", "wanted"),
    [
        (Ended(("list",), 0, "w:v1\n", "", 0.1, 0.1), []),
        (Ended(("list",), 17, "", "error: It is damaged.\nhint: Type it.\n", 0.1, 0.1), []),
        (
            Ended(("list", "--json"), 1, "", TRACEBACK, 0.1, 0.1),
            [Fault("TRACEBACK", "list: TypeError at deltastore/cli/units.py:25 in size")],
        ),
        (Ended(("list",), -11, "", "", 0.1, 0.1), [Fault("SIGNAL", "list: 11")]),
        (Ended(("list",), 99, "", "", 0.1, 0.1), [Fault("CODE", "list: 99")]),
        (Ended(("list",), -9, "", "", 31, 0.1, killed=True), [Fault("HANG", "list")]),
        (Ended(("list",), 0, "", "", 31, 0.1), [Fault("HANG", "list")]),
        (Ended(("list",), 0, "\x1b[2J", "", 0.1, 0.1), [Fault("RAW", "list: '\\x1b'")]),
        (Ended(("list", "-q"), 0, "w;id\n", "", 0.1, 0.1), [Fault("RAW", "list -q: no ref")]),
        (Ended(("list",), 0, "x" * (2 << 20), "", 0.1, 0.1), [Fault("LONG", "list")]),
    ],
)
def test_what_is_wrong_with_a_command(ended: Ended, wanted: list[Fault]) -> None:
    assert list(faults(ended)) == wanted


def test_what_became_of_files(tmp_path: Path) -> None:
    for name in ("kept", "gone", "changed"):
        (tmp_path / name).write_text("x")
    before = judging.survey([tmp_path])
    assert judging.differences(before, judging.survey([tmp_path])) == []
    (tmp_path / "gone").unlink()
    (tmp_path / "new").touch()
    (tmp_path / "kept").chmod(0o600)
    (tmp_path / "changed").write_text("y")
    said = judging.differences(before, judging.survey([tmp_path]))
    for what in ("removed {}/gone", "made {}/new", "mode of {}/kept", "content of {}/changed"):
        assert any(line.startswith(what.format(tmp_path)) for line in said), said
