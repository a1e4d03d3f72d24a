"""Model files of an output: documents without a rule of their own, as sentence-transformers' are.

A file follows post where post changed it from its own base, or where the new base has none; else
it is the new base's. ``params.json`` is a configuration: the new base's, with sizes that fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deltastore.artifact.model_files import CODE_KEYS, names_code
from deltastore.checkpoint import TensorInfo, is_model_file, is_small_file
from deltastore.checkpoint.documents import read_object, read_tokenizer, same, to_json
from deltastore.checkpoint.small_files import (
    MODULES,
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    module_folders,
)
from deltastore.errors import StructureMismatchError
from deltastore.manifest import TensorEntry
from deltastore.merging.recipes import Recipe
from deltastore.output.configuration.config import OF_THE_FILE
from deltastore.output.configuration.fit import Pair, fitted
from deltastore.output.ledger import Ledger, joined

Files = dict[str, bytes]

PARAMS = "params.json"

_UNRULED = frozenset({"chat_template", "processor_class", *OF_THE_FILE})
_NO_TOKENS = frozenset({"special_tokens_map.json", "tokenizer_config.json"})
_VOCABULARIES = frozenset(n for n in TOKENIZER_FILES - _NO_TOKENS if n.endswith(".json"))
"""Large documents whose keys are tokens, among which may be one that is called like a field."""

_CODE_WORD = re.compile(
    "|".join(map(re.escape, sorted(CODE_KEYS))).encode() + rb"|\\u00(5[fF]|[67][0-9a-fA-F])"
)
"""A key that names code, or an escape that no tool writes and that might hide one."""


def take_model_files(
    files: Files,
    source_base: Mapping[str, bytes],
    post: Mapping[str, bytes],
    ledger: Ledger,
    *,
    restoring: bool = False,
) -> None:
    """Put post's model files into ``files``, which has the new base's, as far as they follow post.

    Args:
        files: The output's small files; changed in place.
        source_base: The source base's.
        post: Post's; all of them may travel.
        ledger: Is told whose the files are.
        restoring: The new base is the source base, as far as is known, and the output post.
    """
    if restoring:
        for name in [name for name in files if is_model_file(name) and name not in post]:
            if files[name] == source_base.get(name):
                del files[name]
                ledger.origins.pop(name, None)
    # First, as it says which folders belong to the model.
    for name in sorted(filter(is_model_file, post), key=lambda name: (name != MODULES, name)):
        own, theirs = files.get(name), post[name]
        if "/" in name and name.split("/")[0] not in module_folders(files.get(MODULES)):
            continue
        if own == theirs or (own is not None and theirs == source_base.get(name)):
            continue
        if name == PARAMS and own is not None and not restoring:
            continue
        files[name] = theirs
        ledger.origins[name] = "post"
        if own is not None:
            ledger.note(name, "post changed it from its own base")


def fit_params(
    files: Files,
    source_base: Mapping[str, bytes],
    post: Mapping[str, bytes],
    ledger: Ledger,
    base: Mapping[str, TensorInfo],
    recipes: Mapping[str, Recipe],
    tensors: Mapping[str, TensorEntry],
) -> None:
    """Have ``params.json`` say the output's sizes, and tell what post changed besides.

    It is to Mistral's and Llama's own code what ``config.json`` is to transformers.

    Args:
        files: The output's small files; changed in place.
        source_base: The source base's.
        post: Post's.
        ledger: Is told.
        base: The new base's tensors.
        recipes: The output's.
        tensors: The delta's, by the output's names.
    """
    own = read_object(files.get(PARAMS))
    if own is None:
        return
    before, after = (read_object(side.get(PARAMS)) for side in (source_base, post))
    try:
        output = fitted(own, own, base, recipes, [Pair(before, after, tensors)])
    except StructureMismatchError as error:
        ledger.warn(PARAMS, f"it may not fit the output's tensors: {error.message.rstrip('.')}")
        return
    changed = [name for name in output if not same(output[name], own.get(name))]
    if changed:
        files[PARAMS] = to_json(output)
        ledger.origins[PARAMS] = "both"
        ledger.note(PARAMS, f"changed: {joined(changed)}")
    left = [
        name
        for name, value in (after or {}).items()
        if not same(value, (before or {}).get(name)) and not same(value, output.get(name))
    ]
    if before is not None and left:
        ledger.warn(PARAMS, f"post changed {joined(left)}; the output has the new base's")


def take_processors(
    files: Files, post: Mapping[str, bytes], ledger: Ledger, *, restoring: bool = False
) -> None:
    """Configurations of processors: the new base's, and post's where it has none.

    Arguments as for ``take_model_files``. What its base's was is not known; where the output is to
    be post, it is post's.
    """
    for name in PROCESSOR_FILES:
        if name not in post or files.get(name) == post[name]:
            continue
        if name not in files or restoring:
            files[name] = post[name]
            ledger.origins[name] = "post"
            continue
        own, theirs = (read_object(data) or {} for data in (files[name], post[name]))
        other = [
            key
            for key in sorted(own.keys() | theirs.keys())
            if key not in _UNRULED and not same(own.get(key), theirs.get(key))
        ]
        if other:
            ledger.warn(
                name, f"post has other values of {joined(other)}; the output has the new base's"
            )


def without_code(files: Files, own: Mapping[str, bytes], ledger: Ledger) -> None:
    """Take out of the output's documents what names code, but for what the new base says there.

    Documents without a rule of their own do not come here if they name any. What is not understood
    may be understood by others, and is not taken from post at all.

    Args:
        files: The output's small files; changed in place.
        own: The new base's.
        ledger: Knows whose the files are, and is told.
    """
    for name in [name for name in files if name.endswith(".json") and is_small_file(name)]:
        data, kept = files[name], own.get(name)
        if data == kept or (name in _VOCABULARIES and not _CODE_WORD.search(data)):
            continue
        reading = read_tokenizer if name in _VOCABULARIES else read_object
        document = reading(data)
        if document is None:
            _give_back(files, name, kept, ledger)
            continue
        before = reading(kept) or {}
        cleaned = _cleaned(document, before, tokens=name in _VOCABULARIES)
        if not same(cleaned, document):
            files[name] = to_json(cleaned)
            ledger.warn(name, "what it says of code is left out: no code goes into an output")


def _give_back(files: Files, name: str, own: bytes | None, ledger: Ledger) -> None:
    """Have the new base's document in the place of post's, which is not understood."""
    if own is None:
        del files[name]
        ledger.origins.pop(name, None)
    else:
        files[name] = own
        ledger.origins[name] = "new base"
    ledger.warn(name, "post's is not understood, and left out")


def _cleaned(value: Any, own: Any, *, tokens: bool) -> Any:
    """A part of a document without what names code; of the new base's part of it that stays.

    Args:
        value: The part.
        own: The same part of the new base's document.
        tokens: The document's keys may be tokens, which have numbers and name nothing.
    """
    if isinstance(value, list):
        if same(value, own):
            return value
        return [_cleaned(item, None, tokens=tokens) for item in value]
    if not isinstance(value, dict):
        return value
    before = own if isinstance(own, dict) else {}
    kept = {
        key: _cleaned(item, before.get(key), tokens=tokens)
        for key, item in value.items()
        if not names_code(key, item) or (tokens and isinstance(item, (int, float)))
    }
    return kept | {key: item for key, item in before.items() if names_code(key, item)}
