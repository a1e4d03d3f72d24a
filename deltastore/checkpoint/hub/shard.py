"""A safetensors file of the hub: header and samples by ranges, the rest by a download."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from deltastore.checkpoint.files import read_at
from deltastore.checkpoint.header import parse_header
from deltastore.checkpoint.hub.downloads import Downloads, Unwatched
from deltastore.checkpoint.hub.fetching import fetch
from deltastore.checkpoint.hub.listing import HubFile
from deltastore.checkpoint.hub.ranges import RemoteFile
from deltastore.checkpoint.hub.snapshot import Snapshot
from deltastore.checkpoint.model import TensorInfo
from deltastore.checkpoint.safetensors_file import SafetensorsFile
from deltastore.errors import CheckpointCorruptError, HubError

_GAP_BYTES = 16 << 10
"""Bytes that are read in vain rather than asked around: about what a request costs anyway."""


_LARGE_BYTES = 8 << 20
_one_large = threading.RLock()
"""Held while a header of more than ``_LARGE_BYTES`` is read and parsed: several would be too much
memory."""


@dataclass(slots=True)
class Span:
    """Bytes ``begin .. end`` of a file that are read at once, and who wants which of them."""

    begin: int
    end: int
    members: list[tuple[int, memoryview]]


class HubShard:
    """A shard that is not in the local cache; downloaded when its first tensor is read."""

    def __init__(
        self,
        snapshot: Snapshot,
        file: HubFile,
        shard: int,
        *,
        before: Callable[[], None],
        downloads: Downloads | None,
    ) -> None:
        """Read the header, and nothing else.

        Args:
            snapshot: The repository.
            file: The file in it.
            shard: Its number in the checkpoint.
            before: Called before a download.
            downloads: Who is told of it; None if there must be none.

        Raises:
            HubError: The header cannot be had.
            CheckpointCorruptError: It breaks the format.
            UnsupportedDtypeError: A tensor's dtype is not supported.
        """
        self.path: Path = snapshot.folder / file.name
        self.file = file
        self.opened: SafetensorsFile | None = None
        self._snapshot = snapshot
        self._shard = shard
        self._before = before
        self._downloads = downloads
        self._lock = threading.Lock()
        self._remote = RemoteFile(snapshot, file, downloads or Unwatched())
        where = Path(snapshot.label) / file.name
        with ExitStack() as stack:

            def read(position: int, view: memoryview) -> None:
                if len(view) > _LARGE_BYTES:
                    stack.enter_context(_one_large)
                self._remote.read_into(position, view)

            entries, self.metadata = parse_header(read, self._remote.size, where)
        self.tensors = [
            TensorInfo(entry.name, entry.dtype, entry.shape, shard, entry.begin, entry.nbytes)
            for entry in entries
        ]

    def read_into(self, tensor: TensorInfo, start_byte: int, view: memoryview) -> None:
        """Fill ``view`` from the tensor's bytes, once the file is downloaded.

        Raises:
            HubError: It cannot be downloaded.
            NoSpaceError: The cache's file system is full.
            CheckpointError: The file cannot be read.
        """
        self._local().read_into(tensor, start_byte, view)

    def spans(self, places: Sequence[tuple[TensorInfo, int, memoryview]]) -> list[Span]:
        """The short reads that fill each view from its tensor's bytes, near ones as one."""
        spans: list[Span] = []
        for position, view in sorted(
            ((tensor.offset + start, view) for tensor, start, view in places if len(view)),
            key=lambda item: item[0],
        ):
            end = position + len(view)
            if spans and position - spans[-1].end <= _GAP_BYTES:
                spans[-1].end = max(spans[-1].end, end)
                spans[-1].members.append((position, view))
            else:
                spans.append(Span(position, end, [(position, view)]))
        return spans

    def read_span(self, span: Span) -> None:
        """Fill the views of one of ``spans``, by a range request unless the file is here.

        Raises:
            HubError: The bytes cannot be had.
            CheckpointError: The file cannot be read.
        """
        data = memoryview(bytearray(span.end - span.begin))
        if self.opened is not None:
            read_at(self.opened.descriptor, span.begin, data, self.path)
        else:
            self._remote.read_into(span.begin, data)
        for position, view in span.members:
            start = position - span.begin
            view[:] = data[start : start + len(view)]

    def close(self) -> None:
        """Close what was opened."""
        if self.opened is not None:
            self.opened.close()

    def _local(self) -> SafetensorsFile:
        if self.opened is not None:
            return self.opened
        with self._lock:
            if self.opened is None:
                self.opened = self._download()
            return self.opened

    def _download(self) -> SafetensorsFile:
        if self._downloads is None:
            raise HubError(
                f"{self.file.name} of {self._snapshot.label} would have to be downloaded, which a "
                "dry run does not do.",
                hint=f"Fetch it beforehand: `{self._snapshot.command}`.",
                repo=self._snapshot.repo,
            )
        self._before()
        opened = SafetensorsFile(
            fetch(self._snapshot, self.file.name, self._downloads), self._shard
        )
        if opened.tensors != self.tensors:
            opened.close()
            raise CheckpointCorruptError(
                f"{opened.path} has another header than {self.file.name} has on the hub.",
                hint=f"Fetch it again: `{self._snapshot.command} --force-download`.",
                path=str(opened.path),
            )
        return opened
