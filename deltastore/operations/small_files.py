"""The small files that travel with a delta: tokenizer, templates, configuration, card, licence."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Literal

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


SmallFiles = dict[tuple[Literal["base", "post"], str], bytes]
"""Bytes by side and name."""


def collect(base: Checkpoint, post: Checkpoint) -> SmallFiles:
    """The small files that belong into an artifact.

    All of post's, and of base's what is needed to tell what post changed: its ``config.json``
    and its tokenizer if that differs.

    Raises:
        CheckpointError: One of them cannot be read or is too large to be what it is called.
    """
    _check_total([*base.files.values(), *post.files.values()])
    posts = {name: read_portable(name, path) for name, path in sorted(post.files.items())}
    bases = {
        name: read_portable(name, path)
        for name, path in sorted(base.files.items())
        if name == "config.json" or is_tokenizer_file(name)
    }
    tokenizers = [
        {name: data for name, data in side.items() if is_tokenizer_file(name)}
        for side in (bases, posts)
    ]
    # All of base's tokenizer or nothing: what is absent then is known to be absent.
    files: SmallFiles = {
        ("base", name): data
        for name, data in bases.items()
        if name == "config.json" or tokenizers[0] != tokenizers[1]
    }
    return files | {("post", name): data for name, data in posts.items()}


def _check_total(paths: list[Path]) -> None:
    total = 0
    for path in paths:
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


def same_files(files: SmallFiles, manifest: Manifest, config: Config) -> bool:
    """Whether an artifact has just these small files."""
    stored = {(f.side, f.path): manifest.layers[f.layer].digest for f in config.files}
    return stored == {key: sha256_digest(data) for key, data in files.items()}


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


def is_tokenizer_file(name: str) -> bool:
    """Whether a small file is a part of the tokenizer."""
    return name in TOKENIZER_FILES or name.startswith("tokenizer.model")
