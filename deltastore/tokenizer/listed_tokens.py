"""Tokens that other files list beside a ``tokenizer.json``, in the order in which they are added.

As transformers 5 loads a tokenizer: those of ``added_tokens_decoder`` in ``tokenizer_config.json``
by their numbers; without it those of ``added_tokens.json``, and ``special_tokens_map.json`` counts
too. Then special tokens by role, then those without one. Each that the tokenizer lacks gets the
next free id, whatever number it is listed with.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from deltastore.manifest.format import MAX_JSON_MEMORY, MAX_TOKENIZER_MEMORY
from deltastore.manifest.strict_json import parse_loosely

CONFIG = "tokenizer_config.json"
MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"

_ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_EXTRA = "extra_special_tokens"
_OLD_EXTRA = "additional_special_tokens"
_MAX_DIGITS = 20


def listed_tokens(files: Mapping[str, bytes], taken: Collection[int] = ()) -> list[str]:
    """The tokens that a tokenizer with a ``tokenizer.json`` is given as it is loaded, each once.

    What is not understood lists nothing: a reader would refuse it.

    Args:
        files: The tokenizer's files by name.
        taken: Ids of the added tokens of ``tokenizer.json``, which go before those of
            ``added_tokens.json``.
    """
    config = _object(files.get(CONFIG))
    roles = dict(config)
    # Of the two names of the list without roles the new one counts, unless it is empty.
    if _OLD_EXTRA in roles and not roles.get(_EXTRA):
        roles[_EXTRA] = roles.pop(_OLD_EXTRA)
    own = {name: roles.pop(name) for name in config if _is_own(name) and _is_text(config[name])}
    numbered: dict[int, str] = {}
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        for number, token in decoder.items():
            content = _content(token)
            if content is not None and number.isascii() and number.isdigit():
                numbered[int(number[:_MAX_DIGITS])] = content
    else:
        own |= _named(roles)
        extra = roles.get(_EXTRA)
        roles |= _object(files.get(MAP))
        if isinstance(extra, list) and isinstance(roles.get(_EXTRA), list):
            roles[_EXTRA] = [*extra, *roles[_EXTRA]]
        for token, number in _object(files.get(ADDED), memory=MAX_TOKENIZER_MEMORY).items():
            if isinstance(number, int) and number not in taken:
                numbered[number] = token
    own |= _named(roles)
    own = {name: roles[name] for name in roles if _is_own(name)} | own
    extra = roles.get(_EXTRA, roles.get(_OLD_EXTRA))
    values: list[Any] = [token for _, token in sorted(numbered.items())]
    values += [roles.get(name) for name in _ROLES]
    values += [*own.values(), *(extra if isinstance(extra, list) else ())]
    contents = [content for content in map(_content, values) if content]
    return list(dict.fromkeys(contents))


def _is_own(name: str) -> bool:
    """Whether a field is a role that this one model has, as ``image_token``."""
    return name.endswith("_token") and name not in _ROLES


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _named(roles: dict[str, Any]) -> dict[str, Any]:
    """Takes the list of tokens without roles out, where it gives them names."""
    return roles.pop(_EXTRA) if isinstance(roles.get(_EXTRA), dict) else {}


def _content(token: Any) -> str | None:
    """The text of a token, which may be a document of its own with flags."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _object(data: bytes | None, *, memory: int = MAX_JSON_MEMORY) -> dict[str, Any]:
    try:
        document = parse_loosely(data or b"{}", memory=memory)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
