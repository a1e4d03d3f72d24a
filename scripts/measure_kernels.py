#!/usr/bin/env python
"""Time the steps that every element of a bfloat16 pair passes, one thread, ns per element.

    python scripts/measure_kernels.py [SIGMA]

One chunk of 2^19 weights N(0, 0.02) and Laplace deltas of standard deviation SIGMA (default 3e-4,
1.5 % of the weights); the best of 100 calls each, with the chunk in the cache.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable

import ml_dtypes
import numpy as np

from deltastore.codecs import PaletteDecoder, PaletteEncoder, entropy, get_codec
from deltastore.delta import (
    Term,
    add,
    add_tokens,
    are_differences,
    subtract,
    subtract_to_tokens,
)
from deltastore.delta.add import _add_any
from deltastore.delta.subtract import _subtract_any
from deltastore.digest import TensorHasher
from deltastore.manifest.format import CHUNK_ELEMENTS

N = CHUNK_ELEMENTS


def measure(label: str, call: Callable[[], object], repeats: int = 100) -> None:
    call()
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    print(f"{label:52} {best / N * 1e9:6.2f}")


def main(sigma: float) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.02, N).astype(ml_dtypes.bfloat16)
    moved = weights.astype(np.float32) + rng.laplace(0, sigma / 2**0.5, N).astype(np.float32)
    base, post = weights.view(np.uint8), moved.astype(ml_dtypes.bfloat16).view(np.uint8)
    delta, out = np.empty(N, np.uint32), np.empty_like(base)
    subtract(base, "BF16", post, "BF16", delta)
    codec = get_codec("exact")
    encoder = codec.encoder(delta[: 1 << 15], N)
    decoder = codec.decoder(encoder.params, encoder.arrays, where="measured")
    if not isinstance(encoder, PaletteEncoder) or not isinstance(decoder, PaletteDecoder):
        sys.exit(f"error: deltas of this size are encoded as {encoder.params}, not as tokens")
    tokens, escapes = np.empty(N, np.uint8), np.empty(N + 1, np.uint32)
    count, _ = subtract_to_tokens(base, post, encoder.token_table, tokens, escapes)
    frame = encoder.encode_tokens(tokens, escapes[:count])
    decoded = decoder.tokens(frame, N)
    decoded = type(decoded)(decoded.tokens.copy(), decoded.table, decoded.escapes.copy())
    print(f"{8 * len(frame) / N:.2f} bits a weight, {100 * count / N:.1f} % escapes\n")
    tensor, sha = TensorHasher(), hashlib.sha256()
    term = Term(delta, 1.0)
    measure("BLAKE3 of one side", lambda: tensor.update(base.data))
    measure("subtract, proof and norms", lambda: subtract(base, "BF16", post, "BF16", delta))
    measure(
        "the same and tokens, one pass",
        lambda: subtract_to_tokens(base, post, encoder.token_table, tokens, escapes),
    )
    measure("zstd of the tokens", lambda: encoder.encode_tokens(tokens, escapes[:count]))
    measure("zstd back, tokens checked", lambda: decoder.tokens(frame, N))
    measure("zstd back alone", lambda: entropy.decompress(frame, max_bytes=5 * N, where=""))
    measure("tokens compared with the difference", lambda: are_differences(base, post, decoded))
    measure("add and round", lambda: add(base, "BF16", [term], "BF16", out))
    measure("tokens back, add and round, one pass", lambda: add_tokens(base, decoded, 1.0, out))
    measure("sha256 of the frame", lambda: sha.update(frame))
    measure(
        "the general route: subtract, norms",
        lambda: [
            _subtract_any(
                base[2 * i : 2 * i + 16384],
                "BF16",
                post[2 * i : 2 * i + 16384],
                "BF16",
                delta[i : i + 8192],
            )
            for i in range(0, N, 8192)
        ],
        5,
    )
    measure(
        "the general route: add and round",
        lambda: [
            _add_any(
                base[2 * i : 2 * i + 16384],
                "BF16",
                [Term(delta[i : i + 8192], 1.0)],
                "BF16",
                out[2 * i : 2 * i + 16384],
            )
            for i in range(0, N, 8192)
        ],
        5,
    )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3e-4)
