import io
import sys
import time
from collections.abc import Callable

import pytest

from deltastore.cli import progress
from deltastore.cli.progress import Bar, Warnings, show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_without_a_terminal_only_warnings_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(bars=True) as shown:
        shown.start("read", 10)
        shown.advance(10)
        shown.warn("mind the gap")
    assert type(shown) is Warnings
    assert capsys.readouterr() == ("", "warning: mind the gap\n")


def test_quiet_keeps_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with show_progress(bars=False) as shown:
        shown.warn("mind the gap")
    assert "mind the gap" in terminal.getvalue()


def test_what_is_done_at_once_draws_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with show_progress(bars=True) as shown:
        shown.start("read", 10)
        shown.advance(10)
    assert isinstance(shown, Bar)
    assert terminal.getvalue() == ""


def test_a_bar_has_the_stage_and_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0.0)
    with show_progress(bars=True) as shown:
        shown.start("read [base]", 1000)
        shown.advance(400)
        wait_for(lambda: "read [base]" in terminal.getvalue())
        shown.warn("mind the gap")
        shown.start("write", 0)
        shown.advance(10)
        wait_for(lambda: "write" in terminal.getvalue())
    text = terminal.getvalue()
    assert "read [base]" in text
    assert "mind the gap" in text
    # Transient: the last thing written erases the line.
    assert "\x1b[2K" in text[text.rindex("write") :]
