"""What every codec promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from deltastore.kernels.palette import Tokens

Exactness = Literal["exact", "bounded", "lossy"]
Bytes = npt.NDArray[np.uint8]
DeltaChunk = npt.NDArray[Any]
"""``[n]`` float bits: uint32 if narrow, uint64 if wide (see ``deltastore.delta``)."""


class Encoder(Protocol):
    """Encodes the chunks of one tensor. Thread-safe: chunks may be encoded in any order."""

    @property
    def params(self) -> dict[str, Any]:
        """JSON parameters that a decoder needs."""

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Static arrays (uint8, uint16, float32 or int64) that a decoder needs."""

    @property
    def bytes_per_element(self) -> float:
        """About what an element will cost, as the sample says."""

    def encode(self, delta: DeltaChunk) -> bytes:
        """One chunk as one frame, never empty: an empty frame means "all elements kept".

        Deterministic: the same chunk gives the same frame in every process.
        """


class Decoder(Protocol):
    """Decodes the frames of one tensor. Thread-safe."""

    def decode(self, frame: bytes | memoryview, out: DeltaChunk) -> None:
        """Overwrite ``out``, whose size is the chunk's, with the frame's deltas.

        Raises:
            PartInvalidError: The frame is damaged or does not hold just this many elements. No
                more memory is taken than a frame of that many elements can need.
        """


@runtime_checkable
class BoundedEncoder(Encoder, Protocol):
    """An encoder of a codec that is ``bounded``."""

    @property
    def bound(self) -> float:
        """No finite delta of the tensor is decoded to one that is farther from it than this."""


@runtime_checkable
class PaletteEncoder(Encoder, Protocol):
    """An encoder whose narrow frames are palette tokens: an ability that not every one has.

    Where the codec is exact, subtraction then writes the tokens in the same pass; see
    ``deltastore.kernels.palette``.
    """

    @property
    def token_table(self) -> Bytes:
        """The token of each upper half.

        Shapes:
            ``[65536]``.
        """

    def encode_tokens(self, tokens: Bytes, escapes: npt.NDArray[np.uint32]) -> bytes:
        """The frame that ``encode`` makes of the chunk with these tokens.

        Shapes:
            tokens: ``[n]``, made with ``token_table``; escapes: ``[k]``, float32 bits.
        """


@runtime_checkable
class PaletteDecoder(Decoder, Protocol):
    """What reads the frames of a ``PaletteEncoder``: applying then adds tokens in one pass."""

    def tokens(self, frame: bytes | memoryview, elements: int) -> Tokens:
        """What ``decode`` gives, as palette tokens, in buffers that the thread's next call reuses.

        Raises:
            PartInvalidError: As from ``decode``.
        """


class Codec(Protocol):
    """A family of encoders and decoders under one name; see ``docs/codecs/writing.md``.

    Whatever it declares, what is no number is decoded to the same bits: ``KEEP``, the canonical
    NaN, the infinities; and numbers are decoded to numbers.

    Attributes:
        name: The canonical form of its spec: ``get_codec`` of it gives the same codec.
        exactness: ``exact``: decoding gives the delta's bits back; ``bounded``: no error is over
            the encoder's bound, see ``BoundedEncoder``; ``lossy``: the error has no bound.
    """

    name: str
    exactness: Exactness

    def encoder(self, sample: DeltaChunk, elements: int) -> Encoder:
        """Choose the form for one tensor of ``elements`` from a sample of its deltas."""

    def decoder(
        self, params: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], *, where: str
    ) -> Decoder:
        """A decoder for what an encoder of this codec wrote.

        Args:
            params: ``Encoder.params``, read back from JSON.
            arrays: ``Encoder.arrays``, read back from the part.
            where: What to call the tensor in an error.

        Raises:
            PartInvalidError: Parameters or arrays break the codec's rules.
            CodecUnknownError: A form that this version does not know.
        """
