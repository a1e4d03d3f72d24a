"""A store against a plain dict: any sequence of changes and crashes must leave both the same.

::

    class MyModel(StoreModel):
        def open(self, path): ...      # a store of yours

    TestMyStore = MyModel.TestCase     # for pytest; hypothesis draws the sequences
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deltastore.errors import RefNotFoundError
from deltastore.operations.gc import gc
from deltastore.operations.reindex import reindex
from deltastore.operations.verify import verify
from deltastore.store import Store, open_store
from deltastore.system.steps import Step
from deltastore.testing.artifacts import publish
from deltastore.testing.killing import is_killed_at

NAMES = st.sampled_from(["a", "b"])
TAGS = st.sampled_from(["prod", "best"])
SEEDS = st.integers(0, 3)

# The first step of a command after which its work, or this much of it, is there for good.
_PUBLISHING = (
    *(Step.TEMP, Step.BLOB, Step.LEASE, Step.BLOBS, Step.MANIFEST, Step.CLAIM),
    *(Step.RECORD, Step.ROW, Step.TAG, Step.TAG_ROW, Step.TAGS),
)
_COMMITTED = frozenset({Step.RECORD, Step.ROW, Step.TAG, Step.TAG_ROW, Step.TAGS})
_TAGGED = frozenset({Step.TAG, Step.TAG_ROW, Step.TAGS})
_TAGGING = (Step.LEASE, Step.TAG, Step.TAG_ROW)
_REMOVING = (Step.LEASE, Step.UNTAGGED, Step.TOMBSTONE, Step.UNLISTED)
_REMOVED = frozenset({Step.TOMBSTONE, Step.UNLISTED})
_COLLECTING = (Step.BIN, Step.GATE, Step.STALE, Step.BINNED, Step.OPENED, Step.EMPTIED)
_INDEXING = (Step.REFILLED, Step.INDEXED)


class StoreModel(RuleBasedStateMachine):
    """What is listed, after whatever was done and wherever it was stopped.

    A crash is one: a child process is killed where it reaches a step, and the store opened anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.store = self.open(self.path)
        self.versions: dict[tuple[str, int], str] = {}
        self.tags: dict[tuple[str, str], int] = {}
        self.used: dict[str, int] = {}

    def open(self, path: Path) -> Store:
        """Open the store under test, and make it where there is none."""
        return open_store(path)

    def teardown(self) -> None:
        """Nothing is wrong, and nothing is left of what was stopped."""
        try:
            gc(self.store, grace_s=0)
            report = verify(self.store)
            assert (report.problems, report.orphans) == ((), ())
            for directory in ("leases", "tmp"):
                assert list((self.path / directory).iterdir()) == []
        finally:
            self.store.close()
            shutil.rmtree(self.path)

    # --- changes ------------------------------------------------------------------------------

    @rule(name=NAMES, seed=SEEDS, tags=st.sets(TAGS))
    def publish(self, name: str, seed: int, tags: set[str]) -> None:
        """An artifact gets the next version of a name, unless the name has it."""
        done = publish(self.store, name, seed, tags=tuple(tags), parts=1)
        known = self._version_of(name, done.digest)
        assert done.reused == (known is not None)
        if known is None:
            self.used[name] = self.used.get(name, 0) + 1
            known = self.used[name]
            self.versions[name, known] = done.digest
        assert done.version == known
        self.tags |= {(name, tag): known for tag in tags}

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), tag=TAGS)
    def tag(self, data: st.DataObject, tag: str) -> None:
        """A tag means another version."""
        name, version = self._drawn(data)
        self.store.tag(f"{name}:v{version}", tag)
        self.tags[name, tag] = version

    @rule(name=NAMES, tag=TAGS)
    def untag(self, name: str, tag: str) -> None:
        """A tag means nothing any more, if it did."""
        try:
            removed = self.store.untag(name, tag)
            meant = None if removed is None else removed.version
        except RefNotFoundError:
            assert (name, tag) not in self.tags
        else:
            assert self.tags.pop((name, tag)) == meant

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def rm(self, data: st.DataObject) -> None:
        """A version is removed, with its tags and no others."""
        name, version = self._drawn(data)
        assert self.store.rm(f"{name}:v{version}").digest == self.versions.pop((name, version))
        self._forget_tags(name, version)

    @rule()
    def reopen(self) -> None:
        """Somebody else looks."""
        self.store.close()
        self.store = self.open(self.path)

    @rule()
    def reindex(self) -> None:
        """The catalog is made again."""
        assert reindex(self.path).problems == ()

    @rule()
    def collect(self) -> None:
        """What nothing refers to goes, and nothing else."""
        gc(self.store, grace_s=0)
        report = verify(self.store)
        assert (report.problems, report.orphans) == ((), ())

    @rule()
    def lose_the_catalog(self) -> None:
        """It can be made again from the records."""
        (self.path / "catalog.db").unlink()
        self.reopen()

    # --- crashes ------------------------------------------------------------------------------

    @rule(name=NAMES, seed=SEEDS, tag=TAGS, step=st.sampled_from(_PUBLISHING))
    def die_publishing(self, name: str, seed: int, tag: str, step: Step) -> None:
        """Before the record nothing is listed; from it on, the version is."""
        killed = self._killed(step, lambda s: publish(s, name, seed, tags=(tag,), parts=1))
        found = {(a.name, a.version): a.digest for a in self.store.artifacts()}
        new = found.keys() - self.versions.keys()
        if new:
            assert not killed or step in _COMMITTED
            self.used[name] = self.used.get(name, 0) + 1
            assert new == {(name, self.used[name])}
            self.versions[name, self.used[name]] = found[name, self.used[name]]
        # The same again finishes, and says what the version is.
        if killed and step not in _TAGGED:
            self.is_as_expected()
        self.publish(name, seed, {tag})

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), tag=TAGS, step=st.sampled_from(_TAGGING))
    def die_tagging(self, data: st.DataObject, tag: str, step: Step) -> None:
        """The tag's file is the truth."""
        name, version = self._drawn(data)
        assert self._killed(step, lambda s: s.tag(f"{name}:v{version}", tag))
        if step is not Step.LEASE:
            self.tags[name, tag] = version

    @precondition(lambda self: self.tags)
    @rule(data=st.data(), step=st.sampled_from(_TAGGING))
    def die_untagging(self, data: st.DataObject, step: Step) -> None:
        """Likewise."""
        name, tag = data.draw(st.sampled_from(sorted(self.tags)))
        assert self._killed(step, lambda s: s.untag(name, tag))
        if step is not Step.LEASE:
            del self.tags[name, tag]

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), step=st.sampled_from(_REMOVING))
    def die_removing(self, data: st.DataObject, step: Step) -> None:
        """From the tombstone on the version is gone; its tags go before."""
        name, version = self._drawn(data)
        assert self._killed(step, lambda s: s.rm(f"{name}:v{version}"))
        if step is not Step.LEASE:
            self._forget_tags(name, version)
        if step in _REMOVED:
            del self.versions[name, version]

    @rule(step=st.sampled_from(_COLLECTING))
    def die_collecting(self, step: Step) -> None:
        """What is listed keeps its blobs."""
        self._killed(step, lambda s: gc(s, grace_s=0))

    @rule(step=st.sampled_from(_INDEXING))
    def die_reindexing(self, step: Step) -> None:
        """All rows, or the old ones."""
        self._killed(step, lambda s: s.reindex())

    # --- what holds at any time ---------------------------------------------------------------

    @invariant()
    def is_as_expected(self) -> None:
        """The store lists what the dict has."""
        found = self.store.artifacts()
        assert {(a.name, a.version): a.digest for a in found} == self.versions
        assert {(a.name, tag): a.version for a in found for tag in a.tags} == self.tags

    @rule(name=NAMES)
    def resolve(self, name: str) -> None:
        """A name alone means its newest version."""
        newest = max((v for n, v in self.versions if n == name), default=None)
        try:
            assert self.store.resolve(name).version == newest
        except RefNotFoundError:
            assert newest is None

    def _killed(self, step: Step, action: Callable[[Store], object]) -> bool:
        def child() -> None:
            with self.open(self.path) as store:
                action(store)

        self.store.close()
        killed = is_killed_at(step, child)
        self.store = self.open(self.path)
        return killed

    def _drawn(self, data: st.DataObject) -> tuple[str, int]:
        return data.draw(st.sampled_from(sorted(self.versions)))

    def _version_of(self, name: str, digest: str) -> int | None:
        found = [v for (n, v), d in self.versions.items() if (n, d) == (name, digest)]
        return found[0] if found else None

    def _forget_tags(self, name: str, version: int) -> None:
        self.tags = {k: v for k, v in self.tags.items() if (k[0], v) != (name, version)}
