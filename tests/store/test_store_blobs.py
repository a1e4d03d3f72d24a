"""A store whose blobs lie elsewhere: collected beside others, refused where they cannot be."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from memory_blobs import MemoryBlobs, UncollectableBlobs

from deltastore.cli.main import main
from deltastore.errors import NoSpaceError, StoreError
from deltastore.operations.gc import gc
from deltastore.operations.verify import verify
from deltastore.store import Store, open_store, opening
from deltastore.system import steps
from deltastore.system.steps import Step
from deltastore.testing.artifacts import LABELS, publish, put_artifact


@pytest.fixture
def filled(store: Store) -> Store:
    """A version, and the blobs of an artifact that nothing refers to."""
    publish(store, "old", 1)
    put_artifact(store, 5)
    return store


def test_a_collector_spares_what_a_writer_holds(filled: Store) -> None:
    orphans = set(verify(filled).orphans)
    with filled.lease("extract"):
        report = gc(filled, grace_s=0)
        assert (report.removed, report.spared.held.blobs) == (0, len(orphans))
    assert set(gc(filled, grace_s=0).digests) == orphans
    assert not orphans & set(filled.blobs.digests())
    assert verify(filled).problems == ()


def test_a_collector_that_lost_its_bin_moves_nothing_out(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a writer that waited too long, and relies on what it finds."""
    before = set(filled.blobs.digests())

    def reached(step: Step) -> None:
        if step is Step.STALE:
            for bin_ in (filled.path / "tmp").iterdir():
                bin_.rmdir()

    monkeypatch.setattr(steps, "reached", reached)
    report = gc(filled, grace_s=0)
    assert report.removed == 0
    assert report.holders
    assert set(filled.blobs.digests()) == before


def test_what_was_put_again_meanwhile_is_young(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    time.sleep(1.1)

    def reached(step: Step) -> None:
        if step is Step.GATE:
            put_artifact(filled, 5)

    monkeypatch.setattr(steps, "reached", reached)
    report = gc(filled, grace_s=1)
    assert report.removed == 0
    assert report.spared.young.blobs > 0


@pytest.mark.blob_files
class TestElsewhere:
    """With hands on the place that is not files."""

    @pytest.fixture
    def blobs(self, monkeypatch: pytest.MonkeyPatch) -> MemoryBlobs:
        blobs = MemoryBlobs()
        monkeypatch.setattr(opening, "open_blobs", lambda _: blobs)
        return blobs

    def test_no_file_is_made(self, blobs: MemoryBlobs, store: Store) -> None:
        publish(store, "m", 1)
        assert len(blobs.data) > 3
        assert list((store.path / "blobs").rglob("*")) == [store.path / "blobs" / "sha256"]

    def test_a_problem_is_told_by_digest(self, blobs: MemoryBlobs, store: Store) -> None:
        manifest, _ = store.load(publish(store, "m", 1).digest)
        missing = manifest.layers[0].digest
        blobs.delete(missing)
        (problem,) = verify(store).problems
        assert (problem.where, problem.digest, problem.refs) == (missing, missing, ("m:v1",))

    @pytest.mark.parametrize("call", ["put", "size"])
    @pytest.mark.parametrize("number", [1, 2, 3, 5])
    def test_what_fails_half_way_is_tried_again(
        self, blobs: MemoryBlobs, store: Store, call: str, number: int
    ) -> None:
        """The error passes as it is; the same command is right again."""
        left = number

        def fail(found: str, _digest: str) -> None:
            nonlocal left
            left -= found == call
            if found == call and left == 0:
                raise NoSpaceError("It is full.", hint="Make room.")

        manifest, config = put_artifact(store, 1)
        blobs.before = fail
        if number <= {"put": 2, "size": 3}[call]:
            with pytest.raises(NoSpaceError, match="It is full"):
                store.publish(manifest, config, name="m", labels=LABELS)
            assert store.artifacts() == []
        blobs.before = lambda *_: None
        store.publish(manifest, config, name="m", labels=LABELS)
        assert verify(store).problems == ()
        assert list((store.path / "tmp").iterdir()) == []
        assert list((store.path / "leases").iterdir()) == []

    def test_a_slow_place_holds_up_nobody_else(
        self, blobs: MemoryBlobs, store: Store, tmp_path: Path
    ) -> None:
        """A put that hangs takes no lock that a reader needs."""
        publish(store, "m", 1)
        hangs, go = threading.Event(), threading.Event()

        def wait(call: str, _digest: str) -> None:
            if call == "put":
                hangs.set()
                assert go.wait(30)

        blobs.before = wait
        writer = threading.Thread(target=put_artifact, args=(store, 9))
        writer.start()
        try:
            assert hangs.wait(30)
            with open_store(store.path) as other:
                assert verify(other).problems == ()
        finally:
            go.set()
            writer.join()

    def test_what_cannot_be_moved_out_is_not_collected(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        blobs = MemoryBlobs()
        monkeypatch.setattr(opening, "open_blobs", lambda _: UncollectableBlobs(blobs))
        path = str(tmp_path / "store")
        with open_store(path) as store:
            publish(store, "m", 1)
            orphan = store.blobs.put([b"orphan"]).digest
            for dry_run in (True, False):
                with pytest.raises(StoreError, match="nothing was deleted") as caught:
                    gc(store, grace_s=0, dry_run=dry_run)
            assert "`deltastore verify --json`" in caught.value.hint
            with pytest.raises(StoreError):
                store.freeable()
        assert main(["--store", path, "gc"]) == StoreError.exit_code
        assert main(["--store", path, "doctor"]) == 0
        capsys.readouterr()
        assert main(["--store", path, "verify", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["orphans"] == [orphan]
        blobs.delete(orphan)
