"""Tensors of one checkpoint that are the same under two names, known by their bytes.

``torch.save`` of a model with tied weights writes each name with the same bytes. Two tensors that
were trained apart never have the same numbers, so a sample of them tells.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltastore.checkpoint import TensorInfo, Weights
from deltastore.manifest.format import DELTA_DTYPES, DTYPE_BYTES

Bytes = npt.NDArray[np.uint8]
Form = tuple[str, tuple[int, ...]]

_RUNS = 16
_RUN_ELEMENTS = 64
_FEWEST_VALUES = 8
"""Fewer different numbers are no evidence: untrained biases and norms are all equal."""

_AT_ONCE = 1024
"""So many short reads are asked for together, which a base on the hub makes side by side."""


class Copies:
    """Looks for copies in one checkpoint; reads little of each tensor that is asked about, once.

    Args:
        weights: Whose tensors; at most 1,088 elements of each are read.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._middles: dict[str, bytes] = {}
        self._samples: dict[str, _Sample] = {}

    def among(self, names: Iterable[str]) -> Candidates:
        """Some tensors, of which copies of others are to be found.

        Args:
            names: Theirs; those that the checkpoint does not have are left out.
        """
        found = Candidates(self)
        for name in names:
            found.add(name)
        return found

    def are_copies(self, name: str, other: str, *, may_be_plain: bool = False) -> bool:
        """Whether two tensors have one dtype and shape and, in a sample, the same bytes.

        Args:
            name: One of them.
            other: The other.
            may_be_plain: Whether tensors of a few different values are copies, too: where their
                names say that they may be one.

        Raises:
            CheckpointError: A tensor cannot be read.
            HubError: It is on the hub and cannot be read there.
        """
        info, twin = (self.weights.tensors[one] for one in (name, other))
        if name == other or not may_be_copied(info) or form(info) != form(twin):
            return False
        own = self.sample(name)
        return own == self.sample(other) and (may_be_plain or not own.plain)

    def middles(self, names: Iterable[str]) -> list[bytes]:
        """The digest of a short run from the middle of each of some tensors."""
        every = list(names)
        asked = [name for name in every if name not in self._middles]
        for first in range(0, len(asked), _AT_ONCE):
            group = asked[first : first + _AT_ONCE]
            read = self._read([self._runs(self.weights.tensors[name], 1) for name in group])
            self._middles |= dict(zip(group, map(_digest, read), strict=True))
        return [self._middles[name] for name in every]

    def sample(self, name: str) -> _Sample:
        """What is known of a tensor by runs spread evenly over it."""
        if name not in self._samples:
            info = self.weights.tensors[name]
            (data,) = self._read([self._runs(info, _RUNS)])
            values = np.frombuffer(data, f"u{DTYPE_BYTES[info.dtype]}")
            plain = np.unique(values).size < _FEWEST_VALUES
            self._samples[name] = _Sample(_digest(data), plain)
        return self._samples[name]

    def _runs(self, info: TensorInfo, runs: int) -> tuple[str, list[int], int]:
        """Name, first bytes and bytes of at most so many runs."""
        length = min(_RUN_ELEMENTS, info.elements)
        count = min(runs, info.elements // length)
        spare, size = info.elements - length, DTYPE_BYTES[info.dtype]
        starts = [(2 * run + 1) * spare // (2 * count) * size for run in range(count)]
        return info.name, starts, length * size

    def _read(self, wanted: Sequence[tuple[str, list[int], int]]) -> list[bytes]:
        places, buffers = [], []
        for name, starts, size in wanted:
            data = np.empty(len(starts) * size, np.uint8)
            buffers.append(data)
            for run, start in enumerate(starts):
                places.append((name, start, data[run * size : (run + 1) * size]))
        self.weights.read_samples(places)
        return [data.tobytes() for data in buffers]


@dataclass(frozen=True, slots=True)
class _Sample:
    """The digest of a tensor's sample, and whether it is of few different numbers."""

    digest: bytes
    plain: bool


class Candidates:
    """Tensors of which some may be copies of others.

    They are known by dtype, shape and one short run, and only those that agree in these by a
    sample: of a hundred thousand tensors of one shape each is read a few times at most.

    Args:
        copies: Reads them.
    """

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._waiting: dict[Form, list[str]] = {}
        self._by_middle: dict[Form, dict[bytes, _Bucket]] = {}

    def add(self, name: str) -> None:
        """One more; nothing of it is read yet."""
        info = self._copies.weights.tensors.get(name)
        if info is not None and may_be_copied(info):
            self._waiting.setdefault(form(info), []).append(name)

    def find(self, name: str) -> str | None:
        """The first of them, by name, with the dtype, shape and bytes of another tensor.

        Tensors of a few different values are no copies.

        Args:
            name: Of the tensor that is looked for, which may be one of them.

        Raises:
            CheckpointError: A tensor cannot be read.
            HubError: It is on the hub and cannot be read there.
        """
        info = self._copies.weights.tensors[name]
        if not may_be_copied(info):
            return None
        shared = form(info)
        waiting = self._waiting.pop(shared, [])
        if waiting:
            known = self._by_middle.setdefault(shared, {})
            for one, middle in zip(waiting, self._copies.middles(waiting), strict=True):
                known.setdefault(middle, _Bucket()).waiting.append(one)
        alike = self._by_middle.get(shared)
        if alike is None:
            return None
        bucket = alike.get(self._copies.middles([name])[0])
        if bucket is None or bucket.is_only(name):
            return None
        own = self._copies.sample(name)
        return None if own.plain else bucket.first(name, own, self._copies)


class _Bucket:
    """Tensors that agree in a run: those of which no sample was taken yet, and the others."""

    __slots__ = ("_sampled", "waiting")

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self._sampled: dict[_Sample, list[str]] = {}

    def is_only(self, name: str) -> bool:
        """Whether no other tensor is in it."""
        return not self._sampled and self.waiting == [name]

    def first(self, name: str, own: _Sample, copies: Copies) -> str | None:
        """The first, by name, of those with the sample of another tensor."""
        for one in self.waiting:
            insort(self._sampled.setdefault(copies.sample(one), []), one)
        self.waiting = []
        found = self._sampled.get(own, ())
        return next((other for other in found if other != name), None)


def may_be_copied(info: TensorInfo) -> bool:
    """Whether a tensor is of weights."""
    return info.dtype in DELTA_DTYPES and info.elements > 0


def form(info: TensorInfo) -> Form:
    """What two tensors must have in common to be equal."""
    return info.dtype, info.shape


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
