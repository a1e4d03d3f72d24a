"""Pairs that are stored to be restored alone, of which samples say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import deltastore
from deltastore.errors import RestoreOnlyError, StructureMismatchError

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402


def save(path: Path, tensors: dict[str, Any]) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    return path


def packed(seed: int) -> dict[str, Any]:
    """As MXFP4 is stored: blocks and exponents in bytes."""
    generator = torch.Generator().manual_seed(seed)
    bytes_of = lambda *shape: torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)  # noqa: E731
    return {"up_blocks": bytes_of(4, 8, 2, 16), "up_scales": bytes_of(4, 8, 2)}


PAIRS = {
    "integers": (packed(0), packed(1)),
    "tiny floats": (
        packed(0) | {"scale": torch.tensor(0.5), "none": torch.zeros(1)},
        packed(1) | {"scale": torch.tensor(0.75), "none": torch.zeros(1)},
    ),
    "no numbers": (
        packed(0) | {"scale": torch.full((8,), torch.nan)},
        packed(1) | {"scale": torch.ones(8)},
    ),
    "nothing changed but one": (packed(0), packed(0) | {"up_scales": packed(1)["up_scales"]}),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_post_comes_back_on_its_own_base_alone(tmp_path: Path, kind: str) -> None:
    before, after = PAIRS[kind]
    base, post = save(tmp_path / "base", before), save(tmp_path / "post", after)
    other = before | {"up_blocks": before["up_blocks"].clone()}
    other["up_blocks"][3, 7, 1, 15] ^= 1
    other = save(tmp_path / "other", other)
    with deltastore.open(tmp_path / "store") as store:
        ref = store.extract(base, post, restore_only=True)
        assert store.apply(ref, base=base, out=tmp_path / "out").restored
        got = load_file(tmp_path / "out/model.safetensors")
        assert got.keys() == after.keys()
        assert all(
            got[name].view(torch.uint8).equal(after[name].view(torch.uint8))
            if after[name].ndim
            else got[name].equal(after[name])
            for name in after
        )
        for options in ({"base": other}, {"base": base, "scale": 0.5}):
            for more in ({}, {"force": True}, {"partial": True}):
                with pytest.raises(RestoreOnlyError) as caught:
                    store.apply(ref, out=tmp_path / "no", **options, **more)
                assert caught.value.exit_code == 33
        (own,) = store.resolve(base)
        (foreign,) = store.resolve(other)
    sampled = kind in ("tiny floats", "no numbers")
    for candidate in (own, foreign):  # which of them it is, samples of floats do not say either
        assert candidate.compatible or "samples do not say" in candidate.reasons[0]
        assert candidate.compatible >= sampled
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("prefix", ["", "model."])
def test_no_hint_advises_what_would_be_refused(tmp_path: Path, prefix: str) -> None:
    """Neither ``--partial`` nor ``--map`` restores anything."""
    before = packed(0) | {"norm": torch.ones(8)}
    base = save(tmp_path / "base", before)
    post = save(tmp_path / "post", packed(1) | {"norm": torch.ones(8)})
    other = {f"{prefix}{name}": value for name, value in before.items()}
    other[f"{prefix}norm"] = torch.ones(8 if prefix else 9)
    new = save(tmp_path / "new", other)
    with deltastore.open(tmp_path / "store") as store:
        ref = store.extract(base, post, restore_only=True)
        with pytest.raises(StructureMismatchError) as caught:
            store.apply(ref, base=new, out=tmp_path / "out")
    assert not {"--partial", "--map"} & set(caught.value.hint.replace("`", " ").split())
