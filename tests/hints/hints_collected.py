"""Every hint in the code, found in its syntax trees, and which of them a run has shown.

A hint is what is given to ``hint=``, what is assigned to something called ``hint``, ``way`` or
``room``, what a function returns whose result is given to ``hint=`` or is what ``doctor`` says to
do, and that itself. Each is known
by its file, the function that it is in and its number there: ``store/names.py:Names.create:1``.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import deltastore

ROOT = Path(deltastore.__file__).parent

_SAID = {"Check": 3, "Sharing": 1}
"""What ``doctor`` makes of what it finds, and where in it stands what to do."""


@dataclass(frozen=True)
class Hint:
    """A hint in the code.

    Attributes:
        key: What it is known by.
        path: Its file.
        first: The first line of the statement that makes it.
        last: The last one.
        called: Whether an error is made there, so that the place it is made at proves it; otherwise
            its text does.
        pattern: What its text looks like.
    """

    key: str
    path: str
    first: int
    last: int
    called: bool
    pattern: re.Pattern[str]


@functools.cache
def collected() -> dict[str, Hint]:
    """Every hint in the code by its key."""
    found: dict[str, Hint] = {}
    for path in sorted(ROOT.rglob("*.py")):
        for hint in _in_file(path):
            assert hint.key not in found
            found[hint.key] = hint
    return found


def _in_file(path: Path) -> Iterator[Hint]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    makers = _makers(tree)
    where = path.relative_to(ROOT).as_posix()
    for function, nodes in _functions(tree, ""):
        number = 0
        for node in nodes:
            for value, called in _values(node, function, makers):
                if _is_passed_on(value, called=called):
                    continue
                number += 1
                yield Hint(
                    f"{where}:{function or '<module>'}:{number}",
                    str(path),
                    node.lineno,
                    node.end_lineno or node.lineno,
                    called,
                    re.compile(_pattern(value, constants), re.DOTALL),
                )


def _makers(tree: ast.Module) -> set[str]:
    """The functions of a file whose results are given as hints."""
    given = (
        value for node in ast.walk(tree) if isinstance(node, ast.Call) for value, _ in _given(node)
    )
    calls = (value for value in given if isinstance(value, ast.Call))
    names = {
        call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        for call in calls
    }
    ways = (
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith(("_way", "way_"))
    )
    return {*names, *ways} - {"format"}


def _given(node: ast.Call) -> Iterator[tuple[ast.expr, bool]]:
    """The hints that a call is given; whether it makes an error of them."""
    for keyword in node.keywords:
        if keyword.arg == "hint":
            yield keyword.value, True
    place = _SAID.get(getattr(node.func, "id", ""))
    if place is not None and len(node.args) > place:
        yield node.args[place], False


def _functions(node: ast.AST, name: str) -> Iterator[tuple[str, list[ast.expr | ast.stmt]]]:
    """Functions by qualified name, with what is in them and in none within them, in order."""
    own: list[ast.expr | ast.stmt] = []
    inner: list[tuple[str, ast.AST]] = []
    todo = list(ast.iter_child_nodes(node))
    while todo:
        child = todo.pop(0)
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner.append((f"{name}.{child.name}" if name else child.name, child))
            continue
        if isinstance(child, ast.expr | ast.stmt):
            own.append(child)
        todo = [*ast.iter_child_nodes(child), *todo]
    yield name, own
    for below, child in inner:
        yield from _functions(child, below)


def _values(
    node: ast.expr | ast.stmt, function: str, makers: set[str]
) -> Iterator[tuple[ast.expr, bool]]:
    """The hints that an expression or a statement makes; whether it makes an error of them."""
    if isinstance(node, ast.Call):
        yield from _given(node)
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if getattr(target, "id", getattr(target, "attr", "")) in ("hint", "way", "room"):
                yield node.value, False
    elif isinstance(node, ast.Return) and function.rpartition(".")[2] in {*makers, "_usage_hint"}:
        yield node.value or ast.Constant(""), False


def _is_passed_on(value: ast.expr, *, called: bool) -> bool:
    """Whether a value is only another hint, or none: one that is found where it is made."""
    if called:
        return False
    empty = isinstance(value, ast.Constant) and not value.value
    return empty or not any(
        isinstance(part, ast.Constant) and isinstance(part.value, str) for part in ast.walk(value)
    )


def _pattern(value: ast.expr, constants: dict[str, ast.expr]) -> str:
    if isinstance(value, ast.Constant):
        return re.escape(str(value.value))
    if isinstance(value, ast.JoinedStr):
        return "".join(_pattern(part, constants) for part in value.values)
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return _pattern(value.left, constants) + _pattern(value.right, constants)
    if isinstance(value, ast.IfExp):
        both = (_pattern(part, constants) for part in (value.body, value.orelse))
        return f"(?:{'|'.join(text for text in both if text)})"
    if isinstance(value, ast.FormattedValue):
        return _pattern(value.value, constants) if isinstance(value.value, ast.Name) else ".*"
    if isinstance(value, ast.Name) and isinstance(constants.get(value.id), ast.Constant):
        return _pattern(constants[value.id], constants)
    return ".*"
