"""Writing a checkpoint: put together beside its place, then renamed into it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, Self

from deltastore.checkpoint.buffers import byte_view, check_range
from deltastore.checkpoint.destination import check_place, check_space, reserve, resolved
from deltastore.checkpoint.files import file_error
from deltastore.checkpoint.filling import CLAIM
from deltastore.checkpoint.header import build_header
from deltastore.checkpoint.index import MAX_INDEX_BYTES
from deltastore.checkpoint.lease import LEASE, MAX_FOLDERS, is_unfinished
from deltastore.checkpoint.model import TensorSpec
from deltastore.checkpoint.output import Output, remove_dead
from deltastore.checkpoint.plan import ShardPlan
from deltastore.errors import CheckpointError, shown
from deltastore.system import steps
from deltastore.system.steps import OutputStep

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
METADATA = {"format": "pt"}
"""What transformers writes, and asks for, in every safetensors file."""


def check_destination(
    out: str | os.PathLike[str],
    plan: Iterable[ShardPlan],
    *,
    files: Mapping[str, int] | None = None,
) -> None:
    """Check what a ``CheckpointWriter`` checks before it writes, for those who will not.

    Args:
        out: The directory.
        plan: The files of weights.
        files: The small files, by relative path, with their sizes in bytes.

    Raises:
        OutputExistsError: Something is at ``out`` already.
        NoSpaceError: The output does not fit.
        CheckpointError: The place cannot be looked at or written to, or nothing could read the
            output.
        ValueError: A small file's path leaves the output, or is that of a weight file.
    """
    place, shards = resolved(out), tuple(plan)
    check_place(place, settled=False)
    small = files or {}
    for path in small:
        _checked(path, shards)
    _check_room(place, shards, *_heads(shards), sum(small.values()))


class CheckpointWriter:
    """An output checkpoint in the making; nothing is visible at ``out`` before ``commit``.

    A context manager: leaving it without a ``commit`` removes everything. A process that is
    killed leaves a directory that the next writer for the same ``out`` removes.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        plan: Iterable[ShardPlan],
        *,
        files: Mapping[str, int] | None = None,
    ) -> None:
        """Check the space, create the files at their full size and write their headers.

        Args:
            out: The directory to create; missing parents are created, an empty one is filled.
            plan: The files and their tensors.
            files: What ``write_file`` will add, by relative path, with the sizes in bytes.

        Raises:
            OutputExistsError: Something is at ``out`` already.
            NoSpaceError: The output does not fit; raised before anything is written.
            CheckpointError: The directory cannot be created, or nothing could read the output.
            ValueError: A small file's path leaves the output, or is that of a weight file.
        """
        self.out = resolved(out)
        self.plan = tuple(plan)
        # First: what a process that was killed left goes even where its output is in the way.
        remove_dead(self.out)
        check_place(self.out)
        headers, self._index = _heads(self.plan)
        small = files or {}
        for path in small:
            _checked(path, self.plan)
        _check_room(self.out, self.plan, headers, self._index, sum(small.values()))
        self._places: dict[str, tuple[int, int, TensorSpec]] = {}
        self._missing: dict[str, int] = {}
        self._lock = threading.Lock()
        self._descriptors: list[int] = []
        self._output = Output(self.out)
        try:
            for shard, header in zip(self.plan, headers, strict=True):
                self._create(shard, header)
            steps.reached(OutputStep.RESERVED)
        except OSError as error:
            self.abort()
            raise file_error(error, self.out, "create") from error
        except BaseException:
            self.abort()
            raise

    def write(self, name: str, start_byte: int, data: Any) -> None:
        """Write a part of a tensor; thread-safe, in any order.

        Args:
            name: A tensor of the plan.
            start_byte: Where in the tensor.
            data: Contiguous memory: bytes, a memoryview or a numpy array of any dtype.

        Raises:
            NoSpaceError: The file system is full.
            CheckpointError: The write failed.
            KeyError: There is no such tensor.
            ValueError: The range leaves the tensor, or the memory is not contiguous.
        """
        descriptor, position, tensor = self._places[name]
        view = byte_view(data)
        check_range(name, start_byte, len(view), tensor.nbytes)
        try:
            _write_at(descriptor, position + start_byte, view)
        except OSError as error:
            raise file_error(error, self.out, "write") from error
        with self._lock:
            self._missing[name] -= len(view)

    def write_file(self, relative_path: str, data: bytes) -> None:
        """Write a small file of the output.

        Raises:
            NoSpaceError: The file system is full.
            CheckpointError: The write failed, or the path is too deep.
            ValueError: The path leaves the output, or is that of a weight file or the index.
        """
        path = _checked(relative_path, self.plan)
        directory = self._output.directory
        try:
            with ExitStack() as stack:
                for part in path.parts[:-1]:
                    if not directory.has(part):
                        os.mkdir(part, dir_fd=directory.descriptor)
                    directory = stack.enter_context(directory.open(part))
                directory.write(path.name, data)
        except OSError as error:
            raise file_error(error, self.out / path, "write") from error

    def commit(self, *, fsync: bool = False) -> None:
        """Make the output visible, whole, in one step.

        Args:
            fsync: Also make sure that it survives a power failure.

        Raises:
            OutputExistsError: Something appeared at ``out`` in the meantime.
            NoSpaceError: The file system is full.
            CheckpointError: A file cannot be written or renamed, or somebody put something else in
                the place of the unfinished directory.
            ValueError: A tensor of the plan was not written to its end.
        """
        directory = self._output.directory
        missing = sorted(name for name, left in self._missing.items() if left > 0)
        if missing:
            raise ValueError(f"{len(missing)} tensors were not written whole: {missing[:5]}")
        try:
            if self._index:
                directory.write(INDEX, self._index)
            if fsync:
                directory.sync(folders=MAX_FOLDERS, files=True)
            self._close()
        except OSError as error:
            raise file_error(error, self.out, "write") from error
        steps.reached(OutputStep.WRITTEN)
        shards = [shard.filename for shard in self.plan]
        self._output.deliver([*shards, INDEX, CONFIG], fsync=fsync)

    def abort(self) -> None:
        """Remove everything; without effect after ``commit`` or a first ``abort``."""
        self._close()
        self._output.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def _create(self, shard: ShardPlan, header: bytes) -> None:
        descriptor = self._output.directory.create(shard.filename)
        self._descriptors.append(descriptor)
        _write_at(descriptor, 0, memoryview(header))
        reserve(descriptor, len(header) + shard.nbytes)
        position = len(header)
        for tensor in shard.tensors:
            self._places[tensor.name] = (descriptor, position, tensor)
            self._missing[tensor.name] = tensor.nbytes
            position += tensor.nbytes

    def _close(self) -> None:
        self._places = {}
        descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)


