"""What a checkpoint is made of: tensors and shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from deltastore.manifest.format import DTYPE_BYTES

if TYPE_CHECKING:
    import numpy as np


TORCH_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
}
"""What torch calls a dtype, and what safetensors does."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor and where its bytes are.

    ``dtype`` is the safetensors name (``"BF16"``), ``shard`` an index into
    ``Checkpoint.shards``, ``offset`` the absolute position of the first byte in the shard's
    file (0 in pickled files, whose tensors have no position of their own).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        """The number of elements; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is, wherever its bytes are; ``dtype`` is the safetensors name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.elements * DTYPE_BYTES[self.dtype]


class Weights(Protocol):
    """Tensors by name, read in pieces: an open checkpoint, or a model in memory."""

    path: Path
    """Where they are, for messages."""

    tensors: dict[str, TensorInfo]

    def read_into(
        self, name: str, start_byte: int, buffer: memoryview | bytearray | np.ndarray[Any, Any]
    ) -> None:
        """Fill ``buffer`` with a tensor's bytes from ``start_byte``. Thread-safe."""

    def read_samples(
        self, places: Sequence[tuple[str, int, memoryview | np.ndarray[Any, Any]]]
    ) -> None:
        """Fill each buffer with its tensor's bytes from its start; for a few short reads."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight file: ``tensors`` are the names in file order, ``metadata`` the header's.

    ``sha256`` (hex) is the Hub's word on the file's content, if there is one, and ``remote`` says
    that the file was not in its local cache at the opening: what is downloaded is compared.
    """

    filename: str
    path: Path
    tensors: tuple[str, ...]
    metadata: dict[str, str]
    remote: bool = False
    size: int = 0
    sha256: str | None = None
