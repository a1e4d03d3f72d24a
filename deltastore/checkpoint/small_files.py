"""The small files beside the weights: configuration, tokenizer, modules, card, licence."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from deltastore.checkpoint.files import read_json, read_small

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    # Those of fewer families.
    "bpe.codes",
    "byte_maps.json",
    "dict.txt",
    "emoji.json",
    "encoder.json",
    "entity_vocab.json",
    "ice_text.model",
    "prophetnet.tokenizer",
    "sentencepiece.model",
    "spm.model",
    "spm_char.model",
    "[a-zA-Z0-9]*.spm",
    "target_vocab.json",
    "tiktoken.model",
    "[a-zA-Z0-9]*.tiktoken",
    "vocab-src.json",
    "vocab-tgt.json",
    "vocab.bpe",
    "word_pronunciation.json",
    "word_shape.json",
)
"""Names and patterns of the files that make a tokenizer; all of one side or none."""

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
    "chat_template.jinja",
    "chat_template.json",
    "chat_templates/*.jinja",
    "additional_chat_templates/*.jinja",
    *PROCESSOR_FILES,
    "README.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY.md",
)
"""Names and patterns of files with a rule of their own, relative to the checkpoint's directory."""

MODULES = "modules.json"
"""What sentence-transformers puts its modules together by."""

MAX_CONFIG_JSON_BYTES = 16 << 20
MAX_MODEL_FILE_BYTES = 4 << 20
"""What is larger is data, not configuration; it is parsed as a whole."""

_CODE = re.compile(
    r".*\.(bash|bat|c|cc|cmd|com|cpp|cu|dll|dylib|egg|exe|ipynb|jar|js|lua|mjs|msi|o|php|pl|ps1|py"
    r"[cdiwxz]?|r|rb|scr|sh|so|ts|vbs|wasm|whl|zsh|joblib|pickle|pkl|gz|tar|tgz|zip)[ .]*",
    re.ASCII | re.IGNORECASE | re.DOTALL,
)
"""The names of what a machine would run, unpack or unpickle."""

_MODEL_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.json", re.ASCII)
_MODULE_FOLDER = re.compile(r"[0-9]{1,3}_[A-Za-z0-9_-]{1,60}", re.ASCII)
_NO_MODEL_FILES = (
    "*.index.json",
    "adapter_config.json",
    "deltastore.json",
    "model_index.json",
    "*quant*config*.json",
    "trainer_state.json",
    "*_results.json",
    "*args.json",
)
"""Documents of what does not travel: indices, adapters, pipelines, quantisation, trainers."""


def is_small_file(name: str) -> bool:
    """Whether a name, relative to the checkpoint's directory, has a rule of its own."""
    # A pattern's * must not match what lies in a folder: LICENSES/x is no licence of the model.
    return _matches(name, SMALL_FILES) and not is_code(name)


def is_tokenizer_file(name: str) -> bool:
    """Whether a small file is a part of the tokenizer."""
    return _matches(name, TOKENIZER_FILES) and not is_code(name)


def is_model_file(name: str) -> bool:
    """Whether a small file without a rule of its own may say something of the model.

    A JSON document beside the weights, or in the folder of a module of sentence-transformers.
    """
    folder, _, own = name.rpartition("/")
    if folder and not _MODULE_FOLDER.fullmatch(folder):
        return False
    if not _MODEL_FILE.fullmatch(own) or _matches(own, _NO_MODEL_FILES):
        return False
    return bool(folder) or not is_small_file(own)


def is_code(name: str) -> bool:
    """Whether a name ends as that of something that can be run, whatever its case."""
    return _CODE.fullmatch(name) is not None


def read_modules(files: Mapping[str, Path]) -> bytes | None:
    """``modules.json``, or None where there is none.

    Raises:
        CheckpointError: It cannot be read.
    """
    path = files.get(MODULES)
    return read_small(path, max_bytes=MAX_MODEL_FILE_BYTES) if path is not None else None


def module_folders(modules: bytes | None) -> frozenset[str]:
    """The folders that a ``modules.json`` names; only such as sentence-transformers makes."""
    return frozenset(
        path
        for module in modules_of(modules) or ()
        if isinstance(path := module.get("path"), str) and _MODULE_FOLDER.fullmatch(path)
    )


def modules_of(modules: bytes | None) -> list[dict[str, Any]] | None:
    """The list in a ``modules.json``; None where it is none."""
    try:
        document = json.loads(modules or b"")
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        return None
    return document


def read_config(files: Mapping[str, Path]) -> dict[str, Any] | None:
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


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(
        fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns
    )
