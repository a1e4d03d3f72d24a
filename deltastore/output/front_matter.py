"""The YAML at the head of a model card, which strangers wrote. The one place that imports yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

MAX_BYTES = 1 << 16
MAX_DEPTH = 16
_BLOCK = re.compile(
    rb"\s*---[ \t]*(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)", re.DOTALL
)
_BEGIN = re.compile(rb"\s*---[ \t]*[\r\n]")
_MARK = b"\xef\xbb\xbf"


class FrontMatterError(ValueError):
    """A model card's metadata cannot be read; the message says why, without a full stop."""


def read_front_matter(card: bytes) -> dict[str, Any]:
    """The metadata of a model card: strings, lists and objects; empty where there is none.

    Every scalar is the string that stands there: for PyYAML's own YAML 1.1, the language ``no`` is
    false and the version 1.10 is 1.1.

    Raises:
        FrontMatterError: It is too large, malformed, or made to expand: anchors are refused.
    """
    head = card[: MAX_BYTES + 16].removeprefix(_MARK)
    found = _BLOCK.match(head)
    if found is None:
        if len(card) > MAX_BYTES and _BEGIN.match(head):
            raise FrontMatterError(f"it has more than {MAX_BYTES} bytes")
        return {}
    try:
        document = _built(found[1].decode())
    except FrontMatterError:
        raise
    except UnicodeDecodeError as error:
        raise FrontMatterError("it is no UTF-8") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two of odd escapes
        raise FrontMatterError("it is no YAML") from error
    if document in (None, ""):
        return {}
    if not isinstance(document, dict):
        raise FrontMatterError("it is no mapping")
    return document


def front_matter(metadata: Mapping[str, Any]) -> str:
    """Metadata as the head of a model card, with both of its lines of dashes."""
    text = yaml.safe_dump(
        dict(metadata), sort_keys=False, allow_unicode=True, default_flow_style=False
    )
    return f"---\n{text}---\n"


def _built(text: str) -> Any:
    """What the events of a document amount to; less is made of them than by yaml's safe_load.

    Aliases may stand for a gigabyte, tags for Python objects, and a parser that recurses may be
    sent too deep: the first are refused, the second do nothing, and the third is none.
    """
    root: list[Any] = []
    holders: list[Any] = [root]
    keys: list[str | None] = [None]
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise FrontMatterError("it has anchors or aliases")
        if isinstance(event, yaml.CollectionEndEvent):
            holders.pop()
            keys.pop()
            continue
        if not isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            continue
        value = _begun(event)
        holder, key = holders[-1], keys[-1]
        if isinstance(holder, list):
            holder.append(value)
        elif key is not None:
            holder[key] = value
            keys[-1] = None
        elif isinstance(value, str):
            keys[-1] = value
        else:
            raise FrontMatterError("a key in it is no string")
        if not isinstance(value, str):
            holders.append(value)
            keys.append(None)
        if len(holders) > MAX_DEPTH + 1:
            raise FrontMatterError(f"it is nested more than {MAX_DEPTH} deep")
    if len(root) > 1:
        raise FrontMatterError("it is more than one document")
    return root[0] if root else None


def _begun(event: Any) -> Any:
    """A scalar's text, or a list or an object still to be filled."""
    if isinstance(event, yaml.ScalarEvent):
        return str(event.value)
    return {} if isinstance(event, yaml.MappingStartEvent) else []
