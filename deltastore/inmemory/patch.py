"""Patches in a model and out of it again: what rounding loses is kept beside the model."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from deltastore.artifact.reader import ArtifactReader
from deltastore.codecs.values import decode_patch, encode_patch
from deltastore.delta import Term, add
from deltastore.inmemory.weights import ModelWeights
from deltastore.kernels.buffers import scratch
from deltastore.lineage.similarity import Lineage
from deltastore.manifest import TensorEntry
from deltastore.manifest.format import DTYPE_BYTES
from deltastore.merging.plan import MergePlan

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A delta that is in a model, and what it takes to get it out again.

    Attributes:
        ref: The delta's ref.
        digest: Its artifact.
        scale: α.
        tensors: How many tensors were changed; tied ones count once.
        bytes_kept: Memory that is kept for ``unpatch``.
        lineage: How near the model is to the delta's own base.
        restored: Every weight that the delta changes is post's now, by its digest.
        left_out: Tensors of the model or the delta that were left as they are, with the reason.
    """

    ref: str
    digest: str
    scale: float
    tensors: int
    bytes_kept: int
    lineage: Lineage
    restored: bool
    left_out: list[dict[str, str]]
    _undo: dict[str, Undo] = field(repr=False)
    _names: Mapping[str, str] = field(repr=False)


@dataclass(slots=True)
class Undo:
    """Of one tensor: what subtracting does not give back, and what the patch left there.

    ``frames`` by the chunk's first element; ``pending``: chunks that hold the delta, by first
    element, with their sizes; ``after``: BLAKE3 hex of the whole.
    """

    entry: TensorEntry
    elements: int
    frames: dict[int, bytes] = field(default_factory=dict)
    pending: dict[int, int] = field(default_factory=dict)
    after: str = ""


class Patching:
    """The target of a patch: writes into the model, and notes what undoing will lack.

    Args:
        weights: The model's.
        reader: The delta.
        plan: What is done to the model.
    """

    def __init__(self, weights: ModelWeights, reader: ArtifactReader, plan: MergePlan) -> None:
        self._weights = weights
        self._reader = reader
        self._scale = plan.deltas[0].scale
        self.undo = {
            name: Undo(recipe.addends[0].entry, recipe.output.elements)
            for name, recipe in plan.tensors.items()
        }
        self._lock = threading.Lock()

    def write(self, name: str, start_byte: int, data: Bytes) -> None:
        """See ``Target.write``."""
        dtype = self._weights.tensors[name].dtype
        size = DTYPE_BYTES[dtype]
        undo, run = self.undo[name], Run(name, start_byte // size, data.size // size)
        before = scratch("before", data.size, np.uint8)
        self._weights.read_into(name, start_byte, before)
        back = _subtracted(data, dtype, self._reader, undo, run, self._scale)
        old, got = before.view(f"u{size}"), back.view(f"u{size}")
        lost = np.flatnonzero(old != got)
        frame = encode_patch(lost, old[lost].view(np.uint8)) if lost.size else b""
        self._weights.write(name, run.start, data)
        with self._lock:
            if frame:
                undo.frames[run.start] = frame
            undo.pending[run.start] = run.count

    def take_back(self) -> None:
        """Undo what was written so far."""
        for run in list(pending(self.undo)):
            take_out(self._weights, self._reader, self.undo[run.name], run, self._scale)

    def settle(self, digests: Mapping[str, str]) -> None:
        """Note the digests of what is there now, all of which was written."""
        for name, undo in self.undo.items():
            undo.after = digests[name]

    @property
    def bytes_kept(self) -> int:
        """Memory that undoing will need."""
        return sum(len(frame) for undo in self.undo.values() for frame in undo.frames.values())

    def is_post(self) -> bool:
        """Whether every tensor that was changed is post's now."""
        return all(
            post is not None and (post.dtype, post.blake3) == (dtype, undo.after)
            for post, dtype, undo in (
                (undo.entry.post, self._weights.tensors[name].dtype, undo)
                for name, undo in self.undo.items()
            )
        )


@dataclass(frozen=True, slots=True)
class Run:
    """A run of elements of one tensor."""

    name: str
    start: int
    count: int


def pending(undo: Mapping[str, Undo]) -> Iterator[Run]:
    """The chunks that hold the delta."""
    for name, item in undo.items():
        for start, count in item.pending.items():
            yield Run(name, start, count)


def take_out(
    weights: ModelWeights, reader: ArtifactReader, undo: Undo, run: Run, scale: float
) -> None:
    """Give one chunk its old bits back."""
    dtype = weights.tensors[run.name].dtype
    size = DTYPE_BYTES[dtype]
    raw = scratch("after", run.count * size, np.uint8)
    weights.read_into(run.name, run.start * size, raw)
    out = _subtracted(raw, dtype, reader, undo, run, scale)
    frame = undo.frames.get(run.start)
    if frame is not None:
        positions, values = decode_patch(frame, size, run.count, where=run.name)
        out.view(f"u{size}")[positions] = values.view(f"u{size}")
    weights.write(run.name, run.start, out)
    del undo.pending[run.start]


def _subtracted(
    raw: Bytes, dtype: str, reader: ArtifactReader, undo: Undo, run: Run, scale: float
) -> Bytes:
    """Θ - α·Δ of one chunk."""
    out = scratch("back", raw.size, np.uint8)
    bits = scratch("undo", run.count, np.uint64 if undo.entry.wide else np.uint32)
    reader.delta(undo.entry, run.start, bits)
    add(raw, dtype, [Term(bits, -scale)], dtype, out)
    return out
