"""A module's weights, read and written as a checkpoint's are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deltastore.checkpoint import TORCH_DTYPES, TensorInfo
from deltastore.errors import IncompatibleError, StructureMismatchError
from deltastore.manifest import TensorEntry
from deltastore.manifest.format import DTYPE_BYTES

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]


class ModelWeights:
    """A module's weights as a checkpoint is read, and written in place.

    Tied weights have several names for one memory. Names that the delta knows are used, the
    first of them for each memory; a name that it does not know, of memory that it does, is left
    out.

    Raises:
        IncompatibleError: A weight is on the meta device, sparse or quantised.
        StructureMismatchError: The delta changes tied weights in different ways.
    """

    def __init__(self, model: torch.nn.Module, entries: Sequence[TensorEntry]) -> None:
        self.path = Path(type(model).__name__)
        known = {entry.name: entry for entry in entries}
        self.tensors: dict[str, TensorInfo] = {}
        self._values: dict[str, torch.Tensor] = {}
        self.tied: dict[str, str] = {}
        memory: dict[Any, str] = {}
        state = model.state_dict(keep_vars=True)
        for name in sorted(state, key=lambda name: (name not in known, name)):
            value = state[name]
            if not hasattr(value, "dtype"):
                continue  # a module's extra state
            info = _info(name, value, self.path)
            place = (value.device, value.data_ptr(), tuple(value.shape), value.stride())
            first = memory.setdefault(place, name) if value.numel() else name
            self.tensors[name] = info
            self._values[name] = value.detach()
            if first == name:
                continue
            if name in known and first in known:
                _refuse_different(known[first], known[name])
                self.tied[name] = first
            else:
                del self.tensors[name]

    def read_into(self, name: str, start_byte: int, buffer: Any) -> None:
        """Copy bytes of a weight, in row-major order, from its device."""
        target = np.frombuffer(buffer, np.uint8)
        size = DTYPE_BYTES[self.tensors[name].dtype]
        first, count = start_byte // size, target.size // size
        value = self._values[name]
        if value.is_contiguous():
            piece = value.view(-1)[first : first + count]
        else:
            piece = value[self._places(name, first, count)]
        np.copyto(target, _bytes(piece.cpu()))

    def read_samples(self, places: Sequence[tuple[str, int, Any]]) -> None:
        """Fill each buffer from its place."""
        for name, start_byte, buffer in places:
            self.read_into(name, start_byte, buffer)

    def write(self, name: str, start: int, data: Bytes) -> None:
        """Overwrite elements from ``start`` on with their bytes."""
        import torch

        value = self._values[name]
        size = DTYPE_BYTES[self.tensors[name].dtype]
        count = data.size // size
        source = torch.from_numpy(data).view(value.dtype)
        with torch.no_grad():
            if value.is_contiguous():
                value.view(-1)[start : start + count].copy_(source)
            else:
                value[self._places(name, start, count)] = source.to(value.device)

    def _places(self, name: str, start: int, count: int) -> tuple[torch.Tensor, ...]:
        """Indices of a run of elements of a weight that is transposed or sliced."""
        import torch

        value = self._values[name]
        index = np.unravel_index(np.arange(start, start + count), tuple(value.shape))
        return tuple(torch.from_numpy(i).to(value.device) for i in index)


def _refuse_different(one: TensorEntry, other: TensorEntry) -> None:
    if (one.base, one.post) != (other.base, other.post):
        raise StructureMismatchError(
            f"{one.name} and {other.name} are one tensor in the model, and the delta changes them "
            "in different ways.",
            hint="Untie them, or apply the delta to a checkpoint where they are two.",
        )


def _info(name: str, value: torch.Tensor, where: Path) -> TensorInfo:
    kind = str(value.dtype).removeprefix("torch.")
    dtype = TORCH_DTYPES.get(kind)
    if dtype is None or value.is_meta or value.is_sparse or value.is_quantized:
        raise IncompatibleError(
            f"{name} of {where} is {kind} on {value.device}; expected a dense tensor of numbers.",
            hint="Load the weights first, without quantisation.",
            tensor=name,
        )
    shape = tuple(value.shape)
    return TensorInfo(name, dtype, shape, 0, 0, value.numel() * DTYPE_BYTES[dtype])


def _bytes(value: torch.Tensor) -> Bytes:
    import torch

    found: Bytes = value.contiguous().view(torch.uint8).numpy()
    return found
