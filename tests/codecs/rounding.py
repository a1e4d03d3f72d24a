"""``round:BITS``, a lossy codec with an option, written after ``docs/codecs/writing.md``.

Numbers keep BITS bits of their mantissa; the others compress to next to nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from deltastore.codecs import Exactness, entropy, planes
from deltastore.errors import PartInvalidError


class RoundCodec:
    exactness: Exactness = "lossy"

    def __init__(self, bits: str = "8") -> None:
        self.bits = int(bits)
        if not 1 <= self.bits <= 22:
            raise ValueError(f"BITS should be in 1..22, got {bits}")
        self.name = f"round:{self.bits}"

    def encoder(self, sample: Any, elements: int) -> RoundEncoder:
        return RoundEncoder(self.bits, sample)

    def decoder(self, params: Any, arrays: Any, *, where: str) -> RoundDecoder:
        return RoundDecoder(where)


class RoundEncoder:
    params: ClassVar[dict[str, Any]] = {}
    arrays: ClassVar[dict[str, Any]] = {}

    def __init__(self, bits: int, sample: Any) -> None:
        self.bits = bits
        self.bytes_per_element = len(self.encode(sample)) / max(1, sample.size)

    def encode(self, delta: Any) -> bytes:
        content = np.empty(delta.nbytes, np.uint8)
        planes.split(rounded(delta, self.bits), content)
        return entropy.compress(np.split(content, delta.itemsize))


class RoundDecoder:
    def __init__(self, where: str) -> None:
        self.where = where

    def decode(self, frame: Any, out: Any) -> None:
        content = entropy.decompress(frame, max_bytes=out.nbytes, where=self.where)
        if content.size != out.nbytes:
            raise PartInvalidError(f"{self.where}: a frame has not {out.size} elements.")
        planes.join(content, out)


def rounded(delta: Any, bits: int) -> Any:
    """To the nearest number of so few bits; towards zero where that is an infinity."""
    real, mantissa = (np.float64, 52) if delta.dtype == np.uint64 else (np.float32, 23)
    drop = delta.dtype.type(mantissa - bits)
    down = delta >> drop << drop
    near = (delta + (delta.dtype.type(1) << (drop - 1))) >> drop << drop
    result = np.where(np.isfinite(near.view(real)), near, down)
    return np.where(np.isfinite(delta.view(real)), result, delta)
