"""Directories whose index and shards do not agree, made of what transformers saves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoints import load
from families import FAMILIES, move
from safetensors.torch import load_file, save_file

import deltastore
from deltastore.checkpoint import open_checkpoint
from deltastore.cli.main import main
from deltastore.errors import CheckpointCorruptError

pytestmark = pytest.mark.usefixtures("quiet")

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied base and its post in shards, and post in more of them."""
    place = tmp_path_factory.mktemp("saved")
    model = FAMILIES["tied llama"].build(1)
    model.save_pretrained(place / "base", max_shard_size="12KB")
    move(model, 2, 0.02)
    model.save_pretrained(place / "post", max_shard_size="12KB")
    model.save_pretrained(place / "more", max_shard_size="6KB")
    return place


@pytest.fixture
def post(saved: Path, tmp_path: Path) -> Path:
    """A copy to be put out of order."""
    return Path(shutil.copytree(saved / "post", tmp_path / "post"))


def digest_of(store: deltastore.DeltaStore, saved: Path, post: Path) -> str:
    return store.extract(saved / "base", post, name="x").digest


def change_index(directory: Path, **changes: str | None) -> list[str]:
    """Its shards, after some tensors were given another one, or none, in the index."""
    fields = json.loads((directory / INDEX).read_text())
    shards = sorted(set(fields["weight_map"].values()))
    changed = fields["weight_map"] | changes
    fields["weight_map"] = {name: shard for name, shard in changed.items() if shard}
    fields["metadata"]["total_size"] = 1
    (directory / INDEX).write_text(json.dumps(fields))
    return shards


def test_shards_of_another_saving_change_nothing(
    saved: Path, post: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And extract, apply and resolve say that they are there."""
    for path in (saved / "more").glob("*.safetensors"):
        shutil.copy(path, post)
    place = ["--store", str(tmp_path / "store")]
    warned = "warning: " + f"{post} also holds model-00001-of-"
    assert main([*place, "-q", "extract", "--base", str(saved / "base"), "--post", str(post)]) == 0
    assert warned in capsys.readouterr().err
    with deltastore.open(tmp_path / "store") as store:
        assert digest_of(store, saved, saved / "post") == store.list()[0].digest
    out = ["--out", str(tmp_path / "out")]
    assert main([*place, "-q", "apply", "post", "--base", str(post), *out]) == 0
    assert warned in capsys.readouterr().err
    assert main([*place, "-q", "resolve", "--base", str(post)]) == 0
    assert warned in capsys.readouterr().err


def test_a_whole_model_beside_shards_is_chosen_by_its_path(
    store: deltastore.DeltaStore, saved: Path, post: Path
) -> None:
    single = post / "model.safetensors"
    save_file(load(saved / "base"), single)
    with pytest.raises(CheckpointCorruptError, match=r"holds both model\.safetensors and"):
        digest_of(store, saved, post)
    wanted = digest_of(store, saved, saved / "post")
    assert digest_of(store, saved, post / INDEX) == wanted
    assert store.extract(post / INDEX, single, name="back").digest != wanted


def test_a_tied_head_that_only_the_index_names(
    store: deltastore.DeltaStore, saved: Path, post: Path
) -> None:
    """As of converters that write the index before they drop the head."""
    shards = change_index(post)
    change_index(post, **{"lm_head.weight": shards[-1]})
    assert digest_of(store, saved, post) == digest_of(store, saved, saved / "post")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("model.layers.9.mlp.up_proj.weight", {}),
        ("model.layers.0.self_attn.q_proj.bias", {}),
        ("lm_head.weight", {"tie_word_embeddings": False}),
        ("lm_head.bias", {}),
    ],
)
def test_a_tensor_that_is_nowhere_is_missed(
    store: deltastore.DeltaStore, saved: Path, post: Path, name: str, config: dict[str, Any]
) -> None:
    shards = change_index(post)
    change_index(post, **{name: shards[-1]})
    path = post / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(CheckpointCorruptError, match=f"not in their shards: {name}"):
        digest_of(store, saved, post)


def test_embeddings_that_are_stored_as_the_head(post: Path) -> None:
    """As save_model keeps them, with an index of what the model has."""
    (shard,) = {json.loads((post / INDEX).read_text())["weight_map"]["model.embed_tokens.weight"]}
    tensors = load_file(post / shard)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, post / shard)
    change_index(post, **{"lm_head.weight": shard})
    with open_checkpoint(post) as checkpoint:
        assert "lm_head.weight" in checkpoint.tensors
        assert "model.embed_tokens.weight" not in checkpoint.tensors


def test_a_tensor_that_only_a_shard_has_is_the_models(
    store: deltastore.DeltaStore, saved: Path, post: Path
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    change_index(post, **{name: None})
    assert digest_of(store, saved, post) == digest_of(store, saved, saved / "post")


def test_a_lone_shard_is_no_model(
    saved: Path, post: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = sorted(post.glob("*.safetensors"))[1]
    arguments = ["--store", str(tmp_path / "s"), "extract", "--base", str(saved / "base"), "--post"]
    assert main([*arguments, str(shard)]) == 63
    (tmp_path / "lone").mkdir()
    shard.rename(tmp_path / "lone" / shard.name)
    assert main([*arguments, str(tmp_path / "lone")]) == 63
    assert main([*arguments, str(tmp_path / "lone" / shard.name)]) == 63
    assert "expected a whole model" in capsys.readouterr().err
