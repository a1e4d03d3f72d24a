"""Small checkpoints on disk, and a store that was filled through the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltastore.cli.main import main


@dataclass(frozen=True)
class Models:
    """Paths of checkpoints: a base, what post-training made of it, and other bases.

    ``new_base`` descends from ``base``; ``other_base`` lacks one tensor and has another shape of a
    second.
    """

    base: str
    post: str
    new_base: str
    other_base: str


def write_checkpoint(directory: Path, tensors: dict[str, np.ndarray]) -> str:
    """Write float32 arrays as one bfloat16 safetensors shard with a config."""
    header: dict[str, Any] = {}
    data = b""
    for name, array in tensors.items():
        raw = (array.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (directory / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    return str(directory)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    random = np.random.default_rng(1)
    root = tmp_path_factory.mktemp("models")
    base = {
        "embed.weight": random.normal(0, 0.02, (96, 64)),
        "layer.0.weight": random.normal(0, 0.02, (64, 64)),
        "norm.weight": np.ones(64),
    }
    post = {
        name: array + (name != "norm.weight") * random.laplace(0, 2e-4, array.shape)
        for name, array in base.items()
    }
    new_base = {name: array + random.normal(0, 2e-4, array.shape) for name, array in base.items()}
    return Models(
        base=write_checkpoint(root / "base", base),
        post=write_checkpoint(root / "post", post),
        new_base=write_checkpoint(root / "new-base", new_base),
        other_base=write_checkpoint(
            root / "other-base",
            {"embed.weight": new_base["embed.weight"], "layer.0.weight": np.ones((32, 64))},
        ),
    )


@pytest.fixture(scope="session")
def filled_store(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with ``instruct:v1`` tagged ``good``; only to be read."""
    store = tmp_path_factory.mktemp("filled") / "store"
    arguments = ["--base", models.base, "--post", models.post, "--name", "instruct"]
    assert main(["-q", "--store", str(store), "extract", *arguments, "--tag", "good"]) == 0
    return store


@pytest.fixture
def store(filled_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which the command line uses by itself."""
    path = tmp_path / "store"
    shutil.copytree(filled_store, path)
    monkeypatch.setenv("DELTASTORE_STORE", str(path))
    return path


Call = Callable[..., Any]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command line that must succeed, and gives its JSON document."""

    def run(*argv: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert main(["--json", *argv]) == code
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command line that must succeed, and gives what it prints for people."""

    def run(*argv: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(argv) == code
        return capsys.readouterr().out

    return run
