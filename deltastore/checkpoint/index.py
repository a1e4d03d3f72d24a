"""The index of a sharded checkpoint: which file holds which tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deltastore.checkpoint.files import read_json
from deltastore.checkpoint.header import check_name
from deltastore.checkpoint.model import Shard
from deltastore.errors import CheckpointCorruptError, shown
from deltastore.text import excerpt

MAX_INDEX_BYTES = 256 << 20
_MAX_MEMORY = 512 << 20
_LISTED = 5
_MAX_FILENAME_CHARS = 255


@dataclass(frozen=True, slots=True)
class Index:
    """A parsed index; ``filenames`` are the shards it names, sorted."""

    path: Path
    weight_map: dict[str, str]

    @property
    def filenames(self) -> tuple[str, ...]:
        """The shards' file names, sorted."""
        return tuple(sorted(set(self.weight_map.values())))


def read_index(path: Path) -> Index:
    """Read ``*.index.json``.

    Raises:
        CheckpointCorruptError: It is malformed, or names a file outside its directory.
        CheckpointError: It cannot be read.
    """
    fields = read_json(path, max_bytes=MAX_INDEX_BYTES, memory=_MAX_MEMORY)
    weight_map = fields.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad(path, "has no weight_map; expected an object of tensor names and file names")
    for name, filename in weight_map.items():
        check_name(name, path)
        if not isinstance(filename, str):
            raise _bad(path, f"maps {shown(name)} to {shown(filename)}; expected a file name")
        if not is_shard_name(filename):
            raise _bad(
                path,
                f"maps {shown(name)} to {shown(filename)}; "
                "expected a file name in the same directory",
            )
    metadata = fields.get("metadata")
    if not isinstance(metadata, dict | None):
        raise _bad(path, f"has metadata of type {type(metadata).__name__}; expected an object")
    return Index(path, weight_map)


def is_shard_name(filename: str) -> bool:
    """Whether an index may name a file so: one in its own directory, by printable characters."""
    if not filename.isprintable() or len(filename) > _MAX_FILENAME_CHARS:
        return False
    return filename not in ("", ".", "..") and not set(filename) & {"/", "\\"}


def check_index(
    index: Index, shards: tuple[Shard, ...], *, elsewhere: Callable[[str], bool]
) -> list[str]:
    """Compare an index with what its shards hold.

    Args:
        index: The index.
        shards: What it names, opened.
        elsewhere: Whether a tensor that no shard has is another one under a second name.

    Returns:
        The tensors that shards have and the index does not name, sorted: they are part of the
        checkpoint, as they are to those who read shard by shard.

    Raises:
        CheckpointCorruptError: A tensor that the index names is in no shard, or in another one.
    """
    held = {name: shard.filename for shard in shards for name in shard.tensors}
    missing = sorted(
        name
        for name, filename in index.weight_map.items()
        if held.get(name) != filename and (name in held or not elsewhere(name))
    )
    if missing:
        places = [f"{name} ({index.weight_map[name]})" for name in missing]
        raise CheckpointCorruptError(
            f"{index.path} contradicts its shards: {len(missing)} tensors that the index names "
            f"are not in their shards: {listed(places)}.",
            hint="Index and shards come from different savings; fetch or save the checkpoint "
            "again.",
            path=str(index.path),
            tensors=missing,
        )
    return sorted(held.keys() - index.weight_map.keys())


def listed(names: list[str]) -> str:
    """The first few names for a message, and how many there are besides."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(excerpt, names[:_LISTED])) + more


def _bad(path: Path, problem: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(
        f"{path} {problem}.",
        hint="Fetch the index again from the checkpoint's source.",
        path=str(path),
    )
