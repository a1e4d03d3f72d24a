"""Whether bytes are one zstd frame and nothing else, seen before anything is decompressed.

The library decodes what is there and does not say where a frame ended, so that a second frame, a
skippable one or a cut checksum behind the content would go unnoticed. RFC 8878, section 3.1.1.
"""

from __future__ import annotations

import zstandard

from deltastore.errors import PartInvalidError

_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOCK_HEADER_BYTES = 3
_CHECKSUM_BYTES = 4
_RLE = 1


def check_single(frame: bytes | memoryview, *, max_window_bytes: int, where: str) -> int:
    """The content size that a frame states.

    Args:
        frame: What should be one frame.
        max_window_bytes: The largest window that it may ask for.
        where: What to call it in an error.

    Raises:
        PartInvalidError: It is no frame, cut short, or followed by something; it states no content
            size, asks for a dictionary or for too large a window.
    """
    if bytes(frame[:4]) != _MAGIC:
        raise PartInvalidError(f"{where}: a frame is no zstd frame.")
    try:
        header = zstandard.get_frame_parameters(frame)
        position = zstandard.frame_header_size(frame)
    except zstandard.ZstdError as error:
        raise PartInvalidError(f"{where}: a frame is no zstd frame: {error}.") from error
    if header.content_size == zstandard.CONTENTSIZE_UNKNOWN:
        raise PartInvalidError(f"{where}: a frame states no content size.")
    if header.dict_id:
        raise PartInvalidError(f"{where}: a frame asks for the dictionary {header.dict_id}.")
    if header.window_size > max(max_window_bytes, header.content_size):
        raise PartInvalidError(
            f"{where}: a frame asks for a window of {header.window_size} bytes; "
            f"at most {max_window_bytes} are allowed."
        )
    last = False
    while not last and position + _BLOCK_HEADER_BYTES <= len(frame):
        block = int.from_bytes(frame[position : position + _BLOCK_HEADER_BYTES], "little")
        last = bool(block & 1)
        # A block of the type RLE states the size of its content and holds one byte of it.
        size = 1 if block >> 1 & 3 == _RLE else block >> 3
        position += _BLOCK_HEADER_BYTES + size
    position += _CHECKSUM_BYTES if header.has_checksum else 0
    if not last or position != len(frame):
        raise PartInvalidError(
            f"{where}: {len(frame)} bytes should be one zstd frame, no more and no less."
        )
    return header.content_size
