"""Of a repository on the hub what travels is fetched, and what does not is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub_server import HubServer

import deltastore
from deltastore.checkpoint import open_checkpoint

POOLING = "sentence_transformers.models.Pooling"
BESIDE = {
    "modules.json": json.dumps(
        [{"idx": 1, "name": "1", "path": "1_Pooling", "type": POOLING}]
    ).encode(),
    "1_Pooling/config.json": b'{"pooling_mode": "cls"}',
    "normalizer.json": b"{}",
    "value_head.safetensors": b"x" * 1000,
    "original/consolidated.00.pth": b"x" * 1000,
    "modeling_x.py": b"import os",
    "3_Other/config.json": b"{}",
    ".gitattributes": b"",
    "training_args.bin": b"x",
}
FETCHED = ["1_Pooling/config.json", "modules.json", "normalizer.json"]
LEFT = {
    "3_Other/config.json": "of no kind that is carried",
    "modeling_x.py": "code",
    "original/consolidated.00.pth": "the model in another form",
    "value_head.safetensors": "weights",
}


@pytest.fixture
def encoder(models: HubServer, sources: Path, tmp_path: Path) -> Path:
    """org/post with all that; the same as a directory."""
    place = shutil.copytree(sources / "post", tmp_path / "encoder")
    for name, data in BESIDE.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(data)
    models.publish("org/encoder", place)
    return place


def test_only_what_travels_is_fetched(models: HubServer, encoder: Path, cache: Path) -> None:
    with open_checkpoint(encoder) as local:
        pass
    models.requests.clear()
    with open_checkpoint("org/encoder", look_only=True) as checkpoint:
        assert list(checkpoint.files) == list(local.files)
        assert checkpoint.left == local.left == LEFT
    assert set(FETCHED) <= checkpoint.files.keys()
    found = {path.name for path in cache.rglob("*") if path.is_file() or path.is_symlink()}
    assert not found & {Path(name).name for name in LEFT if not name.endswith("config.json")}
    assert models.count("api") == 1


def test_named_by_a_dry_run_and_stored(
    models: HubServer, sources: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with deltastore.open(tmp_path / "store") as store:
        result = store.extract("org/base", "org/encoder", name="x")
        assert {row["name"] for row in result.not_stored} == LEFT.keys()
        stored = {file.path for file in store.show("x").files if file.side == "post"}
        assert set(FETCHED) <= stored
        made = store.apply("x", base="org/encoder", out=tmp_path / "out", dry_run=True, force=True)
        assert {row["name"] for row in made.not_copied if row["of"] == "new base"} == LEFT.keys()
        # Offline only a part of the repository is known: the same pair is still the same.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        again = store.extract("org/base", "org/encoder", name="x")
        assert (again.digest, again.reused) == (result.digest, True)
