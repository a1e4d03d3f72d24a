"""Deltas in models in memory: the same bits as ``apply``, and the old bits back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from operations import oracle
from operations.checkpoints import Tensors, assert_same_bits, load, save
from operations.oracle import Step

import deltastore
from deltastore.errors import (
    BlobCorruptError,
    BlobMissingError,
    IncompatibleError,
    LineageError,
    RestoreOnlyError,
    StructureMismatchError,
    UsageError,
)
from deltastore.execution.progress import Silent
from deltastore.store import open_store


class Net(torch.nn.Module):
    """Two matrices, one of them used twice, a norm, a buffer and a table of integers."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> torch.Tensor:
            return (0.02 * torch.randn(*shape, generator=generator)).to(dtype)

        self.embed = torch.nn.Embedding(96, 48, dtype=dtype)
        self.head = torch.nn.Linear(48, 96, bias=False, dtype=dtype)
        self.inner = torch.nn.Linear(48, 48, dtype=dtype)
        self.norm = torch.nn.LayerNorm(48, dtype=dtype)
        with torch.no_grad():
            self.embed.weight.copy_(drawn(96, 48))
            self.inner.weight.copy_(drawn(48, 48))
            self.inner.bias.copy_(drawn(48))
        self.head.weight = self.embed.weight
        self.register_buffer("scale", drawn(48))
        self.register_buffer("table", torch.arange(7))


def stored(net: torch.nn.Module) -> Tensors:
    """What a checkpoint of the model holds: tied weights once."""
    return {name: t.clone() for name, t in net.state_dict().items() if name != "head.weight"}


def moved(tensors: Tensors, seed: int, size: float = 3e-4) -> Tensors:
    """What training makes of it: some elements stay, some become special."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, value in tensors.items():
        if not value.is_floating_point():
            out[name] = value
            continue
        step = size * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        changed = (value.double() + step).to(value.dtype)
        flat, old = changed.reshape(-1), value.reshape(-1)
        flat[::5] = old[::5]
        flat[1:4] = torch.tensor([float("nan"), float("inf"), -0.0]).to(value.dtype)
        out[name] = changed
    return out


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as opened:
        yield opened


def extracted(store: deltastore.DeltaStore, place: Path, dtype: torch.dtype) -> Tensors:
    """Store a delta ``delta``; the base it was measured on."""
    base = stored(Net(dtype, 1))
    save(place / "base", base)
    save(place / "post", moved(base, 2))
    store.extract(place / "base", place / "post", name="delta")
    return base


def near(net: Net, seed: int = 5) -> Net:
    """The same model trained a little further."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for weight in net.parameters():
            weight += (1e-3 * torch.randn(weight.shape, generator=generator)).to(weight.dtype)
    return net


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 0.7, -0.5])
@pytest.mark.parametrize("own_base", [True, False])
def test_patch_is_apply_and_unpatch_gives_the_bits_back(
    store: deltastore.DeltaStore, tmp_path: Path, dtype: torch.dtype, scale: float, own_base: bool
) -> None:
    extracted(store, tmp_path, dtype)
    net = Net(dtype, 1) if own_base else near(Net(dtype, 1))
    before = stored(net)
    save(tmp_path / "new", before)
    result = store.apply("delta", base=tmp_path / "new", out=tmp_path / "out", scale=scale)
    patch = store.patch(net, "delta", scale)
    assert_same_bits(stored(net), load(tmp_path / "out"))
    assert net.head.weight is net.embed.weight
    assert patch.tensors == 6  # the tied one once, the integers not at all
    assert patch.restored == result.restored == (own_base and scale == 1)
    assert 0 < patch.bytes_kept < 0.5 * sum(t.nbytes for t in before.values())
    store.unpatch(net)
    assert_same_bits(stored(net), before)
    with pytest.raises(UsageError, match="no delta of this store"):
        store.unpatch(net)


