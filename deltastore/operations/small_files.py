"""The small files that travel with a delta: tokenizer, templates, configuration, card, licence."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from deltastore.blobs import BlobStore
from deltastore.checkpoint import Checkpoint
from deltastore.digest import sha256_digest
from deltastore.errors import CheckpointError
from deltastore.manifest import Config, Descriptor, FileEntry, Manifest
from deltastore.manifest.format import (
    FILE_MEDIA_TYPE,
    MAX_SMALL_FILE_BYTES,
    MAX_SMALL_FILES_BYTES,
)

_LOCAL_KEYS = ("_name_or_path", "name_or_path")
"""Keys in which transformers leaves the path a model was loaded from."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


File = TypeVar("File", bytes, str)
"""A small file: its bytes, or its digest."""

T = TypeVar("T")
Side = Literal["base", "post"]
SmallFiles = dict[tuple[Side, str], bytes]
"""Bytes by side and name."""

FileDigests = dict[tuple[Side, str], str]
"""Digests likewise."""


def collect(base: Checkpoint, post: Checkpoint) -> SmallFiles:
    """The small files that belong into an artifact of two checkpoints.

    Raises:
        CheckpointError: One of them cannot be read or is too large to be what it is called.
    """
    _check_total([base, post], 0)
    return belonging(
        _read(base, base_only=True),
        _read(post, base_only=False),
    )


def collect_stored(base: Checkpoint, posts: Mapping[str, bytes]) -> SmallFiles:
    """The same where post's files are those of an artifact.

    Raises:
        CheckpointError: One of base's cannot be read or is too large to be what it is called.
    """
    _check_total([base], sum(map(len, posts.values())))
    return belonging(_read(base, base_only=True), posts)


def belonging(bases: Mapping[str, File], posts: Mapping[str, File]) -> dict[tuple[Side, str], File]:
    """Those of both sides' small files that belong into an artifact.

    All of post's, and of base's what is needed to tell what post changed: its ``config.json``
    and its tokenizer if that differs.
    """
    tokenizers = [tokenizer_of(side) for side in (bases, posts)]
    # All of base's tokenizer or nothing: what is absent then is known to be absent.
    files: dict[tuple[Side, str], File] = {
        ("base", name): file
        for name, file in sorted(bases.items())
        if name == "config.json" or (name in tokenizers[0] and tokenizers[0] != tokenizers[1])
    }
    return files | {("post", name): file for name, file in sorted(posts.items())}


def _read(checkpoint: Checkpoint, *, base_only: bool) -> dict[str, bytes]:
    """A side's small files; of base only those that may belong into an artifact."""
    return {
        name: read_portable(name, path)
        for name, path in checkpoint.files.items()
        if not base_only or name == "config.json" or is_tokenizer_file(name)
    }


def _check_total(checkpoints: Iterable[Checkpoint], total: int) -> None:
    for path in (path for checkpoint in checkpoints for path in checkpoint.files.values()):
        with contextlib.suppress(OSError):  # reading it says so
            total += min(path.stat().st_size, MAX_SMALL_FILE_BYTES)
    if total > MAX_SMALL_FILES_BYTES:
        raise CheckpointError(
            f"The small files beside the weights of base and post have {total} bytes together; "
            f"an artifact holds at most {MAX_SMALL_FILES_BYTES}.",
            hint="Move those that are no tokenizer, template, card or licence away.",
        )


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


def read_portable(name: str, path: Path) -> bytes:
    """A small file's bytes, without the local path that JSON configurations may hold.

    Raises:
        CheckpointError: It cannot be read or is too large.
    """
    try:
        size = path.stat().st_size
        if size > MAX_SMALL_FILE_BYTES:
            raise CheckpointError(
                f"{path} has {size} bytes; a small file has at most {MAX_SMALL_FILE_BYTES}.",
                hint="Move it out of the checkpoint's directory.",
            )
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}.", hint="Check its permissions."
        ) from error
    if not name.endswith(".json") or not any(key.encode() in data for key in _LOCAL_KEYS):
        return data
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


def is_tokenizer_file(name: str) -> bool:
    """Whether a small file is a part of the tokenizer."""
    return name in TOKENIZER_FILES or name.startswith("tokenizer.model")
