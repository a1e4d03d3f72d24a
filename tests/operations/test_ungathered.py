"""Weights that were saved empty, as ZeRO-3 leaves them, and tensors that are empty rightly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import deltastore
from deltastore.errors import CheckpointCorruptError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def model() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def save(path: Path, model: Any, *, empty: str | None = None, step: float = 0.0) -> Path:
    """As a trainer saves it: weights whose name has ``empty`` in it were not gathered."""
    state = {name: value + step for name, value in model.state_dict().items()}
    if empty is not None:
        state |= {n: torch.empty(0, dtype=v.dtype) for n, v in state.items() if empty in n}
    model.save_pretrained(path, state_dict=state)
    return path


@pytest.mark.parametrize("empty", ["weight", "proj", "model.layers.1.mlp.up_proj"])
@pytest.mark.parametrize("side", ["base", "post", "both"])
def test_a_pair(tmp_path: Path, model: Any, side: str, empty: str) -> None:
    """One of which weights are empty; both, where that is most of the model."""
    sides = [
        save(tmp_path / name, model, step=step, empty=empty if side in (name, "both") else None)
        for name, step in (("base", 0), ("post", 0.01))
    ]
    with deltastore.open(tmp_path / "store") as store:
        if side == "both" and empty not in ("weight", "proj"):
            store.extract(*sides)
            return
        for restore_only in (False, True):
            with pytest.raises(CheckpointCorruptError) as caught:
                store.extract(*sides, restore_only=restore_only)
            error = caught.value
            assert error.exit_code == 63
            assert str(sides[side == "post"]) in error.message
            assert "[0]" in error.message
            assert all(empty in name for name in error.facts["empty"])
            assert "stage3_gather_16bit_weights_on_model_save" in error.hint
            assert "zero_to_fp32.py" in error.hint


@pytest.mark.parametrize("shapes", [((0, 8), (4, 8)), ((4, 8), (0, 8)), ((0,), (4, 8))])
def test_a_matrix_without_rows(tmp_path: Path, shapes: tuple[tuple[int, ...], ...]) -> None:
    """It may grow; one that shrinks to nothing was not saved."""
    from safetensors.torch import save_file

    sides = [tmp_path / "base", tmp_path / "post"]
    for side, shape in zip(sides, shapes, strict=True):
        side.mkdir()
        save_file({"w": torch.ones(shape), "v": torch.ones(3)}, side / "model.safetensors")
    with deltastore.open(tmp_path / "store") as store:
        if shapes[0] == (0, 8):
            assert store.apply(store.extract(*sides), base=sides[0], out=tmp_path / "out").restored
            return
        with pytest.raises(CheckpointCorruptError, match=r"expected F32 \[4, 8\], got F32 \[0"):
            store.extract(*sides)


@pytest.mark.parametrize("empty", ["weight", "up_proj"])
@pytest.mark.parametrize("options", [{}, {"partial": True}, {"force": True}, {"dry_run": True}])
def test_a_new_base(tmp_path: Path, model: Any, empty: str, options: Mapping[str, Any]) -> None:
    base, post = save(tmp_path / "base", model), save(tmp_path / "post", model, step=0.01)
    new = save(tmp_path / "new", model, empty=empty)
    with deltastore.open(tmp_path / "store") as store:
        store.extract(base, post, name="x")
        with pytest.raises(CheckpointCorruptError, match="expected BF16"):
            store.apply("x", base=new, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shapes", [((0,), (0,)), ((0, 8), (0, 8)), ((0,), (0, 8))])
def test_what_is_empty_on_both_sides(tmp_path: Path, shapes: tuple[tuple[int, ...], ...]) -> None:
    from safetensors.torch import load_file, save_file

    sides = []
    for name, step, shape in zip(("base", "post"), (0.0, 0.1), shapes, strict=True):
        sides.append(tmp_path / name)
        sides[-1].mkdir()
        tensors = {"w": torch.arange(64.0) + step, "none": torch.empty(shape)}
        save_file(tensors, sides[-1] / "model.safetensors")
    with deltastore.open(tmp_path / "store") as store:
        assert store.apply(store.extract(*sides), base=sides[0], out=tmp_path / "out").restored
    assert load_file(tmp_path / "out/model.safetensors")["none"].shape == shapes[1]
