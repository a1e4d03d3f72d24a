"""The small files beside the weights: configuration, tokenizer, modules, card, licence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltastore.checkpoint.files import read_json, read_small
from deltastore.manifest.format import MAX_JSON_MEMORY
from deltastore.manifest.strict_json import parse_loosely

TOKENIZER_FILES = frozenset(
    {
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
        # Those of fewer families.
        "bpe.codes",
        "byte_maps.json",
        "cl100k_base.tiktoken",
        "dict.txt",
        "emoji.json",
        "encoder.json",
        "entity_vocab.json",
        "gpt2.tiktoken",
        "hy.tiktoken",
        "ice_text.model",
        "multilingual.tiktoken",
        "o200k_base.tiktoken",
        "prophetnet.tokenizer",
        "qwen.tiktoken",
        "sentencepiece.model",
        "source.spm",
        "spm.model",
        "spm_char.model",
        "target.spm",
        "target_vocab.json",
        "tiktoken.model",
        "vocab-src.json",
        "vocab-tgt.json",
        "vocab.bpe",
        "word_pronunciation.json",
        "word_shape.json",
    }
)
"""The files that make a tokenizer; all of one side or none. Mistral's have versions besides."""

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)

TEMPLATE_FILES = frozenset({"chat_template.jinja", "chat_template.json"})

LEGAL_FILES = frozenset(
    stem + suffix
    for stem in (
        *("LICENSE", "License", "license", "LICENCE", "Licence", "licence"),
        *("LICENSE-APACHE", "LICENSE-CODE", "LICENSE-MIT", "LICENSE-MODEL", "MODEL_LICENSE"),
        *("NOTICE", "Notice", "notice", "NOTICES", "THIRD_PARTY_NOTICES", "COPYING"),
        *("USE_POLICY", "Use_Policy", "use_policy"),
    )
    for suffix in ("", ".md", ".txt")
)
"""Licences and what goes with one."""

_SMALL_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        *TOKENIZER_FILES,
        *TEMPLATE_FILES,
        *PROCESSOR_FILES,
        "README.md",
        *LEGAL_FILES,
    }
)
"""Every file with a rule of its own, relative to the checkpoint's directory, by its exact name.

The forms below are all that there is besides. What an artifact holds and what an output gets go by
this one list: no name begins or ends in a way that makes it a small file.
"""

_TOKENIZER_VERSION = re.compile(r"tokenizer\.model\.v[0-9]{1,3}(m[0-9]{1,3})?", re.ASCII)
"""Mistral's: ``tokenizer.model.v3``, ``tokenizer.model.v7m1``."""

_NAMED_TEMPLATE = re.compile(
    r"(additional_chat_templates|chat_templates)/[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.jinja", re.ASCII
)
"""One of several templates, by its name, which has no dot."""

_POSTS = re.compile(r"post-(?:[0-9]{1,4}-)?(?P<name>.+)", re.ASCII)
"""A licence of a post beside one of its base's, as ``apply`` writes it."""

MAX_NAMED_TEMPLATES = 64

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
_NO_MODEL_FILE = re.compile(
    r".*\.index\.json|adapter_config\.json|deltastore\.json|model_index\.json"
    r"|.*quant.*config.*\.json|trainer_state\.json|.*_results\.json|.*args\.json"
    r"|(con|prn|aux|nul|com[0-9]|lpt[0-9])\..*",
    re.ASCII | re.IGNORECASE,
)
"""Documents of what does not travel: indices, adapters, pipelines, quantisation, trainers.

And the names of devices, under which Windows has no files.
"""

_RULED = frozenset(map(str.lower, _SMALL_FILES))


def is_small_file(name: str) -> bool:
    """Whether a name, relative to the checkpoint's directory, has a rule of its own."""
    return (
        name in _SMALL_FILES
        or _TOKENIZER_VERSION.fullmatch(name) is not None
        or _NAMED_TEMPLATE.fullmatch(name) is not None
        or is_legal(name)
    )


def is_tokenizer_file(name: str) -> bool:
    """Whether a small file is a part of the tokenizer."""
    return name in TOKENIZER_FILES or _TOKENIZER_VERSION.fullmatch(name) is not None


def is_template_file(name: str) -> bool:
    """Whether a small file is a chat template: a file of its own, or one of several in a folder."""
    return name in TEMPLATE_FILES or is_named_template(name)


def is_named_template(name: str) -> bool:
    """Whether a small file is one of several chat templates in a folder."""
    return _NAMED_TEMPLATE.fullmatch(name) is not None


def is_legal(name: str) -> bool:
    """Whether a small file is a licence or what goes with one."""
    return legal_name(name) in LEGAL_FILES


def legal_name(name: str) -> str:
    """What a licence was called beside its own model, ``LICENSE`` for ``post-2-LICENSE``."""
    found = _POSTS.fullmatch(name)
    return found["name"] if found is not None else name


def is_model_file(name: str) -> bool:
    """Whether a small file without a rule of its own may say something of the model.

    A JSON document beside the weights, or in the folder of a module of sentence-transformers.
    None that a file system might take for another: by case, or by a name of Windows' own.
    """
    folder, _, own = name.rpartition("/")
    if folder and not _MODULE_FOLDER.fullmatch(folder):
        return False
    if not _MODEL_FILE.fullmatch(own) or _NO_MODEL_FILE.fullmatch(own):
        return False
    if is_code(own.removesuffix(".json")):
        return False
    if folder:
        # The module's own configuration may be called like the model's.
        return own == own.lower() or own.lower() not in _RULED
    return own.lower() not in _RULED


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
        document = parse_loosely(modules or b"")
    except ValueError:
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
    return read_json(path, max_bytes=MAX_CONFIG_JSON_BYTES, memory=MAX_JSON_MEMORY, infinities=True)
