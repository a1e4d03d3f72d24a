"""All that the commands print: results on stdout, everything else on stderr.

A result is printed in one of three ways: for people, as one JSON document (``--json``), or as the
bare refs and paths that a script goes on with (``-q``).
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any

import click

from deltastore.errors import StandardOutputError
from deltastore.text import escaped, is_shown_as_it_is, sentence


@dataclass(frozen=True, slots=True)
class Output:
    """Prints results on stdout in the way the user asked for."""

    json: bool = False
    quiet: bool = False

    def result(
        self, value: Any, *, human: Callable[[], Iterable[str]], quiet: Iterable[str] = ()
    ) -> None:
        """Print a command's result.

        Args:
            value: A dataclass, or a sequence of them: the JSON document.
            human: Gives the lines for people; called only when they are wanted.
            quiet: The lines under ``-q``; usually refs or paths.

        Raises:
            StandardOutputError: Standard output cannot be written.
        """
        if self.json:
            write([document(value)])
        elif self.quiet:
            # A path as it is: a script goes on with it, and it need not be Unicode.
            write(quiet, exact=True)
        else:
            write(human())


def document(value: Any, *, indent: int | None = 2) -> str:
    """``value`` as one JSON document: dataclasses as objects, numbers that JSON lacks as null.

    A list has one element a line: it may be long, and indenting it takes Python's slow encoder.
    """
    try:
        return _encode(value, indent)
    except ValueError:
        return _encode(_without_nan(value), indent)


def _encode(value: Any, indent: int | None) -> str:
    """The document, or a ValueError where it holds NaN or an infinity."""
    if not isinstance(value, list):
        return json.dumps(value, indent=indent, default=_plain, allow_nan=False)
    encode = json.JSONEncoder(default=_plain, allow_nan=False).encode
    return "[" + ",\n ".join(map(encode, value)) + "]"


def write(lines: Iterable[str], *, exact: bool = False) -> None:
    """Write lines to stdout at once, and stop quietly when the reader has gone.

    Args:
        lines: Without their ends.
        exact: Whether bytes of file names that are no text are written as they are, not as escapes.

    Raises:
        StandardOutputError: Standard output cannot be written for another reason.
    """
    text = "".join(f"{line}\n" for line in lines)
    if not text or sys.stdout is None:
        return
    try:
        if not (exact and _write_bytes(text)):
            sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        silence_stdout()
        # `deltastore list | head -1`: the reader had enough. The command did its work, and its
        # exit code says how that went.
        if error.errno != errno.EPIPE:
            raise unwritable(error) from error


def _write_bytes(text: str) -> bool:
    """Write names of files as the file system has them; whether that differs and can be done."""
    if text.isascii() or not hasattr(sys.stdout, "buffer"):
        return False
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:
        return False
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    return True


def unwritable(error: OSError) -> StandardOutputError:
    """What to say where stdout takes nothing."""
    return StandardOutputError(
        f"Standard output cannot be written: {error.strerror}.",
        hint="Redirect it to a file system with free space.",
    )


def message(label: str, text: str, *, colour: str | None = None) -> None:
    """Write ``label: text`` to stderr; further lines of the text are indented."""
    first, *rest = text.splitlines() or [""]
    heading = click.style(f"{label}:", fg=colour, bold=True) if colour else f"{label}:"
    lines = [f"{heading} {sentence(first)}", *(f"  {sentence(line)}" for line in rest)]
    try:
        click.echo("\n".join(lines), err=True, color=coloured(sys.stderr))
    except OSError:  # nobody reads stderr, and there is nowhere else to say so
        return


def coloured(stream: Any) -> bool:
    """Whether colours belong on this stream: a terminal, and no ``NO_COLOR``."""
    return stream is not None and not os.environ.get("NO_COLOR") and bool(stream.isatty())


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = "") -> list[str]:
    """Rows under a header in aligned columns.

    Args:
        header: The columns' titles.
        rows: As many cells each as the header has.
        right: A letter per column, ``r`` for those that are aligned to the right.

    Returns:
        One line for the header and one per row.
    """
    cells = [header]
    for row in rows:
        # Asked once for the whole row: there may be many, and nearly all are harmless.
        cells.append(row if is_shown_as_it_is("|".join(row)) else list(map(escaped, row)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = right.ljust(len(widths))
    # One format for all rows: a list of 10,000 artifacts is a common thing to look through.
    form = "  ".join(
        f"{{:{'>' if align == 'r' else '<'}{width}}}"
        for align, width in zip(aligned, widths, strict=True)
    )
    return [form.format(*row).rstrip() for row in cells]


def fields(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """``label  value`` lines, indented and aligned; pairs without a value are left out."""
    kept = [(label, value) for label, value in pairs if value]
    width = max((len(label) for label, _ in kept), default=0)
    return [f"  {label:<{width}}  {escaped(value)}" for label, value in kept]


def _plain(value: Any) -> Any:
    """What the JSON encoder cannot write by itself."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Not dataclasses.asdict: it copies every level before the encoder walks it again.
        return {name: getattr(value, name) for name in _fields_of(type(value))}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    return str(value)


@cache
def _fields_of(record: Any) -> tuple[str, ...]:
    """The names of a dataclass's fields."""
    return tuple(field.name for field in dataclasses.fields(record))


def _without_nan(value: Any) -> Any:
    """The same document with NaN and infinities as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return _without_nan(_plain(value))


def silence_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter's last flush cannot fail."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, descriptor)
    os.close(devnull)
