"""A writer and a collector, each stopped at every step while the other one goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deltastore.errors import BlobMissingError, DeltastoreError, StoreError
from deltastore.operations.gc import gc
from deltastore.operations.verify import verify
from deltastore.store import Store, collecting, leases, open_store
from deltastore.system import steps
from deltastore.system.steps import Step
from deltastore.testing.artifacts import LABELS, put_artifact
from deltastore.testing.artifacts import publish as publish_at_once
from deltastore.testing.killing import start

REFUSED = 7


def publish(store: Store) -> None:
    """As extract does: blobs are put under one lease, published under another."""
    with store.lease("extract"):
        manifest, config = put_artifact(store, 5)
        store.publish(manifest, config, name="new", labels=LABELS)


def collect(store: Store) -> None:
    gc(store, grace_s=0)


class Paused:
    """A child that stops at a step until it is let go."""

    def __init__(
        self,
        directory: Path,
        store: Store,
        action: Callable[[Store], None],
        step: Step | None = None,
        arrange: Callable[[], None] = lambda: None,
    ) -> None:
        self._at = directory / f"at-{time.monotonic_ns()}"
        self._go = self._at.with_suffix(".go")
        path = store.path

        def run() -> None:
            arrange()
            steps.reached = self._reached(step)
            with open_store(path, create=False) as opened:
                try:
                    action(opened)
                except DeltastoreError as error:
                    self._at.with_suffix(".error").write_text(type(error).__name__)
                    os._exit(REFUSED)

        self.pid = start(run)
        if step is not None:
            self._wait(self._at.exists)

    def _reached(self, step: Step | None) -> Callable[[Step], None]:
        def reached(where: Step) -> None:
            if where is step and not self._at.exists():
                self._at.touch()
                self._wait(self._go.exists)

        return reached

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not done():
            assert time.monotonic() < deadline, "it was not reached"
            time.sleep(0.005)

    def ended(self, within: float) -> bool:
        """Whether it ends by itself in so many seconds; leaves it to be waited for."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return True
            time.sleep(0.005)
        return False

    def let_go(self) -> None:
        """Let it go on."""
        self._go.touch()

    def finish(self) -> int:
        """Let it go; its exit status."""
        self.let_go()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def error(self) -> str:
        """The kind of error that it was refused with."""
        return self._at.with_suffix(".error").read_text()


@pytest.fixture
def filled(store: Store) -> Store:
    """A store with a version, and the blobs of an artifact that nothing refers to yet."""
    publish_at_once(store, "old", 1)
    put_artifact(store, 5)
    return store


def assert_whole(store: Store, *refs: str) -> None:
    with open_store(store.path, create=False) as opened:
        assert [artifact.ref for artifact in opened.artifacts()] == list(refs)
        assert verify(opened).problems == ()
        gc(opened, grace_s=0)
        assert verify(opened).orphans == verify(opened).problems == ()
    assert list((store.path / "tmp").iterdir()) == []
    assert list((store.path / "leases").iterdir()) == []


@pytest.mark.blob_files
@pytest.mark.parametrize(
    "step",
    [
        Step.LEASE,
        Step.BLOBS,
        Step.TEMP,
        Step.BLOB,
        Step.MANIFEST,
        Step.CLAIM,
        Step.RECORD,
        Step.ROW,
    ],
)
def test_a_collector_beside_a_writer_at(filled: Store, tmp_path: Path, step: Step) -> None:
    """The writer relies on blobs that were there: none of them may go."""
    writer = Paused(tmp_path, filled, publish, step)
    report = gc(filled, grace_s=0)
    assert report.removed == 0
    assert len(report.holders) == 2
    assert writer.finish() == 0
    assert_whole(filled, "new:v1", "old:v1")


@pytest.mark.blob_files
@pytest.mark.parametrize("step", [Step.BIN, Step.GATE, Step.STALE, Step.BINNED, Step.OPENED])
def test_a_writer_beside_a_collector_at(filled: Store, tmp_path: Path, step: Step) -> None:
    """Between gate and opening the writer waits; before and after, it need not."""
    collector = Paused(tmp_path, filled, collect, step)
    writer = Paused(tmp_path, filled, publish)
    waits = step in (Step.GATE, Step.STALE, Step.BINNED)
    assert writer.ended(0.3 if waits else 20) is not waits
    assert collector.finish() == 0
    assert writer.finish() == 0
    assert_whole(filled, "new:v1", "old:v1")


