"""How commands are declared, and the options and parameter types that several share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from deltastore.cli.completion import complete_ref
from deltastore.cli.session import Session
from deltastore.cli.units import parse_size

Function = TypeVar("Function", bound=Callable[..., Any])


class Size(click.ParamType[int]):
    """A number of bytes such as ``5GB`` or ``512MiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse, or fail as a usage error."""
        try:
            return value if isinstance(value, int) else parse_size(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class Scale(click.ParamType[float]):
    """A finite number, negative ones included."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse, or fail as a usage error."""
        try:
            scale = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number.", param, ctx)
        if not math.isfinite(scale):
            self.fail(f"{value!r} is not finite.", param, ctx)
        return scale


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command that takes the session first and has the global options.

    They are also the group's: they mean the same before and after the command's name, and what is
    given last counts.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        made = click.command(name)(click.pass_obj(function))
        made.params += global_options(store_help="The store, by name or path.")
        return made

    return decorate


def global_options(*, store_help: str, store_envvar: str | None = None) -> list[click.Parameter]:
    """``--store``, ``--json`` and ``--quiet``, whose values go to the session.

    Args:
        store_help: What the help says of ``--store``.
        store_envvar: The variable that gives the store when no option does; for the group alone,
            or it would overrule an option before the command's name.
    """
    return [
        click.Option(
            ["--store"],
            metavar="NAME|PATH",
            expose_value=False,
            callback=_remember,
            envvar=store_envvar,
            show_envvar=True,
            help=store_help,
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_remember,
            help="Print the result as one JSON document.",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_remember,
            help="No progress, and of the result only refs and paths.",
        ),
    ]


def ref_argument(function: Function) -> Function:
    """REF, completed from the store."""
    return click.argument("ref", metavar="REF", shell_complete=complete_ref)(function)


def refs_argument(*, required: bool) -> Callable[[Function], Function]:
    """Any number of REFs, completed from the store; at least one if ``required``."""
    return click.argument(
        "refs",
        nargs=-1,
        required=required,
        metavar="REF..." if required else "[REF]...",
        shell_complete=complete_ref,
    )


def name_option(default: str) -> Callable[[Function], Function]:
    """``--name``: what the artifact that is stored is called; ``default`` is for the help."""
    return click.option("--name", metavar="NAME", help=f"Name in the store.  [default: {default}]")


def tag_option(function: Function) -> Function:
    """``--tag``: tags of the artifact that is stored."""
    return click.option("--tag", "tags", multiple=True, metavar="TAG", help="Tag it; repeatable.")(
        function
    )


def jobs_option(function: Function) -> Function:
    """``--jobs``: how many threads compute."""
    return click.option(
        "--jobs",
        type=click.IntRange(min=1),
        metavar="N",
        help="Threads that compute.  [default: the processors this process may use]",
    )(function)


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep an option that was given; one that was not leaves what the group was given."""
    if value and param.name:
        setattr(ctx.ensure_object(Session), param.name, value)
