"""Measures the forms of the exact codec on synthetic deltas; see docs/decisions/0002-exact-codec.md.

    python scripts/measure_codec.py [--elements N] [--repeat N]

Bases are N(0, 0.02) in bfloat16, deltas Laplace with the standard deviation that each row names,
post is base + delta rounded to bfloat16. Prints Markdown tables: bits per weight of each form
beside the entropy of the delta, nanoseconds per element in one thread, and what the parameters of
the entropy stage are worth.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import numpy.typing as npt
import zstandard

from deltastore.codecs import entropy
from deltastore.codecs.exact import ExactCodec, ExactEncoder, _choose_palette
from deltastore.delta import subtract
from deltastore.manifest.format import CHUNK_ELEMENTS, KEEP

BASE_STD = 0.02
SIGMAS = (2e-6, 2e-5, 1e-4, 3e-4, 1e-3, 5e-3)
FORMS = tuple((form, sparse) for form in ("palette", "half", "single") for sparse in (False, True))

Delta = npt.NDArray[np.uint32]


def draw(sigma: float, elements: int) -> tuple[Delta, npt.NDArray[np.uint16]]:
    """A delta as float32 bits with the codec's reserved values, and post's bits."""
    rng = np.random.default_rng(0)
    base = rng.normal(0, BASE_STD, elements).astype(ml_dtypes.bfloat16)
    moved = base.astype(np.float32) + rng.laplace(0, sigma / math.sqrt(2), elements)
    post = moved.astype(ml_dtypes.bfloat16)
    delta = np.empty(elements, np.uint32)
    subtract(base.view(np.uint8), "BF16", post.view(np.uint8), "BF16", delta)
    return delta, post.view(np.uint16)


def joint_entropy(delta: Delta) -> float:
    """Bits per element of the delta rounded to bfloat16, as independent symbols."""
    values = delta.view(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    values[delta == KEEP] = KEEP >> 16
    share = np.bincount(values) / delta.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def best_ns(call: Callable[[], object], elements: int, repeat: int) -> float:
    """Nanoseconds per element of the fastest of several calls."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return min(times) / elements


def chunks(delta: Delta) -> Iterator[Delta]:
    """The chunks in which an artifact holds a tensor."""
    for start in range(0, delta.size, CHUNK_ELEMENTS):
        yield delta[start : start + CHUNK_ELEMENTS]


def measure(
    encoder: ExactEncoder, delta: Delta, repeat: int
) -> tuple[float, float, float, list[bytes]]:
    """Bits per weight, nanoseconds per element of encoding and decoding, and the frames."""
    codec = ExactCodec()
    frames = [encoder.encode(chunk) for chunk in chunks(delta)]
    decoder = codec.decoder(encoder.params, encoder.arrays, where="measured")
    out = np.empty_like(delta)

    def decode() -> None:
        for frame, piece in zip(frames, chunks(out), strict=True):
            decoder.decode(frame, piece)

    def encode() -> None:
        for chunk in chunks(delta):
            encoder.encode(chunk)

    decode()
    if not np.array_equal(out, delta):
        raise AssertionError("a form does not decode to what was encoded")
    bits = 8 * (sum(map(len, frames)) + encoder.static_bytes) / delta.size
    times = (best_ns(call, delta.size, repeat) for call in (encode, decode))
    return bits, *times, frames


def row(cells: list[str]) -> None:
    """One line of a Markdown table."""
    print("| " + " | ".join(cells) + " |")


def heading(titles: list[str]) -> None:
    """The first lines of a Markdown table."""
    row(titles)
    print("|" + "---|" * len(titles))


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--elements", type=int, default=1 << 23)
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    deltas = {sigma: draw(sigma, given.elements) for sigma in SIGMAS}
    names = [f"{form} {'sparse' if sparse else 'dense'}" for form, sparse in FORMS]
    sizes, speeds, stages = [], [], []
    for sigma, (delta, post) in deltas.items():
        label = f"{sigma:.0e}".replace("e-0", "e-")
        palette = _choose_palette(delta)
        made = {
            form: measure(
                ExactEncoder(form[0], form[1], palette if form[0] == "palette" else None),
                delta,
                given.repeat,
            )
            for form in FORMS
        }
        chosen = ExactCodec().encoder(delta[: 1 << 16], delta.size)
        kept = np.count_nonzero(delta == KEEP) / delta.size
        long = np.count_nonzero(delta & np.uint32(0xFFFF)) / delta.size
        raw = 8 * len(zstandard.ZstdCompressor(level=3).compress(post.tobytes())) / delta.size
        sizes.append(
            [label, f"{kept:.1%}", f"{long:.2%}", f"{joint_entropy(delta):.2f}"]
            + [f"{made[form][0]:.2f}" for form in FORMS]
            + [f"{chosen.form} {'sparse' if chosen.sparse else 'dense'}", f"{raw:.2f}"]
        )
        speeds.append([label] + [f"{made[form][1]:.2f} / {made[form][2]:.2f}" for form in FORMS])
        stages.append([label, *stage(made["palette", False][3], delta.size, given.repeat)])
    print(f"{given.elements} elements, zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}\n")
    heading(["σ of Δ", "kept", "not bf16", "entropy", *names, "chosen", "post, zstd-3"])
    for cells in sizes:
        row(cells)
    print("\nEncode / decode, ns per element:\n")
    heading(["σ of Δ", *names])
    for cells in speeds:
        row(cells)
    print("\nThe entropy stage alone on palette frames, bits per weight (ns per element):\n")
    heading(["σ of Δ", "as used", "level 1", "level 3"])
    for cells in stages:
        row(cells)
    return 0


def stage(frames: list[bytes], elements: int, repeat: int) -> list[str]:
    """What the same content costs with the entropy stage's parameters and with two levels."""
    contents = [
        entropy.decompress(f, max_bytes=1 << 30, where="measured").tobytes() for f in frames
    ]
    cells = []
    compressors: list[Callable[[bytes], bytes]] = [
        lambda data: entropy.compress(
            [
                np.frombuffer(data[:CHUNK_ELEMENTS], np.uint8),
                *np.array_split(np.frombuffer(data[CHUNK_ELEMENTS:], np.uint8), 4),
            ]
        ),
        zstandard.ZstdCompressor(level=1).compress,
        zstandard.ZstdCompressor(level=3).compress,
    ]
    for compress in compressors:
        bits = 8 * sum(len(compress(data)) for data in contents) / elements

        def every(compress: Callable[[bytes], bytes] = compress) -> None:
            for data in contents:
                compress(data)

        cells.append(f"{bits:.2f} ({best_ns(every, elements, repeat):.2f})")
    return cells


if __name__ == "__main__":
    sys.exit(main())
