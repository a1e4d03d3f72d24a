"""The example in docs/testing.md is a test file that passes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pytest_of(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=path.parent)


def test_the_example_passes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    file = tmp_path / "test_mine.py"
    file.write_text("\n".join(blocks))
    # The suites run in full elsewhere: here, that the page says what works.
    chosen = "MyBlobs or record or says_what_it_is or same_chunk or MyStore"
    done = pytest_of(file, "-k", chosen, "-W", "ignore")
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 40


def test_without_pytest_it_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; from importlib import util; real = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name == 'pytest' else real(name, *a)\n"
        "import deltastore.testing.faults"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 1
    assert "MissingExtraError: deltastore.testing needs pytest" in done.stderr
