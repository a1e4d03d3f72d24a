"""Models whose tensors have other names, shapes or wrappers in memory than in their checkpoint."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from operations import families
from operations.checkpoints import Tensors, assert_same_bits, load, save
from operations.families import Family
from safetensors.torch import save_file
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import deltastore
from deltastore.errors import IncompatibleError, StructureMismatchError, UsageError
from deltastore.inmemory import conversions, weights
from deltastore.store import open_store

pytestmark = pytest.mark.usefixtures("quiet")

_TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
_DECODER = {**_TINY, "num_key_value_heads": 2}
_FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_SIDES = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
_HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
_VISION = {"hidden_size": 32, "num_attention_heads": 4, "image_size": 16}
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def _vlm() -> dict[str, Any]:
    vision = {**_VISION, "intermediate_size": 48, "num_hidden_layers": 2, "patch_size": 8}
    return {
        "text_config": transformers.LlamaConfig(**_DECODER),
        "vision_config": transformers.CLIPVisionConfig(**vision),
        "image_token_index": 63,
    }


def _vlm_of_experts() -> dict[str, Any]:
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 4}
    places = {"patch_size": 4, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return {
        "text_config": {**_DECODER, **_FEW, "head_dim": 8, "rope_parameters": _ROPE},
        "vision_config": {**vision, **places, "out_hidden_size": 32},
    }


FAMILIES: dict[str, Callable[[], Family]] = {
    # Renamed, or not even that.
    "llama": lambda: Family("LlamaConfig", _DECODER),
    "gpt neox": lambda: Family("GPTNeoXConfig", _TINY),
    "masked bert": lambda: Family("BertConfig", _TINY, auto="AutoModelForMaskedLM"),
    "llava": lambda: Family("LlavaConfig", _vlm(), auto="AutoModelForImageTextToText"),
    # One tensor under several names.
    "t5": lambda: Family(
        "T5Config",
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4},
        auto="AutoModelForSeq2SeqLM",
    ),
    "bart": lambda: Family(
        "BartConfig",
        {"vocab_size": 64, "d_model": 32, "max_position_embeddings": 32, **_SIDES, **_HEADS},
        auto="AutoModelForSeq2SeqLM",
    ),
    # Experts stacked and their projections joined.
    "mixtral": lambda: Family(
        "MixtralConfig", {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "qwen3 moe": lambda: Family("Qwen3MoeConfig", {**_DECODER, **_FEW, "head_dim": 8}),
    # Experts transposed.
    "qwen3 vl moe": lambda: Family(
        "Qwen3VLMoeConfig", _vlm_of_experts(), auto="AutoModelForImageTextToText"
    ),
    # One tensor of the checkpoint is three of the model.
    "nomic bert": lambda: Family("NomicBertConfig", _TINY, auto="AutoModel"),
}
_FOLLOWED = ["mixtral", "qwen3 moe", "nomic bert", "qwen3 vl moe"]


def as_the_hub_has_it(path: Path) -> None:
    """Write experts as checkpoints of other programs have them: the other way round."""
    tensors = load(path)
    turned = {
        name: value.transpose(1, 2).contiguous() if "experts." in name else value
        for name, value in tensors.items()
    }
    rewrite(path, turned)


def rewrite(path: Path, tensors: Tensors) -> None:
    """Write other tensors in the place of those that are there."""
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


class Pair:
    """Base and post of a tiny model, their delta, and what post computes."""

    def __init__(self, store: deltastore.DeltaStore, place: Path, name: str) -> None:
        self.family = FAMILIES[name]()
        self.base, self.post = place / "base", place / "post"
        model = self.family.build(1)
        for path in (self.base, self.post):
            model.save_pretrained(path)
            if name == "qwen3 vl moe":
                as_the_hub_has_it(path)
            families.move(model, 2, 0.02)
        self.ref = store.extract(self.base, self.post, name="delta").ref

    def load(self, path: Path | None = None) -> Any:
        return self.family.load(path or self.base)

    @property
    def answer(self) -> torch.Tensor:
        return computed(self.load(self.post))


def computed(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 11)[None]
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids, **more)[0]
    assert torch.isfinite(result).all()
    return result


def bits(model: Any) -> Tensors:
    return {name: value.clone() for name, value in model.state_dict().items()}


def nested(model: Any) -> torch.nn.Module:
    """Each layer within two wrappers, and the whole within two more."""
    layers = model.model.layers
    for number, layer in enumerate(layers):
        layers[number] = torch.nn.DataParallel(checkpoint_wrapper(layer))
    return torch.nn.DataParallel(torch.compile(model, backend="eager"))


class Fully(torch.nn.Module):
    """What FSDP looks like where it keeps a module's parameters as they are."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = module


