"""The small files beside the weights: configuration, tokenizer, card, licence."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Any

from deltastore.checkpoint.files import file_error, read_json

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "chat_templates/*.jinja",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "README.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY.md",
)
"""Names and patterns, relative to the checkpoint's directory."""

MAX_CONFIG_JSON_BYTES = 16 << 20


def is_small_file(name: str) -> bool:
    """Whether a name, relative to the checkpoint's directory, is that of a small file."""
    # A pattern's * must not match what lies in a folder: LICENSES/x is no licence of the model.
    return any(
        fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")
        for pattern in SMALL_FILES
    )


def find_small_files(directory: Path) -> dict[str, Path]:
    """The small files of a directory by relative name; links are followed, as in the Hub's cache.

    Raises:
        CheckpointError: The directory cannot be listed.
    """
    found = {}
    try:
        children = list(directory.iterdir())
        for folder in sorted({PurePath(p).parent.name for p in SMALL_FILES if "/" in p}):
            if (directory / folder).is_dir():
                children += (directory / folder).iterdir()
        for path in children:
            name = path.relative_to(directory).as_posix()
            if is_small_file(name) and path.is_file():
                found[name] = path
    except OSError as error:
        raise file_error(error, directory, "list") from error
    return dict(sorted(found.items()))


def read_config(files: dict[str, Path]) -> dict[str, Any] | None:
    """``config.json``, or None where there is none.

    Raises:
        CheckpointCorruptError: It is too large or malformed.
        CheckpointError: It cannot be read.
    """
    path = files.get("config.json")
    if path is None:
        return None
    # Python writes infinities, and the configs of some state space models hold them.
    return read_json(path, max_bytes=MAX_CONFIG_JSON_BYTES, infinities=True)
