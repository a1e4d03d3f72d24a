"""A process is killed at every step of a change; then everything must be as it was, or done."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from deltastore.operations.verify import verify
from deltastore.store import Store, open_store
from deltastore.system.steps import Step
from deltastore.testing.artifacts import publish
from deltastore.testing.killing import killed_at


def refs(store: Store) -> dict[str, tuple[str, ...]]:
    return {artifact.ref: artifact.tags for artifact in store.artifacts()}


def in_child(store: Store, action: Callable[[Store], object]) -> Callable[[], None]:
    def run() -> None:
        with open_store(store.path, create=False) as opened:
            action(opened)

    return run


def assert_whole(store: Store) -> None:
    """Everything that is listed is there to the last byte, and nothing else is left."""
    assert verify(store).problems == ()
    for artifact in store.artifacts():
        store.load(artifact.digest)
    assert list((store.path / "leases").iterdir()) == []
    assert list((store.path / "tmp").iterdir()) == []


@pytest.fixture
def filled(store: Store) -> Store:
    publish(store, "model", 1, tags=("prod",))
    publish(store, "model", 2)
    return store


BEFORE = {"model:v1": ("prod",), "model:v2": ()}
PUBLISHED = {"model:v1": (), "model:v2": (), "model:v3": ("new", "prod")}


@pytest.mark.blob_files
@pytest.mark.parametrize(
    ("step", "listed"),
    [
        (Step.TEMP, BEFORE),
        (Step.BLOB, BEFORE),
        (Step.LEASE, BEFORE),
        (Step.BLOBS, BEFORE),
        (Step.MANIFEST, BEFORE),
        (Step.RECORD, BEFORE | {"model:v3": ()}),
        (Step.ROW, BEFORE | {"model:v3": ()}),
        (Step.TAG, {"model:v1": ("prod",), "model:v2": (), "model:v3": ("new",)}),
        (Step.TAGS, PUBLISHED),
    ],
)
def test_killed_while_publishing(
    filled: Store, step: Step, listed: dict[str, tuple[str, ...]]
) -> None:
    def again(store: Store) -> None:
        publish(store, "model", 3, tags=("new", "prod"))

    killed_at(step, in_child(filled, again))
    with open_store(filled.path, create=False) as store:
        assert refs(store) == listed
        assert_whole(store)
        again(store)
        assert refs(store) == PUBLISHED
        assert_whole(store)


def test_the_record_alone_is_the_commit(filled: Store) -> None:
    """Before it nothing is listed by whoever opens the store; after it, everything."""
    killed_at(Step.MANIFEST, in_child(filled, lambda store: publish(store, "model", 3)))
    assert not (filled.path / "names" / "model" / "v3.json").exists()
    killed_at(Step.RECORD, in_child(filled, lambda store: publish(store, "model", 3)))
    assert (filled.path / "names" / "model" / "v3.json").exists()
    # A store that is open already does not look again, but finds the version when asked for it.
    assert "model:v3" not in refs(filled)
    assert filled.resolve("model:v3").version == 3


def test_the_lease_names_what_changes_until_it_has(filled: Store) -> None:
    killed_at(Step.RECORD, in_child(filled, lambda store: publish(store, "new", 3)))
    (lease,) = filled.parts.leases.all()
    assert (lease.purpose, lease.name, lease.dead) == ("publish", "new", True)
    assert json.loads(lease.path.read_text())["pid"] == lease.pid


@pytest.mark.blob_files
@pytest.mark.parametrize("step", [Step.TEMP, Step.BLOB])
def test_blobs_of_a_killed_process_are_reused(store: Store, step: Step) -> None:
    killed_at(step, in_child(store, lambda opened: publish(opened, "model", 3)))
    blobs = set(store.blobs.digests())
    assert len(blobs) == (step is Step.BLOB)
    publish(store, "model", 3)
    assert blobs <= set(store.blobs.digests())


@pytest.mark.parametrize(
    ("step", "listed"),
    [
        (Step.LEASE, BEFORE),
        (Step.UNTAGGED, {"model:v1": (), "model:v2": ()}),
        (Step.TOMBSTONE, {"model:v2": ()}),
        (Step.UNLISTED, {"model:v2": ()}),
    ],
)
def test_killed_while_removing(
    filled: Store, step: Step, listed: dict[str, tuple[str, ...]]
) -> None:
    killed_at(step, in_child(filled, lambda store: store.rm("model:v1")))
    with open_store(filled.path, create=False) as store:
        assert refs(store) == listed
        assert_whole(store)
        if "model:v1" in listed:
            store.rm("model:v1")
        assert refs(store) == {"model:v2": ()}
        assert publish(store, "model", 1).version == 3
        assert_whole(store)


@pytest.mark.parametrize(
    ("action", "listed"),
    [
        (lambda store: store.tag("model:v2", "prod"), {"model:v1": (), "model:v2": ("prod",)}),
        (lambda store: store.untag("model", "prod"), {"model:v1": (), "model:v2": ()}),
    ],
    ids=["tag", "untag"],
)
def test_killed_while_moving_a_tag(
    filled: Store, action: Callable[[Store], object], listed: dict[str, tuple[str, ...]]
) -> None:
    """The tag's file is there, the row is not: the file is the truth."""
    killed_at(Step.TAG, in_child(filled, action))
    with open_store(filled.path, create=False) as store:
        assert refs(store) == listed
        assert_whole(store)


@pytest.mark.blob_files
def test_killed_while_the_store_is_made_and_filled(store: Store) -> None:
    """A store is made, filled and its maker killed, again and again, in the same place."""
    for number in range(3):
        killed_at(Step.ROW, in_child(store, lambda opened, n=number: publish(opened, "m", n)))
    with open_store(store.path) as again:
        assert list(refs(again)) == ["m:v1", "m:v2", "m:v3"]
        assert_whole(again)
