"""The entropy stage that all codecs share: byte planes in, one standard zstd frame out.

A frame's content is a concatenation of *planes*: runs of bytes that are alike. Each plane starts
a block of its own inside the frame, hence gets a Huffman table of its own, without the cost of
a frame of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import zstandard

from deltastore.codecs import frames
from deltastore.errors import PartInvalidError
from deltastore.scratch import scratch

Bytes = npt.NDArray[np.uint8]

_MAX_WINDOW_BYTES = 1 << 27
_SMALL_BYTES = 16 << 10

# Huffman coding without match search: planes of delta bytes hold next to no repeats, so matches
# cost time and gain nothing. docs/decisions/0002-exact-codec.md has the figures.
_PARAMETERS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    window_log=20,
    hash_log=6,
    chain_log=6,
    search_log=1,
    min_match=7,
    write_content_size=True,
    write_checksum=False,
)


class _PerThread(threading.local):
    """Compression contexts are not thread-safe."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(compression_params=_PARAMETERS)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)


_thread = _PerThread()


def compress(planes: Sequence[Bytes]) -> bytes:
    """One zstd frame whose content is the concatenation of ``planes``.

    Shapes:
        planes: any number of ``[k]``, uint8, C-contiguous; empty ones are skipped.
    """
    filled = [plane for plane in planes if plane.size]
    stream = _thread.compressor.compressobj(size=sum(plane.size for plane in filled))
    pieces = []
    for i, plane in enumerate(filled):
        pieces.append(stream.compress(plane.data))
        if i + 1 < len(filled):
            pieces.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    pieces.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH))
    return b"".join(pieces)


def decompress(frame: bytes | memoryview, *, max_bytes: int, where: str) -> Bytes:
    """The content of one frame, in a buffer of this thread that the next call overwrites.

    Args:
        frame: Exactly one zstd frame that states its content size.
        max_bytes: The most that the frame may expand to, known from the element count.
        where: What to call the frame in an error.

    Raises:
        PartInvalidError: The frame is damaged, states no size or too large a one.
    """
    size = frames.check_single(frame, max_window_bytes=_MAX_WINDOW_BYTES, where=where)
    if not 0 <= size <= max_bytes:
        raise PartInvalidError(
            f"{where}: a frame states a content of {size} bytes; at most {max_bytes} are allowed."
        )
    if size <= _SMALL_BYTES:
        return _decompress_small(frame, size, where)
    buffer = scratch("content", size + 1, np.uint8)
    view = buffer.data
    try:
        reader = _thread.decompressor.stream_reader(frame, read_across_frames=True)
        got = 0
        # One byte of room beyond the stated size shows content that the header denies.
        while got < size + 1:
            read = reader.readinto(view[got : size + 1])
            if read == 0:
                break
            got += read
    except zstandard.ZstdError as error:
        raise PartInvalidError(f"{where}: a frame is damaged: {error}.") from error
    if got != size:
        raise PartInvalidError(f"{where}: a frame holds {got} bytes where it states {size}.")
    return buffer[:size]


def _decompress_small(frame: bytes | memoryview, size: int, where: str) -> Bytes:
    """The same in one call: what a stream costs to begin is more than a small frame."""
    try:
        content = _thread.decompressor.decompress(frame, max_output_size=size)
    except zstandard.ZstdError as error:
        raise PartInvalidError(f"{where}: a frame is damaged: {error}.") from error
    if len(content) != size:
        raise PartInvalidError(f"{where}: a frame holds {len(content)} bytes, not {size}.")
    # Kernels are compiled for arrays that may be written.
    return np.frombuffer(bytearray(content), np.uint8)
