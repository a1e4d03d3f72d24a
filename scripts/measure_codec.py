"""Measures the forms of the exact codec; see docs/decisions/0002-exact-codec.md.

    python scripts/measure_codec.py [--elements N] [--repeat N]

A base is N(0, 0.02), its delta Laplace with the standard deviation that the row names, post their
sum in the base's dtype. Prints Markdown tables: bits per weight of each form beside the entropy of
the delta, processor time of one thread per element of one chunk, and what the parameters of the
entropy stage are worth.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import zstandard

from deltastore.codecs import entropy
from deltastore.codecs.exact import ExactCodec, ExactEncoder, _choose_palette, _singles
from deltastore.delta import subtract
from deltastore.manifest.format import CHUNK_ELEMENTS, KEEP

BASE_STD = 0.02
ROWS = (
    ("BF16", 2e-6),
    ("BF16", 2e-5),
    ("BF16", 1e-4),
    ("BF16", 3e-4),
    ("BF16", 1e-3),
    ("BF16", 5e-3),
    ("BF16", 2e-2),
    ("F32", 3e-4),
)
FORMS = tuple((form, sparse) for form in ("palette", "half", "single") for sparse in (False, True))
DTYPES: dict[str, Any] = {"BF16": ml_dtypes.bfloat16, "F32": np.float32}

Delta = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one form: bits per weight, then nanoseconds per element."""

    bits: float
    encode_ns: float
    decode_ns: float
    frames: list[bytes]


def draw(dtype: str, sigma: float, elements: int) -> Delta:
    """A delta as float bits with the codec's reserved values."""
    rng = np.random.default_rng(0)
    base = rng.normal(0, BASE_STD, elements).astype(DTYPES[dtype])
    moved = base.astype(np.float64) + rng.laplace(0, sigma / math.sqrt(2), elements)
    post = moved.astype(DTYPES[dtype])
    delta = np.empty(elements, np.uint32 if dtype == "BF16" else np.uint64)
    subtract(base.view(np.uint8), dtype, post.view(np.uint8), dtype, delta)
    return delta


def rounded_entropy(singles: npt.NDArray[np.uint32]) -> float:
    """Bits per element of the delta rounded to bfloat16, as independent symbols."""
    values = singles.view(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    values[singles == KEEP] = KEEP >> 16
    share = np.bincount(values) / singles.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def ns_per_element(call: Callable[[], object], elements: int, repeat: int) -> float:
    """Processor time of this thread per element, the best of several calls."""
    times = []
    for _ in range(repeat):
        start = time.thread_time_ns()
        call()
        times.append(time.thread_time_ns() - start)
    return min(times) / elements


def measure(encoder: ExactEncoder, delta: Delta, repeat: int) -> Cost:
    """What one form makes of a delta, chunk by chunk as an artifact holds it."""
    decoder = ExactCodec().decoder(encoder.params, encoder.arrays, where="measured")
    pieces = [delta[i : i + CHUNK_ELEMENTS] for i in range(0, delta.size, CHUNK_ELEMENTS)]
    frames = [encoder.encode(piece) for piece in pieces]
    out = np.empty(min(CHUNK_ELEMENTS, delta.size), delta.dtype)
    for frame, piece in zip(frames, pieces, strict=True):
        decoder.decode(frame, out[: piece.size])
        if not np.array_equal(out[: piece.size], piece):
            raise AssertionError("a form does not decode to what was encoded")
    first = pieces[0]
    return Cost(
        bits=8 * (sum(map(len, frames)) + encoder.static_bytes) / delta.size,
        encode_ns=ns_per_element(lambda: encoder.encode(first), first.size, repeat),
        decode_ns=ns_per_element(
            lambda: decoder.decode(frames[0], out[: first.size]), first.size, repeat
        ),
        frames=frames,
    )


def stage(cost: Cost, elements: int, repeat: int) -> list[str]:
    """What the content of palette frames costs with the parameters in use and with two levels."""
    contents = [
        entropy.decompress(frame, max_bytes=1 << 30, where="measured").tobytes()
        for frame in cost.frames
    ]

    def tuned(content: bytes) -> bytes:
        data = np.frombuffer(content, np.uint8)
        return entropy.compress([data[:CHUNK_ELEMENTS], *np.array_split(data[CHUNK_ELEMENTS:], 4)])

    cells = []
    for compress in (
        tuned,
        zstandard.ZstdCompressor(level=1).compress,
        zstandard.ZstdCompressor(level=3).compress,
    ):
        bits = 8 * sum(len(compress(content)) for content in contents) / elements
        call = partial(compress, contents[0])
        cells.append(f"{bits:.2f} ({ns_per_element(call, CHUNK_ELEMENTS, repeat):.1f})")
    return cells


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for cells in (titles, ["---"] * len(titles), *rows):
        print("| " + " | ".join(cells) + " |")
    print()


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--elements", type=int, default=8 * CHUNK_ELEMENTS)
    parser.add_argument("--repeat", type=int, default=60)
    given = parser.parse_args()
    sizes, speeds, stages = [], [], []
    for dtype, sigma in ROWS:
        delta = draw(dtype, sigma, given.elements)
        singles = _singles(delta).copy()
        palette = _choose_palette(singles)
        label = f"{dtype} {sigma:.0e}".replace("e-0", "e-")
        costs = {
            (form, sparse): measure(
                ExactEncoder(form, sparse, palette if form == "palette" else None),
                delta,
                given.repeat,
            )
            for form, sparse in FORMS
        }
        chosen = ExactCodec().encoder(delta[: 1 << 16], delta.size)
        sizes.append(
            [
                label,
                f"{np.count_nonzero(singles == KEEP) / delta.size:.1%}",
                f"{np.count_nonzero(singles & np.uint32(0xFFFF)) / delta.size:.2%}",
                f"{rounded_entropy(singles):.2f}" if dtype == "BF16" else "–",
                *(f"{cost.bits:.2f}" for cost in costs.values()),
                f"{chosen.form} {'sparse' if chosen.sparse else 'dense'}",
            ]
        )
        speeds.append([label, *(f"{c.encode_ns:.1f} / {c.decode_ns:.1f}" for c in costs.values())])
        if dtype == "BF16":
            stages.append([label, *stage(costs["palette", False], delta.size, given.repeat)])
    names = [f"{form} {'sparse' if sparse else 'dense'}" for form, sparse in FORMS]
    version = ".".join(map(str, zstandard.ZSTD_VERSION))
    print(f"Bits per weight, {given.elements} elements, zstd {version}:\n")
    table(["σ of Δ", "kept", "not bf16", "entropy", *names, "chosen"], sizes)
    print("Encode / decode, ns per element of one thread:\n")
    table(["σ of Δ", *names], speeds)
    print("The entropy stage alone on palette frames, bits per weight (ns per element):\n")
    table(["σ of Δ", "as used", "level 1", "level 3"], stages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
