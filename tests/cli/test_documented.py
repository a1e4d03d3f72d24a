"""Every example in the README and in docs/ is a command line that exists."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from deltastore.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")])
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def examples(page: Path) -> Iterator[list[str]]:
    """The arguments of each ``deltastore`` call in a fenced block."""
    for block in FENCE.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.match(r"(?:\s*\$)?\s*(?:\S+/)?deltastore\s+([^|>#]*)", line)
            if command:
                yield shlex.split(command[1])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_parse(page: Path) -> None:
    for arguments in examples(page):
        context = click.Context(cli, info_name="deltastore", resilient_parsing=False)
        options = {name for parameter in cli.params for name in parameter.opts}
        words = iter(arguments)
        name = ""
        for word in words:
            if word == "--store":
                next(words)
            elif not word.startswith("-"):
                name = word
                break
        if not name:
            assert set(arguments) <= options | {"--help", "-h"}
            continue
        command = cli.get_command(context, name)
        assert command is not None, f"{page.name}: deltastore {name}"
        known = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in known | {"--help"}, f"deltastore {name} {word}"
