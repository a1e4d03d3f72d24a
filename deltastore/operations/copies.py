"""Tensors of one checkpoint that are the same under two names, known by their bytes.

``torch.save`` of a model with tied weights writes each name with the same bytes. Two tensors that
were trained apart never have the same numbers, so a sample of them tells.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from deltastore.checkpoint import TensorInfo, Weights
from deltastore.manifest.format import DELTA_DTYPES, DTYPE_BYTES

Bytes = npt.NDArray[np.uint8]

_RUNS = 16
_RUN_ELEMENTS = 64
_FEWEST_VALUES = 8
"""Fewer different numbers are no evidence: untrained biases and norms are all equal."""


class Copies:
    """Looks for copies in one checkpoint; reads a sample of each tensor that is asked about once.

    Args:
        weights: Whose tensors; at most 1,024 elements of each are read.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._samples: dict[str, Bytes] = {}

    def find(self, name: str, among: Iterable[str], *, may_be_plain: bool = False) -> str | None:
        """The first of some tensors with the dtype, shape and, in a sample, bytes of another.

        Args:
            name: Of the tensor that is looked for.
            among: Of those that it may be; those that are not there are left out.
            may_be_plain: Whether tensors of a few different values are copies, too: where their
                names say that they may be one.

        Raises:
            CheckpointError: A tensor cannot be read.
            HubError: It is on the hub and cannot be read there.
        """
        tensors = self._weights.tensors
        info = tensors[name]
        if info.dtype not in DELTA_DTYPES or not info.elements:
            return None
        alike = [
            other
            for other in sorted(among)
            if other != name and other in tensors and _form(tensors[other]) == _form(info)
        ]
        if not alike:
            return None
        own = self._sample(info)
        plain = np.unique(own.view(f"u{DTYPE_BYTES[info.dtype]}")).size < _FEWEST_VALUES
        if plain and not may_be_plain:
            return None
        for other in alike:
            if np.array_equal(own, self._sample(tensors[other])):
                return other
        return None

    def _sample(self, info: TensorInfo) -> Bytes:
        """Bytes of runs spread evenly over a tensor."""
        if info.name not in self._samples:
            size = DTYPE_BYTES[info.dtype]
            length = min(_RUN_ELEMENTS, info.elements)
            count = min(_RUNS, info.elements // length)
            data = np.empty(count * length * size, np.uint8)
            places = []
            for run in range(count):
                start = (2 * run + 1) * (info.elements - length) // (2 * count)
                piece = data[run * length * size : (run + 1) * length * size]
                places.append((info.name, start * size, piece))
            self._weights.read_samples(places)
            self._samples[info.name] = data
        return self._samples[info.name]


def _form(info: TensorInfo) -> tuple[str, tuple[int, ...]]:
    return info.dtype, info.shape
