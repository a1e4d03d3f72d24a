"""Calls to the system that fail, write less than they were given, or take their time.

::

    with FaultMap(store_path, nth_fails(3, errno.EIO)) as faults:
        publish()          # whose third call below store_path fails
    assert faults.struck

A rule is asked before every call of Python's ``os`` and ``open`` below a directory that opens,
writes, syncs, renames, links, removes or makes something. What C libraries do by themselves,
SQLite above all, is not seen; a small file system or a file-size limit reaches that as well.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CALLS = frozenset(
    {"open", "write", "fsync", "rename", "link", "unlink", "mkdir", "rmdir", "truncate"}
)
"""Kinds of calls; ``write`` is also ``pwrite``, ``rename`` is also ``replace``."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is about to be made.

    Attributes:
        number: The how manieth below the directory, from 1.
        kind: One of ``CALLS``.
        path: What it is about; of two paths, the second, which is the one that changes.
        size: How many bytes it would write.
        creates: Whether a new file or directory may come of it.
    """

    number: int
    kind: str
    path: Path
    size: int = 0
    creates: bool = False


Rule = Callable[[Call], int | None]
"""Lets a call be (None), lets it write only so many bytes, or raises what it is to fail with."""


def nth_fails(n: int, number: int, *, kinds: frozenset[str] = CALLS) -> Rule:
    """The n-th call of these kinds, from 1, fails with an error number; all others work."""
    met = 0

    def rule(call: Call) -> int | None:
        nonlocal met
        met += call.kind in kinds
        if met == n and call.kind in kinds:
            raise failure(number, call.path)
        return None

    return rule


def nth_is_short(n: int, number: int = errno.EIO) -> Rule:
    """The n-th write, from 1, writes half of its bytes; the next one fails."""
    met = 0

    def rule(call: Call) -> int | None:
        nonlocal met
        if call.kind != "write":
            return None
        met += 1
        if met == n + 1:
            raise failure(number, call.path)
        return call.size // 2 if met == n and call.size > 1 else None

    return rule


def always_short(count: int) -> Rule:
    """No write writes more than ``count`` bytes, and none fails."""
    return lambda call: min(count, call.size) if call.kind == "write" else None


def full_after(room: int) -> Rule:
    """The disk is full once ``room`` bytes are written: the last write fits in part.

    Nothing that is removed gives room back.
    """
    left = room

    def rule(call: Call) -> int | None:
        nonlocal left
        if (call.size or call.creates) and left <= 0:
            raise failure(errno.ENOSPC, call.path)
        allowed = min(left, call.size)
        left -= allowed
        return allowed if call.kind == "write" else None

    return rule


def slow(seconds: float, *, kinds: frozenset[str] = CALLS) -> Rule:
    """Every call of these kinds takes this long."""

    def rule(call: Call) -> int | None:
        if call.kind in kinds:
            time.sleep(seconds)
        return None

    return rule


def counting(call: Call) -> int | None:
    """No call fails; ``FaultMap.calls`` says afterwards which there were."""
    del call
    return None


def failure(number: int, path: Path) -> OSError:
    """What the system raises with this error number."""
    return OSError(number, os.strerror(number), str(path))


class FaultMap:
    """While it is entered, calls below ``directory`` follow ``rule``. Not for two at a time.

    Args:
        directory: Calls about other places are left alone, and not counted.
        rule: Asked before each call, one at a time, from whatever thread.
    """

    def __init__(self, directory: Path, rule: Rule) -> None:
        self._directory = str(directory.absolute())
        self._rule = rule
        self._lock = threading.Lock()
        self._paths: dict[int, str] = {}
        self._saved: list[tuple[Any, str, Any]] = []
        self.calls: list[Call] = []
        """The calls so far, those that failed among them."""
        self.struck = 0
        """How many failed or were cut short."""

    @property
    def written(self) -> int:
        """How many bytes the calls so far were to write."""
        return sum(call.size for call in self.calls)

    def __enter__(self) -> Self:
        real = {name: getattr(os, name) for name in ("open", "close", "write", "pwrite", "fsync")}

        def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if where := self._below(path, dir_fd):
                self._ask("open", where, creates=bool(flags & os.O_CREAT))
            descriptor: int = real["open"](path, flags, mode, dir_fd=dir_fd)
            # A file that was closed from C may have had the same descriptor.
            self._paths.pop(descriptor, None)
            if where:
                self._paths[descriptor] = where
            return descriptor

        def closed(descriptor: int) -> None:
            self._paths.pop(descriptor, None)
            real["close"](descriptor)

        def wrote(descriptor: int, data: Any, *position: int) -> int:
            call = real["pwrite" if position else "write"]
            where = self._paths.get(descriptor)
            view = memoryview(data).cast("B")
            allowed = self._ask("write", where, size=len(view)) if where else None
            done: int = call(descriptor, view if allowed is None else view[:allowed], *position)
            return done

        def synced(descriptor: int) -> None:
            if where := self._paths.get(descriptor):
                self._ask("fsync", where)
            real["fsync"](descriptor)

        def opened_file(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            where = None if isinstance(file, int) else self._below(file)
            if not where:
                return real_file(file, mode, *rest, **more)
            self._ask("open", where, creates="r" not in mode)
            if mode in ("r", "rb", "rt"):
                return real_file(file, mode, *rest, **more)
            raw = _Watched(file, mode.replace("t", "").replace("b", ""))
            raw.ask = lambda size: self._ask("write", where, size=size)
            self._paths[raw.fileno()] = where
            buffered = io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            more.pop("buffering", None)
            return io.TextIOWrapper(buffered, *rest[1:], **more)

        real_file = builtins.open
        self._replace(os, "open", opened)
        self._replace(os, "close", closed)
        self._replace(os, "write", wrote)
        self._replace(os, "pwrite", wrote)
        self._replace(os, "fsync", synced)
        self._replace(os, "truncate", self._asking("truncate", os.truncate))
        self._replace(os, "ftruncate", self._asking("truncate", os.ftruncate))
        self._replace(os, "mkdir", self._asking("mkdir", os.mkdir, creates=True))
        for name in ("unlink", "remove", "rmdir"):
            kind = "unlink" if name == "remove" else name
            self._replace(os, name, self._asking(kind, getattr(os, name)))
        for name in ("rename", "replace", "link"):
            kind = "rename" if name == "replace" else name
            self._replace(os, name, self._asking_of_second(kind, getattr(os, name)))
        self._replace(builtins, "open", opened_file)
        self._replace(io, "open", opened_file)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._saved:
            setattr(*self._saved.pop())

    def _replace(self, module: Any, name: str, stand_in: Callable[..., Any]) -> None:
        self._saved.append((module, name, getattr(module, name)))
        setattr(module, name, stand_in)

    def _asking(
        self, kind: str, call: Callable[..., Any], *, creates: bool = False
    ) -> Callable[..., Any]:
        def asked(path: Any, *rest: Any, **more: Any) -> Any:
            if where := self._below(path, more.get("dir_fd")):
                self._ask(kind, where, creates=creates)
            return call(path, *rest, **more)

        return asked

    def _asking_of_second(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def asked(source: Any, target: Any, **more: Any) -> Any:
            if where := self._below(target, more.get("dst_dir_fd")):
                self._ask(kind, where)
            return call(source, target, **more)

        return asked

    def _below(self, path: Any, directory: int | None = None) -> str | None:
        """The absolute path of what a call is about, if it is below the directory."""
        if isinstance(path, int):
            return self._paths.get(path)
        text = os.fsdecode(path)
        if not Path(text).is_absolute():
            above = os.getcwd() if directory is None else self._paths.get(directory)  # noqa: PTH109
            if above is None:
                return None
            text = f"{above}/{text}"
        inside = text == self._directory or text.startswith(f"{self._directory}/")
        return text if inside else None

    def _ask(self, kind: str, where: str, *, size: int = 0, creates: bool = False) -> int | None:
        with self._lock:
            call = Call(len(self.calls) + 1, kind, Path(where), size, creates)
            self.calls.append(call)
            try:
                allowed = self._rule(call)
            except OSError:
                self.struck += 1
                raise
            self.struck += allowed is not None and allowed < size
            return allowed


class _Watched(io.FileIO):
    """A file of ``open`` whose writes are asked about."""

    ask: Callable[[int], int | None]

    def write(self, data: Any) -> int:
        """Write what the rule allows."""
        view = memoryview(data).cast("B")
        allowed = self.ask(len(view))
        return super().write(view if allowed is None else view[:allowed]) or 0
