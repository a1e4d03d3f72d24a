"""One safetensors file, open for positional reads."""

from __future__ import annotations

import os
from pathlib import Path

from deltastore.checkpoint.files import open_regular, read_at
from deltastore.checkpoint.header import read_header
from deltastore.checkpoint.model import TensorInfo
from deltastore.system.window import Window


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
            self.status = os.fstat(self.descriptor)
            entries, self.metadata = read_header(self.descriptor, path)
            self._window = Window(self._read, self.status.st_size)
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
        position = tensor.offset + start_byte
        small = self._window.read(position, len(view))
        if small is None:
            read_at(self.descriptor, position, view, self.path)
        elif small:  # of no bytes the view may be of nothing that can be written
            view[:] = small

    def _read(self, position: int, count: int) -> bytes:
        piece = bytearray(count)
        read_at(self.descriptor, position, memoryview(piece), self.path)
        return bytes(piece)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)
