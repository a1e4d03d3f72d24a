"""Work on chunks in several threads, with the results in order where order matters."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from deltastore.system.threads import affordable, start_many

T = TypeVar("T")

_POLL_S = 0.2
_MAX_JOBS = 64


def job_count(jobs: int | None) -> int:
    """How many threads to use: what was asked for, else one for each core this process may use.

    Fewer where there is too little address space for them.
    """
    return affordable(max(1, min(jobs or len(os.sched_getaffinity(0)), _MAX_JOBS)))


class Stopped(Exception):  # noqa: N818 - no error: the way out of a wait
    """Another thread failed or the user interrupted."""


_of_thread = threading.local()


def check_stopped() -> None:
    """For what a task does that takes long: end it if the pool of this thread is to end.

    Raises:
        Stopped: It is.
    """
    pool: ThreadPool | None = getattr(_of_thread, "pool", None)
    if pool is not None and pool.is_stopping:
        raise Stopped


class ThreadPool:
    """Threads that take tasks in order; the first failure stops all of them.

    Every task must run to its end in bounded time, so that stopping is quick: tasks are chunks,
    and what takes longer calls ``check_stopped`` now and then.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._changed = threading.Condition()
        self._failure: BaseException | None = None

    def run(self, tasks: Iterable[T], work: Callable[[int, T], None]) -> None:
        """Call ``work(number, task)`` for each task; returns when all are done.

        Raises:
            BaseException: What the first failing task raised, after all threads have ended.
        """
        numbered = enumerate(tasks)
        lock = threading.Lock()

        def loop() -> None:
            before = getattr(_of_thread, "pool", None)  # where it is the caller's thread
            _of_thread.pool = self
            try:
                while self._failure is None:
                    with lock:
                        item = next(numbered, None)
                    if item is None:
                        return
                    work(*item)
            except Stopped:
                pass
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
                self.fail(error)
            finally:
                _of_thread.pool = before

        threads = start_many(loop, self.jobs, name="pool")
        if not threads:
            loop()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(_POLL_S)  # a signal's handler runs between two waits
        except BaseException as error:
            self.fail(error)
            for thread in threads:
                thread.join()
            raise
        self.check()

    @property
    def is_stopping(self) -> bool:
        """Whether a task has failed or the user has interrupted."""
        return self._failure is not None

    def wait(self, ready: Callable[[], bool]) -> None:
        """Block until ``ready()``, which only changes before a ``notify``.

        Raises:
            Stopped: The pool stops.
        """
        with self._changed:
            while not ready():
                if self._failure is not None:
                    raise Stopped
                self._changed.wait(_POLL_S)

    def notify(self) -> None:
        """Wake all that wait."""
        with self._changed:
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Stop the pool for this reason; the first reason is kept."""
        with self._changed:
            if self._failure is None:
                self._failure = error
            self._changed.notify_all()

    def check(self) -> None:
        """Raise the reason for which the pool stopped, if it did."""
        if self._failure is not None:
            raise self._failure


class ReorderBuffer(Generic[T]):
    """Hands results to ``sink`` by ascending number, whatever order they come in.

    Memory is bounded: ``wait_for_room`` keeps the fast threads from running far ahead of one
    that is slow.
    """

    def __init__(self, pool: ThreadPool, sink: Callable[[T], None]) -> None:
        self._pool = pool
        self._ahead = 4 * pool.jobs
        self._sink = sink
        self._waiting: dict[int, T] = {}
        self._next = 0
        self._lock = threading.Lock()

    def wait_for_room(self, number: int) -> None:
        """Block until result ``number`` may be worked on.

        Raises:
            Stopped: The pool stops.
        """
        if number >= self._next + self._ahead:
            self._pool.wait(lambda: number < self._next + self._ahead)

    def put(self, number: int, result: T) -> None:
        """Result ``number``; numbers start at zero and all come in the end."""
        with self._lock:
            self._waiting[number] = result
            while self._next in self._waiting:
                self._sink(self._waiting.pop(self._next))
                self._next += 1
        self._pool.notify()


class Turns:
    """Makes the same step of consecutive chunks happen one after the other."""

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._next = 0

    def wait(self, number: int) -> None:
        """Block until all turns before ``number`` are done."""
        if self._next != number:
            self._pool.wait(lambda: self._next == number)

    def done(self) -> None:
        """This turn is over."""
        self._next += 1
        self._pool.notify()