def test_another_dtype_is_what_apply_onto_such_a_base_gives(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    """A bfloat16 delta in a model that was loaded as float32: one rounding, to float32."""
    base = extracted(store, tmp_path, torch.bfloat16)
    post = load(tmp_path / "post")
    net = near(Net(torch.float32, 1))
    before = stored(net)
    store.patch(net, "delta", 0.3)
    for name, got in stored(net).items():
        if got.is_floating_point():
            step = Step(base[name], post[name], 0.3)
            oracle.check(got, oracle.applied(before[name], [step]), name)
    store.unpatch(net)
    assert_same_bits(stored(net), before)


def test_a_buffer_that_is_wider_in_memory_leaves_the_others_posts(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    """As transformers keeps some buffers in float32, whatever the checkpoint has them in."""
    extracted(store, tmp_path, torch.bfloat16)
    net = Net(torch.bfloat16, 1)
    net.register_buffer("scale", net.scale.float())
    before = stored(net)
    patch = store.patch(net, "delta")
    assert not patch.lineage.same
    after, post = stored(net), load(tmp_path / "post")
    del after["scale"], post["scale"]
    assert_same_bits(after, post)
    store.unpatch(net)
    assert_same_bits(stored(net), before)


def test_a_warning_about_lineage_is_for_python(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    extracted(store, tmp_path, torch.float32)
    warnings: list[str] = []

    class Watcher(Silent):
        def warn(self, message: str) -> None:
            warnings.append(message)

    net = near(Net(torch.float32, 1))
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(3)) * 0.02)
    assert store.patch(net, "delta", progress=Watcher()).lineage.verdict == "distant"
    assert warnings
    assert not any("--" in warning for warning in warnings)


def test_patches_are_undone_in_reverse(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base = extracted(store, tmp_path, torch.bfloat16)
    save(tmp_path / "second", moved(base, 8))
    store.extract(tmp_path / "base", tmp_path / "second", name="second")
    net = near(Net(torch.bfloat16, 1))
    states = [stored(net)]
    for ref, scale in (("delta", 0.5), ("second", 1.0)):
        store.patch(net, ref, scale)
        states.append(stored(net))
    store.unpatch(net)
    assert_same_bits(stored(net), states[1])
    store.unpatch(net)
    assert_same_bits(stored(net), states[0])


def test_a_model_that_was_changed_since_is_left_alone(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    extracted(store, tmp_path, torch.bfloat16)
    net = Net(torch.bfloat16, 1)
    store.patch(net, "delta")
    with torch.no_grad():
        net.inner.weight[3, 4] += 1
    after = stored(net)
    with pytest.raises(UsageError, match=r"inner\.weight is not what delta:v1 left"):
        store.unpatch(net)
    assert_same_bits(stored(net), after)


class Stop:
    """Interrupts at the n-th piece of one stage."""

    def __init__(self, stage: str, pieces: int) -> None:
        self.stage, self.left, self.now = stage, pieces, ""

    def start(self, label: str, total_bytes: int) -> None:
        self.now = label

    def advance(self, done_bytes: int) -> None:
        if self.now == self.stage:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    def warn(self, message: str) -> None: ...


@pytest.mark.parametrize("pieces", [1, 3, 6])
@pytest.mark.parametrize("jobs", [1, 3])
def test_a_patch_that_is_stopped_is_taken_back(
    store: deltastore.DeltaStore, tmp_path: Path, pieces: int, jobs: int
) -> None:
    before = extracted(store, tmp_path, torch.bfloat16)
    net = Net(torch.bfloat16, 1)
    with pytest.raises(KeyboardInterrupt):
        store.patch(net, "delta", jobs=jobs, progress=Stop("patching", pieces))
    assert_same_bits(stored(net), before)
    with pytest.raises(UsageError, match="no delta of this store"):
        store.unpatch(net)
    store.patch(net, "delta")
    assert_same_bits(stored(net), load(tmp_path / "post"))


@pytest.mark.parametrize("pieces", [1, 3, 6])
def test_an_unpatch_that_is_stopped_is_finished_by_the_next(
    store: deltastore.DeltaStore, tmp_path: Path, pieces: int
) -> None:
    before = extracted(store, tmp_path, torch.bfloat16)
    net = Net(torch.bfloat16, 1)
    store.patch(net, "delta")
    with pytest.raises(KeyboardInterrupt):
        store.unpatch(net, jobs=1, progress=Stop("unpatching", pieces))
    store.unpatch(net)
    assert_same_bits(stored(net), before)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e39])
def test_a_scale_that_is_no_number(
    store: deltastore.DeltaStore, tmp_path: Path, scale: float
) -> None:
    extracted(store, tmp_path, torch.bfloat16)
    net = Net(torch.bfloat16, 1)
    before = stored(net)
    with pytest.raises(UsageError, match="finite"):
        store.patch(net, "delta", scale)
    assert_same_bits(stored(net), before)


def test_a_delta_for_restoration_only(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base = stored(Net(torch.bfloat16, 1))
    save(tmp_path / "base", base)
    save(tmp_path / "post", moved(base, 2))
    store.extract(tmp_path / "base", tmp_path / "post", name="delta", restore_only=True)
    error = refused(store, Net(torch.bfloat16, 1), RestoreOnlyError)
    assert "store.apply" in error.hint


def test_weights_that_lie_across_memory(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    extracted(store, tmp_path, torch.bfloat16)
    plain, net = Net(torch.bfloat16, 1), Net(torch.bfloat16, 1)
    with torch.no_grad():
        net.inner.weight = torch.nn.Parameter(net.inner.weight.t().contiguous().t())
    assert not net.inner.weight.is_contiguous()
    before = stored(net)
    store.patch(net, "delta", 0.7)
    store.patch(plain, "delta", 0.7)
    assert_same_bits(stored(net), stored(plain))
    store.unpatch(net)
    assert_same_bits(stored(net), before)


def test_delta_tensors_come_one_by_one(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base = extracted(store, tmp_path, torch.bfloat16)
    post = load(tmp_path / "post")
    found = dict(store.delta_tensors("delta"))
    assert found.keys() == {name for name, t in base.items() if t.is_floating_point()}
    for name, delta in found.items():
        assert delta.dtype == torch.float32
        assert delta.shape == base[name].shape
        want = torch.where(base[name] == post[name], 0.0, post[name].float() - base[name].float())
        assert torch.equal(delta.nan_to_num(nan=7.0), want.nan_to_num(nan=7.0)), name


def refused(store: deltastore.DeltaStore, net: torch.nn.Module, error: type[Exception]) -> Any:
    before = stored(net)
    with pytest.raises(error) as caught:
        store.patch(net, "delta")
    assert_same_bits(stored(net), before)
    return caught.value


def test_models_that_do_not_fit(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    extracted(store, tmp_path, torch.bfloat16)
    refused(store, Net(torch.bfloat16, 2), LineageError)
    smaller = Net(torch.bfloat16, 1)
    smaller.inner = torch.nn.Linear(48, 40, dtype=torch.bfloat16)
    assert "inner.bias" in refused(store, smaller, StructureMismatchError).message
    store.patch(smaller, "delta", partial=True)
    untied = Net(torch.bfloat16, 1)
    untied.head.weight = torch.nn.Parameter(untied.embed.weight.flip(0))
    assert "head.weight" in refused(store, untied, StructureMismatchError).message
    with pytest.raises(IncompatibleError, match="meta"):
        store.patch(Net(torch.bfloat16, 1).to("meta"), "delta")


def test_a_delta_that_changes_the_structure(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base = stored(Net(torch.bfloat16, 1))
    save(tmp_path / "base", base)
    save(tmp_path / "post", moved(base, 2) | {"extra.weight": torch.ones(3)})
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    error = refused(store, Net(torch.bfloat16, 1), IncompatibleError)
    assert "extra.weight" in error.message
    assert "store.apply" in error.hint


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_delta_changes_nothing(
    store: deltastore.DeltaStore, tmp_path: Path, damage: str
) -> None:
    extracted(store, tmp_path, torch.bfloat16)
    manifest, _ = open_store(tmp_path / "store").load(store.show("delta").digest)
    digest = manifest.layers[0].digest
    part = tmp_path / "store" / "blobs" / "sha256" / digest.partition(":")[2]
    whole = part.read_bytes()
    part.chmod(0o644)
    if damage == "missing":
        part.unlink()
    else:
        part.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    net = Net(torch.bfloat16, 1)
    refused(store, net, BlobCorruptError if damage == "flipped" else BlobMissingError)
    part.write_bytes(whole)
    store.patch(net, "delta")
    part.unlink()
    after = stored(net)
    with pytest.raises(BlobMissingError):
        store.unpatch(net)
    assert_same_bits(stored(net), after)


def test_what_is_kept_goes_with_the_model(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    extracted(store, tmp_path, torch.bfloat16)
    net = Net(torch.bfloat16, 1)
    store.patch(net, "delta")
    assert len(store._patches) == 1
    del net
    gc.collect()
    assert len(store._patches) == 0


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", ["tied llama", "tied gpt2"])
def test_in_transformers(store: deltastore.DeltaStore, tmp_path: Path, name: str) -> None:
    from operations import families

    family, tokenizer = families.FAMILIES[name], families.make_tokenizer()
    base, post, new = (family.build(1) for _ in range(3))
    families.move(post, 2, 0.02)
    families.move(new, 3, 0.02)
    for side, model in (("base", base), ("post", post), ("new", new)):
        families.save(model, tokenizer, tmp_path / side)
    ref = store.extract(tmp_path / "base", tmp_path / "post").ref
    store.apply(ref, base=tmp_path / "new", out=tmp_path / "out", scale=0.7)
    model = family.load(tmp_path / "new")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    store.patch(model, ref, scale=0.7)
    want = family.load(tmp_path / "out")
    assert_same_bits(dict(model.state_dict()), dict(want.state_dict()))
    assert torch.equal(families.answer(model, tokenizer), families.answer(want, tokenizer))
    store.unpatch(model)
    assert_same_bits(dict(model.state_dict()), before)
