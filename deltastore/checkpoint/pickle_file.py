"""One old ``.bin``/``.pt``/``.pth`` file, open for positional reads. Needs no torch."""

from __future__ import annotations

import math
import os
import threading
from contextlib import closing
from pathlib import Path

import numpy as np

from deltastore.checkpoint.files import open_regular, read_at
from deltastore.checkpoint.header import check_name, check_shape, unsupported_dtype
from deltastore.checkpoint.model import TORCH_DTYPES, TensorInfo
from deltastore.checkpoint.pickle_child import find_places
from deltastore.checkpoint.strided import (
    Bytes,
    is_contiguous,
    read_elements,
    span_elements,
    take_elements,
)
from deltastore.errors import CheckpointCorruptError, UnsupportedDtypeError, shown
from deltastore.manifest.format import DTYPE_BYTES, MAX_TENSORS
from deltastore.pickles.torch_file import TensorPlace

MAX_REPEATED = 64
"""How often tensors may name a file's bytes: tied weights do it twice, shared layers more often."""

_HELD_BYTES = 1 << 27
_SIGNED = {"F16", "BF16", "F32", "F64", "C64"}


class PickleFile:
    """A file of ``torch.save``; reads are thread-safe and share one descriptor."""

    def __init__(self, path: Path, shard: int) -> None:
        """Find the file's tensors, without running anything in it.

        Raises:
            CheckpointCorruptError: The file is missing, truncated or no file of ``torch.save``.
            UnsafePickleError: It holds more than tensors.
            UnsupportedDtypeError: A tensor is sparse or quantised, or its dtype not supported.
            CheckpointError: The file cannot be opened or read.
        """
        self.path = path
        self.metadata: dict[str, str] = {}
        self.tensors: list[TensorInfo] = []
        self._places: dict[str, TensorPlace] = {}
        self._total = 0
        self._lock = threading.Lock()
        self._held: tuple[str, Bytes] | None = None
        self.descriptor = open_regular(path)
        try:
            self.status = os.fstat(self.descriptor)
            with closing(find_places(self.descriptor, path)) as places:
                for place in places:
                    self._add(place, shard)
        except BaseException:
            os.close(self.descriptor)
            raise

    def _add(self, place: TensorPlace, shard: int) -> None:
        """Take a tensor, if the file can have it."""
        name, path, size = place.name, self.path, self.status.st_size
        check_name(name, path)
        dtype = TORCH_DTYPES.get(place.dtype)
        if dtype is None:
            raise unsupported_dtype(place.dtype, name, path)
        check_shape(place.shape, name, path)
        if (place.conjugate and dtype != "C64") or (place.negative and dtype not in _SIGNED):
            raise UnsupportedDtypeError(
                f"{path} stores {shown(name)} as the negative of what it holds; expected a plain "
                "tensor.",
                hint="Save the checkpoint again after .resolve_neg().",
                path=str(path),
                tensor=name,
            )
        item = DTYPE_BYTES[dtype]
        info = TensorInfo(name, dtype, place.shape, shard, 0, math.prod(place.shape) * item)
        if info.nbytes > size:
            self._corrupt(
                f"gives {shown(name)} {info.nbytes} bytes; the whole file has {size}",
                "If it was saved as an expanded view, save it again after .contiguous().",
            )
        if place.begin + span_elements(place.shape, place.stride) * item > size:
            self._corrupt(f"has {size} bytes; {shown(name)} ends beyond them: it is truncated")
        if name in self._places:
            self._corrupt(f"holds {shown(name)} twice")
        if len(self._places) == MAX_TENSORS:
            self._corrupt(f"holds more than {MAX_TENSORS} tensors")
        self._total += info.nbytes
        if self._total > MAX_REPEATED * size:
            self._corrupt(
                f"names its {size} bytes more than {MAX_REPEATED} times by tensors that overlap"
            )
        self._places[name] = place
        self.tensors.append(info)

    def _corrupt(self, problem: str, hint: str = "") -> None:
        raise CheckpointCorruptError(
            f"{self.path} {problem}.",
            hint=hint or "The file is damaged; fetch the checkpoint again.",
            path=str(self.path),
        )

    def read_into(self, tensor: TensorInfo, start_byte: int, view: memoryview) -> None:
        """Fill ``view`` from the tensor's bytes in row-major order.

        Raises:
            CheckpointCorruptError: The file has been shortened.
            CheckpointError: The read failed.
        """
        if not len(view):
            return
        place = self._places[tensor.name]
        plain = is_contiguous(place.shape, place.stride)
        if plain and not (place.conjugate or place.negative or place.swapped):
            read_at(self.descriptor, place.begin + start_byte, view, self.path)
            return
        item = DTYPE_BYTES[tensor.dtype]
        first, skipped = divmod(start_byte, item)
        elements = np.empty((-(-(start_byte + len(view)) // item) - first, item), np.uint8)
        self._elements(place, item, first, elements)
        _resolve(place, tensor.dtype, elements)
        target = np.frombuffer(view, np.uint8)
        np.copyto(target, elements.reshape(-1)[skipped : skipped + len(view)])

    def _elements(self, place: TensorPlace, item: int, first: int, target: Bytes) -> None:
        def read(position: int, view: memoryview) -> None:
            read_at(self.descriptor, position, view, self.path)

        span = span_elements(place.shape, place.stride) * item
        if span > _HELD_BYTES or is_contiguous(place.shape, place.stride):
            read_elements(read, place.begin, place.shape, place.stride, first, target)
            return
        # A transposed matrix would be read as a whole for every few rows of it.
        with self._lock:
            held = self._held
            if held is None or held[0] != place.name:
                self._held = None
                held = place.name, np.empty(span, np.uint8)
                read(place.begin, held[1].data)
                self._held = held

        take_elements(held[1], place.shape, place.stride, first, target)

    def close(self) -> None:
        """Close the descriptor."""
        self._held = None
        os.close(self.descriptor)


def _resolve(place: TensorPlace, dtype: str, elements: Bytes) -> None:
    """Make the elements what the tensor's marks say, in place."""
    size = elements.shape[1]
    if dtype == "C64":
        elements = elements.reshape(-1, 2, size // 2)
    if place.swapped:
        elements[:] = elements[..., ::-1].copy()
    if place.negative:
        elements[..., -1] ^= 0x80
    if place.conjugate:
        elements[:, 1, -1] ^= 0x80
