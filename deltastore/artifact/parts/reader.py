"""Parts back to frames, at random and from several threads."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deltastore.errors import ManifestInvalidError, PartInvalidError, shown
from deltastore.manifest import Descriptor, Stream
from deltastore.manifest.parse import load_json
from deltastore.system.window import Window

MAX_HEADER_BYTES = 100 << 20
MAX_STATIC_BYTES = 64 << 20
_DTYPES = {"U8": np.uint8, "U16": np.uint16, "F32": np.float32, "I64": np.int64}


class Reader(Protocol):
    """An open blob; thread-safe."""

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset`` on."""

    def close(self) -> None:
        """Release it."""


class _Part:
    """One part: where each array lies, checked against the blob's size.

    ``users``: how many threads hold it; kept by ``PartsReader``.
    """

    def __init__(self, descriptor: Descriptor) -> None:
        self.where = f"Part {descriptor.digest}"
        self.users = 0
        self.is_open = False
        self._descriptor = descriptor
        self._opening = threading.Lock()

    def open(self, open_blob: Callable[[Descriptor], Reader]) -> None:
        """Open it, once however many threads ask; those that wait need just this part.

        Raises:
            PartInvalidError: It breaks the specification.
        """
        with self._opening:
            if self.is_open:
                return
            reader = open_blob(self._descriptor)
            try:
                self._read_header(reader, self._descriptor)
            except BaseException:
                reader.close()
                raise
            self._reader = reader
            self._window = Window(reader.read, self._descriptor.size)
            self.is_open = True

    def close(self) -> None:
        """Release the blob."""
        if self.is_open:
            self._reader.close()

    def _read_header(self, reader: Reader, descriptor: Descriptor) -> None:
        length = int.from_bytes(reader.read(0, 8), "little") if descriptor.size >= 8 else -1
        if not 2 <= length <= min(MAX_HEADER_BYTES, descriptor.size - 8):
            raise PartInvalidError(f"{self.where} has no safetensors header that fits into it.")
        self._start = 8 + length
        space = descriptor.size - self._start
        try:
            header = load_json(
                reader.read(8, length), limit=MAX_HEADER_BYTES, where=f"The header of {self.where}"
            )
        except ManifestInvalidError as error:
            raise PartInvalidError(error.message, hint=error.hint) from error
        if not isinstance(header, dict):
            raise PartInvalidError(f"{self.where}: the header should be an object.")
        header.pop("__metadata__", None)
        self._arrays: dict[str, tuple[Any, int, int]] = {}
        while header:  # which takes more memory than what is kept of it
            key, value = header.popitem()
            self._arrays[key] = self._checked(key, value, space)
        self._sorted = sorted(self._arrays)

    def _checked(self, key: str, value: Any, space: int) -> tuple[Any, int, int]:
        """dtype, begin and end of an array, in bytes from the end of the header."""
        try:
            dtype = _DTYPES[value["dtype"]]
            (items,) = value["shape"]
            begin, end = value["data_offsets"]
            whole = all(type(number) is int for number in (items, begin, end))
        except (KeyError, TypeError, ValueError) as error:
            raise PartInvalidError(
                f"{self.where}: array {shown(key)} should have one dimension, a dtype of "
                f"{', '.join(_DTYPES)} and two offsets."
            ) from error
        size = items * np.dtype(dtype).itemsize if whole else -1
        if not whole or not 0 <= begin <= end <= space or end - begin != size:
            raise PartInvalidError(
                f"{self.where}: array {shown(key)} lies at {shown(begin)}..{shown(end)} of {space} "
                f"bytes and should hold {shown(items)} items."
            )
        return dtype, begin, end

    def extent(self, key: str) -> tuple[int, int]:
        """Absolute begin and end of a uint8 array."""
        dtype, begin, end = self._find(key)
        if dtype is not np.uint8:
            raise PartInvalidError(f"{self.where}: array {shown(key)} should be U8.")
        return self._start + begin, self._start + end

    def array(self, key: str) -> npt.NDArray[Any]:
        """A whole small array."""
        dtype, begin, end = self._find(key)
        if end - begin > MAX_STATIC_BYTES:
            raise PartInvalidError(f"{self.where}: array {shown(key)} has {end - begin} bytes.")
        return np.frombuffer(self.read(self._start + begin, end - begin), dtype)

    def read(self, position: int, count: int) -> bytes:
        """``count`` bytes from ``position`` on."""
        small = self._window.read(position, count)
        return self._reader.read(position, count) if small is None else small

    def keys(self, prefix: str) -> list[str]:
        """The arrays whose key starts with ``prefix``, in order.

        Of a hundred thousand tensors each asks for its own.
        """
        first = last = bisect.bisect_left(self._sorted, prefix)
        while last < len(self._sorted) and self._sorted[last].startswith(prefix):
            last += 1
        return self._sorted[first:last]

    def _find(self, key: str) -> tuple[Any, int, int]:
        if key not in self._arrays:
            raise PartInvalidError(
                f"{self.where} lacks the array {shown(key)} that the config names."
            )
        return self._arrays[key]


