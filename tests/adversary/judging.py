"""How a command ended, whether that is one of the ways that it may, and what it must not touch."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_SECONDS = 30.0
MAX_TEXT_BYTES = 1 << 20
MAX_MESSAGE_CHARS = 20_000

_FRAME = re.compile(r'File "[^"]*?(deltastore/[^"]+)", line (\d+), in (\S+)')
_RAISED = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Overflow)\w*)\b.*$", re.M)
# Everything that moves a cursor, rings, or reverses what is read; a tab and a line's end are text.
_RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LISTED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}:v[1-9][0-9]*\Z")


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        argv: What was called, without the program's name.
        code: The exit code; negative for a signal.
        out: Its standard output.
        err: Its standard error.
        seconds: How long it took, without what it waited for a processor.
        cpu_s: How long it computed.
        killed: Whether it was killed because it did not end.
    """

    argv: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float
    cpu_s: float
    killed: bool = False


@dataclass(frozen=True)
class Fault:
    """What must not happen and did: ``kind`` in capitals, ``where`` it shows, in a few words."""

    kind: str
    where: str
    details: str = field(default="", compare=False)


def documented_codes() -> frozenset[int]:
    """The exit codes in docs/cli.md, but for that of a bug."""
    text = (ROOT / "docs" / "cli.md").read_text()
    section = text.partition("## Exit codes")[2].partition("\n## ")[0]
    codes = frozenset(int(code) for code in re.findall(r"^\| (\d+) \|", section, re.M))
    assert {0, 1, 2, 17, 51, 130} <= codes
    return codes - {1}


CODES = documented_codes()


def faults(ended: Ended) -> Iterator[Fault]:
    """What is wrong with how a command ended, whatever it was to do."""
    what = command(ended.argv)
    if ended.killed or ended.seconds > MAX_SECONDS:
        yield Fault("HANG", what, f"{ended.seconds:.1f} s, {ended.cpu_s:.1f} s of them computing")
    if ended.code < 0 and not ended.killed:
        yield Fault("SIGNAL", f"{what}: {-ended.code}")
    elif "Traceback (most recent call last)" in ended.err or ended.code == 1:
        yield Fault("TRACEBACK", f"{what}: {innermost(ended.err)}")
    elif ended.code not in CODES and not ended.killed:
        yield Fault("CODE", f"{what}: {ended.code}")
    if max(len(ended.out), len(ended.err)) > MAX_TEXT_BYTES:
        yield Fault("LONG", what, f"{len(ended.out)} and {len(ended.err)} characters")
    for line in ended.err.splitlines():
        if len(line) > MAX_MESSAGE_CHARS and line.startswith(("error:", "hint:")):
            yield Fault("LONG", f"{what}: a message", f"{len(line)} characters")
            break
    if found := _RAW.search(ended.out) or _RAW.search(ended.err):
        yield Fault("RAW", f"{what}: {found[0]!r}")
    if ended.code == 0 and what == "list -q":
        for line in ended.out.splitlines():
            if not _LISTED.match(line):
                yield Fault("RAW", f"{what}: no ref", repr(line[:200]))
                break


def command(argv: Iterable[str]) -> str:
    """A command without its arguments: its name, and the options that make it another one."""
    words = [word for word in argv if word not in ("--json",)]
    kept = [w for w in words[1:] if w in ("-q", "--dry-run", "--quick", "--grace")]
    return " ".join([words[0], *kept])


def innermost(err: str) -> str:
    """The exception and the last line of deltastore's own that a traceback names."""
    text = err.rpartition("Traceback (most recent call last)")[2]
    frames = _FRAME.findall(text)
    raised = _RAISED.findall(text)
    path, line, function = frames[-1] if frames else ("nowhere", "0", "?")
    return f"{raised[-1] if raised else '?'} at {path}:{line} in {function}"


def survey(places: Iterable[Path], leave_out: Container[Path] = ()) -> dict[Path, tuple[str, ...]]:
    """Everything below some places: what it is, whose, since when, and what it holds.

    What directories hold shows in their times. Links are not followed, nor counted: anybody who
    may write to a file may give it a second name.
    """
    found = {}
    todo = list(places)
    while todo:
        path = todo.pop()
        if path in leave_out:
            continue
        try:
            status = path.lstat()
            what = ""
            if stat.S_ISLNK(status.st_mode):
                what = str(path.readlink())
            elif stat.S_ISDIR(status.st_mode):
                todo += path.iterdir()
            elif stat.S_ISREG(status.st_mode):
                what = hashlib.sha256(path.read_bytes()).hexdigest()
        except FileNotFoundError:
            continue
        found[path] = (
            stat.filemode(status.st_mode),
            f"{status.st_uid}:{status.st_gid}",
            str(status.st_mtime_ns),
            what,
        )
    return found


def differences(
    before: dict[Path, tuple[str, ...]], after: dict[Path, tuple[str, ...]]
) -> list[str]:
    """What became of files, in words."""
    said = [f"removed {path}" for path in before.keys() - after.keys()]
    said += [f"made {path}" for path in after.keys() - before.keys()]
    for path in before.keys() & after.keys():
        for name, old, new in zip(
            ("mode", "owner", "time", "content"), before[path], after[path], strict=True
        ):
            if old != new:
                said.append(f"{name} of {path}: {old} became {new}")
    return sorted(said)


def owner_names(path: Path) -> Iterator[tuple[Path, int]]:
    """Every entry below a directory with the user whose it is."""
    for folder, folders, names in os.walk(path):
        for name in folders + names:
            entry = Path(folder, name)
            yield entry, entry.lstat().st_uid
