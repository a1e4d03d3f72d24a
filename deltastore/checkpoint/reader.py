"""A checkpoint, open for positional reads whatever it is stored as."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from deltastore.checkpoint.beside import Left, left_behind, listing, travelling
from deltastore.checkpoint.buffers import byte_view, check_range
from deltastore.checkpoint.files import is_replaced
from deltastore.checkpoint.hub import Downloads, HubShard, Unwatched, blob_sha256
from deltastore.checkpoint.hub.opening import check_cached, fetch_layout, look_at_shards
from deltastore.checkpoint.index import check_index, listed
from deltastore.checkpoint.layout import Layout, find_layout
from deltastore.checkpoint.location import Location, locate
from deltastore.checkpoint.model import Shard, TensorInfo
from deltastore.checkpoint.pieces import require_whole_tensors
from deltastore.checkpoint.safetensors_file import SafetensorsFile
from deltastore.checkpoint.small_files import read_config, read_modules
from deltastore.errors import CheckpointCorruptError, NoWeightsError, SourceChangedError
from deltastore.system.threads import Workers
from deltastore.tensor_names.token_rows import aliases

if TYPE_CHECKING:
    import numpy as np


_SAMPLED_AT_ONCE = 8


class WeightFile(Protocol):
    """One open weight file on this machine; reads must be thread-safe."""

    path: Path
    descriptor: int
    status: os.stat_result
    metadata: dict[str, str]
    tensors: list[TensorInfo]

    def read_into(self, tensor: TensorInfo, start_byte: int, view: memoryview) -> None:
        """Fill ``view`` with the tensor's bytes from ``start_byte``."""

    def close(self) -> None:
        """Release the file."""


