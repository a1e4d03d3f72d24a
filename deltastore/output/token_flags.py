"""How added tokens are treated in an output: flags that post changed, by the token's text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltastore.artifact.small_files import tokenizer_of
from deltastore.checkpoint.documents import read_object, read_tokenizer, to_json
from deltastore.output.ledger import Ledger, quoted
from deltastore.tokenizer.files import Flags, Reader, added_tokens_decoder

Files = dict[str, bytes]

_CONFIG = "tokenizer_config.json"
_PLAIN: Flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)


def take_flags(
    files: Files,
    source_base: Mapping[str, bytes],
    post: Mapping[str, bytes],
    reader: Reader,
    ledger: Ledger,
) -> None:
    """How tokens are treated, where post changed that of tokens that its base had.

    A token that post made special is no longer printed, and no longer split; it is told by its
    text, as its id may be another in the new base.
    """
    if not tokenizer_of(source_base):
        return  # the same as post's, or there is none to compare with
    before = _all_flags(source_base, reader, post)
    after = _all_flags(post, reader, source_base)
    changed = {token: flags for token, flags in after.items() if flags != before.get(token)}
    if not changed:
        return
    moved: set[str] = set()
    tokenizer = read_tokenizer(files.get("tokenizer.json"))
    ids: dict[str, int] = {}
    if tokenizer is not None:
        ids = _flag_tokenizer(tokenizer, changed, moved)
        if moved:
            files["tokenizer.json"] = to_json(tokenizer)
            ledger.origins["tokenizer.json"] = "both"
            ledger.note("tokenizer.json", f"flags of post: {quoted(sorted(moved))}")
    config = read_object(files.get(_CONFIG))
    if config is not None and _flag_config(config, changed, ids):
        files[_CONFIG] = to_json(config)
        ledger.origins[_CONFIG] = "both"
        ledger.note(_CONFIG, "flags of added tokens of post")


def _all_flags(
    files: Mapping[str, bytes], reader: Reader, other: Mapping[str, bytes]
) -> dict[str, Flags]:
    """Flags by token, from both documents that hold them; nothing where both sides agree."""
    flags: dict[str, Flags] = {}
    if files.get(_CONFIG) != other.get(_CONFIG):
        flags |= added_tokens_decoder(read_object(files.get(_CONFIG)) or {})
    tokenizer = files.get("tokenizer.json")
    if tokenizer is not None and tokenizer != other.get("tokenizer.json"):
        found = reader.vocabulary(tokenizer)
        flags |= found.flags if found is not None else {}
    return flags


def _flag_tokenizer(
    document: dict[str, Any], changed: Mapping[str, Flags], moved: set[str]
) -> dict[str, int]:
    """Set flags in a ``tokenizer.json``; the ids of tokens that were in its vocabulary alone."""
    rows = document.get("added_tokens")
    if not isinstance(rows, list):
        rows = []
    there = set()
    for row in rows:
        token = row.get("content") if isinstance(row, dict) else None
        if isinstance(token, str) and token in changed:
            there.add(token)
            if any(row.get(name) != value for name, value in changed[token].items()):
                row |= changed[token]
                moved.add(token)
    model = document.get("model")
    ids = _ids(model.get("vocab") if isinstance(model, dict) else None, set(changed) - there)
    for token, number in ids.items():
        rows.append({"id": number, "content": token, **_PLAIN} | changed[token])
        moved.add(token)
    if ids:
        # transformers goes by their order, and each has an id but in files that are broken anyway.
        document["added_tokens"] = sorted(rows, key=_row_id)
    return ids


def _row_id(row: Any) -> int:
    number = row.get("id") if isinstance(row, dict) else None
    return number if isinstance(number, int) else 0


def _ids(vocabulary: Any, tokens: set[str]) -> dict[str, int]:
    """The ids of tokens in a model's vocabulary."""
    if isinstance(vocabulary, dict):
        found = {token: vocabulary[token] for token in sorted(tokens) if token in vocabulary}
        return {token: number for token, number in found.items() if isinstance(number, int)}
    if isinstance(vocabulary, list):
        return {
            row[0]: number
            for number, row in enumerate(vocabulary)
            if isinstance(row, list) and row and isinstance(row[0], str) and row[0] in tokens
        }
    return {}


def _flag_config(
    document: dict[str, Any], changed: Mapping[str, Flags], ids: Mapping[str, int]
) -> bool:
    """Set flags in a ``tokenizer_config.json``; whether any was another."""
    table = document.get("added_tokens_decoder")
    if not isinstance(table, dict):
        return False
    moved = False
    for row in table.values():
        token = row.get("content") if isinstance(row, dict) else None
        if isinstance(token, str) and token in changed:
            moved |= any(row.get(name) != value for name, value in changed[token].items())
            row |= changed[token]
    for token, number in ids.items():
        if str(number) not in table:
            table[str(number)] = {"content": token, **_PLAIN} | changed[token]
            moved = True
    return moved
