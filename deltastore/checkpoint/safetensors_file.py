"""One safetensors file, open for positional reads."""

from __future__ import annotations

import os
from pathlib import Path

from deltastore.checkpoint.files import identify, open_regular, read_at
from deltastore.checkpoint.header import read_header
from deltastore.checkpoint.model import TensorInfo


class SafetensorsFile:
    """An open shard; reads are thread-safe and share one descriptor."""

    def __init__(self, path: Path, shard: int) -> None:
        """Open the file and check its header.

        Raises:
            CheckpointCorruptError: The file is missing or breaks the format.
            UnsupportedDtypeError: A tensor's dtype is not supported.
            CheckpointError: The file cannot be opened or read.
        """
        self.path = path
        self.descriptor = open_regular(path)
        try:
            self.identity = identify(self.descriptor, path)
            entries, self.metadata = read_header(self.descriptor, path)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.tensors = [
            TensorInfo(entry.name, entry.dtype, entry.shape, shard, entry.begin, entry.nbytes)
            for entry in entries
        ]

    def read_into(self, tensor: TensorInfo, start_byte: int, view: memoryview) -> None:
        """Fill ``view`` from the tensor's bytes.

        Raises:
            CheckpointCorruptError: The file has been shortened.
            CheckpointError: The read failed.
        """
        read_at(self.descriptor, tensor.offset + start_byte, view, self.path)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)