def _checked(relative_path: str, plan: Iterable[ShardPlan]) -> PurePosixPath:
    """The path of a small file of an output.

    Raises:
        CheckpointError: It is too deep.
        ValueError: It leaves the output, or is that of a weight file or the index.
    """
    path = PurePosixPath(relative_path)
    taken = {shard.filename.casefold() for shard in plan} | {INDEX, LEASE, CLAIM}
    first = path.parts[0].casefold() if path.parts else ""
    if path.is_absolute() or ".." in path.parts or not path.parts or first in taken:
        raise ValueError(f"{relative_path!r} cannot be a small file of an output")
    if is_unfinished(first):
        raise ValueError(f"{relative_path!r} cannot be a small file of an output")
    if len(path.parts) > MAX_FOLDERS + 1:
        raise CheckpointError(
            f"{shown(relative_path)} is in {len(path.parts) - 1} folders; a file of an output "
            f"is in at most {MAX_FOLDERS}.",
            hint="Look at the artifact's files: `deltastore show REF --json`.",
        )
    return path


def _check_room(
    place: Path, plan: tuple[ShardPlan, ...], headers: list[bytes], index: bytes, extra: int
) -> None:
    """Make sure that an output fits.

    Raises:
        NoSpaceError: It does not.
    """
    sizes = [shard.nbytes + len(head) for shard, head in zip(plan, headers, strict=True)]
    check_space(place, sum(sizes) + len(index) + extra, largest=max(sizes, default=0))


def _heads(plan: tuple[ShardPlan, ...]) -> tuple[list[bytes], bytes]:
    """The headers of all files, and the index, if there is one.

    Raises:
        CheckpointError: A reader would refuse one of them.
    """
    headers = [build_header(shard.tensors, METADATA, shard.filename) for shard in plan]
    index = _index_bytes(plan) if len(plan) > 1 else b""
    if len(index) > MAX_INDEX_BYTES:
        raise CheckpointError(
            f"{INDEX} would have {len(index)} bytes; a reader takes at most {MAX_INDEX_BYTES}.",
            hint="Write fewer files, or leave tensors out.",
        )
    return headers, index


def _index_bytes(plan: tuple[ShardPlan, ...]) -> bytes:
    weight_map = {tensor.name: shard.filename for shard in plan for tensor in shard.tensors}
    index = {
        "metadata": {"total_size": sum(shard.nbytes for shard in plan)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _write_at(descriptor: int, position: int, view: memoryview) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done : done + (1 << 30)], position + done)
