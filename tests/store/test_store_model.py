"""The store against a dict: any sequence of changes, seen by the one who made them and others."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deltastore.blobs import steps
from deltastore.blobs.steps import Step
from deltastore.errors import RefNotFoundError
from deltastore.operations.gc import gc
from deltastore.operations.reindex import reindex
from deltastore.operations.verify import verify
from deltastore.store import open_store
from deltastore.testing.artifacts import publish

NAMES = st.sampled_from(["a", "b"])
TAGS = st.sampled_from(["prod", "best"])
SEEDS = st.integers(0, 3)


class _StoppedError(Exception):
    """In the place of a signal."""


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.store = open_store(self.path)
        self.versions: dict[tuple[str, int], str] = {}
        self.tags: dict[tuple[str, str], int] = {}
        self.used: dict[str, int] = {}

    def teardown(self) -> None:
        assert verify(self.store).problems == ()
        self.store.close()
        shutil.rmtree(self.path)

    def newest(self, name: str) -> int | None:
        return max((v for n, v in self.versions if n == name), default=None)

    @rule(name=NAMES, seed=SEEDS, tags=st.sets(TAGS))
    def publish(self, name: str, seed: int, tags: set[str]) -> None:
        done = publish(self.store, name, seed, tags=tuple(tags), parts=1)
        known = [
            v for (n, v), digest in self.versions.items() if (n, digest) == (name, done.digest)
        ]
        assert done.reused == bool(known)
        if known:
            assert [done.version] == known
        else:
            self.used[name] = self.used.get(name, 0) + 1
            assert done.version == self.used[name]
            self.versions[name, done.version] = done.digest
        self.tags |= {(name, tag): done.version for tag in tags}

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), tag=TAGS)
    def tag(self, data: st.DataObject, tag: str) -> None:
        name, version = data.draw(st.sampled_from(sorted(self.versions)))
        self.store.tag(f"{name}:v{version}", tag)
        self.tags[name, tag] = version

    @rule(name=NAMES, tag=TAGS)
    def untag(self, name: str, tag: str) -> None:
        try:
            meant = self.store.untag(name, tag).version
        except RefNotFoundError:
            assert (name, tag) not in self.tags
        else:
            assert self.tags.pop((name, tag)) == meant

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def rm(self, data: st.DataObject) -> None:
        name, version = data.draw(st.sampled_from(sorted(self.versions)))
        assert self.store.rm(f"{name}:v{version}").digest == self.versions.pop((name, version))
        self.tags = {k: v for k, v in self.tags.items() if (k[0], v) != (name, version)}

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = open_store(self.path, create=False)

    @rule()
    def reindex(self) -> None:
        assert reindex(self.path).problems == ()

    @rule()
    def collect(self) -> None:
        gc(self.store, grace_s=0)
        assert verify(self.store).orphans == ()

    @rule(seed=SEEDS, step=st.sampled_from([Step.BLOBS, Step.MANIFEST]))
    def publish_and_be_stopped(self, seed: int, step: Step) -> None:
        """Something is left that nothing refers to."""

        def stop(where: Step) -> None:
            if where is step:
                raise _StoppedError

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(_StoppedError):
            patch.setattr(steps, "reached", stop)
            publish(self.store, "a", seed, parts=1)

    @rule()
    def lose_the_catalog(self) -> None:
        (self.path / "catalog.db").unlink()
        self.reopen()

    @invariant()
    def is_as_expected(self) -> None:
        found = self.store.artifacts()
        assert {(a.name, a.version): a.digest for a in found} == self.versions
        assert {(a.name, tag): a.version for a in found for tag in a.tags} == self.tags

    @rule(name=NAMES)
    def resolve(self, name: str) -> None:
        try:
            assert self.store.resolve(name).version == self.newest(name)
        except RefNotFoundError:
            assert self.newest(name) is None


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=10,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
