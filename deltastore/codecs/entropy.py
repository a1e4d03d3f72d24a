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

from deltastore.errors import PartInvalidError

Bytes = npt.NDArray[np.uint8]

_MAX_WINDOW_BYTES = 1 << 27

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
    """The content of one frame, read-only.

    Args:
        frame: Exactly one zstd frame that states its content size.
        max_bytes: The most that the frame may expand to, known from the element count.
        where: What to call the frame in an error.

    Raises:
        PartInvalidError: It is no frame, damaged, cut short or followed by something; it states no
            content size or too large a one, asks for a dictionary or for too large a window.
    """
    try:
        header = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError as error:
        raise PartInvalidError(f"{where}: a frame is no zstd frame: {error}.") from error
    size = header.content_size
    if size == zstandard.CONTENTSIZE_UNKNOWN:
        raise PartInvalidError(f"{where}: a frame states no content size.")
    if size > max_bytes:
        raise PartInvalidError(
            f"{where}: a frame states a content of {size} bytes; at most {max_bytes} are allowed."
        )
    if header.dict_id:
        raise PartInvalidError(f"{where}: a frame asks for the dictionary {header.dict_id}.")
    if header.window_size > max(_MAX_WINDOW_BYTES, size):
        raise PartInvalidError(
            f"{where}: a frame asks for a window of {header.window_size} bytes; "
            f"at most {_MAX_WINDOW_BYTES} are allowed."
        )
    try:
        # Into memory of the stated size, whatever the frame goes on to say.
        content = _thread.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PartInvalidError(
            f"{where}: {len(frame)} bytes should be one zstd frame, no more and no less: {error}."
        ) from error
    if len(content) != size:
        raise PartInvalidError(f"{where}: a frame holds {len(content)} bytes, not {size}.")
    return np.frombuffer(content, np.uint8)
