"""A process that is another user, and does what it is asked, one thing after the other."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import other_users

Answer = Callable[[Any], None]
Handler = Callable[[Any, Answer, Callable[[], bool]], None]
"""Does what is asked; is given what answers, and what says whether something more is asked."""


class Ended(Exception):
    """The process has ended; ``code`` is negative for a signal."""

    def __init__(self, code: int) -> None:
        super().__init__(f"ended with {code}")
        self.code = code


class Worker:
    """Forked when it is first needed, and anew after it has ended.

    Args:
        user: Who it becomes.
        begin: Called in it once; gives the handler of what is asked.
    """

    def __init__(self, user: int, begin: Callable[[], Handler]) -> None:
        self._user = user
        self._begin = begin
        self.pid = 0
        self._reading = self._writing = -1
        self._buffer = b""

    def ask(self, question: Any) -> None:
        """Have it do something."""
        if not self.pid:
            self._start()
        with suppress(BrokenPipeError):
            os.write(self._writing, json.dumps(question).encode() + b"\n")

    def answer(self, seconds: float) -> Any:
        """What it answers next; None if it does not in so many seconds.

        Raises:
            Ended: It has ended.
        """
        until = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._reading], [], [], left)[0]:
                return None
            data = os.read(self._reading, 1 << 16)
            if not data:
                raise Ended(self._reap())
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def waited(self) -> float:
        """How many seconds it has waited for a processor so far."""
        with suppress(OSError, IndexError, ValueError):
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9
        return 0.0

    def kill(self) -> None:
        """End it, if it runs."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._reap()

    def _start(self) -> None:
        asked, self._writing = os.pipe()
        self._reading, answers = os.pipe()
        self._buffer = b""
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            with suppress(OSError):
                os.close(self._writing)
                os.close(self._reading)
            try:
                other_users.becoming(self._user, 0o002, lambda: None)()
                _serve(asked, answers, self._begin())
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(70)
        os.close(asked)
        os.close(answers)

    def _reap(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        for descriptor in (self._reading, self._writing):
            os.close(descriptor)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)


def _serve(asked: int, answers: int, handler: Handler) -> None:
    buffer = b""

    def more() -> bool:
        return bool(select.select([asked], [], [], 0)[0])

    def answer(said: Any) -> None:
        os.write(answers, json.dumps(said).encode() + b"\n")

    while data := os.read(asked, 1 << 16):
        buffer += data
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            handler(json.loads(line), answer, more)
