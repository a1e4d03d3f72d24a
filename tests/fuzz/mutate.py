"""Mutations: of bytes, and of the JSON within an input, which flipped bytes would only break."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Callable
from typing import Any

SEPARATOR = b"\n--\n"
"""Between the documents of one input."""

_JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    1 << 48,
    1 << 62,
    1 << 64,
    10**400,
    0.5,
    1e308,
    "",
    "x" * 2000,
    "\ud800",
    "\x1b[2J",
    "../x",
    "delta",
    "sha256:" + "0" * 64,
    [],
    {},
    [[[[]]]],
    [0, 0, 1],
)
_BYTES = (b"\0", b"\xff", b"-1", b"1e999", b"null", b"[", b"{", b'"', b"\\ud800", b"9" * 400)


def mutated(draw: random.Random, name: str, data: bytes) -> bytes:
    """An input for the target ``name`` made from ``data``, in one of the two ways."""
    change = _STRUCTURES.get(name)
    if change is not None and draw.random() < 0.6:
        # Seeds that are nested deep can be read, but neither copied nor printed.
        with contextlib.suppress(RecursionError):
            return change(draw, data)
    return mutated_bytes(draw, data)


def mutated_bytes(draw: random.Random, data: bytes) -> bytes:
    """A few bytes changed, removed, repeated or put in."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 5)):
        at, size = draw.randrange(len(changed) + 1), draw.randint(1, 8)
        how = draw.randrange(5)
        if how == 0:
            changed[at : at + size] = draw.randbytes(size)
        elif how == 1:
            del changed[at : at + size]
        elif how == 2:
            changed[at:at] = draw.choice(_BYTES)
        elif how == 3:
            changed[at:at] = changed[at : at + 16 * size]
        elif at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
    return bytes(changed)


def mutated_json(draw: random.Random, text: bytes) -> bytes:
    """A document with one to three of its values changed; as it is where it is no JSON."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for _ in range(draw.randint(1, 3)):
        spots = _spots(document)
        if not spots:
            break
        holder, key = draw.choice(spots)
        other, place = draw.choice(spots)
        how = draw.randrange(5)
        if how == 0:
            holder[key] = copy.deepcopy(draw.choice(_JUNK))
        elif how == 1:
            del holder[key]
        elif how == 2 and (place in other if isinstance(other, dict) else place < len(other)):
            holder[key] = copy.deepcopy(other[place])
        elif how == 3 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif type(holder[key]) is int:
            holder[key] += draw.choice((-1, 1, 2, 1 << 20, 1 << 40, -(1 << 40)))
    return json.dumps(document).encode()


def _spots(document: Any) -> list[tuple[Any, Any]]:
    """Every container of a document with every key of it."""
    found: list[tuple[Any, Any]] = []
    todo = [document]
    while todo and len(found) < 10_000:
        holder = todo.pop()
        if isinstance(holder, dict):
            found += [(holder, key) for key in holder]
            todo += holder.values()
        elif isinstance(holder, list):
            found += [(holder, index) for index in range(len(holder))]
            todo += holder
    return found


def _pair(draw: random.Random, data: bytes) -> bytes:
    first, _, second = data.partition(SEPARATOR)
    if draw.random() < 0.2:
        return mutated_json(draw, first) + SEPARATOR + second
    return first + SEPARATOR + mutated_json(draw, second)


def _vocabulary(draw: random.Random, data: bytes) -> bytes:
    first, _, second = data[1:].partition(SEPARATOR)
    if second and draw.random() < 0.5:
        return data[:1] + first + SEPARATOR + mutated_json(draw, second)
    return data[:1] + mutated_json(draw, first) + (SEPARATOR + second if second else b"")


def _after(size: int) -> Callable[[random.Random, bytes], bytes]:
    return lambda draw, data: data[:size] + mutated_json(draw, data[size:])


def _header(draw: random.Random, data: bytes) -> bytes:
    if data[:1] == b"i":
        return b"i" + mutated_json(draw, data[1:])
    length = int.from_bytes(data[:8], "little")
    text = mutated_json(draw, data[8 : 8 + length])
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


_STRUCTURES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "manifest": _pair,
    "records": _after(1),
    "part": _header,
    "header": _header,
    "small": _after(2),
    "vocabulary": _vocabulary,
    "tokens": _after(0),
}