class PartsReader:
    """The parts of one artifact, opened as they are needed. Thread-safe.

    Args:
        layers: The descriptors of the parts, in order.
        open_blob: Opens one of them.
        max_open: How many stay open at once, so that large artifacts do not run out of file
            descriptors; those in use are never closed.
    """

    def __init__(
        self,
        layers: Sequence[Descriptor],
        open_blob: Callable[[Descriptor], Reader],
        *,
        max_open: int = 64,
    ) -> None:
        self._layers = layers
        self._open_blob = open_blob
        self._max_open = max_open
        self._parts: OrderedDict[int, _Part] = OrderedDict()
        self._lock = threading.Lock()

    def acquire(self, index: int) -> _Part:
        """Part number ``index``, which stays open until it is released.

        Threads that want another part do not wait until this one is open. No context manager: a
        hundred thousand small tensors ask three times each.
        """
        surplus = []
        with self._lock:
            part = self._parts.get(index)
            if part is None:
                part = self._parts[index] = _Part(self._layers[index])
            self._parts.move_to_end(index)
            part.users += 1
            if len(self._parts) > self._max_open:
                idle = [i for i, p in self._parts.items() if not p.users]
                surplus = [self._parts.pop(i) for i in idle[: len(self._parts) - self._max_open]]
        for other in surplus:
            other.close()
        if not part.is_open:
            try:
                part.open(self._open_blob)
            except BaseException:
                self.release(part)
                raise
        return part

    def release(self, part: _Part) -> None:
        """The caller is done with a part that it acquired."""
        with self._lock:
            part.users -= 1

    def stream(self, key: str, stream: Stream) -> StreamReader:
        """A reader of the stream ``key``, such as ``model.norm.weight/delta``."""
        return StreamReader(self, key, stream)

    def close(self) -> None:
        """Close all parts."""
        with self._lock:
            for part in self._parts.values():
                part.close()
            self._parts.clear()


class StreamReader:
    """The frames of one stream. Thread-safe."""

    def __init__(self, parts: PartsReader, key: str, stream: Stream) -> None:
        self._parts = parts
        self._key = key
        self._segments = stream.segments
        self._firsts = [segment.first for segment in stream.segments]
        self._offsets: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The codec's static arrays, by their names.

        Raises:
            PartInvalidError: The part breaks the specification.
        """
        if not self._segments:
            return {}
        prefix = f"{self._key}."
        part = self._parts.acquire(self._segments[0].part)
        try:
            return {
                key.removeprefix(prefix): part.array(key)
                for key in part.keys(prefix)
                if key != f"{prefix}offsets" and "/" not in key.removeprefix(prefix)
            }
        finally:
            self._parts.release(part)

    def frame(self, index: int) -> bytes:
        """Frame number ``index``; empty where the stream has none.

        Raises:
            PartInvalidError: The part breaks the specification.
        """
        number = bisect.bisect_right(self._firsts, index) - 1
        if number < 0:
            return b""
        segment = self._segments[number]
        local = index - segment.first
        if local >= segment.frames:
            return b""
        part = self._parts.acquire(segment.part)
        try:
            start, offsets = self._offsets.get(number) or self._load(number, part)
            begin, end = int(offsets[local]), int(offsets[local + 1])
            return part.read(start + begin, end - begin)
        finally:
            self._parts.release(part)

    def filled(self) -> npt.NDArray[np.int64]:
        """The numbers of the frames that are not empty, ascending.

        An empty frame takes the eight bytes of its offset, and may stand for millions of elements.

        Raises:
            PartInvalidError: The part breaks the specification.
        """
        found = [np.empty(0, np.int64)]
        for number, segment in enumerate(self._segments):
            part = self._parts.acquire(segment.part)
            try:
                _, offsets = self._offsets.get(number) or self._load(number, part)
            finally:
                self._parts.release(part)
            found.append(segment.first + np.flatnonzero(np.diff(offsets)))
        return np.concatenate(found)

    def _load(self, number: int, part: _Part) -> tuple[int, npt.NDArray[np.int64]]:
        segment = self._segments[number]
        start, stop = part.extent(self._key)
        offsets = part.array(f"{self._key}.offsets")
        ascending = offsets.dtype == np.int64 and bool((offsets[1:] >= offsets[:-1]).all())
        if (
            not ascending
            or offsets.size != segment.frames + 1
            or offsets[0] != 0
            or offsets[-1] != stop - start
        ):
            raise PartInvalidError(
                f"{part.where}: {self._key}.offsets should be {segment.frames + 1} ascending "
                f"int64 numbers from 0 to {stop - start}."
            )
        self._offsets[number] = loaded = (start, offsets)
        return loaded
