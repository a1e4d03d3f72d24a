"""The index of a sharded checkpoint: which file holds which tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltastore.checkpoint.files import read_json
from deltastore.checkpoint.header import check_name
from deltastore.checkpoint.model import Shard
from deltastore.errors import CheckpointCorruptError, shown

MAX_INDEX_BYTES = 256 << 20
_LISTED = 5
_MAX_FILENAME_CHARS = 255


@dataclass(frozen=True, slots=True)
class Index:
    """A parsed index; ``filenames`` are the shards it names, sorted."""

    path: Path
    weight_map: dict[str, str]
    metadata: dict[str, Any]

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
    fields = read_json(path, max_bytes=MAX_INDEX_BYTES)
    weight_map = fields.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad(path, "has no weight_map; expected an object of tensor names and file names")
    for name, filename in weight_map.items():
        check_name(name, path)
        if not isinstance(filename, str):
            raise _bad(path, f"maps {shown(name)} to {shown(filename)}; expected a file name")
        usable = filename.isprintable() and len(filename) <= _MAX_FILENAME_CHARS
        if not usable or filename in ("", ".", "..") or set(filename) & {"/", "\\"}:
            raise _bad(
                path,
                f"maps {shown(name)} to {shown(filename)}; "
                "expected a file name in the same directory",
            )
    metadata = fields.get("metadata")
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        raise _bad(path, f"has metadata of type {type(metadata).__name__}; expected an object")
    return Index(path, weight_map, metadata)


def check_index(index: Index, shards: tuple[Shard, ...]) -> None:
    """Compare an index with what its shards hold.

    Raises:
        CheckpointCorruptError: A tensor is in only one of the two, or in another shard.
    """
    held = {name: shard.filename for shard in shards for name in shard.tensors}
    missing = sorted(
        name for name, filename in index.weight_map.items() if held.get(name) != filename
    )
    if missing:
        raise _mismatch(
            index,
            missing,
            f"{len(missing)} tensors that the index names are not in their shards",
            index.weight_map,
        )
    extra = sorted(held.keys() - index.weight_map.keys())
    if extra:
        raise _mismatch(
            index, extra, f"{len(extra)} tensors in the shards are not named by the index", held
        )


def listed(names: list[str]) -> str:
    """The first few names for a message, and how many there are besides."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _bad(path: Path, problem: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(
        f"{path} {problem}.",
        hint="Fetch the index again from the checkpoint's source.",
        path=str(path),
    )


def _mismatch(
    index: Index, names: list[str], what: str, files: Mapping[str, str]
) -> CheckpointCorruptError:
    places = [f"{name} ({files[name]})" for name in names[:_LISTED]]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return CheckpointCorruptError(
        f"{index.path} contradicts its shards: {what}: {', '.join(places)}{more}.",
        hint="Index and shards come from different savings; fetch or save the checkpoint again.",
        path=str(index.path),
        tensors=names,
    )