@dataclass(eq=False, kw_only=True, slots=True)
class Checkpoint:
    """An open checkpoint; made by :func:`open_checkpoint`, closed by ``with`` or ``close``.

    Attributes:
        path: The local directory or file.
        repo: The Hub repository it came from, if any.
        revision: The commit of ``repo``.
        shards: The weight files in order of their names.
        tensors: All tensors, sorted by name.
        config: ``config.json``, if there is one.
        files: The small files beside the weights, by relative name.
        is_safetensors: False for old pickled weights.
        ignored: Weight files beside the shards that are no part of the checkpoint.
        left: What lies beside all this and does not travel, and why; None where only a part of
            the repository is on this machine.
    """

    path: Path
    repo: str | None
    revision: str | None
    shards: tuple[Shard, ...]
    tensors: dict[str, TensorInfo]
    config: dict[str, Any] | None
    files: dict[str, Path]
    is_safetensors: bool
    ignored: tuple[str, ...]
    left: Left | None
    _open: tuple[WeightFile | HubShard, ...]
    _stored: dict[str, TensorInfo] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What messages call it: its Hub repository, or its path."""
        return self.repo or str(self.path)

    @property
    def title(self) -> str:
        """What listings and cards call it: its Hub repository, or the last part of its path."""
        return self.repo or self.path.resolve().name

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """The elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors.values())

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """The same open files with other names for tensors; it is closed with this one.

        Args:
            names: New names by those that tensors have; others stay as they are.

        Raises:
            ValueError: Two tensors would have one name.
        """
        tensors, stored = {}, {}
        for name, tensor in self.tensors.items():
            now = names.get(name, name)
            if now in tensors:
                raise ValueError(f"two tensors would be called {now}")
            tensors[now] = replace(tensor, name=now)
            stored[now] = self._stored.get(name, tensor)
        shards = tuple(
            replace(shard, tensors=tuple(names.get(name, name) for name in shard.tensors))
            for shard in self.shards
        )
        return replace(self, tensors=dict(sorted(tensors.items())), shards=shards, _stored=stored)

    def stored_names(self) -> dict[str, str]:
        """The names that tensors have now by those that they are stored under, where these differ.

        Given to ``renamed`` of the same checkpoint opened anew, they give this one.
        """
        return {info.name: name for name, info in self._stored.items() if info.name != name}

    def shard_order(self) -> list[str]:
        """All tensor names in file order, shard by shard."""
        return [name for shard in self.shards for name in shard.tensors]

    def read_into(
        self, name: str, start_byte: int, buffer: memoryview | bytearray | np.ndarray[Any, Any]
    ) -> None:
        """Fill ``buffer`` with a tensor's bytes from ``start_byte``. Thread-safe.

        Raises:
            CheckpointCorruptError: The file ends before the buffer is full.
            CheckpointError: The read failed.
            KeyError: There is no such tensor.
            ValueError: The range leaves the tensor, or the buffer is not contiguous.
        """
        tensor = self.tensors[name]
        view = byte_view(buffer)
        check_range(name, start_byte, len(view), tensor.nbytes)
        if not self._open:
            raise ValueError("the checkpoint is closed")
        self._open[tensor.shard].read_into(self._stored.get(name, tensor), start_byte, view)

    def read_samples(
        self, places: Sequence[tuple[str, int, memoryview | np.ndarray[Any, Any]]]
    ) -> None:
        """Fill each buffer with its tensor's bytes from its start, as ``read_into`` does.

        For a few short reads: of shards that are not downloaded only these bytes are fetched.

        Raises:
            HubError: The bytes cannot be had.
            CheckpointError: A read failed.
            KeyError: There is no such tensor.
            ValueError: A range leaves its tensor, or a buffer is not contiguous.
        """
        if not self._open:
            raise ValueError("the checkpoint is closed")
        remote: dict[int, list[tuple[TensorInfo, int, memoryview]]] = {}
        for name, start_byte, buffer in places:
            tensor = self.tensors[name]
            view = byte_view(buffer)
            check_range(name, start_byte, len(view), tensor.nbytes)
            file = self._open[tensor.shard]
            stored = self._stored.get(name, tensor)
            if isinstance(file, HubShard):
                remote.setdefault(tensor.shard, []).append((stored, start_byte, view))
            else:
                file.read_into(stored, start_byte, view)
        if remote:
            self._read_remote(remote)

    def _read_remote(self, places: dict[int, list[tuple[TensorInfo, int, memoryview]]]) -> None:
        tasks = []
        for number, members in places.items():
            file = self._open[number]
            assert isinstance(file, HubShard)
            tasks += [(file, span) for span in file.spans(members)]
        with Workers(_SAMPLED_AT_ONCE, name="samples") as pool:
            for _ in pool.map(lambda task: task[0].read_span(task[1]), tasks):
                pass

    @property
    def is_local(self) -> bool:
        """Whether all weights are on this machine."""
        return all(not isinstance(file, HubShard) or file.opened for file in self._open)

    def _local_files(self) -> Iterator[WeightFile]:
        for file in self._open:
            local = file.opened if isinstance(file, HubShard) else file
            if local is not None:
                yield local

    def check_unchanged(self) -> None:
        """Make sure that what was read belongs together.

        A new link, mode, owner or attribute of a file changes its ``ctime`` and no byte of it.

        Raises:
            SourceChangedError: A file has been written, replaced or touched since the opening.
        """
        for file in self._local_files():
            before, now = file.status, os.fstat(file.descriptor)
            changed = [
                field
                for field in ("size", "mtime_ns")
                if getattr(now, f"st_{field}") != getattr(before, f"st_{field}")
            ]
            said = f"its {', '.join(changed)} differ from those at the opening"
            if (
                not changed
                and now.st_ctime_ns != before.st_ctime_ns
                and is_replaced(file.path, before)
            ):
                changed, said = ["inode"], "another file is in its place"
            if changed:
                raise SourceChangedError(
                    f"{file.path} changed while it was being read: {said}.",
                    hint="Run the command again once nothing writes to the checkpoint.",
                    path=str(file.path),
                    changed=changed,
                )

    def close(self) -> None:
        """Close all files; may be called twice."""
        files, self._open = self._open, ()
        for file in files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(
    source: str | PathLike[str],
    *,
    downloads: Downloads | None = None,
    look_only: bool = False,
) -> Checkpoint:
    """Open a checkpoint: a directory, a weight file, an index, or a Hub id.

    Headers, index and configuration are read and checked here; tensors are not. Of a Hub id that
    is not in the local cache the small files are fetched, and the headers alone of the shards;
    a shard is downloaded when ``read_into`` wants the first tensor of it. An index may name a head
    that no shard has, where the model uses its embeddings as one.

    Args:
        source: A local path, or ``org/name[@revision]`` where no such path exists.
        downloads: Who is told of downloads, and warned of what is there and is not read.
        look_only: Never download weights: ``read_into`` of those that are not here fails.

    Raises:
        CheckpointNotFoundError: The path does not exist.
        NoWeightsError: There are no weights in it.
        CheckpointCorruptError: A header, index or shard is malformed or contradicts the others.
        UnsupportedDtypeError: A tensor's dtype or layout is not supported.
        UnsafePickleError: A pickle holds more than tensors.
        HubError: The Hub cannot be reached or has no such repository or revision.
        CheckpointError: A file cannot be opened or read.
    """
    location = locate(source, downloads=downloads)
    watcher = None if look_only else downloads or Unwatched()
    layout, files, left, remote = _look(location, watcher, downloads)
    with ExitStack() as stack:
        opened: list[WeightFile | HubShard] = []
        for number, filename in enumerate(layout.filenames):
            file = remote.get(filename) or _open_file(layout, filename, number)
            stack.callback(file.close)
            opened.append(file)
        shards = tuple(_shard(file, from_hub=location.repo is not None) for file in opened)
        require_whole_tensors(shards, indexed=layout.index is not None)
        tensors, config = _merged(opened), read_config(files)
        warnings = [layout.warning] if layout.warning else []
        if layout.index is not None:
            more = check_index(
                layout.index,
                shards,
                elsewhere=aliases(tensors, config),
            )
            if more:
                warnings.append(
                    f"{layout.index.path} does not name {listed(more)}, which its shards hold; "
                    f"{'it is' if len(more) == 1 else 'they are'} read as well."
                )
        if not tensors:
            raise NoWeightsError(
                f"{location.path} holds no tensors ({listed(list(layout.filenames))} are empty).",
                hint="Give a checkpoint with weights in it.",
                path=str(location.path),
            )
        checkpoint = Checkpoint(
            path=location.path,
            repo=location.repo,
            revision=location.revision,
            shards=shards,
            tensors=tensors,
            config=config,
            files=files,
            is_safetensors=layout.is_safetensors,
            ignored=layout.ignored,
            left=left,
            _open=tuple(opened),
        )
        stack.pop_all()
    for warning in warnings:
        (downloads or Unwatched()).warn(warning)
    return checkpoint


