"""Threads that cannot be started are done without."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from deltastore.execution.thread_pool import ThreadPool, check_stopped
from deltastore.operations.verify import verify
from deltastore.store import open_store
from deltastore.system.threads import Workers
from deltastore.testing.artifacts import publish


@pytest.fixture(params=[0, 1, 2])
def allowed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many threads the system lets start."""
    left = [request.param]
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return int(request.param)


def test_workers_do_all_their_work(allowed: int) -> None:
    names = set()

    def work(number: int) -> int:
        names.add(threading.current_thread().name)
        return number * number

    with Workers(4, name="w") as pool:
        assert list(pool.map(work, range(100))) == [n * n for n in range(100)]
    assert len(names) <= max(1, allowed)
    assert ("MainThread" in names) is (allowed == 0)


def test_a_worker_that_fails_says_so_where_the_result_is_asked_for(allowed: int) -> None:
    with Workers(4, name="w") as pool:
        failing = pool.submit(lambda: 1 // 0)
        assert pool.submit(lambda: 7).result() == 7
        with pytest.raises(ZeroDivisionError):
            failing.result()


def test_ctrl_c_ends_the_caller_that_works_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(KeyboardInterrupt):
        Workers(1, name="w").submit(interrupted)


def test_what_has_not_begun_can_be_cancelled() -> None:
    begun, go = threading.Event(), threading.Event()

    def wait() -> bool:
        begun.set()
        return go.wait(10)

    pool = Workers(1, name="w")
    first = pool.submit(wait)
    second = pool.submit(lambda: None)
    assert begun.wait(10)
    pool.shutdown(wait=False, cancel_futures=True)
    go.set()
    assert first.result(10)
    assert second.cancelled()


def test_a_pool_works_with_what_it_gets(allowed: int) -> None:
    done: list[int] = []
    ThreadPool(4).run(range(50), lambda number, task: done.append(number + task))
    assert sorted(done) == [2 * n for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        ThreadPool(4).run(range(50), lambda _, task: 1 // task)
    check_stopped()  # what follows in this thread is none of the pool's


def test_a_store_is_used_without_threads(tmp_path: Path, allowed: int) -> None:
    with open_store(tmp_path / "store") as store:
        publish(store, "m", 1)
        store.tag("m", "t")
        assert verify(store).problems == ()
        assert store.parts.leases.all() == []
