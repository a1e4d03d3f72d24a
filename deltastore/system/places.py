"""Paths as people give them: ``~``, the user's own directories, the working directory.

A container's user may have no home, a job's working directory may be gone. What needs one is then
refused by the name of what was given; a directory called ``~`` is never made.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Literal

from deltastore.errors import UsageError, shown

_VARIABLES = {"data": "XDG_DATA_HOME", "cache": "XDG_CACHE_HOME", "config": "XDG_CONFIG_HOME"}

_left = False


def given(path: str | os.PathLike[str], *, called: str) -> Path:
    """A path that somebody gave, its ``~`` expanded; as relative as it was, but for ``./~name``.

    Args:
        path: What was given.
        called: The option, variable or key by which it was given, for messages.

    Raises:
        UsageError: There is no such home directory or no working directory, or the path is none.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise UsageError(f"{called} is {shown(text)}, which no path can be.", hint="Correct it.")
    found = Path(_expanded(text, called) if text.startswith("~") else text)
    if not found.is_absolute() and not _has_working_directory():
        raise UsageError(
            f"{called} is {shown(text)}, which begins at the working directory, and that is gone.",
            hint="Give an absolute path, or `cd` to a directory that is there.",
            path=text,
        )
    # "./~x" has lost its beginning, and must not be expanded by the next one who is given it.
    return found.absolute() if str(found).startswith("~") else found


def absolute(path: str | os.PathLike[str], *, called: str) -> Path:
    """The same as an absolute path."""
    return given(path, called=called).absolute()


def user_directory(kind: Literal["data", "cache", "config"], *, instead: str) -> Path:
    """The directory that deltastore has among a user's own.

    Args:
        kind: Which one.
        instead: What to name where there is none, for the hint.

    Raises:
        UsageError: The user has no home directory, or the variable that names it names none.
    """
    import platformdirs

    variable = _VARIABLES[kind]
    value = os.environ.get(variable, "").strip()
    if value and (problem := _problem(value)):
        raise UsageError(
            f"{variable} is {shown(value)}, {problem}.",
            hint=f"Correct or unset {variable}, or {instead}.",
        )
    if not value and (problem := _home_problem()):
        raise UsageError(
            f"The user has no {kind} directory: {problem}.", hint=f"Set HOME, or {instead}."
        )
    functions = {
        "data": platformdirs.user_data_path,
        "cache": platformdirs.user_cache_path,
        "config": platformdirs.user_config_path,
    }
    return functions[kind]("deltastore", appauthor=False)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is something, be it a dangling link; a relative path needs a directory."""
    return (_is_absolute(os.fspath(path)) or _has_working_directory()) and os.path.lexists(path)


def leave_gone_directory() -> None:
    """Give a process whose working directory is gone another one; for a command's process.

    Libraries ask for it without need: Numba cannot compile without. What begins there is refused
    all the same.
    """
    global _left
    if not _has_working_directory():
        _left = True
        os.chdir("/")


def _expanded(text: str, called: str) -> str:
    # Not Path.expanduser: its error names neither what was given nor what is missing.
    user = text[1:].partition("/")[0]
    problem = f"there is no user {shown(user)}" if user else _home_problem()
    found = os.path.expanduser(text)  # noqa: PTH111
    if (problem and not user) or not _is_absolute(found):
        raise UsageError(
            f"{called} is {shown(text)}, and {problem or 'that is no absolute path'}.",
            hint=f"Give an absolute path{'' if user else ', or set HOME'}; ./~ begins the name of "
            "a file that is called so.",
            path=text,
        )
    return found


def _home_problem() -> str:
    home = os.environ.get("HOME")
    if home is not None:
        problem = _problem(home)
        return f"HOME is {shown(home)}, {problem}" if problem else ""
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return f"HOME is not set, and there is no user with the id {os.getuid()}"
    problem = _problem(home)
    return f"HOME is not set, and the user's is {shown(home)}, {problem}" if problem else ""


def _problem(directory: str) -> str:
    """Why this cannot be a directory of the user; empty if it can, though it may not be there."""
    if not _is_absolute(directory):
        return "which is no absolute path"
    # os.path, as Path's raise an error of what may not be looked at.
    if os.path.exists(directory) and not os.path.isdir(directory):  # noqa: PTH110, PTH112
        return "which is no directory"
    return ""


def _is_absolute(path: str) -> bool:
    return Path(path).is_absolute()


def _has_working_directory() -> bool:
    if _left:
        return False
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        return False
    return True
