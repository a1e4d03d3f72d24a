"""In what form a tensor's delta is encoded: chosen by the codec from a sample of the tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltastore.checkpoint import TensorSpec, Weights
from deltastore.codecs import Codec, Decoder, Encoder
from deltastore.delta import is_wide, subtract
from deltastore.kernels.buffers import scratch
from deltastore.lineage.pairing import Pair
from deltastore.manifest.format import DTYPE_BYTES

_SAMPLE_RUNS = 8
_SAMPLE_ELEMENTS = 1 << 15


@dataclass(frozen=True, slots=True)
class Form:
    """How one tensor's delta becomes frames and comes back."""

    codec: Codec
    encoder: Encoder
    decoder: Decoder


def choose_form(base: Weights, post: Weights, pair: Pair, codec: Codec) -> tuple[Form | None, int]:
    """The form of a pair, and about how many bytes all its streams will have.

    The same wherever and whenever it is chosen: the sample's places follow from the tensor's size.

    Returns:
        None where no element has a delta.

    Raises:
        CheckpointError: A side cannot be read.
    """
    common = pair.common_elements
    post_bytes = pair.post.nbytes if pair.post is not None else 0
    if not common:
        has_values = pair.kind in ("added", "replaced", "resized")
        return None, post_bytes if has_values else 0
    assert pair.base is not None
    assert pair.post is not None
    runs = _sample_runs(common)
    wide = is_wide(pair.base.dtype, pair.post.dtype)
    sample = np.empty(sum(count for _, count in runs), np.uint64 if wide else np.uint32)
    filled = 0
    for start, count in runs:
        piece = sample[filled : filled + count]
        subtract(
            read_run(base, pair.base, start, count, "base"),
            pair.base.dtype,
            read_run(post, pair.post, start, count, "post"),
            pair.post.dtype,
            piece,
        )
        filled += count
    encoder = codec.encoder(sample, common)
    decoder = codec.decoder(encoder.params, encoder.arrays, where=pair.name)
    estimate = int(encoder.bytes_per_element * common)
    further = max(0, post_bytes - common * DTYPE_BYTES[pair.post.dtype])
    return Form(codec, encoder, decoder), estimate + further


def _sample_runs(elements: int) -> list[tuple[int, int]]:
    """(start, count) of runs spread evenly over a tensor; all of it if it is small."""
    if elements <= _SAMPLE_ELEMENTS:
        return [(0, elements)]
    count = _SAMPLE_ELEMENTS // _SAMPLE_RUNS
    step = (elements - count) // (_SAMPLE_RUNS - 1)
    return [(i * step, count) for i in range(_SAMPLE_RUNS)]


def read_run(
    weights: Weights, tensor: TensorSpec, start: int, count: int, role: str
) -> npt.NDArray[np.uint8]:
    """A run of elements in a buffer of this thread, valid until the next read of this role."""
    size = DTYPE_BYTES[tensor.dtype]
    buffer = scratch(role, count * size, np.uint8)
    weights.read_into(tensor.name, start * size, buffer)
    return buffer
