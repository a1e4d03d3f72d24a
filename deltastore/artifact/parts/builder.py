"""Frames in order to parts of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from deltastore.checkpoint import TensorSpec
from deltastore.checkpoint.header import header_bytes
from deltastore.manifest import Segment, Stream
from deltastore.manifest.format import DTYPE_BYTES, PART_BYTES

_NUMPY_TO_SAFETENSORS = {"uint8": "U8", "uint16": "U16", "float32": "F32", "int64": "I64"}


@dataclass(slots=True)
class _OpenStream:
    """A stream that is still growing."""

    key: str
    codec: str
    params: dict[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]
    segments: list[Segment] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    first: int = 0
    stored_bytes: int = 0


class PartBuilder:
    """Collects frames and hands over each part when it is full.

    Frames of one stream come in order; frames of several streams of one tensor may interleave.
    Not thread-safe: one caller at a time, in the order that makes the result deterministic.

    Args:
        hand_over: Called with a part's number and its pieces, header first. It may store them
            later and elsewhere; the pieces do not change any more.
        part_bytes: A part is closed once its frames have this many bytes.
    """

    def __init__(
        self, hand_over: Callable[[int, Sequence[bytes]], None], *, part_bytes: int = PART_BYTES
    ) -> None:
        self._hand_over = hand_over
        self._part_bytes = part_bytes
        self._part = 0
        self._size = 0
        self._open: dict[str, _OpenStream] = {}
        self._arrays: dict[str, tuple[str, tuple[int, ...], list[bytes]]] = {}

    @property
    def parts(self) -> int:
        """How many parts were handed over."""
        return self._part

    def begin(
        self,
        key: str,
        codec: str,
        params: dict[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        """Open the stream ``key``, such as ``model.norm.weight/delta``."""
        self._open[key] = _OpenStream(key, codec, params, arrays)

    def add(self, key: str, index: int, frame: bytes) -> None:
        """Add frame number ``index``; numbers that are left out have no frame here."""
        stream = self._open[key]
        if stream.frames and index != stream.first + len(stream.frames):
            # A gap in a sparse stream is filled with empty frames: eight bytes each.
            stream.frames += [b""] * (index - stream.first - len(stream.frames))
        if not stream.frames:
            stream.first = index
        stream.frames.append(frame)
        self._size += len(frame) + 8

    def settle(self) -> None:
        """Close the part if it is full; called between chunks."""
        if self._size >= self._part_bytes:
            self._close_part()

    def end(self, key: str) -> Stream | None:
        """Close the stream; None if it never had a frame."""
        stream = self._open[key]
        self._flush(stream)
        del self._open[key]
        if not stream.segments:
            return None
        return Stream(
            codec=stream.codec,
            params=stream.params,
            segments=tuple(stream.segments),
            stored_bytes=stream.stored_bytes,
        )

    def finish(self) -> None:
        """Hand over the last part, if it holds anything."""
        if self._arrays:
            self._close_part()

    def _flush(self, stream: _OpenStream) -> None:
        """Move a stream's frames into the current part."""
        if not stream.frames:
            return
        if not stream.segments:
            for name, array in stream.arrays.items():
                stream.stored_bytes += self._place(f"{stream.key}.{name}", array)
        sizes = [len(frame) for frame in stream.frames]
        offsets = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        frames_bytes = int(offsets[-1])
        self._arrays[stream.key] = ("U8", (frames_bytes,), stream.frames)
        stream.stored_bytes += frames_bytes + self._place(f"{stream.key}.offsets", offsets)
        stream.segments.append(Segment(self._part, stream.first, len(sizes)))
        stream.frames = []

    def _place(self, key: str, array: npt.NDArray[Any]) -> int:
        data = np.ascontiguousarray(array).tobytes()
        dtype = _NUMPY_TO_SAFETENSORS[array.dtype.name]
        self._arrays[key] = (dtype, array.shape, [data])
        return len(data)

    def _close_part(self) -> None:
        for stream in self._open.values():
            self._flush(stream)
        # Wide items first, so that each array is aligned to its own item size: readers that map
        # the file need that. Within a width the order is that of arrival, which is the table's.
        order = sorted(self._arrays.items(), key=lambda item: -DTYPE_BYTES[item[1][0]])
        arrays = (TensorSpec(key, dtype, shape) for key, (dtype, shape, _) in order)
        pieces = chain.from_iterable(data for _, (_, _, data) in order)
        self._hand_over(self._part, [header_bytes(arrays, {}), *pieces])
        self._part += 1
        self._size = 0
        self._arrays = {}
