"""What the user sees of an error, and the exit code it becomes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from deltastore._version import __version__
from deltastore.cli.output import document, message
from deltastore.errors import DeltastoreError, StructureMismatchError, UsageError
from deltastore.system.limits import as_limit

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as it is shown; under ``--json`` these fields are the document."""

    kind: str
    message: str
    hint: str
    exit_code: int
    facts: dict[str, Any] = field(default_factory=dict)


def report(
    error: BaseException, *, as_json: bool, argv: Sequence[str], interrupted: bool = True
) -> int:
    """Tell the user of ``error`` on stderr.

    Args:
        error: What ended the command.
        as_json: Write one line of JSON, the last on stderr; stdout stays empty.
        argv: The arguments of the call.
        interrupted: Whether the user may have interrupted the command: by Ctrl-C or SIGTERM.

    Returns:
        The exit code.
    """
    if type(error).__name__ == "NoArgsIsHelpError" and isinstance(error, click.UsageError):
        error.show()
        return error.exit_code
    limit = None if isinstance(error, DeltastoreError) else as_limit(error)
    if limit is not None:
        error = limit
    problem = _problem(error, argv, interrupted=interrupted)
    unexpected = problem.exit_code == 1 and not isinstance(
        error, (DeltastoreError, click.ClickException)
    )
    if unexpected:
        import traceback

        traceback.print_exception(error)
    if as_json:
        with contextlib.suppress(OSError):  # nobody reads stderr
            click.echo(document({"error": problem}, indent=None), err=True)
        return problem.exit_code
    message("error", "\n".join([problem.message, *_listed(error)]), colour="red")
    if problem.hint:
        message("hint", problem.hint, colour="cyan")
    return problem.exit_code


def _listed(error: BaseException) -> Iterator[str]:
    """The tensors that a structure error is about, as patterns, at most ten lines of a kind.

    None where the base is another model altogether: the sentence says so.
    """
    if not isinstance(error, StructureMismatchError) or "other_model" in error.facts:
        return
    from deltastore.tensor_names.patterns import MOST_LINES, folded

    for what, items in error.facts.items():
        if not isinstance(items, (list, tuple)):
            continue
        rows = [(item, "") if isinstance(item, str) else (item[0], item[1]) for item in items]
        groups = folded(rows)
        for name, said, count in groups[:MOST_LINES]:
            many = f" ({count} tensors)" if count > 1 else ""
            yield f"{what}: {name}{many}" + (f": {said}" if said else "")
        rest = sum(count for _, _, count in groups[MOST_LINES:])
        if rest:
            yield f"{what}: and {rest} more tensors; `--json` lists all"


def _problem(error: BaseException, argv: Sequence[str], *, interrupted: bool) -> Problem:
    """The words for each kind of error."""
    if isinstance(error, DeltastoreError):
        return Problem(
            type(error).__name__, error.message, error.hint, error.exit_code, error.facts
        )
    if interrupted and isinstance(error, (KeyboardInterrupt, click.Abort)):
        return Problem(
            "Interrupted",
            "Interrupted; nothing unfinished is visible.",
            "The same command again finishes the work, and reuses what is already stored.",
            INTERRUPTED,
        )
    if isinstance(error, click.UsageError):
        return Problem(UsageError.__name__, _usage(error), _usage_hint(error), error.exit_code)
    if isinstance(error, click.ClickException):
        return Problem(type(error).__name__, error.format_message(), "", error.exit_code)
    return _bug(error, argv)


def _bug(error: BaseException, argv: Sequence[str]) -> Problem:
    """What to report of an error that nobody foresaw, and where."""
    import platform
    import shlex

    return Problem(
        type(error).__name__,
        f"This is a bug in deltastore: {type(error).__name__}: {error}",
        "Report it where you got deltastore from, with the lines above and these:\n"
        f"deltastore {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
        f"deltastore {shlex.join(argv)}",
        1,
    )


def _usage(error: click.UsageError) -> str:
    """The sentence of a usage error, without the suggestions that click adds to some."""
    if hasattr(error, "possibilities"):
        return error.message
    return error.format_message()


def _usage_hint(error: click.UsageError) -> str:
    """The nearest command or option, and where to read on."""
    nearest = getattr(error, "possibilities", None) or []
    path = error.ctx.command_path if error.ctx else "deltastore"
    guess = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    return f"{guess}See '{path} --help'."
