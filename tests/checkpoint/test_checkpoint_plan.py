"""The layout of outputs: the base's files and order, and the Hub's grouping on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from deltastore.checkpoint import ShardPlan, TensorSpec, open_checkpoint, plan_shards
from deltastore.errors import NoWeightsError


def outputs(*names: str, dtype: str = "F32") -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, dtype, (2, 3)) for name in names}


def layout(plan: tuple[ShardPlan, ...]) -> list[tuple[str, list[str]]]:
    return [(shard.filename, [tensor.name for tensor in shard.tensors]) for shard in plan]


def test_sizes() -> None:
    tensor = TensorSpec("a", "BF16", (2, 3))
    assert (tensor.elements, tensor.nbytes) == (6, 12)
    assert TensorSpec("a", "F64", ()).nbytes == 8
    assert ShardPlan("x", (tensor, tensor)).nbytes == 24


def test_the_base_is_followed(sharded: Path) -> None:
    with open_checkpoint(sharded) as base:
        plan = plan_shards(base, outputs("e", "d", "c", "b", "a", "z", "y"))
    assert layout(plan) == [
        ("model-00001-of-00003.safetensors", ["a", "b"]),
        ("model-00002-of-00003.safetensors", ["c"]),
        ("model-00003-of-00003.safetensors", ["d", "e", "y", "z"]),
    ]


def test_file_order_is_kept(tmp_path: Path, raw: Any) -> None:
    entry = {"dtype": "F32", "shape": [1]}
    raw(
        {
            "a": entry | {"data_offsets": [8, 12]},
            "b": entry | {"data_offsets": [0, 4]},
            "c": entry | {"data_offsets": [4, 8]},
        },
        bytes(12),
    )
    with open_checkpoint(tmp_path) as base:
        plan = plan_shards(base, outputs("a", "b", "c"))
    assert layout(plan) == [("model.safetensors", ["b", "c", "a"])]


@pytest.mark.parametrize(
    "names",
    [("a\u202e.safetensors", "b.safetensors"), ("a.safetensors", "A.safetensors")],
    ids=["hidden", "case"],
)
def test_shards_whose_names_no_index_may_have_are_numbered(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for name, tensor in zip(names, "ab", strict=True):
        save_file({tensor: np.zeros((2, 3), np.float32)}, tmp_path / name)
    with open_checkpoint(tmp_path) as base:
        plan = plan_shards(base, outputs("a", "b"))
    assert [shard.filename for shard in plan] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_an_emptied_shard_vanishes(sharded: Path) -> None:
    with open_checkpoint(sharded) as base:
        assert layout(plan_shards(base, outputs("a", "d"))) == [
            ("model-00001-of-00002.safetensors", ["a"]),
            ("model-00002-of-00002.safetensors", ["d"]),
        ]
        assert layout(plan_shards(base, outputs("c"))) == [("model.safetensors", ["c"])]
        assert layout(plan_shards(base, outputs("new"))) == [("model.safetensors", ["new"])]
        with pytest.raises(NoWeightsError):
            plan_shards(base, {})


def test_other_names_are_kept(tmp_path: Path, save: Any) -> None:
    for name in "abc":
        save(tmp_path / f"part_{name}.safetensors", name)
    with open_checkpoint(tmp_path) as base:
        assert layout(plan_shards(base, outputs("a", "b", "c")))[1][0] == "part_b.safetensors"
        assert layout(plan_shards(base, outputs("a", "c"))) == [
            ("part_a.safetensors", ["a"]),
            ("part_c.safetensors", ["c"]),
        ]


def test_a_single_file_gets_the_name_that_programs_look_for(tmp_path: Path, save: Any) -> None:
    with open_checkpoint(save(tmp_path / "mine.safetensors", "a")) as base:
        assert layout(plan_shards(base, outputs("a"))) == [("model.safetensors", ["a"])]


@pytest.mark.parametrize("count", [1, 3])
def test_a_pickled_base_gets_safetensors_names(tmp_path: Path, count: int) -> None:
    for i in range(count):
        end = "" if count == 1 else f"-{i + 1:05d}-of-{count:05d}"
        torch.save({f"t{i}": torch.zeros(2, 3)}, tmp_path / f"pytorch_model{end}.bin")
    with open_checkpoint(tmp_path) as base:
        plan = plan_shards(base, outputs(*base.tensors))
    assert [shard.filename for shard in plan] == (
        ["model.safetensors"]
        if count == 1
        else [f"model-{i + 1:05d}-of-00003.safetensors" for i in range(3)]
    )


def test_tensors_stay_aligned(tmp_path: Path) -> None:
    arrays = {"w": np.zeros(3, np.float32), "x": np.zeros(3, np.float32)}
    save_file(arrays, tmp_path / "model.safetensors")
    changed = {
        "w": TensorSpec("w", "F8_E4M3", (3,)),
        "x": TensorSpec("x", "F32", (3,)),
        "y": TensorSpec("y", "BF16", (3,)),
    }
    with open_checkpoint(tmp_path) as base:
        assert layout(plan_shards(base, changed)) == [("model.safetensors", ["x", "y", "w"])]
        changed["w"] = TensorSpec("w", "F8_E4M3", (4,))
        assert layout(plan_shards(base, changed)) == [("model.safetensors", ["w", "x", "y"])]


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=20), limit=st.integers(1, 60))
@settings(deadline=None)
def test_groups_are_those_of_the_hubs_library(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
) -> None:
    tensors = {f"t{i:02d}": TensorSpec(f"t{i:02d}", "U8", (n,)) for i, n in enumerate(sizes)}
    path = tmp_path_factory.mktemp("base") / "model.safetensors"
    save_file({name: np.zeros(0, np.uint8) for name in tensors}, path)
    with open_checkpoint(path) as base:
        plan = plan_shards(base, tensors, max_shard_bytes=limit)
    oracle = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        get_storage_id=lambda _: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    assert dict(layout(plan)) == oracle.filename_to_tensors
