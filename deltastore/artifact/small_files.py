"""The small files that travel with a delta: tokenizer, templates, configuration, card, licence."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from deltastore.artifact.model_files import OVER, fitting
from deltastore.blobs import BlobStore
from deltastore.checkpoint import Checkpoint, Left, is_model_file, is_tokenizer_file
from deltastore.checkpoint.beside import ANOTHER_FORM, bounded
from deltastore.checkpoint.files import read_whole
from deltastore.digest import sha256_digest
from deltastore.errors import CheckpointError
from deltastore.manifest import Config, Descriptor, FileEntry, Manifest
from deltastore.manifest.format import (
    FILE_MEDIA_TYPE,
    MAX_SMALL_FILE_BYTES,
    MAX_SMALL_FILES_BYTES,
    MAX_TOKENIZER_MEMORY,
)
from deltastore.manifest.strict_json import memory_of

_LOCAL_KEYS = ("_name_or_path", "name_or_path")
"""Keys in which transformers leaves the path a model was loaded from."""

File = TypeVar("File", bytes, str)
"""A small file: its bytes, or its digest."""

T = TypeVar("T")
Side = Literal["base", "post"]
SmallFiles = dict[tuple[Side, str], bytes]
"""Bytes by side and name."""

FileDigests = dict[tuple[Side, str], str]
"""Digests likewise."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What an artifact of a pair has beside its tensors.

    Attributes:
        files: The small files.
        left: What lies beside the weights of each side and is not in the artifact, and why; None
            where only a part of a repository is known.
    """

    files: SmallFiles
    left: dict[Side, Left | None]

    @property
    def not_stored(self) -> tuple[str, ...] | None:
        """The names that the artifact tells of; None where they are not known."""
        left = self.left["post"]
        if left is None:
            return None
        return tuple(sorted(name for name, why in left.items() if why != ANOTHER_FORM))


def collect(base: Checkpoint, post: Checkpoint) -> Collected:
    """The small files that belong into an artifact of two checkpoints, and what does not.

    Raises:
        CheckpointError: One of them cannot be read or is too large to be what it is called.
    """
    crowded = _check_total([base, post], 0)
    sides = [
        _read(base, base_only=True, crowded=crowded),
        _read(post, base_only=False, crowded=crowded),
    ]
    left: dict[Side, Left | None] = {}
    for name, checkpoint, (_, unfit) in zip(get_args(Side), (base, post), sides, strict=True):
        left[name] = None if checkpoint.left is None else bounded(checkpoint.left | unfit)
    return Collected(belonging(sides[0][0], sides[1][0]), left)


def collect_stored(base: Checkpoint, posts: Mapping[str, bytes]) -> SmallFiles:
    """The small files where post's are those of an artifact.

    Raises:
        CheckpointError: One of base's cannot be read or is too large to be what it is called.
    """
    crowded = _check_total([base], sum(map(len, posts.values())))
    return belonging(_read(base, base_only=True, crowded=crowded)[0], posts)


def belonging(bases: Mapping[str, File], posts: Mapping[str, File]) -> dict[tuple[Side, str], File]:
    """Those of both sides' small files that belong into an artifact.

    All of post's, and of base's what is needed to tell what post changed: its ``config.json``,
    its tokenizer if that differs, and what has no rule of its own.
    """
    tokenizers = [tokenizer_of(side) for side in (bases, posts)]
    # All of base's tokenizer or nothing: what is absent then is known to be absent.
    files: dict[tuple[Side, str], File] = {
        ("base", name): file
        for name, file in sorted(bases.items())
        if name == "config.json"
        or is_model_file(name)
        or (name in tokenizers[0] and tokenizers[0] != tokenizers[1])
    }
    return files | {("post", name): file for name, file in sorted(posts.items())}


def _read(
    checkpoint: Checkpoint, *, base_only: bool, crowded: bool
) -> tuple[dict[str, bytes], Left]:
    """A side's small files, and what of them does not travel.

    Of base only those that may belong into an artifact; of what has no rule of its own nothing
    where it is crowded.
    """
    names = [
        name
        for name in checkpoint.files
        if not base_only or name == "config.json" or is_tokenizer_file(name) or is_model_file(name)
    ]
    over = {name: OVER for name in names if crowded and is_model_file(name)}
    files = {n: read_portable(n, checkpoint.files[n]) for n in names if n not in over}
    kept, unfit = fitting(files, storing=True)
    return kept, over | unfit


def _check_total(
    checkpoints: Iterable[Checkpoint], total: int, *, whose: str = "the weights of base and post"
) -> bool:
    """Whether what has no rule of its own is too much beside the other small files.

    Raises:
        CheckpointError: These alone are too much.
    """
    more = 0
    for checkpoint in checkpoints:
        for name, path in checkpoint.files.items():
            with contextlib.suppress(OSError):  # reading it says so
                size = min(path.stat().st_size, MAX_SMALL_FILE_BYTES)
                more += size * is_model_file(name)
                total += size * (not is_model_file(name))
    if total > MAX_SMALL_FILES_BYTES:
        raise CheckpointError(
            f"The small files beside {whose} have {total} bytes together; expected at most "
            f"{MAX_SMALL_FILES_BYTES}.",
            hint="Move those that are no tokenizer, template, card or licence away.",
        )
    return total + more > MAX_SMALL_FILES_BYTES


def store_files(
    blobs: BlobStore, files: SmallFiles, layers: list[Descriptor]
) -> tuple[FileEntry, ...]:
    """Put the small files into the store and append their layers."""
    entries = []
    for (side, name), data in files.items():
        blob = blobs.put([data])
        entries.append(FileEntry(side, name, len(layers)))
        layers.append(Descriptor(FILE_MEDIA_TYPE, blob.digest, blob.size, f"{side}/{name}"))
    return tuple(entries)


def digests(files: SmallFiles) -> FileDigests:
    """The digests of small files."""
    return {key: sha256_digest(data) for key, data in files.items()}


def stored_digests(manifest: Manifest, config: Config) -> FileDigests:
    """The digests of an artifact's small files."""
    return {(f.side, f.path): manifest.layers[f.layer].digest for f in config.files}


