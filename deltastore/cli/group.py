"""The group of all commands, which imports a command's module only when it is called."""

from __future__ import annotations

import importlib

import click

from deltastore.cli.limits import require_memory

COMMANDS = (
    "extract",
    "apply",
    "compose",
    "list",
    "show",
    "resolve",
    "compare",
    "verify",
    "tag",
    "untag",
    "rm",
    "gc",
    "export",
    "du",
    "doctor",
    "reindex",
    "migrate",
)
"""Every command, in the order of the help. The module of the same name has it as ``command``."""

COMPUTING = frozenset({"extract", "apply", "compose", "resolve", "compare"})
"""The commands that load numpy and compiled kernels."""


class NoSuchCommandError(click.UsageError):
    """A command's name that does not exist; ``possibilities`` are the nearest ones."""

    def __init__(self, name: str, ctx: click.Context) -> None:
        from difflib import get_close_matches

        super().__init__(f"No such command {name!r}.", ctx)
        self.possibilities = get_close_matches(name, COMMANDS)


class LazyGroup(click.Group):
    """Commands by name; none is imported before it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"deltastore.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As in click, with the nearest names where there is no such command.

        Raises:
            NoSuchCommandError: The first argument is neither a command nor an option.
            LimitError: The command would not get the memory that it needs.
        """
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            raise NoSuchCommandError(name, ctx)
        if name in COMPUTING and not {"-h", "--help"} & set(args) and not ctx.resilient_parsing:
            require_memory()
        return super().resolve_command(ctx, args)
