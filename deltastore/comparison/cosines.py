"""The heart of ``compare``: sums over the elements that pairs of deltas share, in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt

from deltastore.artifact.reader import ArtifactReader
from deltastore.blobs import BlobStore
from deltastore.delta import Products, products
from deltastore.execution.progress import Progress
from deltastore.execution.thread_pool import ReorderBuffer, ThreadPool
from deltastore.kernels.buffers import scratch
from deltastore.manifest import Descriptor, TensorEntry
from deltastore.manifest.format import DTYPE_BYTES, KEEP

Pair = tuple[int, int]
Name = str


@dataclass(slots=True)
class Overlap:
    """What two deltas share.

    Attributes:
        elements: Elements of each tensor that both have, by name.
        problems: Why another tensor is not compared, by name.
        sums: The sums over a shared tensor, by name; absent where both left it unchanged.
    """

    elements: dict[Name, int] = field(default_factory=dict)
    problems: dict[Name, str] = field(default_factory=dict)
    sums: dict[Name, Products] = field(default_factory=dict)


def overlaps(refs: Sequence[str], tables: Sequence[Sequence[TensorEntry]]) -> dict[Pair, Overlap]:
    """Match the tensors of every two artifacts, by name and by the shape of the delta.

    A tensor that an artifact leaves unchanged has a delta there, which is zero.

    Args:
        refs: What to call the artifacts.
        tables: Their tensors.
    """
    by_name = [{entry.name: entry for entry in table} for table in tables]
    found = {}
    for i, j in combinations(range(len(tables)), 2):
        overlap = found[i, j] = Overlap()
        for name in sorted(by_name[i].keys() | by_name[j].keys()):
            one, other = by_name[i].get(name), by_name[j].get(name)
            problem = _problem(refs[i], one, refs[j], other)
            if problem:
                overlap.problems[name] = problem
            else:
                assert one is not None
                overlap.elements[name] = one.common_elements
    return found


def _problem(ref: str, one: TensorEntry | None, other_ref: str, other: TensorEntry | None) -> str:
    """Why a tensor cannot be compared; empty if it can."""
    if one is None or other is None:
        return f"only in {other_ref if one is None else ref}"
    without = [
        f"{entry.kind} in {name}"
        for name, entry in ((ref, one), (other_ref, other))
        if entry.delta is None and entry.kind != "unchanged"
    ]
    if without:
        return f"no delta: {' and '.join(without)}"
    shape, other_shape = _shape(one), _shape(other)
    if shape != other_shape:
        return f"{list(shape)} in {ref}, {list(other_shape)} in {other_ref}"
    return ""


def _shape(entry: TensorEntry) -> tuple[int, ...]:
    """The shape of a delta: of a tensor that grew or shrank, the rows that base and post share."""
    assert entry.base is not None
    assert entry.post is not None
    return min(entry.base.shape, entry.post.shape)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Elements ``start .. start + count`` of one tensor, to be compared between some pairs.

    ``entries``: of each artifact that takes part, by index.
    """

    number: int
    name: Name
    start: int
    count: int
    entries: Mapping[int, TensorEntry]
    pairs: Sequence[Pair]