def _look(
    location: Location, watcher: Downloads | None, downloads: Downloads | None
) -> tuple[Layout, dict[str, Path], Left | None, dict[str, HubShard]]:
    """The weight files, the small files, what is left, and shards that are not on this machine."""
    snapshot = location.snapshot
    if snapshot is not None and snapshot.files is not None:
        layout, files, left = fetch_layout(snapshot, watcher)
        return layout, files, left, look_at_shards(snapshot, layout, watcher)
    if snapshot is None:
        layout = find_layout(location.path)
    else:
        layout = check_cached(snapshot)
        if snapshot.unreachable and downloads is not None:
            downloads.warn(
                f"The hub cannot be reached ({snapshot.unreachable}); {snapshot.label} is read "
                "from the local cache."
            )
    files, left = _beside(location.path, layout)
    return layout, files, left if snapshot is None else None, {}


def _shard(file: WeightFile | HubShard, *, from_hub: bool) -> Shard:
    names = tuple(tensor.name for tensor in file.tensors)
    remote = isinstance(file, HubShard)
    if isinstance(file, HubShard):
        size, sha256 = file.file.size or 0, file.file.sha256
    else:
        size, sha256 = file.status.st_size, blob_sha256(file.path) if from_hub else None
    return Shard(file.path.name, file.path, names, file.metadata, remote, size, sha256)


def _open_file(layout: Layout, filename: str, number: int) -> WeightFile:
    path = layout.directory / filename
    if layout.is_safetensors:
        return SafetensorsFile(path, number)
    from deltastore.checkpoint.pickle_file import PickleFile

    return PickleFile(path, number)


def _merged(files: list[WeightFile | HubShard]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for tensor in file.tensors:
            other = tensors.setdefault(tensor.name, tensor)
            if other is not tensor:
                raise CheckpointCorruptError(
                    f"{tensor.name!r} is in both {files[other.shard].path} and {file.path}; "
                    "expected each tensor once.",
                    hint="Give the path of the file to read, or move the other away.",
                    tensor=tensor.name,
                )
    return dict(sorted(tensors.items()))


def _beside(path: Path, layout: Layout) -> tuple[dict[str, Path], Left]:
    """The small files of a checkpoint on this machine, and what lies there besides."""
    directory = layout.directory
    sizes = listing(directory)
    # A lone file may lie among things that have nothing to do with it, such as downloads.
    if path.is_file() and layout.index is None and "config.json" not in sizes:
        return {}, {}
    paths = {name: directory / name for name in sizes}
    files = travelling(sizes, read_modules(paths))
    left = left_behind(sizes, files, layout.filenames)
    return {name: paths[name] for name in files}, left
