"""How near a new base is to the source base, measured at the artifact's samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from deltastore.blobs import BlobStore
from deltastore.checkpoint import Checkpoint
from deltastore.delta.floats import to_floats
from deltastore.manifest import Config, Manifest
from deltastore.manifest.format import DELTA_DTYPES, DTYPE_BYTES, MAX_SAMPLE_BYTES


@dataclass(frozen=True, slots=True)
class Lineage:
    """Figures over all samples that could be compared.

    Attributes:
        same: Every sampled byte equals the source base's.
        cosine: Cosine between the sampled weights of both bases; None if nothing was compared.
        distance: ``|new - source| / |source|``; None likewise.
        tensors: How many tensors were compared.
    """

    same: bool
    cosine: float | None
    distance: float | None
    tensors: int


def measure(
    blobs: BlobStore, manifest: Manifest, config: Config, base: Checkpoint, *, where: str
) -> Lineage:
    """Read the new base at the places of the samples: at most 256 short reads.

    Raises:
        BlobCorruptError: The samples are damaged.
    """
    layer = manifest.layers[config.samples_layer]
    data = np.frombuffer(
        blobs.read(layer.digest, limit=MAX_SAMPLE_BYTES, what=f"the samples of {where}"), np.uint8
    )
    position = 0
    same = bool(config.samples)
    dot = norm = source_norm = distance = 0.0
    tensors = set()
    for run in config.samples:
        entry = config.tensors[run.tensor]
        assert entry.base is not None
        size = run.count * DTYPE_BYTES[entry.base.dtype]
        theirs = data[position : position + size]
        position += size
        info = base.tensors.get(entry.name)
        if info is None or info.shape != entry.base.shape or info.dtype not in DELTA_DTYPES:
            same = False
            continue
        item = DTYPE_BYTES[info.dtype]
        ours = np.empty(run.count * item, np.uint8)
        base.read_into(info.name, run.start * item, ours)
        same = same and info.dtype == entry.base.dtype and np.array_equal(ours, theirs)
        a = to_floats(theirs.copy(), entry.base.dtype, wide=True)
        b = to_floats(ours, info.dtype, wide=True)
        finite = np.isfinite(a) & np.isfinite(b)
        a, b = a[finite], b[finite]
        dot += float(a @ b)
        source_norm += float(a @ a)
        norm += float(b @ b)
        distance += float((b - a) @ (b - a))
        tensors.add(entry.name)
    if not tensors or not source_norm or not norm:
        return Lineage(same, None, None, len(tensors))
    return Lineage(
        same=same,
        cosine=dot / math.sqrt(source_norm * norm),
        distance=math.sqrt(distance / source_norm),
        tensors=len(tensors),
    )
