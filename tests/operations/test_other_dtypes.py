"""Restore patches are of post's bits: they are used where the output is of post's dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import deltastore

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from deltastore.errors import QuantisedCheckpointError  # noqa: E402

DTYPES = ("float32", "bfloat16", "float16", "float64")


def pair(base_dtype: Any, post_dtype: Any) -> tuple[Any, Any]:
    """Weights of which some need a patch: a zero that becomes negative, numbers far apart."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 48, generator=generator).to(base_dtype)
    base.view(-1)[::97] = 0.0
    post = (base.double() + 0.01 * torch.randn(64, 48, generator=generator)).to(post_dtype)
    post.view(-1)[::97] = -0.0
    post.view(-1)[5::211] *= 1e-4
    return base, post


def save(path: Path, weight: Any) -> Path:
    path.mkdir()
    save_file({"weight": weight}, path / "model.safetensors")
    return path


@pytest.mark.parametrize("post_dtype", DTYPES)
@pytest.mark.parametrize("base_dtype", DTYPES)
def test_a_model_of_the_bases_dtype(tmp_path: Path, base_dtype: str, post_dtype: str) -> None:
    base, post = pair(getattr(torch, base_dtype), getattr(torch, post_dtype))
    model = torch.nn.Linear(48, 64, bias=False, dtype=base.dtype)
    with torch.no_grad():
        model.weight.copy_(base)
    with deltastore.open(tmp_path / "store") as store:
        ref = store.extract(save(tmp_path / "base", base), save(tmp_path / "post", post))
        patch = store.patch(model, ref)
        if base_dtype == post_dtype:
            assert torch.equal(model.weight, post)
            assert torch.equal(torch.signbit(model.weight), torch.signbit(post))
        else:
            wide = (
                torch.float64 if {"float32", "float64"} & {base_dtype, post_dtype} else base.dtype
            )
            added = post.double() - base.double()
            if wide != torch.float64:  # deltas between 16-bit dtypes are kept in float32
                added = added.float().double()
            assert torch.equal(model.weight, (base.double() + added).to(base.dtype))
        assert patch.restored is (base_dtype == post_dtype)
        store.unpatch(model)
        assert torch.equal(model.weight, base)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("post_dtype", DTYPES[:3])
def test_an_output_of_another_dtype(tmp_path: Path, post_dtype: str, dtype: str) -> None:
    """On the delta's own base: the sum, rounded once; without ``--dtype`` it is post."""
    base, post = pair(torch.bfloat16, getattr(torch, post_dtype))
    with deltastore.open(tmp_path / "store") as store:
        ref = store.extract(save(tmp_path / "base", base), save(tmp_path / "post", post))
        assert store.apply(ref, base=tmp_path / "base", out=tmp_path / "own").restored
        done = store.apply(ref, base=tmp_path / "base", out=tmp_path / "out", dtype=dtype)
    own = load_file(tmp_path / "own/model.safetensors")["weight"]
    assert own.dtype == post.dtype
    assert torch.equal(own.view(torch.uint8), post.view(torch.uint8))
    assert not done.restored
    added = post.double() - base.double()
    if post_dtype != "float32":
        added = added.float().double()
    got = load_file(tmp_path / "out/model.safetensors")["weight"]
    assert torch.equal(got, (base.double() + added).to(getattr(torch, dtype)))


def test_a_quantised_model(tmp_path: Path) -> None:
    """As transformers holds it: fp8 weights with scales for their blocks."""
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    model = fp8.FP8Linear(256, 256, block_size=(128, 128))
    base = torch.randn(256, 256, dtype=torch.bfloat16)
    sides = save(tmp_path / "base", base), save(tmp_path / "post", base + 0.5)
    with deltastore.open(tmp_path / "store") as store:
        ref = store.extract(*sides)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for options in ({}, {"partial": True}, {"force": True}):
            with pytest.raises(QuantisedCheckpointError, match="weight_scale_inv") as caught:
                store.patch(model, ref, **options)
            assert caught.value.exit_code == 66
            assert "--" not in caught.value.hint
    for name, value in model.state_dict().items():
        assert torch.equal(value.view(torch.uint8), before[name].view(torch.uint8))
