"""The tensors of a bf16 checkpoint, read without the code under test."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint16]


def read_tensors(folder: Path) -> dict[str, Bits]:
    """Map every tensor of every shard into memory.

    Args:
        folder: a checkpoint in the form of a directory.

    Returns:
        The tensors by name, as the bits of their bf16 values, flat.

    Raises:
        ValueError: a tensor is not bf16; the synthetic checkpoints have no other.
    """
    tensors: dict[str, Bits] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        raw = np.memmap(shard, np.uint8, "r")
        start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
        header = json.loads(raw[8:start].tobytes())
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] != "BF16":
                raise ValueError(f"{name} in {shard.name} is {entry['dtype']}, not BF16")
            first, last = entry["data_offsets"]
            tensors[name] = raw[start + first : start + last].view(np.uint16)
    return tensors
