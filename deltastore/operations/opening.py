"""Opening checkpoints, with what operations know of tensors by their names."""

from __future__ import annotations

from os import PathLike

from deltastore import checkpoint
from deltastore.checkpoint import Checkpoint, Downloads
from deltastore.operations.embeddings import aliases


def open_checkpoint(
    source: str | PathLike[str],
    *,
    downloads: Downloads | None = None,
    look_only: bool = False,
) -> Checkpoint:
    """Open a checkpoint: a directory, a weight file, an index, or a Hub id.

    An index may name a head that no shard has, where the model uses its embeddings as one.

    Args:
        source: A local path, or ``org/name[@revision]`` where no such path exists.
        downloads: Who is told of downloads, and warned of what is there and is not read.
        look_only: Never download weights.

    Raises:
        CheckpointError: It cannot be read.
        HubError: It is on the hub and cannot be had.
    """
    return checkpoint.open_checkpoint(
        source, downloads=downloads, look_only=look_only, aliases=aliases
    )