@pytest.mark.blob_files
@pytest.mark.parametrize("step", [Step.BIN, Step.GATE])
def test_a_writer_that_is_at_work_when_the_collector_looks(
    filled: Store, tmp_path: Path, step: Step
) -> None:
    """The collector has planned to take what the writer then uses."""
    collector = Paused(tmp_path, filled, collect, step)
    writer = Paused(tmp_path, filled, publish, Step.CLAIM if step is Step.BIN else None)
    if step is Step.GATE:
        # It has its lease and waits; the collector sees the one and not the other.
        while len(list((filled.path / "leases").iterdir())) < 2:
            time.sleep(0.005)
    assert collector.finish() == 0
    assert writer.finish() == 0
    assert_whole(filled, "new:v1", "old:v1")


@pytest.mark.blob_files
def test_a_collector_waits_for_a_writer_that_is_soon_done(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer takes a second lease meanwhile, and does not wait for who waits for it."""
    monkeypatch.setattr(collecting, "DRAIN_S", 20)
    put_artifact(filled, 6)
    writer = Paused(tmp_path, filled, publish, Step.TEMP)
    collector = Paused(tmp_path, filled, collect, Step.STALE)
    collector.let_go()
    assert not collector.ended(0.2)
    assert writer.finish() == 0
    assert collector.finish() == 0
    assert verify(filled).orphans == ()
    assert_whole(filled, "new:v1", "old:v1")


def believed_dead(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """The writer's process cannot be asked, and its heartbeat was long ago."""
    monkeypatch.setattr(leases, "is_alive", lambda _: False)
    for path in (store.path / "leases").iterdir():
        os.utime(path, (1, 1))


@pytest.mark.blob_files
@pytest.mark.parametrize("step", [Step.LEASE, Step.BLOBS, Step.MANIFEST, Step.CLAIM])
def test_a_writer_that_was_taken_for_dead_cannot_commit(
    filled: Store, tmp_path: Path, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Paused(tmp_path, filled, publish, step)
    believed_dead(monkeypatch, filled)
    report = gc(filled, grace_s=0)
    assert report.removed >= 2
    assert report.leases == 2
    assert writer.finish() == REFUSED
    assert writer.error in {StoreError.__name__, BlobMissingError.__name__}
    assert not (filled.path / "names" / "new" / "v1.json").exists()
    assert_whole(filled, "old:v1")
    publish(filled)
    assert_whole(filled, "new:v1", "old:v1")


@pytest.mark.blob_files
def test_a_writer_that_was_taken_for_dead_after_its_commit_keeps_it(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Paused(tmp_path, filled, publish, Step.RECORD)
    believed_dead(monkeypatch, filled)
    assert gc(filled, grace_s=0).removed == 0
    assert writer.finish() == 0
    assert_whole(filled, "new:v1", "old:v1")


@pytest.mark.blob_files
@pytest.mark.parametrize("step", [Step.GATE, Step.STALE, Step.BINNED])
def test_a_collector_that_takes_too_long_can_delete_no_more(
    filled: Store, tmp_path: Path, step: Step
) -> None:
    """The writer takes the bin away; what had been in it is stored again."""
    collector = Paused(tmp_path, filled, collect, step)
    writer = Paused(tmp_path, filled, publish, arrange=lambda: setattr(leases, "GATE_WAIT_S", 0.1))
    assert writer.finish() == 0
    assert collector.finish() == 0
    assert_whole(filled, "new:v1", "old:v1")


@pytest.mark.blob_files
def test_two_collectors(filled: Store, tmp_path: Path) -> None:
    for step in (Step.GATE, Step.BINNED):
        put_artifact(filled, 5)
        other = Paused(tmp_path, filled, collect, step)
        assert gc(filled, grace_s=0).spared.held.blobs == 0
        assert other.finish() == 0
        assert_whole(filled, "old:v1")


def test_a_removal_beside_a_writer_of_the_same_artifact(filled: Store, tmp_path: Path) -> None:
    """The version that the writer was to share is removed before it is listed again."""
    publish(filled)
    writer = Paused(tmp_path, filled, publish, Step.RECORD)
    filled.rm("new")
    collect(filled)
    assert writer.finish() == 0
    assert_whole(filled, "new:v2", "old:v1")


def test_two_removals_of_one_version(filled: Store, tmp_path: Path) -> None:
    other = Paused(tmp_path, filled, lambda store: store.rm("old:v1") and None, Step.LEASE)
    filled.rm("old:v1")
    before = (filled.path / "names" / "old" / "v1.json").read_bytes()
    assert other.finish() == REFUSED
    assert other.error == "RefNotFoundError"
    assert (filled.path / "names" / "old" / "v1.json").read_bytes() == before
    assert_whole(filled)


def test_the_heart_beats_until_the_lease_ends(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.01)
    with store.lease("extract") as path:
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < 1000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not path.exists()
    time.sleep(0.05)
    assert not path.exists()
