"""Compile every kernel once, so that the first command a user types does not have to.

``python -m deltastore.operations.warm`` at installation; without it the first ``extract`` and the
first ``apply`` take some seconds longer.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from deltastore.codecs import PaletteDecoder, get_codec
from deltastore.codecs.exact import FORMS, ExactEncoder, ExactPaletteEncoder
from deltastore.codecs.symbols import same_bits
from deltastore.codecs.values import decode_values, encode_values
from deltastore.delta import (
    Term,
    add,
    add_tokens,
    are_differences,
    is_wide,
    products,
    subtract,
    subtract_to_tokens,
)
from deltastore.manifest.format import DTYPE_BYTES, KEEP


def warm() -> float:
    """Call each kernel with every type it is compiled for; the seconds that took."""
    started = time.monotonic()
    for step in (_arithmetic, _codec, _tokens, _values):
        step()
    return time.monotonic() - started


def _arithmetic() -> None:
    for dtype in ("BF16", "F16", "F32", "F64"):
        base = np.zeros(16 * DTYPE_BYTES[dtype], np.uint8)
        post = base.copy()
        post[1] = 1
        kind: Any = np.uint64 if is_wide(dtype, dtype) else np.uint32
        delta = np.zeros(16, kind)
        subtract(base, dtype, post, dtype, delta)
        for out_dtype in ("BF16", "F32"):
            out = np.zeros(16 * DTYPE_BYTES[out_dtype], np.uint8)
            add(base, dtype, [Term(delta, 1.0)], out_dtype, out)
    narrow, wide = np.zeros(16, np.uint32), np.zeros(16, np.uint64)
    for one in (narrow, wide):
        for other in (narrow, wide):
            products(one, other)


def _codec() -> None:
    codec = get_codec("exact")
    for kind, real in ((np.uint32, np.float32), (np.uint64, np.float64)):
        delta: Any = np.linspace(-1, 1, 32).astype(real).view(kind)
        codec.encoder(delta, delta.size)
        for form in FORMS:
            for sparse in (False, True):
                palette = np.array([KEEP >> 16], np.uint16) if form == "palette" else None
                encoder = ExactEncoder(form, sparse, palette)
                decoder = codec.decoder(encoder.params, encoder.arrays, where="warm")
                decoder.decode(encoder.encode(delta), np.empty_like(delta))
        same_bits(delta, delta)


def _tokens() -> None:
    base = np.zeros(32, np.uint8)
    post = base.copy()
    post[0] = 1
    delta = np.empty(16, np.uint32)
    subtract(base, "BF16", post, "BF16", delta)
    palette = (delta[:1] >> 16).astype(np.uint16)
    encoder = ExactPaletteEncoder("palette", False, palette)
    decoder = get_codec("exact").decoder(encoder.params, encoder.arrays, where="warm")
    assert isinstance(decoder, PaletteDecoder)
    tokens, escapes = np.empty(16, np.uint8), np.empty(17, np.uint32)
    count, _ = subtract_to_tokens(base, post, encoder.token_table, tokens, escapes)
    decoded = decoder.tokens(encoder.encode_tokens(tokens, escapes[:count]), 16)
    are_differences(base, post, decoded)
    add_tokens(base, decoded, 1.0, np.empty_like(base))


def _values() -> None:
    for itemsize in (1, 2, 4, 8):
        raw = np.zeros(8 * itemsize, np.uint8)
        decode_values(encode_values(raw, itemsize), itemsize, raw, where="warm")


def _main() -> None:
    print(f"kernels compiled in {warm():.1f} s")


if __name__ == "__main__":
    _main()
