"""The exact codec: every delta bit for bit, as small as an order-0 entropy coder makes it.

Three forms, each dense or sparse, chosen per tensor by encoding a sample in all that may win:

* ``palette``: the up to 255 most frequent bfloat16 values of the delta become one byte each;
* ``half``: the delta's upper 16 bits as two byte planes;
* ``single``: the delta as float32 in four byte planes.

What the form cannot say exactly is an *escape*, whose full delta (float32; float64 if wide)
follows in byte planes. *Sparse* puts a mask of the changed elements first, eight to a byte, and
only these into the planes: without it Huffman coding costs at least one bit an element.

``docs/codecs/exact.md`` specifies the bytes; ``docs/decisions/0002-exact-codec.md`` the choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from deltastore.codecs import entropy, planes, symbols
from deltastore.codecs.contract import Bytes, DeltaChunk, Exactness
from deltastore.errors import CodecUnknownError, PartInvalidError
from deltastore.kernels.buffers import scratch
from deltastore.kernels.palette import TOKEN_ESCAPE, Tokens, escapes_in
from deltastore.manifest import format as fmt

_WIDTH = {"palette": 1, "half": 2, "single": 4}
"""Bytes of a symbol."""

FORMS = tuple(_WIDTH)
_SPARSE_FROM = 0.25
"""Below this share of kept elements a mask cannot pay for itself."""

_WEIGHT = {False: 1.0, True: 1.06}
"""A mask costs half as much time again, so it has to save more than a few per cent."""

_MAX_PALETTE = 255
_FEW = 1 << 12


class ExactCodec:
    """See the module."""

    name = "exact"
    exactness: Exactness = "exact"

    def encoder(self, sample: DeltaChunk, elements: int) -> ExactEncoder:
        """Choose form and palette by what they make of the sample.

        Args:
            sample: Deltas from all over the tensor, the chunk's dtype.
            elements: Size of the whole tensor, over which a palette's cost is spread.
        """
        singles = _singles(sample)
        palette = _choose_palette(singles)
        kept = np.count_nonzero(singles == fmt.KEEP) / max(1, singles.size)
        sparsities = (False, True) if kept > _SPARSE_FROM else (False,)
        forms = ["palette", "half"]
        if sample.dtype == np.uint64 or _mostly_long(singles):
            forms.append("single")
        candidates = [
            ExactEncoder(form, sparse, palette if form == "palette" else None)
            for form in forms
            for sparse in sparsities
        ]
        best, size = None, 0.0
        for candidate in candidates:
            cost = len(candidate.encode(sample)) / max(1, sample.size)
            cost += candidate.static_bytes / max(1, elements)
            if best is None or cost * _WEIGHT[candidate.sparse] < size * _WEIGHT[best.sparse]:
                best, size = candidate, cost
        assert best is not None
        # A fresh one: the others' tables, and this one's until it is used, need not be kept.
        kind = ExactPaletteEncoder if _is_tokens(best.form, best.sparse) else ExactEncoder
        return kind(best.form, best.sparse, best.palette, size)

    def decoder(
        self, params: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], *, where: str
    ) -> ExactDecoder:
        """See ``Codec.decoder``."""
        form, sparse = params.get("form"), params.get("sparse")
        if form not in FORMS:
            raise CodecUnknownError(
                f"{where}: form {form!r} of codec exact is not known; "
                f"this deltastore reads {', '.join(FORMS)}.",
                hint="Upgrade deltastore: `pip install -U deltastore`.",
            )
        if not isinstance(sparse, bool):
            raise PartInvalidError(
                f"{where}: parameter sparse should be a boolean, got {sparse!r}."
            )
        if form == "palette":
            palette = arrays.get("palette")
            if palette is None or palette.dtype != np.uint16 or palette.size > _MAX_PALETTE:
                raise PartInvalidError(
                    f"{where}: the palette should be a uint16 array of at most {_MAX_PALETTE} "
                    "values, and is missing or another."
                )
            table = np.full(256, fmt.ESCAPE, np.uint32)
            table[: palette.size] = palette.astype(np.uint32) << np.uint32(16)
            kind = ExactPaletteDecoder if _is_tokens(form, sparse) else ExactDecoder
            return kind(form, sparse, table, palette.size, where)
        return ExactDecoder(form, sparse, None, 0, where)


@dataclass(frozen=True)
class ExactEncoder:
    """Encodes the chunks of one tensor in one form; see ``Encoder``."""

    form: str
    sparse: bool
    palette: npt.NDArray[np.uint16] | None
    bytes_per_element: float = 0.0

    @cached_property
    def _table(self) -> Bytes:
        """The token of each upper half."""
        table = np.full(1 << 16, TOKEN_ESCAPE, np.uint8)
        if self.palette is not None:
            table[self.palette] = np.arange(self.palette.size)
        return table

    @property
    def params(self) -> dict[str, Any]:
        """See ``Encoder.params``."""
        return {"form": self.form, "sparse": self.sparse}

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """See ``Encoder.arrays``."""
        return {} if self.palette is None else {"palette": self.palette}

    @property
    def static_bytes(self) -> int:
        """What the tensor costs besides its frames."""
        return sum(array.nbytes for array in self.arrays.values())

    def encode(self, delta: DeltaChunk) -> bytes:
        """See ``Encoder.encode``."""
        full, singles, content = delta, _singles(delta), []
        if self.sparse:
            changed = singles != fmt.KEEP
            content.append(np.packbits(changed, bitorder="little"))
            full, singles = full[changed], singles[changed]
        n = singles.size
        escapes = scratch(f"escapes{full.itemsize}", n + 1, full.dtype)
        if self.form == "palette":
            tokens = scratch("tokens", n, np.uint8)
            count = symbols.tokens_from_singles(singles, full, self._table, tokens, escapes)
            content.append(tokens)
        elif self.form == "half":
            halves = scratch("halves", n, np.uint16)
            count = symbols.halves_from_singles(singles, full, halves, escapes)
            content += _planes(halves, "halves.planes")
        else:
            count = symbols.escapes_of_singles(singles, full, escapes)
            content += _planes(singles, "singles.planes")
        return entropy.compress(content + _planes(escapes[:count], "escapes.planes"))


class ExactPaletteEncoder(ExactEncoder):
    """Encodes in the dense form ``palette``; see ``PaletteEncoder``."""

    @property
    def token_table(self) -> Bytes:
        """See ``PaletteEncoder.token_table``."""
        return self._table

    def encode_tokens(self, tokens: Bytes, escapes: npt.NDArray[np.uint32]) -> bytes:
        """See ``PaletteEncoder.encode_tokens``."""
        return entropy.compress([tokens, *_planes(escapes, "escapes.planes")])


@dataclass(frozen=True)
class ExactDecoder:
    """Decodes the frames of one tensor; see ``Decoder``."""

    form: str
    sparse: bool
    table: npt.NDArray[np.uint32] | None
    palette: int
    where: str

    def decode(self, frame: bytes | memoryview, out: DeltaChunk) -> None:
        """See ``Decoder.decode``."""
        mask_bytes = (out.size + 7) // 8 if self.sparse else 0
        limit = mask_bytes + out.size * (_WIDTH[self.form] + out.itemsize)
        content = entropy.decompress(frame, max_bytes=limit, where=self.where)
        if not self.sparse:
            self._decode_dense(content, out)
            return
        if content.size < mask_bytes:
            raise PartInvalidError(f"{self.where}: a frame ends within its mask.")
        mask = np.unpackbits(content[:mask_bytes], bitorder="little")
        if mask[out.size :].any():
            raise PartInvalidError(f"{self.where}: a mask marks elements past the chunk's end.")
        changed = mask[: out.size].astype(np.bool_)
        some = np.empty(np.count_nonzero(changed), out.dtype)
        self._decode_dense(content[mask_bytes:], some)
        out[:] = fmt.KEEP_WIDE if out.dtype == np.uint64 else fmt.KEEP
        out[changed] = some

    def _decode_dense(self, content: Bytes, out: DeltaChunk) -> None:
        n = out.size
        head, tail = self._split(content, n, out.itemsize)
        count = tail.size // out.itemsize
        if self.table is not None:
            self._check_tokens(head, count)
            if out.dtype == np.uint32:
                symbols.deltas_from_tokens(head, self.table, tail, out)
                return
        singles = scratch("singles", n, np.uint32)
        if self.table is not None:
            np.take(self.table, head, out=singles)
        elif self.form == "half":
            halves = scratch("halves", n, np.uint16)
            planes.join(head, halves)
            np.left_shift(halves, np.uint32(16), out=singles, dtype=np.uint32)
        else:
            planes.join(head, singles)
        escapes = scratch(f"escapes{out.itemsize}", count, out.dtype)
        planes.join(tail, escapes)
        if out.dtype == np.uint64:
            met = symbols.widen_with_escapes(singles, escapes, out)
        else:
            met = symbols.fill_escapes(singles, escapes)
            out[:] = singles
        self._check_escapes(count, met)

    def _split(self, content: Bytes, elements: int, escape_bytes: int) -> tuple[Bytes, Bytes]:
        """The symbols' planes and the escapes' planes of a dense frame."""
        size = _WIDTH[self.form] * elements
        if content.size < size or (content.size - size) % escape_bytes:
            raise PartInvalidError(
                f"{self.where}: a frame of {content.size} bytes does not hold {elements} elements."
            )
        return content[:size], content[size:]

    def _check_tokens(self, tokens: Bytes, count: int) -> None:
        met = escapes_in(tokens, self.palette)
        if met < 0:
            raise PartInvalidError(
                f"{self.where}: a frame uses a token beyond its palette of {self.palette}."
            )
        self._check_escapes(count, met)

    def _check_escapes(self, count: int, met: int) -> None:
        if met != count:
            raise PartInvalidError(
                f"{self.where}: a frame holds {count} escapes where its symbols ask for {met}."
            )


class ExactPaletteDecoder(ExactDecoder):
    """Decodes the dense form ``palette``; see ``PaletteDecoder``."""

    def tokens(self, frame: bytes | memoryview, elements: int) -> Tokens:
        """See ``PaletteDecoder.tokens``."""
        assert self.table is not None
        content = entropy.decompress(frame, max_bytes=5 * elements, where=self.where)
        head, tail = self._split(content, elements, 4)
        self._check_tokens(head, tail.size // 4)
        return Tokens(head, self.table, tail)


def _is_tokens(form: object, sparse: bool) -> bool:
    """Whether frames begin with a token for each element."""
    return form == "palette" and not sparse


def _singles(delta: DeltaChunk) -> npt.NDArray[np.uint32]:
    """Float32 bits of a chunk, with ``ESCAPE`` where only float64 is exact."""
    if delta.dtype == np.uint32:
        return delta
    singles = scratch("narrowed", delta.size, np.uint32)
    symbols.narrowed(delta, singles)
    return singles


def _choose_palette(singles: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint16]:
    """The most frequent bfloat16 values, in ascending order of their bits."""
    high = (singles >> np.uint32(16))[(singles & np.uint32(0xFFFF)) == 0]
    if high.size < _FEW:  # a table of all values takes longer than a tensor of a few
        values, counts = np.unique(high[high != fmt.ESCAPE_HIGH], return_counts=True)
    else:
        table = np.bincount(high, minlength=1 << 16)
        table[fmt.ESCAPE_HIGH] = 0
        values = np.flatnonzero(table)
        counts = table[values]
    frequent = values[np.argsort(-counts, kind="stable")[:_MAX_PALETTE]]
    return np.sort(frequent).astype(np.uint16)


def _mostly_long(singles: npt.NDArray[np.uint32]) -> bool:
    """Whether too many deltas need more than 16 bits for an escape each to be worth it."""
    return bool(np.count_nonzero(singles & np.uint32(0xFFFF)) * 4 > singles.size)


def _planes(values: npt.NDArray[Any], role: str) -> list[Bytes]:
    out = scratch(role, values.size * values.itemsize, np.uint8)
    planes.split(values, out)
    return [out[j * values.size : (j + 1) * values.size] for j in range(values.itemsize)]
