"""What one process of several wrote of a model is not taken for the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from deltastore.checkpoint import open_checkpoint
from deltastore.errors import CheckpointCorruptError, NoWeightsError

WEIGHTS = {"model.embed_tokens.weight": torch.arange(8.0).view(4, 2), "model.norm": torch.ones(2)}


def save_file_of(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("consolidated.00.pth", "consolidated.01.pth"),
        ("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"),
        ("rank0.safetensors", "rank1.safetensors"),
        ("model-rank-0-part-0.safetensors", "model-rank-1-part-0.safetensors"),
        ("tp_rank_00.pt", "tp_rank_01.pt"),
    ],
)
def test_ranks(tmp_path: Path, name: str, other: str) -> None:
    path = save_file_of(tmp_path / name, WEIGHTS)
    for alone in (path, tmp_path):
        with open_checkpoint(alone) as checkpoint:
            assert list(checkpoint.tensors) == list(WEIGHTS)
    second = save_file_of(tmp_path / other, {"b": torch.ones(1)})
    for part in (path, second, tmp_path):
        with pytest.raises(CheckpointCorruptError, match="one process of several"):
            open_checkpoint(part)
    path.unlink()
    for part in (second, tmp_path):
        with pytest.raises(CheckpointCorruptError, match="one process of several"):
            open_checkpoint(part)


@pytest.mark.parametrize(
    "name",
    [
        "model_world_size_8_rank_0.pt",
        "bf16_zero_pp_rank_0_mp_rank_00_model_states.pt",
        "zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "layer_01-model_00-model_states.pt",
    ],
)
def test_names_that_are_parts_even_when_alone(tmp_path: Path, name: str) -> None:
    path = save_file_of(tmp_path / name, WEIGHTS)
    for part in (path, tmp_path):
        with pytest.raises(CheckpointCorruptError, match="one process of several") as caught:
            open_checkpoint(part)
        assert caught.value.hint


@pytest.mark.parametrize("name", ["model_world_size_1_rank_0.pt", "lora-rank-16.safetensors"])
def test_names_that_only_look_like_parts(tmp_path: Path, name: str) -> None:
    with open_checkpoint(save_file_of(tmp_path / name, WEIGHTS)) as checkpoint:
        assert list(checkpoint.tensors) == list(WEIGHTS)


def test_parts_beside_a_model_are_left_alone(tmp_path: Path) -> None:
    save_file_of(tmp_path / "pytorch_model.bin", WEIGHTS)
    for rank in range(2):
        save_file_of(tmp_path / f"consolidated.0{rank}.pth", WEIGHTS)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.ignored == ("consolidated.00.pth", "consolidated.01.pth")


# --- torch.distributed.checkpoint ----------------------------------------------------------------


@pytest.fixture(scope="module")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in each of its forms, saved by torch."""
    place = tmp_path_factory.mktemp("distributed")
    options: dict[str, Any] = {
        "of one process": {},
        "by rank": {"save_distributed": True},
        "consolidated": {"save_distributed": True, "enable_consolidation": True},
    }
    for name, chosen in options.items():
        writer = dcp.HuggingFaceStorageWriter(str(place / name), **chosen)
        dcp.save(WEIGHTS, storage_writer=writer, no_dist=True)
    dcp.save(WEIGHTS, checkpoint_id=place / "pickled", no_dist=True)
    return place


# It warns of no_dist, which is what makes one process enough.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("name", ["of one process", "consolidated"])
def test_whole_tensors_are_read(distributed: Path, name: str) -> None:
    with open_checkpoint(distributed / name) as checkpoint:
        assert list(checkpoint.tensors) == list(WEIGHTS)


@pytest.mark.parametrize("name", ["by rank", "consolidated/sharded"])
def test_tensors_by_rank_are_refused(distributed: Path, name: str) -> None:
    """In the file of rank 0 every part begins at 0."""
    (path,) = (distributed / name).glob("*.safetensors")
    for given in (path, path.parent):
        with pytest.raises(CheckpointCorruptError, match="DCP_SHARDING_INFO") as caught:
            open_checkpoint(given)
        assert "enable_consolidation=True" in caught.value.hint


@pytest.mark.parametrize(
    "said",
    ['{"model.norm": {"saved_offsets": [1]}}', "{}", "[", '{"model.norm": 1}', "[" * 100_000],
)
def test_an_index_does_not_make_parts_whole(distributed: Path, tmp_path: Path, said: str) -> None:
    shutil.copytree(distributed / "of one process", tmp_path / "model")
    with open_checkpoint(tmp_path / "model") as checkpoint:
        (shard,) = checkpoint.shards
        metadata = shard.metadata
    fields = json.loads(metadata["DCP_SHARDING_INFO"])
    if "saved_offsets" in said:
        said = json.dumps(fields | json.loads(said))
    save_file(WEIGHTS, shard.path, metadata={**metadata, "DCP_SHARDING_INFO": said})
    with pytest.raises(CheckpointCorruptError, match="expected whole tensors"):
        open_checkpoint(tmp_path / "model")


def test_what_torch_pickles_is_named_with_the_command(distributed: Path) -> None:
    (path,) = (distributed / "pickled").glob("*.distcp")
    for given in (path, path.parent):
        with pytest.raises(NoWeightsError, match="a distributed checkpoint of torch") as caught:
            open_checkpoint(given)
        assert f"dcp_to_torch {distributed / 'pickled'} " in caught.value.hint
