"""Model files: documents without a rule of their own, and what they must not say.

They are data, and stay data: a stranger's must not have a library import, fetch or run anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from deltastore.checkpoint import Left, is_model_file, is_small_file
from deltastore.checkpoint.beside import MAX_MODEL_FILES, MAX_MODEL_FILES_BYTES
from deltastore.checkpoint.small_files import (
    MAX_MODEL_FILE_BYTES,
    MODULES,
    module_folders,
    modules_of,
)
from deltastore.manifest.nesting import is_nested_too_deeply

OVER = "over the limits of what is carried"

CODE_KEYS = frozenset(
    {
        "auto_map",
        "code_revision",
        "custom_code",
        "custom_generate",
        "custom_pipelines",
        "trust_remote_code",
    }
)
"""Keys by which libraries are told to load code, their own or from a repository."""

_PATH = re.compile(r"(file:/*|~?/|[A-Za-z]:[\\/])[^\s/\\]+[\\/].*", re.DOTALL)
"""What looks like a place on somebody's machine."""

_IMPORT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
"""What ``import_from_string`` of sentence-transformers, and the like of it, take."""

_FILE_NAME = re.compile(r".+\.(bin|jinja|json|model|safetensors|spm|txt)", re.ASCII)
_FAMILIES = "base|cross_encoder|multi_vector_encoder|sentence_transformer|sparse_encoder"
_MODULE = re.compile(
    rf"sentence_transformers\.(({_FAMILIES})\.)?(models|modules)(\.\w+)*\.[A-Z]\w*", re.ASCII
)
_ACTIVATION = re.compile(r"torch\.nn\.modules\.(activation|linear)\.[A-Z]\w*", re.ASCII)

_HARMLESS = (_FILE_NAME, _MODULE, _ACTIVATION)


def fitting(files: Mapping[str, bytes], *, storing: bool) -> tuple[dict[str, bytes], Left]:
    """Of a side's files those that may travel, and why the others may not.

    Args:
        files: By name; an artifact's may have any name.
        storing: They are this machine's, and what tells of it stays here.
    """
    kept: dict[str, bytes] = {}
    left: Left = {}
    count = total = 0
    # First, as folders go by it.
    for name in sorted(files, key=lambda name: (name != MODULES, name)):
        data = files[name]
        if is_small_file(name):
            kept[name] = data
            continue
        reason: str | None = "of no kind that is carried"
        if is_model_file(name):
            count, total = count + 1, total + len(data)
            # Before anything is parsed.
            crowded = count > MAX_MODEL_FILES or total > MAX_MODEL_FILES_BYTES
            reason = OVER if crowded else unfit(name, data, storing=storing)
        folder, _, rest = name.partition("/")
        if reason is None and rest and folder not in module_folders(kept.get(MODULES)):
            reason = f"of a folder that no {MODULES} names"
        if reason is None:
            kept[name] = data
        else:
            left[name] = reason
    return dict(sorted(kept.items())), dict(sorted(left.items()))


def unfit(name: str, data: bytes, *, storing: bool) -> str | None:
    """Why a model file may not travel; None if it may."""
    if len(data) > MAX_MODEL_FILE_BYTES:
        return OVER
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return "no JSON"
    if is_nested_too_deeply(document):
        return "nested too deeply"
    if name == MODULES:
        return _unfit_modules(modules_of(data))
    for key, value in _strings(document):
        if key in CODE_KEYS:
            return f"names code ({key})"
        if value is None:
            continue
        if storing and _PATH.fullmatch(value):
            return "names a place on this machine"
        if _IMPORT.fullmatch(value) and not any(form.fullmatch(value) for form in _HARMLESS):
            return f"names code ({value:.80})"
    return None


def _unfit_modules(modules: list[dict[str, Any]] | None) -> str | None:
    """sentence-transformers imports what a ``type`` says, and opens what lies in a ``path``."""
    if modules is None:
        return "no list of modules"
    for module in modules:
        kind, path = module.get("type"), module.get("path")
        if not (isinstance(kind, str) and _MODULE.fullmatch(kind)):
            return f"names code ({kind!s:.80})"
        if path != "" and not module_folders(json.dumps([module]).encode()):
            return f"names a folder of another kind ({path!s:.80})"
        if any(key in CODE_KEYS for key, _ in _strings(module)):
            return "names code"
    return None


def _strings(value: Any) -> Iterator[tuple[str, str | None]]:
    """Every key of a document, with its value if that is a string, and strings in lists."""
    pending: list[tuple[str, Any]] = [("", value)]
    while pending:
        key, item = pending.pop()
        if isinstance(item, dict):
            pending += [(str(name), child) for name, child in item.items()]
        elif isinstance(item, list):
            pending += [(key, child) for child in item]
        yield key, item if isinstance(item, str) else None
