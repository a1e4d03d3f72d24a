"""What lineage says of a new base, and what apply does about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from operations.checkpoints import Tensors, load, save

import deltastore
from deltastore.errors import LineageError
from deltastore.execution.progress import Silent


def model(seed: int) -> Tensors:
    """Four matrices and a norm, which is much the same in every model."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"layers.{i}.weight": (0.02 * torch.randn(64, 64, generator=generator)).bfloat16()
        for i in range(4)
    }
    tensors["norm.weight"] = torch.ones(64).bfloat16()
    return tensors


def moved(tensors: Tensors, share: float, seed: int = 9) -> Tensors:
    """Every matrix with noise of so many times its own size."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (w.float() + share * 0.02 * torch.randn(w.shape, generator=generator)).bfloat16()
        if w.ndim > 1
        else w
        for name, w in tensors.items()
    }


class Listener(Silent):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        """Keep it."""
        self.warnings.append(message)


@pytest.fixture
def store(tmp_path: Path) -> deltastore.DeltaStore:
    opened = deltastore.open(tmp_path / "store")
    base = model(0)
    save(tmp_path / "base", base)
    save(tmp_path / "post", moved(base, 0.01))
    opened.extract(tmp_path / "base", tmp_path / "post", name="delta")
    return opened


@pytest.mark.parametrize(
    ("share", "verdict", "warned"),
    [
        (0.0, "same", False),
        (0.1, "related", False),
        (0.4, "related", False),
        (0.8, "distant", True),
        (1.5, "distant", True),
    ],
)
def test_a_descendant_is_accepted(
    store: deltastore.DeltaStore, tmp_path: Path, share: float, verdict: str, warned: bool
) -> None:
    save(tmp_path / "new", moved(model(0), share) if share else model(0))
    listener = Listener()
    result = store.apply("delta", base=tmp_path / "new", out=tmp_path / "out", progress=listener)
    figures = result.lineage[0]
    assert figures["verdict"] == verdict
    assert figures["same"] == (verdict == "same")
    # Independent noise of that size: the cosine that geometry gives.
    assert figures["cosine"] == pytest.approx((1 + share**2) ** -0.5, abs=0.03)
    assert figures["distance"] == pytest.approx(share, abs=0.05)
    assert figures["elements"] >= 1024
    assert bool(listener.warnings) == warned


@pytest.mark.parametrize("seed", range(1, 11))
@pytest.mark.parametrize("dry_run", [False, True])
def test_another_model_of_the_same_shapes_is_refused(
    store: deltastore.DeltaStore, tmp_path: Path, seed: int, dry_run: bool
) -> None:
    save(tmp_path / "new", model(seed))
    with pytest.raises(LineageError, match="unrelated") as caught:
        store.apply("delta", base=tmp_path / "new", out=tmp_path / "out", dry_run=dry_run)
    assert caught.value.exit_code == 32
    assert abs(caught.value.facts["cosine"]) < 0.1
    assert "deltastore resolve --base" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_force_applies_all_the_same(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    save(tmp_path / "new", model(1))
    result = store.apply("delta", base=tmp_path / "new", out=tmp_path / "out", force=True)
    assert result.lineage[0]["verdict"] == "unrelated"
    assert load(tmp_path / "out").keys() == model(1).keys()


def test_permuted_rows_are_another_model(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    save(tmp_path / "new", {n: w[order] if w.ndim > 1 else w for n, w in model(0).items()})
    with pytest.raises(LineageError):
        store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")


@pytest.mark.parametrize(("strange", "verdict"), [(0, "related"), (1, "unrelated")])
def test_one_part_of_another_model_is_noticed(
    store: deltastore.DeltaStore, tmp_path: Path, strange: int, verdict: str
) -> None:
    """The mean of all tensors would hide it."""
    new = moved(model(0), 0.05)
    for name in list(new)[:strange]:
        new[name] = model(1)[name]
    save(tmp_path / "new", new)
    result = store.apply("delta", base=tmp_path / "new", out=tmp_path / "out", force=True)
    figures = result.lineage[0]
    assert figures["cosine"] > 0.7
    assert (figures["unlike"], figures["verdict"]) == (strange, verdict)


def test_too_few_numbers_prove_nothing(tmp_path: Path) -> None:
    with deltastore.open(tmp_path / "store") as store:
        small = {"w": torch.tensor([[1.0, -1.0, 1.0]])}
        other = {"w": torch.tensor([[-1.0, 1.0, 1.0]])}
        pair = [save(tmp_path / "b", small), save(tmp_path / "p", {"w": small["w"] + 1})]
        store.extract(*pair, name="tiny")
        listener = Listener()
        result = store.apply(
            "tiny", base=save(tmp_path / "n", other), out=tmp_path / "out", progress=listener
        )
    assert result.lineage[0]["verdict"] == "unknown"
    assert len(listener.warnings) == 1
