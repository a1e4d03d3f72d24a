"""Plain values: tensors without a base, as byte planes of their own bytes.

Not a codec of deltas, hence not in the registry; it shares the entropy stage with them.
"""

from __future__ import annotations

import numpy as np

from deltastore.codecs import entropy, planes
from deltastore.codecs.contract import Bytes
from deltastore.errors import PartInvalidError
from deltastore.kernels.buffers import scratch

CODEC = "values"


def encode_values(raw: Bytes, itemsize: int) -> bytes:
    """One chunk of a tensor's bytes as one frame.

    Shapes:
        raw: ``[n * itemsize]``, uint8, n > 0.
    """
    values = raw.view(f"u{itemsize}")
    split = scratch("values", raw.size, np.uint8)
    planes.split(values, split)
    return entropy.compress(
        [split[j * values.size : (j + 1) * values.size] for j in range(itemsize)]
    )


def decode_values(frame: bytes, itemsize: int, out: Bytes, *, where: str) -> None:
    """The inverse of ``encode_values``; fills ``out``.

    Raises:
        PartInvalidError: The frame is damaged or holds another number of bytes.
    """
    content = entropy.decompress(frame, max_bytes=out.size, where=where)
    if content.size != out.size:
        raise PartInvalidError(
            f"{where}: a frame holds {content.size} bytes where {out.size} are expected."
        )
    planes.join(content, out.view(f"u{itemsize}"))


_POSITION_BYTES = 4


def encode_patch(positions: np.ndarray[tuple[int], np.dtype[np.int64]], post: Bytes) -> bytes:
    """Restore patch of one chunk: uint32 positions in the chunk, then post's bytes at them."""
    return entropy.compress([positions.astype("<u4").view(np.uint8), post])


def decode_patch(
    frame: bytes, itemsize: int, elements: int, *, where: str
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], Bytes]:
    """Positions and post's bytes at them.

    Raises:
        PartInvalidError: The frame is damaged or its positions are not ascending in the chunk.
    """
    step = _POSITION_BYTES + itemsize
    content = entropy.decompress(frame, max_bytes=elements * step, where=where)
    count, rest = divmod(content.size, step)
    positions = content[: count * _POSITION_BYTES].view("<u4").astype(np.int64)
    ascending = bool(np.all(positions[1:] > positions[:-1]))
    if rest or not ascending or (count and positions[-1] >= elements):
        raise PartInvalidError(f"{where}: a restore patch should hold ascending positions.")
    return positions, content[count * _POSITION_BYTES :].copy()