class Comparer:
    """Adds up what pairs of deltas share, and checks the parts that it reads meanwhile.

    Args:
        readers: One for each artifact.
        overlaps: What each pair has in common; the sums are written there.
    """

    def __init__(self, readers: Sequence[ArtifactReader], overlaps: Mapping[Pair, Overlap]) -> None:
        self._readers = readers
        self._overlaps = overlaps
        self._tables = [{e.name: e for e in reader.config.tensors} for reader in readers]
        # Frames are decoded whole, so that smaller steps than the largest would repeat work.
        self._step = max(reader.config.chunk for reader in readers)
        self._names = sorted(set().union(*(overlap.elements for overlap in overlaps.values())))

    def run(self, blobs: BlobStore, jobs: int, progress: Progress) -> None:
        """Read every delta that is shared, and compare its parts with their digests.

        The sums are the same whatever the number of threads.

        Raises:
            IntegrityError: A blob is missing or damaged.
            FormatError: A part breaks the specification.
        """
        pool = ThreadPool(jobs)
        in_order = ReorderBuffer(pool, self._add)
        checked = self._parts()
        decoded = sum(map(_decoded_bytes, self._entries()))
        progress.start("comparing", decoded + sum(part.size for part in checked))

        def work(_number: int, task: _Chunk | Descriptor) -> None:
            if isinstance(task, Descriptor):
                blobs.check(task.digest, task.size, advance=progress.advance)
                return
            in_order.wait_for_room(task.number)
            in_order.put(task.number, (task, self._products(task, progress)))

        pool.run(self._tasks(checked, progress), work)

    def _entries(self) -> Iterator[TensorEntry]:
        """What is read: every delta that is in a pair, once for each artifact."""
        for name in self._names:
            entries, _ = self._shared(name)
            yield from (entry for entry in entries.values() if entry.delta is not None)

    def _shared(self, name: Name) -> tuple[dict[int, TensorEntry], list[Pair]]:
        """The artifacts and pairs that share a tensor which at least one of the pair changed."""
        pairs = [
            pair
            for pair, overlap in self._overlaps.items()
            if name in overlap.elements
            and any(self._tables[index][name].delta is not None for index in pair)
        ]
        return {i: self._tables[i][name] for pair in pairs for i in pair}, pairs

    def _parts(self) -> list[Descriptor]:
        """The parts that are read, each once."""
        found: dict[str, Descriptor] = {}
        for name in self._names:
            for index, entry in self._shared(name)[0].items():
                for segment in entry.delta.segments if entry.delta is not None else ():
                    layer = self._readers[index].manifest.layers[segment.part]
                    found[layer.digest] = layer
        return list(found.values())

    def _tasks(
        self, checked: Sequence[Descriptor], progress: Progress
    ) -> Iterator[_Chunk | Descriptor]:
        waiting = list(reversed(checked))
        number = 0
        for name in self._names:
            # One check now and then: it reads what the chunks around it read.
            if waiting:
                yield waiting.pop()
            entries, pairs = self._shared(name)
            # Pairs may share a tensor in different shapes: then each shape is gone through.
            for shape in sorted({_shape(entry) for entry in entries.values()}):
                alike = {i: entry for i, entry in entries.items() if _shape(entry) == shape}
                chosen = [pair for pair in pairs if pair[0] in alike]
                total = next(iter(alike.values())).common_elements
                starts = self._starts(alike)
                for start in map(int, starts):
                    count = min(self._step, total - start)
                    yield _Chunk(number, name, start, count, alike, chosen)
                    number += 1
                read = min(total, starts.size * self._step)
                for entry in alike.values():
                    if entry.delta is not None:
                        progress.advance(_bytes(entry, total - read))
        yield from reversed(waiting)

    def _starts(self, entries: Mapping[int, TensorEntry]) -> npt.NDArray[np.int64]:
        """Where the steps begin in which some delta is not empty: others add nothing to a sum."""
        chunks = [
            self._readers[index].filled(entry) * self._readers[index].config.chunk
            for index, entry in entries.items()
            if entry.delta is not None
        ]
        return np.unique(np.concatenate(chunks) // self._step) * self._step

    def _products(self, task: _Chunk, progress: Progress) -> list[Products]:
        chunks = {}
        for index, entry in task.entries.items():
            if entry.delta is None:
                zero = chunks[index] = scratch("unchanged", task.count, np.uint32)
                zero[:] = KEEP
                continue
            kind = np.uint64 if entry.wide else np.uint32
            chunk = chunks[index] = scratch(f"delta{index}.{kind().itemsize}", task.count, kind)
            self._readers[index].delta(entry, task.start, chunk)
            progress.advance(chunk.nbytes)
        return [products(chunks[i], chunks[j]) for i, j in task.pairs]

    def _add(self, done: tuple[_Chunk, list[Products]]) -> None:
        task, found = done
        for pair, sums in zip(task.pairs, found, strict=True):
            known = self._overlaps[pair].sums.setdefault(task.name, Products())
            known.add(sums)


def _decoded_bytes(entry: TensorEntry) -> int:
    return _bytes(entry, entry.common_elements)


def _bytes(entry: TensorEntry, elements: int) -> int:
    return elements * DTYPE_BYTES["F64" if entry.wide else "F32"]
