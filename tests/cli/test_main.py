"""The command line as a whole, for what needs no artifact."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

import deltastore
from deltastore.cli.group import COMMANDS, LazyGroup
from deltastore.cli.main import cli, main

Capture = pytest.CaptureFixture[str]


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"deltastore {deltastore.__version__}\n"


def test_help_lists_every_command(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in text


def test_no_arguments_print_the_help_and_are_a_usage_error(capsys: Capture) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Commands:" in captured.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_the_global_options(name: str, capsys: Capture) -> None:
    assert main([name, "-h"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: deltastore {name}")
    for option in ("--json", "--quiet", "--store"):
        assert option in text


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_first_line_fits_the_list_of_commands(name: str) -> None:
    command = LazyGroup().get_command(click.Context(cli), name)
    assert command is not None
    assert not command.get_short_help_str(limit=64).endswith("...")


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["aply"], "Did you mean apply?"),
        (["ls"], "See 'deltastore --help'."),
        (["list", "--bsae", "x"], "Did you mean --base"),
        (["--jsno", "list"], "Did you mean --json"),
        (["show"], "See 'deltastore show --help'."),
        (["extract", "--base", "x"], "See 'deltastore extract --help'."),
        (["extract", "--base", "a", "--post", "b", "--jobs", "0"], "deltastore extract --help"),
    ],
)
def test_usage_errors_suggest(argv: list[str], hint: str, capsys: Capture) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert hint in captured.err


@pytest.mark.parametrize("argv", [["--json", "list", "--nope"], ["list", "--nope", "--json"]])
def test_usage_errors_as_json(argv: list[str], capsys: Capture) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["error"]["kind"] == "UsageError"


SCALES_BASE = ["apply", "a", "b", "--base", "x", "--out", "y"]


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (["1", "2", "3"], "2 REFs and 3 --scale"),
        (["much"], "'much' is not a number"),
        (["nan"], "'nan' is not finite"),
        (["-inf"], "'-inf' is not finite"),
    ],
)
def test_scales_that_do_not_fit(scales: list[str], message: str, capsys: Capture) -> None:
    options = [argument for scale in scales for argument in ("--scale", scale)]
    assert main([*SCALES_BASE, *options]) == 2
    assert message in capsys.readouterr().err


def test_a_shard_size_that_is_none(capsys: Capture) -> None:
    assert main([*SCALES_BASE, "--max-shard-size", "5 apples"]) == 2
    assert "5 apples" in capsys.readouterr().err


def test_before_the_first_extract_the_list_is_empty(capsys: Capture, isolated_home: Path) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr().out == "no artifacts\n"
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert not isolated_home.exists()


@pytest.mark.parametrize("command", [["list"], ["verify"], ["show", "x"], ["du"]])
def test_a_store_that_was_named_must_exist(
    command: list[str], tmp_path: Path, capsys: Capture
) -> None:
    missing = tmp_path / "missing"
    assert main(["--store", str(missing), *command]) == 11
    assert str(missing) in capsys.readouterr().err
    assert not missing.exists()


def test_the_store_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("DELTASTORE_STORE", str(tmp_path / "from-env"))
    assert main(["list"]) == 11
    assert "from-env" in capsys.readouterr().err
    # An option counts more than the environment, on either side of the command.
    for argv in (
        ["--store", str(tmp_path / "option"), "list"],
        ["list", "--store", str(tmp_path / "option")],
    ):
        assert main(argv) == 11
        assert str(tmp_path / "option") in capsys.readouterr().err


def test_python_m_deltastore() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deltastore", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"deltastore {deltastore.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from deltastore.cli.main import run; run()"],
        env={"_DELTASTORE_COMPLETE": f"{shell}_source", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "deltastore" in done.stdout
