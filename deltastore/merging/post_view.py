"""Post of a stored artifact as a checkpoint to read: made chunk by chunk, nowhere on disk."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from deltastore.artifact.reader import ArtifactReader
from deltastore.checkpoint import TensorInfo, Weights
from deltastore.checkpoint.buffers import byte_view, check_range
from deltastore.kernels.buffers import Buffers, apart
from deltastore.manifest.format import DTYPE_BYTES
from deltastore.merging.engine import Bytes, Engine
from deltastore.merging.plan import MergePlan, PlannedBase
from deltastore.merging.recipes import recipes
from deltastore.structure.checking import check_structure
from deltastore.structure.places import Delta
from deltastore.tensor_names.selectors import Scales


class _PerThread(threading.local):
    """A thread's buffers, and the chunk that is in them: tensor, first byte, bytes."""

    def __init__(self) -> None:
        self.buffers: Buffers = {}
        self.name = ""
        self.start = 0
        self.data: Bytes = np.empty(0, np.uint8)


class PostView:
    """The weights that an artifact gives on its own base: post, bit for bit. Thread-safe.

    Whether ``base`` is the artifact's own is the caller's to find out, by the content digest of
    what was read: on another base this is nothing in particular, as the patches are used.

    Reads cost least in ascending order and in multiples of the artifact's chunk; of a chunk that
    is read in part, the whole is computed, and kept until the thread wants another one.

    Args:
        base: The artifact's own base; may be restored as well.
        reader: The artifact, of exactness ``exact``.
        ref: What to call it.

    Raises:
        StructureMismatchError: ``base`` has other tensors than the artifact's base.
    """

    def __init__(self, base: Weights, reader: ArtifactReader, ref: str) -> None:
        delta = Delta(ref, reader.config)
        # Whether heads are tied was found out at extraction: on its own base, as the table says.
        report = check_structure(base, [delta], partial=False, config={})
        self._recipes = recipes(base, [delta], report, Scales([1.0]), None)
        plan = MergePlan(
            base=PlannedBase(str(base.path)),
            tensors=self._recipes,
            chunk=reader.config.chunk,
            patches=frozenset(e.name for e in reader.config.tensors if e.patch is not None),
        )
        self._engine = Engine(plan, base, [reader])
        self._thread = _PerThread()
        self.path = base.path
        outputs = {name: recipe.output for name, recipe in self._recipes.items()}
        self.tensors = {
            name: TensorInfo(name, output.dtype, output.shape, 0, 0, output.nbytes)
            for name, output in sorted(outputs.items())
        }

    def read_into(
        self, name: str, start_byte: int, buffer: memoryview | bytearray | np.ndarray[Any, Any]
    ) -> None:
        """Fill ``buffer`` with a tensor's bytes from ``start_byte``. Thread-safe.

        Raises:
            IntegrityError: A blob is missing or damaged.
            FormatError: A part breaks the specification.
            CheckpointError: The base cannot be read.
            KeyError: There is no such tensor.
            ValueError: The range leaves the tensor, or the buffer is not contiguous.
        """
        view = byte_view(buffer)
        check_range(name, start_byte, len(view), self.tensors[name].nbytes)
        done = 0
        while done < len(view):
            piece = self._from(name, start_byte + done)[: len(view) - done]
            view[done : done + piece.size] = piece.data
            done += piece.size

    def read_samples(
        self, places: Sequence[tuple[str, int, memoryview | np.ndarray[Any, Any]]]
    ) -> None:
        """Fill each buffer with its tensor's bytes from its start, as ``read_into`` does."""
        for name, start_byte, buffer in places:
            self.read_into(name, start_byte, buffer)

    def _from(self, name: str, start_byte: int) -> Bytes:
        """The bytes from one on to the end of its chunk."""
        last = self._thread
        offset = start_byte - last.start
        if name != last.name or not 0 <= offset < last.data.size:
            last.name = ""  # what is there is overwritten, and may end half way
            size = DTYPE_BYTES[self.tensors[name].dtype]
            # Whoever reads holds chunks in this thread's buffers, under the same roles.
            with apart(last.buffers):
                first, data = self._engine.chunk(self._recipes[name], start_byte // size)
            last.name, last.start, last.data = name, first * size, data
            offset = start_byte - last.start
        return last.data[offset:]
