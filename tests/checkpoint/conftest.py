"""Hand-made checkpoint files, built without the code under test."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

Raw = Callable[..., Path]
Save = Callable[..., Path]


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    """Write a safetensors file from a header (object, text or bytes) and data."""

    def write(
        header: Any, data: bytes = b"", *, length: int | None = None, name: str = "m.safetensors"
    ) -> Path:
        if not isinstance(header, (bytes, str)):
            header = json.dumps(header)
        if isinstance(header, str):
            header = header.encode()
        path = tmp_path / name
        size = len(header) if length is None else length
        path.write_bytes(struct.pack("<Q", size) + header + data)
        return path

    return write


@pytest.fixture
def save() -> Save:
    """Save by the safetensors library: names become float32 arrays, filled with their number."""

    def write(path: Path, *names: str, **arrays: np.ndarray[Any, Any]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: np.full((2, 3), i, np.float32) for i, name in enumerate(names)}
        save_file(tensors | arrays, path, metadata={"format": "pt"})
        return path

    return write


@pytest.fixture
def sharded(tmp_path: Path, save: Save) -> Path:
    """A directory of three shards with an index: a, b / c / d, e."""
    directory = tmp_path / "model"
    groups = [("a", "b"), ("c",), ("d", "e")]
    weight_map = {}
    for i, names in enumerate(groups, 1):
        filename = f"model-{i:05d}-of-00003.safetensors"
        save(directory / filename, *names)
        weight_map.update(dict.fromkeys(names, filename))
    write_index(directory / "model.safetensors.index.json", weight_map)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


def write_index(path: Path, weight_map: dict[str, Any], **fields: Any) -> None:
    """Write an index file."""
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map} | fields))


@pytest.fixture
def reindex(sharded: Path) -> Callable[..., dict[str, Any]]:
    """Change the weight map of ``sharded``."""

    def change(**changes: Any) -> dict[str, Any]:
        path = sharded / "model.safetensors.index.json"
        weight_map = json.loads(path.read_text())["weight_map"] | changes
        write_index(path, {k: v for k, v in weight_map.items() if v is not None})
        return weight_map

    return change
