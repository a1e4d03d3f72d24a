import json

import click
import pytest

from deltastore.cli.errors import report
from deltastore.errors import LineageError, StandardOutputError, UsageError


def told(
    error: BaseException, capsys: pytest.CaptureFixture[str], *, as_json: bool = False
) -> tuple[int, str]:
    code = report(error, as_json=as_json, argv=["show", "my ref"])
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err


def test_an_error_is_a_sentence_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    error = LineageError("Not a relative.", hint="Use --force.", cosine=0.1)
    assert told(error, capsys) == (32, "error: Not a relative.\nhint: Use --force.\n")


def test_a_missing_hint_leaves_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(UsageError("No."), capsys) == (2, "error: No.\n")


def test_as_json_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = LineageError("Not a\nrelative.", hint="Use --force.", cosine=0.1)
    code, text = told(error, capsys, as_json=True)
    assert code == 32
    assert text.count("\n") == 1
    assert json.loads(text) == {
        "error": {
            "kind": "LineageError",
            "message": "Not a\\nrelative.",
            "hint": "Use --force.",
            "exit_code": 32,
            "facts": {"cosine": 0.1},
        }
    }


def test_control_characters_in_messages_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    _, text = told(LineageError("a\x1b[2Jb"), capsys)
    assert text == "error: a\\x1b[2Jb\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interruption(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = told(error, capsys)
    assert code == 130
    assert text.startswith("error: Interrupted")
    assert "same command again" in text


def test_a_bug_says_what_to_report(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        print(1 / 0)
    code, text = told(caught.value, capsys)
    assert code == 1
    assert text.startswith("Traceback (most recent call last)")
    assert "This is a bug in deltastore: ZeroDivisionError: division by zero" in text
    assert "Python 3" in text
    assert "deltastore show 'my ref'" in text


def test_an_error_that_is_no_bug_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = told(StandardOutputError("Standard output cannot be written."), capsys)
    assert (code, text) == (3, "error: Standard output cannot be written.\n")


def test_facts_of_any_kind_can_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    _, text = told(UsageError("No.", a=float("nan"), b={1, 2}, c=object), capsys, as_json=True)
    assert json.loads(text)["error"]["facts"]["b"] == [1, 2]
