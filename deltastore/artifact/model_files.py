"""Model files: documents without a rule of their own, and what they must not say.

They are data, and stay data: a stranger's must not have a library import, fetch or run anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from deltastore.checkpoint import Left, is_legal, is_model_file, is_named_template, is_small_file
from deltastore.checkpoint.beside import MAX_MODEL_FILES, MAX_MODEL_FILES_BYTES
from deltastore.checkpoint.small_files import (
    MAX_MODEL_FILE_BYTES,
    MAX_NAMED_TEMPLATES,
    MODULES,
    module_folders,
    modules_of,
)
from deltastore.manifest.format import MAX_JSON_MEMORY
from deltastore.manifest.strict_json import TooDeepError, TooManyValuesError, parse
from deltastore.text import excerpt

OVER = "over the limits of what is carried"

CODE_KEYS = frozenset(
    {
        "_target_",
        "auto_map",
        "code_revision",
        "custom_code",
        "custom_generate",
        "custom_pipeline",
        "custom_pipelines",
        "trust_remote_code",
    }
)
"""Keys by which libraries are told to load code, their own or from a repository."""

_KERNEL_KEYS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_internal",
        "_experts_implementation",
        "attn_implementation",
        "experts_implementation",
    }
)
"""Where transformers takes the id of a repository with compiled kernels, as well as a word."""

_IMPORTED_KEYS = frozenset(
    {"activation_fn", "activation_function", "sbert_ce_default_activation_function"}
)
"""Whose values sentence-transformers imports, in a ``config.json`` too."""

_PATH = re.compile(r"(file:/*|~?/|[A-Za-z]:[\\/])[^\s/\\]+[\\/].*", re.DOTALL)
"""What looks like a place on somebody's machine."""

_IMPORT = re.compile(r"[^\W\d][\w-]*(?:\.[^\W\d][\w-]*)*\.[^\W\d]\w*(?::[^\W\d]\w*)?")
"""What ``import_from_string`` of sentence-transformers, and the like of it, take."""

_FILE_NAME = re.compile(r".+\.(bin|jinja|json|model|safetensors|spm|txt)", re.ASCII)
_FAMILIES = "base|cross_encoder|multi_vector_encoder|sentence_transformer|sparse_encoder"
_MODULE = re.compile(
    rf"sentence_transformers\.(({_FAMILIES})\.)?(models|modules)(\.\w+)*\.[A-Z]\w*", re.ASCII
)
_ACTIVATION = re.compile(r"torch\.nn\.modules\.(activation|linear)\.[A-Z]\w*", re.ASCII)

_HARMLESS = (_FILE_NAME, _MODULE, _ACTIVATION)


def names_code(key: str, value: object) -> bool:
    """Whether a field of a document has a library load code."""
    if key in CODE_KEYS:
        return True
    if key in _KERNEL_KEYS:
        return not isinstance(value, str) or "/" in value
    return key in _IMPORTED_KEYS and isinstance(value, str) and _is_imported(value)


def _is_imported(value: str) -> bool:
    """Whether a string is the dotted name of a Python object, other than of a known kind."""
    return bool(_IMPORT.fullmatch(value)) and not any(form.fullmatch(value) for form in _HARMLESS)


def fitting(files: Mapping[str, bytes], *, storing: bool) -> tuple[dict[str, bytes], Left]:
    """Of a side's files those that may travel, and why the others may not.

    Args:
        files: By name; an artifact's may have any name.
        storing: They are this machine's, and what tells of it stays here.
    """
    kept: dict[str, bytes] = {}
    left: Left = {}
    count = total = templates = 0
    lower: set[str] = set()
    # First, as folders go by it.
    for name in sorted(files, key=lambda name: (name != MODULES, name)):
        data = files[name]
        reason: str | None = "of no kind that is carried"
        if is_small_file(name):
            templates += is_named_template(name)
            crowded = is_named_template(name) and templates > MAX_NAMED_TEMPLATES
            reason = OVER if crowded else None
        elif is_model_file(name):
            count, total = count + 1, total + len(data)
            # Before anything is parsed.
            crowded = count > MAX_MODEL_FILES or total > MAX_MODEL_FILES_BYTES
            reason = OVER if crowded else unfit(name, data, storing=storing)
        folder, _, rest = name.partition("/")
        module = bool(rest) and not is_small_file(name)
        if reason is None and module and folder not in module_folders(kept.get(MODULES)):
            reason = f"of a folder that no {MODULES} names"
        if reason is None and name.lower() in lower and not is_legal(name):
            reason = "called like another file but for case"
        if reason is None:
            kept[name] = data
            lower.add(name.lower())
        else:
            left[name] = reason
    return dict(sorted(kept.items())), dict(sorted(left.items()))


def unfit(name: str, data: bytes, *, storing: bool) -> str | None:
    """Why a model file may not travel; None if it may."""
    if len(data) > MAX_MODEL_FILE_BYTES:
        return OVER
    try:
        # A key that stands there twice means one thing here and another elsewhere.
        document = parse(data, memory=MAX_JSON_MEMORY, constants=True, any_utf=True)
    except TooManyValuesError:
        return "too many values"
    except TooDeepError:
        return "nested too deeply"
    except ValueError:
        return "no JSON"
    if document is None:
        return "no JSON"
    if name == MODULES:
        return _unfit_modules(modules_of(data))
    for key, value in _fields(document):
        if names_code(key, value):
            return f"names code ({key})"
        if not isinstance(value, str):
            continue
        if storing and _PATH.fullmatch(value):
            return "names a place on this machine"
        if _is_imported(value):
            return f"names code ({excerpt(value, 80)})"
    return None


def _unfit_modules(modules: list[dict[str, Any]] | None) -> str | None:
    """sentence-transformers imports what a ``type`` says, and opens what lies in a ``path``."""
    if modules is None:
        return "no list of modules"
    for module in modules:
        kind, path = module.get("type"), module.get("path")
        if not (isinstance(kind, str) and _MODULE.fullmatch(kind)):
            return f"names code ({excerpt(str(kind), 80)})"
        if path != "" and not module_folders(json.dumps([module]).encode()):
            return f"names a folder of another kind ({excerpt(str(path), 80)})"
        if any(names_code(key, value) for key, value in _fields(module)):
            return "names code"
    return None


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a document with its value, and what stands in lists under the list's key."""
    pending: list[tuple[str, Any]] = [("", value)]
    while pending:
        key, item = pending.pop()
        if isinstance(item, dict):
            pending += [(str(name), child) for name, child in item.items()]
        elif isinstance(item, list):
            pending += [(key, child) for child in item]
        yield key, item
