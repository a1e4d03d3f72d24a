"""Threads, as many as the system gives: where it gives none, the caller does their work.

``ulimit -u``, a container's limit of processes, or too little memory for their stacks keep threads
from starting. They make work faster and nothing else, so that is no reason to fail.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


LEAST_BYTES = 640 << 20
"""Address space that one thread works in. With less, LLVM ends or stalls its process."""

_BYTES_OF_A_THREAD = 192 << 20


def address_space() -> int | None:
    """How many bytes of address space this process may have (``ulimit -v``); None if any number."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def affordable(count: int) -> int:
    """How many of ``count`` threads, one or more, there is address space for; at least one."""
    limit = address_space()
    if limit is None:
        return count
    return min(count, 1 + max(0, limit - LEAST_BYTES) // _BYTES_OF_A_THREAD)


def started(thread: threading.Thread) -> bool:
    """Start a thread; whether the system allowed it."""
    try:
        thread.start()
    except (RuntimeError, MemoryError):
        return False
    return True


def start_many(work: Callable[[], object], count: int, *, name: str) -> list[threading.Thread]:
    """Start up to ``count`` threads that call ``work``; those that the system allowed."""
    threads = []
    for number in range(count):
        thread = threading.Thread(target=work, name=f"{name}-{number}", daemon=True)
        if not started(thread):
            break
        threads.append(thread)
    return threads


class Workers(Executor):
    """Calls functions in up to ``count`` threads, or at once where there can be none."""

    def __init__(self, count: int, *, name: str) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = start_many(self._work, count, name=name)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call ``fn``, now or later."""
        future: Future[R] = Future()

        def call() -> R:
            return fn(*args, **kwargs)

        if self._threads:
            self._tasks.put((future, call))
        else:
            _run(future, call)
            error = future.exception()
            if error is not None and not isinstance(error, Exception):
                raise error  # Ctrl-C ends the caller, not one call
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads when they have done what was submitted, or what they are doing."""
        if cancel_futures:
            self._cancel()
        for _ in self._threads:
            self._tasks.put(None)
        if wait:
            for thread in self._threads:
                thread.join()
        self._threads = []

    def _cancel(self) -> None:
        while True:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                return
            if task is not None:
                task[0].cancel()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            _run(*task)


def _run(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        future.set_exception(error)
    else:
        future.set_result(result)