def read_stored(
    blobs: BlobStore, manifest: Manifest, config: Config, side: Side
) -> dict[str, bytes]:
    """One side's small files of an artifact, by name.

    Raises:
        IntegrityError: One is missing or damaged.
        ManifestInvalidError: One is larger than the format allows.
    """
    files = {}
    for entry in config.files:
        if entry.side == side:
            layer = manifest.layers[entry.layer]
            what = f"{entry.side}/{entry.path}"
            files[entry.path] = blobs.read(
                layer.digest, limit=MAX_SMALL_FILE_BYTES, what=what, size=layer.size
            )
    return files


def read_all(checkpoint: Checkpoint) -> dict[str, bytes]:
    """All small files of a checkpoint, by name.

    Raises:
        CheckpointError: One cannot be read, or they are too large together.
    """
    _check_total([checkpoint], 0, whose="the weights")
    return {name: read_portable(name, path) for name, path in checkpoint.files.items()}


def read_portable(name: str, path: Path) -> bytes:
    """A small file's bytes, without the local path that JSON configurations may hold.

    Raises:
        CheckpointError: It cannot be read, is too large or no ordinary file.
    """
    data = read_whole(path, max_bytes=MAX_SMALL_FILE_BYTES)
    if not name.endswith(".json") or not any(key.encode() in data for key in _LOCAL_KEYS):
        return data
    if memory_of(data) > MAX_TOKENIZER_MEMORY:
        raise CheckpointError(
            f"{path} has more values than fit into {MAX_TOKENIZER_MEMORY >> 20} MiB of memory.",
            hint="Move it out of the checkpoint's directory.",
        )
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    try:
        cleaned = _without_paths(document)
        if cleaned == document:
            return data
        # Not canonical_json: some configurations hold the infinities that Python writes.
        text = json.dumps(cleaned, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode()
    except (ValueError, RecursionError):
        return data


def _without_paths(value: Any) -> Any:
    """JSON without the keys that hold local paths, at any depth."""
    if isinstance(value, dict):
        return {k: _without_paths(v) for k, v in value.items() if k not in _LOCAL_KEYS}
    return [_without_paths(item) for item in value] if isinstance(value, list) else value


def tokenizer_of(files: Mapping[str, T]) -> dict[str, T]:
    """Of small files, or what is known of them, by name, those of the tokenizer."""
    return {name: file for name, file in files.items() if is_tokenizer_file(name)}


def own_tokenizer(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of a checkpoint's tokenizer, by name.

    Raises:
        CheckpointError: One of them cannot be read or is too large.
    """
    return {n: read_portable(n, path) for n, path in tokenizer_of(checkpoint.files).items()}