WRAPPERS: dict[str, Callable[[Any], torch.nn.Module]] = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": torch.nn.DataParallel,
    "fsdp": Fully,
    "nested": nested,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_becomes_post_and_is_given_back(
    store: deltastore.DeltaStore, tmp_path: Path, name: str
) -> None:
    pair = Pair(store, tmp_path, name)
    model = pair.load()
    before = bits(model)
    patch = store.patch(model, pair.ref)
    assert torch.equal(computed(model), pair.answer)
    assert_same_bits(bits(model), bits(pair.load(pair.post)))
    assert patch.restored
    assert patch.left_out == []
    store.unpatch(model)
    assert_same_bits(bits(model), before)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@pytest.mark.parametrize("way", WRAPPERS)
def test_wrappers_are_seen_through(
    store: deltastore.DeltaStore, tmp_path: Path, name: str, way: str
) -> None:
    pair = Pair(store, tmp_path, name)
    model = pair.load()
    before = list(bits(model).values())
    wrapped = WRAPPERS[way](model)
    assert store.patch(wrapped, pair.ref).restored
    assert torch.equal(computed(model), pair.answer)
    store.unpatch(model if way == "torch.compile" else wrapped)
    after = list(bits(model).values())
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_fsdp(store: deltastore.DeltaStore, tmp_path: Path, name: str) -> None:
    pair = Pair(store, tmp_path, name)

    def sharded(*, flat: bool) -> Any:
        model = pair.load()
        options = {"use_orig_params": not flat, "device_id": torch.device("cpu")}
        first = FullyShardedDataParallel(model.model.layers[0], **options)
        model.model.layers[0] = first
        return FullyShardedDataParallel(model, **options)

    whole, flat = sharded(flat=False), sharded(flat=True)
    assert store.patch(whole, pair.ref).restored
    assert torch.equal(computed(whole), pair.answer)
    with pytest.raises(IncompatibleError, match="one flat parameter") as caught:
        store.patch(flat, pair.ref)
    assert "summon_full_params(model)" in caught.value.hint
    before = computed(flat)
    with FullyShardedDataParallel.summon_full_params(flat):
        store.patch(flat, pair.ref)
    assert torch.equal(computed(flat), pair.answer)
    with FullyShardedDataParallel.summon_full_params(flat):
        store.unpatch(flat)
    assert torch.equal(computed(flat), before)
    distributed = pair.load()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    fully_shard(distributed, mesh=mesh)
    with pytest.raises(IncompatibleError, match="a shard of a distributed tensor"):
        store.patch(distributed, pair.ref)


def new_names(tensors: Tensors) -> Tensors:
    """A Llava's tensors by the names that its checkpoints have had since they changed."""
    found = {}
    for name, value in tensors.items():
        renamed = name
        if name.startswith("language_model.model."):
            renamed = name.replace("language_model.model.", "model.language_model.")
        elif name.startswith("language_model.lm_head."):
            renamed = name.removeprefix("language_model.")
        elif name.startswith(("vision_tower.", "multi_modal_projector.")):
            renamed = f"model.{name}"
        found[renamed] = value
    return found


