import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from deltastore.cli import output
from deltastore.cli.output import Output
from deltastore.errors import StandardOutputError
from deltastore.text import escaped


@dataclasses.dataclass(frozen=True, slots=True)
class Inner:
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Outer:
    out: Path
    inner: Inner
    cosine: float


def test_dataclasses_become_objects() -> None:
    value = Outer(Path("/a"), Inner((2, 3)), 0.5)
    assert json.loads(output.document(value)) == {
        "out": "/a",
        "inner": {"shape": [2, 3]},
        "cosine": 0.5,
    }


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_become_null(number: float) -> None:
    value = [Outer(Path("/a"), Inner((2,)), number)]
    assert json.loads(output.document(value))[0]["cosine"] is None


def test_json_wins_over_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=True, quiet=True).result([1], human=lambda: ["one"], quiet=["1"])
    assert json.loads(capsys.readouterr().out) == [1]


def test_quiet_prints_only_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Output(quiet=True).result([1], human=lambda: ["one"], quiet=["1"])
    assert capsys.readouterr().out == "1\n"


def test_human_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Output().result([1], human=lambda: ["one", "two"])
    assert capsys.readouterr() == ("one\ntwo\n", "")


def test_tables_are_aligned() -> None:
    lines = output.table(("REF", "SIZE"), [("a:v1", "1 B"), ("long:v10", "12 MB")], right=" r")
    assert lines == ["REF        SIZE", "a:v1        1 B", "long:v10  12 MB"]


def test_braces_in_cells_are_text() -> None:
    assert output.table(("{0}",), [("{x}",)]) == ["{0}", "{x}"]


def test_control_characters_of_others_are_escaped() -> None:
    assert escaped("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"
    assert escaped("größe") == "größe"
    assert "\x1b" not in output.table(("A",), [("\x1b]0;x\x07",)])[1]


def test_fields_without_a_value_are_left_out() -> None:
    assert output.fields([("a", "1"), ("b", ""), ("long", "2")]) == ["  a     1", "  long  2"]


def test_messages_indent_further_lines(capsys: pytest.CaptureFixture[str]) -> None:
    output.message("error", "first\nsecond", colour="red")
    assert capsys.readouterr().err == "error: first\n  second\n"


class Terminal:
    def isatty(self) -> bool:
        return True


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR")
    assert output.coloured(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.coloured(Terminal())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(StandardOutputError, match="No space left"):
            output.write(["x"])
        monkeypatch.undo()


def test_a_reader_that_left_is_no_error() -> None:
    script = (
        "from deltastore.cli.output import write\n"
        "import sys, time\n"
        "sys.stdin.readline()\n"
        "write(['x' * 100] * 10000)\n"
        "sys.exit(7)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    child.stdin.write(b"\n")
    child.stdin.close()
    complaint = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 7
    assert complaint == b""
