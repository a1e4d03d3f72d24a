"""An attack: hostile files in a place of their own, and what a user would do with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Action = Callable[[], object]
Make = Callable[[Path], Action]

ATTACKS: dict[str, Make] = {}
"""Every attack by its name: puts its files below a directory, returns what to do with them."""

_ROW = re.compile(r"\| `(?P<name>[^`]+)` \| [^|]+ \| (?P<error>\w+) \| (?P<code>\d+) \|\Z")


@dataclass(frozen=True)
class Outcome:
    """The class of the error, or ``accepted``, and the exit code."""

    error: str
    code: int


def attack(name: str) -> Callable[[Make], Make]:
    """Register a function as the attack ``name``."""

    def register(make: Make) -> Make:
        assert name not in ATTACKS, name
        ATTACKS[name] = make
        return make

    return register


def table() -> dict[str, Outcome]:
    """The outcomes that README.md promises, by attack."""
    rows = {}
    for line in (Path(__file__).parent / "README.md").read_text().splitlines():
        if match := _ROW.match(line):
            assert match["name"] not in rows, line
            rows[match["name"]] = Outcome(match["error"], int(match["code"]))
    return rows


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file; ``header`` is JSON, or bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: object, begin: object, end: object) -> dict[str, object]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def checkpoint(directory: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> Path:
    """An honest checkpoint of one file."""
    directory.mkdir(parents=True, exist_ok=True)
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = entry(dtype, shape, len(data), len(data) + len(content))
        data += content
    (directory / "model.safetensors").write_bytes(safetensors(header, data))
    return directory
