"""One tied model, saved in every way that the field's tools save it, as base, post and new base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import Tensors, bits
from families import move
from safetensors.torch import load_file, save_file, save_model

import deltastore
from deltastore.errors import StructureMismatchError

pytestmark = pytest.mark.usefixtures("quiet")

_SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
_TEXT = _SIZES | {"num_hidden_layers": 1, "num_key_value_heads": 1, "initializer_range": 0.3}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _llama() -> Any:
    return transformers.LlamaConfig(**_TEXT, **_IDS)


def _bart() -> Any:
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in _HALVES.items()}
    return transformers.BartConfig(
        vocab_size=40, d_model=16, max_position_embeddings=16, init_std=0.3, **sizes, **_IDS
    )


_HALVES = {"layers": 1, "attention_heads": 2, "ffn_dim": 24}


def _llava() -> Any:
    vision = {**_SIZES, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    del vision["vocab_size"]
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**_TEXT, **_IDS),
        vision_config=transformers.CLIPVisionConfig(**vision),
        image_token_index=39,
    )


def _bert() -> Any:
    sizes = _SIZES | {"num_hidden_layers": 1, "max_position_embeddings": 16}
    return transformers.BertConfig(**sizes, initializer_range=0.3, **_IDS)


@dataclass(frozen=True, slots=True)
class Kind:
    """An architecture, and of its tied sets the names that none of the usual ways keeps."""

    config: Callable[[], Any]
    model: str
    head: str
    embedding: str
    members: tuple[str, ...]

    def build(self, role: str, *, tied: bool) -> Any:
        config = self.config()
        config.tie_word_embeddings = tied
        torch.manual_seed(0)
        model = getattr(transformers, self.model)(config).to(torch.bfloat16).eval()
        embedding = model.get_input_embeddings().weight
        if not tied:
            model.set_output_embeddings(_own_head(model.get_output_embeddings(), embedding))
            head = model.get_output_embeddings()
            if head.bias is not None:  # setting it makes the two biases of a masked BERT one
                head.bias = torch.nn.Parameter(head.bias.detach().clone())
        if role != "base":
            move(model, sum(map(ord, role)), 0.02)
        return model


def _own_head(head: Any, embedding: torch.Tensor) -> Any:
    """A head that was the embeddings and was trained apart from them for a while."""
    generator = torch.Generator().manual_seed(7)
    step = torch.randn(embedding.shape, generator=generator) * 0.02
    head.weight = torch.nn.Parameter((embedding.detach().float() + step).bfloat16())
    return head


KINDS = {
    "decoder": Kind(
        _llama,
        "LlamaForCausalLM",
        "lm_head.weight",
        "model.embed_tokens.weight",
        ("lm_head.weight",),
    ),
    "encoder-decoder": Kind(
        _bart,
        "BartForConditionalGeneration",
        "lm_head.weight",
        "model.shared.weight",
        ("model.encoder.embed_tokens.weight",),
    ),
    "vision-language": Kind(
        _llava,
        "LlavaForConditionalGeneration",
        "lm_head.weight",
        "model.language_model.embed_tokens.weight",
        ("lm_head.weight",),
    ),
    "encoder": Kind(
        _bert,
        "BertForMaskedLM",
        "cls.predictions.decoder.weight",
        "bert.embeddings.word_embeddings.weight",
        ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    ),
}


def _save_model(kind: Kind, model: Any, path: Path) -> None:
    save_model(model, str(path / "model.safetensors"), metadata={"format": "pt"})


def _torch_save(kind: Kind, model: Any, path: Path) -> None:
    torch.save(model.state_dict(), path / "pytorch_model.bin")


def _wrapped(kind: Kind, model: Any, path: Path) -> None:
    torch.save(torch.nn.DataParallel(model).state_dict(), path / "pytorch_model.bin")


def _other_member(kind: Kind, model: Any, path: Path) -> None:
    """As a framework saves that keeps another name of each tensor than transformers does."""
    state, kept = model.state_dict(), {}
    for name in sorted(state, key=lambda name: (name not in kind.members, name)):
        if all(state[name].data_ptr() != tensor.data_ptr() for tensor in kept.values()):
            kept[name] = state[name]
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})


WAYS: dict[str, Callable[[Kind, Any, Path], None] | None] = {
    "save_pretrained": None,
    "save_model": _save_model,
    "torch.save": _torch_save,
    "wrapped": _wrapped,
    "other member": _other_member,
    "untied": None,
}


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint, and the weights of the model that was saved, by all of their names."""

    path: Path
    weights: Tensors

    @property
    def stored(self) -> set[str]:
        """The names of the tied set that are stored."""
        tensors: Tensors = {}
        for file in self.path.glob("model*.safetensors"):
            tensors |= load_file(file)
        for file in self.path.glob("*.bin"):
            tensors |= torch.load(file, weights_only=True)
        names = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        return {
            name
            for name in names
            if "embed_tokens" in name
            or "word_emb" in name
            or "shared" in name
            or "lm_head.weight" in name
            or "decoder.weight" in name
        }


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A kind, and the checkpoints of all roles and ways."""
    kind, root = KINDS[request.param], tmp_path_factory.mktemp("tied")
    torch.set_num_threads(1)
    saved = {}
    for role, (way, save) in product(("base", "post", "new"), WAYS.items()):
        model = kind.build(role, tied=way != "untied")
        path = root / f"{role}-{way}"
        if save is None:
            model.save_pretrained(path)
        else:
            path.mkdir()
            model.config.architectures = [kind.model]
            model.config.save_pretrained(path)
            save(kind, model, path)
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        saved[role, way] = Saved(path, weights)
    return kind, saved, root


def expected(
    kind: Kind, base: Tensors, post: Tensors, new: Tensors, *, tied_to: str | None
) -> Tensors:
    """Θ' + (Θ_post - Θ_base) of every name, in float32, rounded once; equal bits leave it alone.

    Where post-training made two tensors one, as docs/compatibility.md has it, it is the one that
    post stores, under every name.
    """
    result = {}
    for name, start in new.items():
        moved = start.float() + (post[name].float() - base[name].float())
        result[name] = torch.where(bits(base[name]) == bits(post[name]), start, moved.bfloat16())
    if tied_to is not None:
        one = post[kind.head]
        result |= {name: result[tied_to] for name, tensor in post.items() if _same(tensor, one)}
    return result


@pytest.mark.parametrize("after", WAYS)
@pytest.mark.parametrize("before", WAYS)
def test_every_weight_as_loaded(world: Any, before: str, after: str) -> None:
    kind, saved, root = world
    base, post = saved["base", before], saved["post", after]
    tied_to = None
    if before == "untied" and after != "untied":
        only = next(iter(post.stored)) if len(post.stored) == 1 else kind.embedding
        tied_to = only if only in post.weights else kind.embedding
    with deltastore.open(root / "store") as store:
        name = f"{before}-{after}".replace(" ", "_").replace(".", "_")
        store.extract(base.path, post.path, name=name)
        own = store.apply(name, base=base.path, out=root / f"{name}-own")
        assert own.restored
        if not kind.model.startswith("Llava"):  # whose names in memory become those on the disk
            assert Saved(root / f"{name}-own", post.weights).stored == post.stored
        got = _load(kind, root / f"{name}-own")
        assert not [n for n, want in post.weights.items() if not _same(got[n], want)]
        for way in WAYS:
            new, out = saved["new", way], root / f"{name}-{way}"
            try:
                store.apply(name, base=new.path, out=out)
            except StructureMismatchError as error:
                # The names in memory are others than those on the disk; the hint makes them agree.
                assert kind.model.startswith("Llava")
                rules = dict(option.rsplit("=", 1) for option in error.hint.split("'")[1::2])
                store.apply(name, base=new.path, out=out, rename=rules)
            want = expected(kind, base.weights, post.weights, new.weights, tied_to=tied_to)
            got = _load(kind, out)
            assert got.keys() == want.keys()
            wrong = [n for n in want if not _same(got[n], want[n])]
            assert not wrong, (way, wrong)
            config = json.loads((out / "config.json").read_text())
            tied = _same(got[kind.head], got[kind.embedding])
            assert config.get("tie_word_embeddings", True) is tied or not tied, way


@pytest.mark.parametrize("after", ["save_pretrained", "save_model", "torch.save", "other member"])
@pytest.mark.parametrize("before", ["save_pretrained", "save_model", "torch.save", "other member"])
def test_every_weight_in_memory(world: Any, before: str, after: str) -> None:
    """Where the members of a tied set are one memory, whichever of them was stored."""
    kind, saved, root = world
    base, post = saved["base", before], saved["post", after]
    model = getattr(transformers, kind.model).from_pretrained(base.path, dtype=torch.bfloat16)
    with deltastore.open(root / "memory") as store:
        patch = store.patch(model, store.extract(base.path, post.path, name="x", rehash=True))
        assert patch.left_out == []
        got = model.state_dict()
        assert not [name for name, want in post.weights.items() if not _same(got[name], want)]
        store.unpatch(model)
        got = model.state_dict()
        assert not [name for name, want in base.weights.items() if not _same(got[name], want)]


@pytest.mark.parametrize("way", ["save_pretrained", "save_model", "torch.save"])
@pytest.mark.parametrize(
    ("after", "also"),
    [
        ("save_pretrained", "save_model"),
        ("other member", "torch.save"),
        ("save_model", "other member"),
        ("untied", "save_pretrained"),
    ],
)
def test_two_deltas_that_keep_different_names(world: Any, after: str, also: str, way: str) -> None:
    kind, saved, root = world
    if kind.model.startswith("Llava") and "save_pretrained" not in {after, way}:
        pytest.skip("its names in memory are others than those on the disk")
    base, new, out = saved["base", "save_pretrained"], saved["new", way], root / "both"
    with deltastore.open(root / "pairs") as store:
        for name, post in (("one", saved["post", after]), ("other", saved["new", also])):
            store.extract(base.path, post.path, name=name, force=True)
        shutil.rmtree(out, ignore_errors=True)
        try:
            store.apply(["one", "other"], base=new.path, out=out, scale=[1, 0.5])
        except StructureMismatchError as error:
            assert kind.model.startswith("Llava")
            rules = dict(option.rsplit("=", 1) for option in error.hint.split("'")[1::2])
            store.apply(["one", "other"], base=new.path, out=out, scale=[1, 0.5], rename=rules)
    got = _load(kind, out)
    for name, start in new.weights.items():
        moved = saved["post", after].weights[name].float() - base.weights[name].float()
        moved += 0.5 * (saved["new", also].weights[name].float() - base.weights[name].float())
        assert torch.allclose(got[name].float(), start.float() + moved, atol=0.01), name


def test_a_scale_of_zero_ties_nothing(world: Any) -> None:
    kind, saved, root = world
    base, post = saved["base", "untied"], saved["post", "save_pretrained"]
    with deltastore.open(root / "zero") as store:
        store.extract(base.path, post.path, name="x")
        store.apply("x", base=saved["new", "untied"].path, out=root / "zeroed", scale=0)
    got = _load(kind, root / "zeroed")
    wrong = [n for n, want in saved["new", "untied"].weights.items() if not _same(got[n], want)]
    assert not wrong


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(bits(one), bits(other))


def _load(kind: Kind, path: Path) -> Tensors:
    model, report = getattr(transformers, kind.model).from_pretrained(
        path, output_loading_info=True, dtype="auto"
    )
    assert not {what: names for what, names in report.items() if names}
    return dict(model.state_dict())
