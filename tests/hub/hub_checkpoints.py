"""Checkpoints for the tests' hub, written without the code tested."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]


def save(directory: Path, arrays: Arrays, *, shards: int = 2) -> Path:
    """A checkpoint of bfloat16 shards with an index and small files."""
    directory.mkdir(parents=True)
    names = list(arrays)
    weight_map = {}
    for i in range(shards):
        filename = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        header, data = {}, b""
        for name in names[i::shards]:
            raw = (arrays[name].astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
            offsets = [len(data), len(data) + len(raw)]
            header[name] = {
                "dtype": "BF16",
                "shape": list(arrays[name].shape),
                "data_offsets": offsets,
            }
            data += raw
            weight_map[name] = filename
        text = json.dumps(header).encode()
        (directory / filename).write_bytes(len(text).to_bytes(8, "little") + text + data)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text('{"model_type": "llama", "vocab_size": 256}')
    (directory / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (directory / "chat_templates").mkdir()
    (directory / "chat_templates" / "rag.jinja").write_text("x")
    return directory
