"""Digests of checkpoints: computed in one pass, remembered by the identity of their files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from deltastore.catalog import FileIdentity
from deltastore.checkpoint import Checkpoint, Shard, Weights
from deltastore.digest import TensorHasher, content_digest
from deltastore.execution.progress import Progress
from deltastore.execution.thread_pool import ThreadPool, job_count
from deltastore.manifest import Config, TensorSide
from deltastore.store import Store

_PIECE_BYTES = 1 << 20


def identities(checkpoint: Checkpoint) -> list[FileIdentity | None]:
    """Of each shard's file; to be taken before the tensors are read.

    A file that is still on the hub is known by the sha256 that the hub gives, if it does: the
    download is compared with it.
    """
    return [
        _content(shard) if shard.remote else FileIdentity.of(shard.path)
        for shard in checkpoint.shards
    ]


def _content(shard: Shard) -> FileIdentity | None:
    return FileIdentity.of_content(shard.sha256, shard.size) if shard.sha256 else None


def remembered(
    store: Store, checkpoint: Checkpoint, *, trust_cache: bool = False
) -> dict[str, str] | None:
    """BLAKE3 hex by tensor, if the files are those that were read before; else None.

    Args:
        store: Which remembers.
        checkpoint: What is asked about.
        trust_cache: Believe the names of files in the hub's local cache, which are their sha256:
            right where the commit is meant rather than the file that will be read.
    """
    known: dict[str, str] = {}
    files = identities(checkpoint)
    if trust_cache:
        files += map(_content, checkpoint.shards)
    for digests in store.remembered_digests(file for file in files if file is not None).values():
        known.update(digests)
    return known if known.keys() >= checkpoint.tensors.keys() else None


def remember(
    store: Store,
    checkpoint: Checkpoint,
    files: Sequence[FileIdentity | None],
    digests: Mapping[str, str],
) -> None:
    """Keep the digests for the next time."""
    store.remember_digests(
        (file, {name: digests[name] for name in shard.tensors})
        for file, shard in zip(files, checkpoint.shards, strict=True)
        if file is not None
    )


def digests(config: Config, side: Literal["base", "post"]) -> dict[str, str]:
    """BLAKE3 hex by tensor of ``base`` or ``post``, as the config records them."""
    sides = (
        (entry.name, entry.own_base if side == "base" else entry.post) for entry in config.tensors
    )
    return {name: tensor.blake3 for name, tensor in sides if tensor is not None}


def rows(sides: Sequence[tuple[str, object]]) -> list[tuple[str, str, tuple[int, ...], str]]:
    """What a content digest is made of, from ``(name, TensorSide or None)`` pairs."""
    return [
        (name, side.dtype, side.shape, side.blake3)
        for name, side in sides
        if isinstance(side, TensorSide)
    ]


def content_of(checkpoint: Checkpoint, known: Mapping[str, str]) -> str:
    """The content digest of a checkpoint whose tensors have these BLAKE3 digests."""
    return content_digest(
        (t.name, t.dtype, t.shape, known[t.name]) for t in checkpoint.tensors.values()
    )


def find_digests(
    store: Store, checkpoint: Checkpoint, progress: Progress, *, worthwhile: Callable[[], bool]
) -> dict[str, str] | None:
    """BLAKE3 hex by tensor: from what is remembered, or by reading all of the checkpoint.

    Args:
        store: Which remembers.
        checkpoint: What is asked about.
        progress: Who is told how far the reading is.
        worthwhile: Whether to read it where nothing is remembered; else None is returned.

    Raises:
        SourceChangedError: A file changed meanwhile.
        CheckpointError: It cannot be read.
    """
    known = remembered(store, checkpoint, trust_cache=True)
    if known is None and worthwhile():
        known = hash_checkpoint(store, checkpoint, job_count(None), progress)
    return known


def hash_tensor(checkpoint: Weights, name: str, progress: Progress | None = None) -> str:
    """BLAKE3 hex of one tensor's bytes, read in pieces."""
    hasher = TensorHasher()
    size = checkpoint.tensors[name].nbytes
    buffer = np.empty(min(size, _PIECE_BYTES), np.uint8)
    for start in range(0, size, _PIECE_BYTES):
        piece = buffer[: min(_PIECE_BYTES, size - start)]
        checkpoint.read_into(name, start, piece)
        hasher.update(piece.data)
        if progress is not None:
            progress.advance(piece.size)
    return hasher.hexdigest()


def hash_checkpoint(
    store: Store, checkpoint: Checkpoint, jobs: int, progress: Progress
) -> dict[str, str]:
    """BLAKE3 hex of every tensor, in one parallel pass, and remembered.

    Raises:
        SourceChangedError: A file changed meanwhile.
    """
    files = identities(checkpoint)
    progress.start("reading digests", checkpoint.nbytes)
    found: dict[str, str] = {}
    lock = threading.Lock()

    def work(_number: int, name: str) -> None:
        digest = hash_tensor(checkpoint, name, progress)
        with lock:
            found[name] = digest

    ThreadPool(jobs).run(checkpoint.shard_order(), work)
    checkpoint.check_unchanged()
    remember(store, checkpoint, files, found)
    return found