@pytest.mark.parametrize("loaded", ["base", "other", "made"])
def test_the_delta_and_the_model_have_names_of_different_times(
    store: deltastore.DeltaStore, tmp_path: Path, loaded: str
) -> None:
    pair = Pair(store, tmp_path, "llava")
    other = {}
    for side, path in (("base", pair.base), ("post", pair.post)):
        other[side] = tmp_path / f"other-{side}"
        pair.load(path).config.save_pretrained(other[side])
        rewrite(other[side], new_names(load(path)))
        assert load(other[side]).keys().isdisjoint(load(path))
    ref = store.extract(other["base"], other["post"], name="other").ref
    model = pair.load(other["base"] if loaded == "other" else None)
    if loaded == "made":
        weights = model.state_dict()
        model = pair.family.build(7)
        model.load_state_dict(weights)
    for delta in (pair.ref, ref):
        assert store.patch(model, delta).restored
        assert torch.equal(computed(model), pair.answer)
        store.unpatch(model)


def test_a_state_dict_as_it_is_in_memory(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """Weights that ``torch.save`` wrote, or a trainer from within its wrapper."""
    pair = Pair(store, tmp_path, "mixtral")
    for prefix in ("", "_orig_mod.", "module."):
        refs = {}
        for side, path in (("base", pair.base), ("post", pair.post)):
            refs[side] = tmp_path / f"state {prefix}{side}"
            refs[side].mkdir()
            state = {prefix + name: value for name, value in pair.load(path).state_dict().items()}
            torch.save(state, refs[side] / "pytorch_model.bin")
        ref = store.extract(refs["base"], refs["post"], name="state").ref
        for wrap in (lambda model: model, WRAPPERS["torch.compile"]):
            model = pair.load()
            assert store.patch(wrap(model), ref).restored
            assert torch.equal(computed(model), pair.answer)


def test_the_model_without_its_head(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    pair = Pair(store, tmp_path, "mixtral")
    model = transformers.AutoModel.from_pretrained(pair.base, dtype="auto").eval()
    before = bits(model)
    with pytest.raises(StructureMismatchError, match=r"lm_head\.weight") as caught:
        store.patch(model, pair.ref)
    assert "`partial=True`" in caught.value.hint
    assert_same_bits(bits(model), before)
    patch = store.patch(model, pair.ref, partial=True)
    assert [row["name"] for row in patch.left_out] == ["lm_head.weight"]
    assert not patch.restored
    post = transformers.AutoModel.from_pretrained(pair.post, dtype="auto")
    assert_same_bits(bits(model), bits(post))


class Headed(torch.nn.Module):
    """A model with something more beside it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.policy = model
        self.value = torch.nn.Linear(32, 1)


def test_a_model_within_another_module(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    pair = Pair(store, tmp_path, "mixtral")
    net = Headed(pair.load())
    with pytest.raises(StructureMismatchError, match=r"value\.bias"):
        store.patch(net, pair.ref)
    patch = store.patch(net, pair.ref, partial=True)
    assert [row["name"] for row in patch.left_out] == ["value.bias", "value.weight"]
    assert torch.equal(computed(net.policy), pair.answer)
    # Which of two is meant cannot be known.
    net.reference = pair.load()
    with pytest.raises(StructureMismatchError):
        store.patch(net, pair.ref, partial=True)


@pytest.mark.parametrize("name", _FOLLOWED)
def test_any_run_of_elements_is_the_checkpoints(
    store: deltastore.DeltaStore, tmp_path: Path, name: str
) -> None:
    """Chunks begin and end anywhere in a tensor that is cut, joined or transposed in memory."""
    pair = Pair(store, tmp_path, name)
    _, config = open_store(tmp_path / "store").load(store.show(pair.ref).digest)
    held = weights.ModelWeights(pair.load(), config.tensors)
    generator = torch.Generator().manual_seed(0)
    for key, tensor in load(pair.base).items():
        data = tensor.reshape(-1).view(torch.uint8)
        for _ in range(5):
            ends = torch.randint(tensor.numel() + 1, (2,), generator=generator).sort().values
            start, end = (int(place) for place in ends)
            size = tensor.element_size()
            got = torch.zeros((end - start) * size, dtype=torch.uint8)
            held.read_into(key, start * size, got.numpy())
            assert torch.equal(got, data[start * size : end * size])
            held.write(key, start, (255 - got).numpy())
            data[start * size : end * size] = 255 - got
        whole = torch.zeros_like(data)
        held.read_into(key, 0, whole.numpy())
        assert torch.equal(whole, data), key


class Stop:
    """Interrupts at the n-th piece that is patched."""

    def __init__(self, pieces: int) -> None:
        self.left, self.now = pieces, ""

    def start(self, label: str, total_bytes: int) -> None:
        self.now = label

    def advance(self, done_bytes: int) -> None:
        self.left -= self.now == "patching"
        if self.left == 0:
            raise KeyboardInterrupt

    def warn(self, message: str) -> None: ...


@pytest.mark.parametrize("name", _FOLLOWED)
def test_what_is_stopped_half_way_is_taken_back(
    store: deltastore.DeltaStore, tmp_path: Path, name: str
) -> None:
    pair = Pair(store, tmp_path, name)
    model = pair.load()
    before = bits(model)
    with pytest.raises(KeyboardInterrupt):
        store.patch(model, pair.ref, progress=Stop(15))
    assert_same_bits(bits(model), before)


def test_two_patches_in_a_fused_model(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    pair = Pair(store, tmp_path, "mixtral")
    model = pair.load()
    before = bits(model)
    store.patch(model, pair.ref, 0.7)
    between = bits(model)
    store.patch(torch.compile(model, backend="eager"), pair.ref, -0.3)
    store.unpatch(model)
    assert_same_bits(bits(model), between)
    store.unpatch(model)
    assert_same_bits(bits(model), before)


def test_what_cannot_be_followed_is_named(
    store: deltastore.DeltaStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(store, tmp_path, "nomic bert")
    monkeypatch.setattr(conversions, "_MOST_NUMBERED", 100)
    model = pair.load()
    before = bits(model)
    with pytest.raises(StructureMismatchError) as caught:
        store.patch(model, pair.ref)
    assert_same_bits(bits(model), before)
    patch = store.patch(model, pair.ref, partial=True)
    left_out = {row["name"] for row in patch.left_out}
    assert left_out == {
        name for kind in ("missing", "extra") for name, _ in caught.value.facts[kind]
    }
    assert "encoder.layers.0.attn.Wqkv.weight" in left_out
    assert {name for name in left_out if name in before} == {
        f"layers.{layer}.self_attn.{which}_proj.weight" for layer in range(2) for which in "qkv"
    }
    after = bits(model)
    assert all(torch.equal(after[name], before[name]) for name in left_out & before.keys())
    assert not patch.restored


def test_another_version_of_transformers(
    store: deltastore.DeltaStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is private there may be gone: then what the model was loaded with is what counts."""
    pair = Pair(store, tmp_path, "mixtral")
    model = pair.load()
    answer = pair.answer
    mapping, loading = (
        importlib.import_module(f"transformers.{name}")
        for name in ("conversion_mapping", "core_model_loading")
    )
    monkeypatch.delattr(mapping, "get_model_conversion_mapping")
    assert store.patch(model, pair.ref).restored
    assert torch.equal(computed(model), answer)
    store.unpatch(model)
    monkeypatch.delattr(loading, "revert_weight_conversion")
    before = bits(model)
    with pytest.raises(IncompatibleError, match="does not say under which names"):
        store.patch(model, pair.ref)
    assert_same_bits(bits(model), before)


_CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "doubled": lambda value: value * 2,
    "halved": lambda value: value / 2,
    "in part twice": lambda value: torch.cat([value[:16], value[8:24], value[32:]]),
}


@pytest.mark.parametrize("change", [*_CHANGES, "in memory"])
def test_a_conversion_that_is_more_than_an_order(
    store: deltastore.DeltaStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Weights that are computed from the checkpoint's are not a view of them."""
    pair = Pair(store, tmp_path, "mixtral" if change == "in memory" else "nomic bert")
    loading = transformers.core_model_loading
    step = loading.Chunk if change == "in memory" else loading.Concatenate
    right = step.convert

    def convert(self: Any, tensors: Any, *args: Any, **options: Any) -> Any:
        if change == "in memory":
            ((value,),) = tensors.values()
            value.add_(1)
        made = right(self, tensors, *args, **options)
        return {name: _CHANGES.get(change, lambda value: value)(v) for name, v in made.items()}

    monkeypatch.setattr(step, "convert", convert)
    model = pair.load()
    before = bits(model)
    error = IncompatibleError if change == "in memory" else StructureMismatchError
    with pytest.raises(error) as caught:
        store.patch(model, pair.ref)
    assert change == "in memory" or "Wqkv" in str(caught.value.facts["missing"])
    assert_same_bits(bits(model), before)


class LoraLayer(torch.nn.Module):
    """What PEFT puts in the place of a linear layer."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        rows, columns = layer.weight.shape
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(columns, 2, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(2, rows, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        moved = self.lora_B["default"](self.lora_A["default"](x.float()))
        result: torch.Tensor = self.base_layer(x) + moved.to(x.dtype)
        return result


class ModulesToSave(torch.nn.Module):
    """What PEFT puts in the place of a layer that it trains as a whole."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.original_module = layer
        own = torch.nn.Linear(*reversed(layer.weight.shape), bias=False)
        self.modules_to_save = torch.nn.ModuleDict({"default": own})


class Tuner(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model


class Adapted(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.base_model = Tuner(model)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@pytest.mark.parametrize("around", [True, False])
def test_an_adapter_is_left_alone(
    store: deltastore.DeltaStore, tmp_path: Path, name: str, around: bool
) -> None:
    pair = Pair(store, tmp_path, name)
    model, plain = pair.load(), pair.load()
    before = bits(plain)
    layers = [layer.self_attn for layer in model.model.layers]
    heads = [layer.q_proj for layer in layers], model.lm_head
    for layer in layers:
        layer.q_proj = LoraLayer(layer.q_proj)
    model.lm_head = ModulesToSave(model.lm_head)
    net = torch.compile(Adapted(model), backend="eager") if around else model
    adapter = {
        key: value
        for key, value in bits(model).items()
        if "lora_" in key or ".modules_to_save." in key
    }
    assert len(adapter) == 5
    assert store.patch(net, pair.ref).restored
    assert all(torch.equal(bits(model)[key], value) for key, value in adapter.items())
    for layer, own in zip(layers, heads[0], strict=True):
        layer.q_proj = own
    model.lm_head = heads[1]
    assert_same_bits(bits(model), bits(pair.load(pair.post)))
    # The adapter is gone; the delta comes out all the same.
    store.unpatch(model)
    assert_same_bits(bits(model), before)


class Net(torch.nn.Module):
    def __init__(self, where: str = "body") -> None:
        super().__init__()
        torch.manual_seed(1)
        inner = torch.nn.Sequential(torch.nn.Linear(24, 24), torch.nn.Linear(24, 24))
        setattr(self, where, inner)
        self.register_buffer("passing", torch.ones(3), persistent=False)


@pytest.fixture
def of_net(store: deltastore.DeltaStore, tmp_path: Path) -> str:
    base = bits(Net())
    save(tmp_path / "base", base)
    save(tmp_path / "post", {name: value + 0.01 for name, value in base.items()})
    return store.extract(tmp_path / "base", tmp_path / "post", name="delta").ref


@pytest.mark.parametrize("way", [way for way in WRAPPERS if way != "nested"])
def test_any_module_in_wrappers(store: deltastore.DeltaStore, of_net: str, way: str) -> None:
    net = Net()
    before = bits(net)
    net.body[0] = checkpoint_wrapper(net.body[0])
    wrapped = WRAPPERS[way](net)
    assert store.patch(wrapped, of_net).restored
    store.unpatch(wrapped)
    assert store.patch(net, of_net).restored
    net.body[0] = net.body[0]._checkpoint_wrapped_module
    store.unpatch(net)
    assert_same_bits(bits(net), before)


def test_a_part_that_is_called_as_wrappers_call_theirs(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(24, 24), Net("module"))
    base = bits(net)
    assert any(".module." in name for name in base)
    save(tmp_path / "base", base)
    save(tmp_path / "post", {name: value + 0.01 for name, value in base.items()})
    ref = store.extract(tmp_path / "base", tmp_path / "post", name="delta").ref
    assert store.patch(torch.nn.DataParallel(net), ref).restored
    store.unpatch(net)
    assert_same_bits(bits(net), base)


def test_a_renaming(store: deltastore.DeltaStore, of_net: str) -> None:
    net = Net("trunk")
    before = bits(net)
    with pytest.raises(StructureMismatchError) as caught:
        store.patch(net, of_net)
    rename = {r"^body\.": "trunk."}
    assert f"rename={rename!r}" in caught.value.hint
    assert store.patch(net, of_net, rename=rename).restored
    store.unpatch(net)
    assert_same_bits(bits(net), before)
    for wrong in ({"nowhere": ""}, {"[": ""}, {r"\d": "0"}):
        with pytest.raises(UsageError, match="`rename` does not fit"):
            store.patch(net, of_net, rename=wrong)
    # A hint is for a call that works: with one more tensor this would not.
    net.more = torch.nn.Linear(2, 2)
    with pytest.raises(StructureMismatchError) as caught:
        store.patch(net, of_net)
    assert "rename" not in caught.value.hint


def test_hints_are_for_python(store: deltastore.DeltaStore, of_net: str) -> None:
    larger = Net()
    larger.body[0] = torch.nn.Linear(24, 25)
    hints = []
    for net in (Net("trunk"), larger, torch.nn.Linear(3, 3)):
        with pytest.raises(StructureMismatchError) as caught:
            store.patch(net, of_net)
        hints.append(caught.value.hint)
    for net in (Net("trunk"), torch.nn.Linear(3, 3)):
        with pytest.raises(StructureMismatchError) as caught:
            store.patch(net, of_net, partial=True)
        hints.append(caught.value.hint)
    assert not any("--" in hint or "`deltastore " in hint for hint in hints)
    assert ["partial=True" in hint for hint in hints] == [False, True, False, False, False]
    store.patch(larger, of_net, partial=True)


def test_weights_that_overlap(store: deltastore.DeltaStore, of_net: str) -> None:
    net = Net()
    memory = torch.zeros(24 * 24 + 12)
    memory[: 24 * 24] = net.body[0].weight.detach().reshape(-1)
    net.body[0].weight = torch.nn.Parameter(memory[: 24 * 24].view(24, 24))
    net.body[0].bias = torch.nn.Parameter(memory[-24:])
    with pytest.raises(IncompatibleError, match="overlap in memory"):
        store.patch(net, of_net)


def test_transformers_is_not_needed(
    store: deltastore.DeltaStore, tmp_path: Path, of_net: str
) -> None:
    program = f"""
import sys, torch, deltastore
net = torch.nn.Module()
net.body = torch.nn.Sequential(torch.nn.Linear(24, 24), torch.nn.Linear(24, 24))
deltastore.open({str(tmp_path / "store")!r}).patch(net, {of_net!r}, force=True)
assert "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
