"""Pairs that are no model before and after its post-training, as people really have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import Tensors, assert_same_bits, bits, load
from checkpoints import save as save_tensors
from families import FAMILIES, Family, move
from safetensors.torch import save_file, save_model

import deltastore
from deltastore.cli.main import main
from deltastore.errors import (
    DeltastoreError,
    IncompatibleError,
    LineageError,
    StructureMismatchError,
)

pytestmark = pytest.mark.usefixtures("quiet")

LLAMA, TIED = FAMILIES["untied llama"], FAMILIES["tied llama"]
MIXTRAL, BERT = FAMILIES["untied mixtral"], FAMILIES["tied masked bert"]


def saved(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base, and the same after a little training."""
    base, post = LLAMA.build(1), LLAMA.build(1)
    move(post, 2, 0.02)
    return saved(base, tmp_path / "base"), saved(post, tmp_path / "post")


def rewritten(
    post: Path, path: Path, change: Callable[[Tensors], Tensors], **fields: object
) -> Path:
    """The checkpoint with other tensors, in one file, and other fields in its config."""
    path.mkdir()
    config = json.loads((post / "config.json").read_text()) | fields
    (path / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.contiguous() for name, tensor in change(load(post)).items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_what_is_said_of_a_pair(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base = load(pair[0])
    frozen = {name: tensor for name, tensor in base.items() if "mlp.up_proj" in name}
    pair = pair[0], rewritten(pair[1], tmp_path / "frozen", lambda tensors: tensors | frozen)
    result = store.extract(*pair, name="x")
    post = load(pair[1])
    changed = base.keys() - frozen.keys()
    moved = sum(float(((post[n].double() - base[n].double()) ** 2).sum()) for n in changed)
    whole = sum(float((base[n].double() ** 2).sum()) for n in changed)
    assert result.relative_change == pytest.approx((moved / whole) ** 0.5, rel=1e-4)
    flat = [(base[n].double().flatten(), post[n].double().flatten()) for n in base]
    cosines = [float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in flat]
    assert result.cosine == pytest.approx(sum(cosines) / len(cosines), abs=0.003)
    again = store.extract(*pair, name="x")
    assert again.reused
    assert (again.relative_change, again.cosine) == (result.relative_change, result.cosine)


def test_people_are_told(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extract", "--base", str(pair[0]), "--post", str(pair[1])]) == 0
    assert "of the weights, cosine 0.99" in capsys.readouterr().out


def refused(
    store: deltastore.DeltaStore, base: Path, post: Path, kind: type[DeltastoreError]
) -> DeltastoreError:
    """The refusal; nothing is listed after it, and what it advises is taken."""
    with pytest.raises(kind) as raised:
        store.extract(base, post, name="x")
    assert store.list() == []
    if "`--force`" in raised.value.hint:
        assert store.extract(base, post, name="x", force=True).version == 1
    return raised.value


def test_the_same_weights(store: deltastore.DeltaStore, pair: tuple[Path, Path]) -> None:
    copy = pair[0].with_name("copy")
    shutil.copytree(pair[0], copy)
    error = refused(store, pair[0], copy, IncompatibleError)
    assert "has the very weights of" in error.message
    with pytest.raises(IncompatibleError):
        store.extract(pair[0], pair[0], name="y")


def test_the_same_weights_saved_anew(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In shards of another size: it may be meant."""
    LLAMA.load(pair[0]).save_pretrained(tmp_path / "again", max_shard_size="12KB")
    assert main(["extract", "--base", str(pair[0]), "--post", str(tmp_path / "again")]) == 0
    assert "in other files: the delta changes nothing" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["save_model", "torch.save", "wrapped"])
def test_the_same_weights_saved_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    """Under another name of the tied set, or under all."""
    model = TIED.build(1)
    base, copy = saved(model, tmp_path / "base"), tmp_path / "copy"
    copy.mkdir()
    model.config.save_pretrained(copy)
    if way == "save_model":
        save_model(model, str(copy / "model.safetensors"), metadata={"format": "pt"})
    else:
        outer = torch.nn.DataParallel(model) if way == "wrapped" else model
        torch.save(outer.state_dict(), copy / "pytorch_model.bin")
    for pair in ((base, copy), (copy, base)):
        assert main(["extract", "--base", str(pair[0]), "--post", str(pair[1])]) == 0
        assert "has the very weights of" in capsys.readouterr().err


def test_another_seed(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    error = refused(store, pair[0], saved(LLAMA.build(9), tmp_path / "other"), LineageError)
    assert error.exit_code == 32
    assert error.facts["relative_change"] > 1
    assert abs(error.facts["cosine"]) < 0.1


def test_weights_of_another_size(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """In the same direction, but further than training goes."""
    post = rewritten(
        pair[1], tmp_path / "far", lambda tensors: {n: t * 4 for n, t in tensors.items()}
    )
    error = refused(store, pair[0], post, LineageError)
    assert error.facts["cosine"] > 0.9


@pytest.mark.parametrize("name", ["untied qwen2", "untied mistral", "untied gpt2", "bert encoder"])
def test_another_architecture(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    post = saved(FAMILIES[name].build(1), tmp_path / "other")
    error = refused(store, pair[0], post, StructureMismatchError)
    assert "expected model_type 'llama', got" in error.message


def lora(name: str, rank: int = 2) -> Tensors:
    return {
        f"{name}.lora_A.weight": torch.ones(rank, 32, dtype=torch.bfloat16),
        f"{name}.lora_B.weight": torch.ones(32, rank, dtype=torch.bfloat16),
    }


def test_an_adapter(store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """As PEFT saves one, alone or not merged; there is no way around but to merge it."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    layers = [f"base_model.model.model.layers.{i}.self_attn.q_proj" for i in range(2)]
    tensors = {n: t for layer in layers for n, t in lora(layer).items()}
    save_file(tensors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    assert "is an adapter" in refused(store, pair[0], adapter, IncompatibleError).message
    unmerged = rewritten(
        pair[1],
        tmp_path / "unmerged",
        lambda tensors: (
            {n.replace("q_proj.", "q_proj.base_layer."): t for n, t in tensors.items()}
            | lora("model.layers.0.self_attn.q_proj")
        ),
    )
    for sides in ((pair[0], unmerged), (unmerged, pair[1])):
        with pytest.raises(IncompatibleError, match="not merged") as raised:
            store.extract(*sides, name="x", force=True)
        assert "merge_and_unload" in raised.value.hint


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        name: tensor for name, tensor in tensors.items() if not any(p in name for p in parts)
    }


@pytest.mark.parametrize(
    ("parts", "missing"),
    [
        (["layers.0."], "model.layers.0.mlp.up_proj.weight"),
        (["q_proj"], "model.layers.1.self_attn.q_proj.weight"),
        (["lm_head"], "lm_head.weight"),
        (["embed_tokens"], "model.embed_tokens.weight"),
        (["model.norm"], "model.norm.weight"),
    ],
)
def test_a_part_of_a_model(
    store: deltastore.DeltaStore,
    pair: tuple[Path, Path],
    tmp_path: Path,
    parts: list[str],
    missing: str,
) -> None:
    """As trainers save that leave out what was frozen."""
    post = rewritten(pair[1], tmp_path / "part", without(*parts))
    error = refused(store, pair[0], post, StructureMismatchError)
    assert missing in error.facts["missing"]


def test_a_model_with_more_in_its_layers(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    more = {
        f"model.layers.{i}.self_attn.q_norm.weight": torch.ones(8, dtype=torch.bfloat16)
        for i in range(2)
    }
    post = rewritten(pair[1], tmp_path / "more", lambda tensors: tensors | more)
    error = refused(store, pair[0], post, StructureMismatchError)
    assert error.facts["extra"] == sorted(more)
    assert "model.layers.N.self_attn.q_norm.weight (2 of them)" in error.message


def test_a_wider_or_deeper_model(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    for what, value in (("intermediate_size", 64), ("num_hidden_layers", 3)):
        other = replace(LLAMA, fields={**LLAMA.fields, what: value}).build(1)
        with pytest.raises(StructureMismatchError):
            store.extract(pair[0], saved(other, tmp_path / what), name="x")


def test_experts_one_by_one_and_together(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """As transformers 5 holds them in memory, and as it saves them: never mixed."""
    model = MIXTRAL.build(1)
    base = saved(model, tmp_path / "base")
    move(model, 2, 0.02)
    (tmp_path / "post").mkdir()
    model.config.save_pretrained(tmp_path / "post")
    torch.save(model.state_dict(), tmp_path / "post" / "pytorch_model.bin")
    error = refused(store, base, tmp_path / "post", StructureMismatchError)
    assert "experts" in error.message
    assert "as one tensor what the other keeps as several" in error.hint


def test_fused_projections(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def fuse(tensors: Tensors) -> Tensors:
        for i in range(2):
            at = f"model.layers.{i}.self_attn."
            parts = [tensors.pop(f"{at}{p}_proj.weight") for p in "qkv"]
            tensors[f"{at}qkv_proj.weight"] = torch.cat(parts)
        return tensors

    post = rewritten(pair[1], tmp_path / "fused", fuse)
    error = refused(store, pair[0], post, StructureMismatchError)
    assert "qkv" in error.hint


def loads_as(family: Family, out: Path, base: Tensors, post: Tensors, new: Tensors) -> None:
    """What transformers loads is new base + delta, weight by weight."""
    for name, got in family.load(out).state_dict().items():
        moved = (new[name].float() + (post[name].float() - base[name].float())).bfloat16()
        want = torch.where(bits(base[name]) == bits(post[name]), new[name], moved)
        assert torch.equal(bits(got), bits(want)), name


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "data parallel": torch.nn.DataParallel,
    "both": lambda model: torch.nn.DataParallel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("sides", ["base", "post", "new", "base post", "base post new"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model(
    store: deltastore.DeltaStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrapper: str,
    sides: str,
) -> None:
    """Also where both sides are, which would agree: no class loads an output of such names."""
    states: dict[str, Tensors] = {}
    for role in ("base", "post", "new"):
        model = TIED.build(1)
        if role != "base":
            move(model, len(role), 0.02)
        states[role] = {n: t.clone() for n, t in model.state_dict().items()}
        saved(model, tmp_path / role)
        if role in sides.split():
            for file in (tmp_path / role).glob("*.safetensors"):
                file.unlink()
            torch.save(WRAPPERS[wrapper](model).state_dict(), tmp_path / role / "pytorch_model.bin")
    place = ["--store", str(tmp_path / "cli"), "extract"]
    pair = ["--base", str(tmp_path / "base"), "--post", str(tmp_path / "post")]
    assert main([*place, *pair]) == 0
    told = capsys.readouterr().err
    assert ("go by another name" in told) == (sides != "new")
    store.extract(tmp_path / "base", tmp_path / "post", name="x")
    assert [found.compatible for found in store.resolve(tmp_path / "new")] == [True]
    store.apply("x", base=tmp_path / "new", out=tmp_path / "out")
    loads_as(TIED, tmp_path / "out", states["base"], states["post"], states["new"])
    assert store.apply("x", base=tmp_path / "base", out=tmp_path / "own").restored


def test_the_body_alone(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """Post was saved without its head: by its class the output needs none either."""
    base, post = BERT.build(1), BERT.build(1)
    move(post, 2, 0.02)
    saved(base, tmp_path / "base")
    saved(post.bert, tmp_path / "post")
    assert "embeddings.word_embeddings.weight" in load(tmp_path / "post")
    store.extract(tmp_path / "base", tmp_path / "post", name="x")
    store.apply("x", base=tmp_path / "base", out=tmp_path / "out")
    model, report = transformers.AutoModel.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not report["missing_keys"] - {"pooler.dense.weight", "pooler.dense.bias"}
    got, want = model.state_dict(), post.bert.state_dict()
    assert_same_bits({n: got[n] for n in want}, dict(want))


CLASSES = {
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        "DistilBertForSequenceClassification",
    ),
    "electra": ("ElectraConfig", "ElectraForMaskedLM", "ElectraForTokenClassification"),
    "modernbert": ("ModernBertConfig", "ModernBertForMaskedLM", "ModernBertModel"),
    "bert": ("BertConfig", "BertForMaskedLM", "BertModel"),
    "vit": ("ViTConfig", "ViTForImageClassification", "ViTModel"),
}
_TINY = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_TINY |= {"intermediate_size": 48, "initializer_range": 0.3, "pad_token_id": 0, "image_size": 32}
_TINY |= {"dim": 32, "hidden_dim": 48, "n_heads": 4, "n_layers": 2, "patch_size": 8}
_TINY |= {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


@pytest.mark.parametrize("name", CLASSES)
def test_another_class_of_one_model(
    store: deltastore.DeltaStore, tmp_path: Path, name: str
) -> None:
    """What only the head of one of them has may go, and is taken for no part of the other."""
    config, before, after = (getattr(transformers, kind) for kind in CLASSES[name])
    torch.manual_seed(0)
    base = saved(before(config(**_TINY)), tmp_path / "base")
    post = after.from_pretrained(base)
    move(post, 2, 0.01)
    saved(post, tmp_path / "post")
    store.extract(base, tmp_path / "post", name="x")
    assert store.apply("x", base=base, out=tmp_path / "out").restored
    again, report = after.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert_same_bits(dict(again.state_dict()), dict(post.state_dict()))


def older(model: Any, path: Path) -> Path:
    """As Google's own BERT is on the hub."""
    saved(model, path)
    names = {".weight": ".gamma", ".bias": ".beta"}
    tensors = {
        name.replace(f"LayerNorm{new}", f"LayerNorm{old}"): tensor
        for name, tensor in load(path).items()
        for new, old in names.items()
        if name.endswith(new) or (new == ".weight" and not name.endswith(tuple(names)))
    }
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("after", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
@pytest.mark.parametrize("save_new", [saved, older])
def test_names_of_older_libraries(
    store: deltastore.DeltaStore, tmp_path: Path, after: str, save_new: Callable[..., Path]
) -> None:
    model, new = BERT.build(1), BERT.build(1)
    move(new, 3, 0.02)
    base = older(model, tmp_path / "base")
    assert "bert.embeddings.LayerNorm.gamma" in load(base)
    kind = getattr(transformers, after)
    post = kind.from_pretrained(base, dtype=torch.bfloat16)
    start = {n: t.clone() for n, t in post.state_dict().items()}
    move(post, 2, 0.02)
    store.extract(base, saved(post, tmp_path / "post"), name="x")
    assert store.apply("x", base=base, out=tmp_path / "own").restored
    place = save_new(new, tmp_path / "new")
    assert [found.compatible for found in store.resolve(place)] == [True]
    store.apply("x", base=place, out=tmp_path / "out")
    moved, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    states = new.state_dict()
    for name, got in moved.state_dict().items():
        own = states.get(name, states.get(f"bert.{name}"))
        if own is not None:
            want = own.float() + (post.state_dict()[name].float() - start[name].float())
            assert torch.allclose(got.float(), want, atol=0.02), name


def test_a_head_for_another_task(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base = LLAMA.build(1)
    saved(base, tmp_path / "base")
    post = transformers.LlamaForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3, dtype=torch.bfloat16
    )
    move(post, 2, 0.02)
    saved(post, tmp_path / "post")
    store.extract(tmp_path / "base", tmp_path / "post", name="x")
    assert store.apply("x", base=tmp_path / "base", out=tmp_path / "out").restored
    again = transformers.LlamaForSequenceClassification.from_pretrained(tmp_path / "out")
    assert_same_bits(dict(again.to(torch.bfloat16).state_dict()), dict(post.state_dict()))


def test_a_value_head(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    head = {"v_head.summary.weight": torch.ones(1, 32, dtype=torch.bfloat16)}
    post = rewritten(pair[1], tmp_path / "valued", lambda tensors: tensors | head)
    store.extract(pair[0], post, name="x")
    assert store.apply("x", base=pair[0], out=tmp_path / "out").restored


def test_buffers_that_one_version_saves(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.arange(4.0),
        "model.layers.0.self_attn.bias_mask": torch.ones(4, 4, dtype=torch.bool),
    }
    more = rewritten(pair[1], tmp_path / "more", lambda tensors: tensors | buffers)
    store.extract(pair[0], more, name="added")
    store.extract(more, rewritten(pair[0], tmp_path / "less", dict), name="removed")


def test_positions_that_one_way_of_saving_saves(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    """Marian computes them as it loads: ``save_pretrained`` leaves them out, ``torch.save`` not."""
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ids = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.MarianConfig(
        vocab_size=40, d_model=16, max_position_embeddings=16, init_std=0.3, **sizes, **ids
    )
    states = {}
    for seed, role in enumerate(("base", "post", "new")):
        torch.manual_seed(0)
        model = transformers.MarianMTModel(config)
        start = {n: t.clone() for n, t in model.state_dict().items() if "embed_positions" in n}
        if seed:
            move(model, seed, 0.02)
        model.load_state_dict(start, strict=False)
        states[role] = dict(model.state_dict())
        path = saved(model, tmp_path / role)
        if role != "base":
            (path / "model.safetensors").unlink()
            torch.save(model.state_dict(), path / "pytorch_model.bin")
    store.extract(tmp_path / "base", tmp_path / "post", name="added")
    store.apply("added", base=tmp_path / "new", out=tmp_path / "out")
    store.extract(tmp_path / "base", saved(model, tmp_path / "again"), name="neither")
    store.apply("neither", base=tmp_path / "post", out=tmp_path / "kept")
    got = transformers.MarianMTModel.from_pretrained(tmp_path / "out").state_dict()
    for name, new in states["new"].items():
        want = new + (states["post"][name] - states["base"][name])
        assert torch.allclose(got[name], want, atol=1e-6), name


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("tied gpt2", "wpe"),
        ("tied masked bert", "position_embeddings"),
        ("bert encoder", "token_type_embeddings"),
    ],
)
def test_what_stands_outside_of_the_layers(
    store: deltastore.DeltaStore, tmp_path: Path, name: str, part: str
) -> None:
    """A class that is said to be the same draws at random what post lacks."""
    model = FAMILIES[name].build(1)
    base = saved(model, tmp_path / "base")
    move(model, 2, 0.02)
    post = rewritten(saved(model, tmp_path / "whole"), tmp_path / "post", without(part))
    error = refused(store, base, post, StructureMismatchError)
    assert any(part in missing for missing in error.facts["missing"])


def test_what_published_files_hold_besides(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """Of another class; saving the model again leaves it out."""
    model = BERT.build(1)
    more = {
        "bert.pooler.dense.weight": torch.ones(32, 32, dtype=torch.bfloat16),
        "cls.seq_relationship.weight": torch.ones(2, 32, dtype=torch.bfloat16),
    }
    whole = saved(model, tmp_path / "whole")
    base = rewritten(whole, tmp_path / "base", lambda tensors: tensors | more)
    move(model, 2, 0.02)
    post = saved(model, tmp_path / "post")
    store.extract(base, post, name="x")
    assert store.apply("x", base=base, out=tmp_path / "out").restored
    BERT.load(tmp_path / "out")


@pytest.mark.parametrize("which", ["positions", "one of them"])
def test_positions_that_were_learned(
    store: deltastore.DeltaStore, tmp_path: Path, which: str
) -> None:
    """Under the name that other families give what they compute: drawn at random if they go."""
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BartConfig(
        vocab_size=40, d_model=16, max_position_embeddings=16, init_std=0.3, **sizes, **heads
    )
    model = transformers.BartForConditionalGeneration(config)
    base = saved(model, tmp_path / "base")
    move(model, 2, 0.02)
    part = "embed_positions" if which == "positions" else "encoder.embed_positions"
    post = rewritten(saved(model, tmp_path / "whole"), tmp_path / "post", without(part))
    with pytest.raises(StructureMismatchError) as raised:
        store.extract(base, post, name="x")
    assert "model.encoder.embed_positions.weight" in raised.value.facts["missing"]


def test_a_block_that_predicts_several_tokens(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Its base has it as one layer more than config.json says; trainers leave it out."""
    block = {
        "model.layers.2.eh_proj.weight": torch.ones(32, 64, dtype=torch.bfloat16),
        "model.layers.2.mlp.up_proj.weight": torch.ones(48, 32, dtype=torch.bfloat16),
    }
    base = rewritten(pair[0], tmp_path / "with", lambda tensors: tensors | block)
    store.extract(base, pair[1], name="x")


def test_map(store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Names that no rule recognises are told."""

    def strange(tensors: Tensors) -> Tensors:
        return {n.replace("proj.weight", f"{len(n) % 2}w"): t for n, t in tensors.items()}

    post = rewritten(pair[1], tmp_path / "strange", strange)
    with pytest.raises(StructureMismatchError):
        store.extract(pair[0], post, name="x")
    rename = {r"_[01]w$": "_proj.weight"}
    store.extract(pair[0], post, name="x", rename=rename)
    store.extract(*pair, name="plain")
    assert store.show("x").sources["post"].content == store.show("plain").sources["post"].content
    assert store.extract(pair[0], post, name="x", rename=rename).reused


def test_a_renamed_tensor_that_is_another_one(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """What could be a renaming by name and shape, and is none by its weights."""

    def swapped(tensors: Tensors) -> Tensors:
        del tensors["model.layers.1.self_attn.q_proj.weight"]
        generator = torch.Generator().manual_seed(5)
        own = torch.randn(32, 32, generator=generator).bfloat16()
        return tensors | {"model.layers.1.self_attn.new.weight": own}

    post = rewritten(pair[1], tmp_path / "swapped", swapped)
    error = refused(store, pair[0], post, StructureMismatchError)
    assert "model.layers.1.self_attn.q_proj.weight" in error.facts["missing"]


def test_restore_only_asks_for_no_kinship(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    post = saved(LLAMA.build(9), tmp_path / "other")
    store.extract(pair[0], post, name="x", restore_only=True)
    assert store.apply("x", base=pair[0], out=tmp_path / "out").restored


def test_few_numbers_are_no_evidence(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    save_tensors(tmp_path / "base", {"w": torch.randn(4, 4)})
    save_tensors(tmp_path / "post", {"w": torch.randn(4, 4)})
    store.extract(tmp_path / "base", tmp_path / "post", name="x")


@pytest.mark.parametrize("matrices", [3, 4])
def test_few_matrices_may_be_learned_anew(
    store: deltastore.DeltaStore, tmp_path: Path, matrices: int
) -> None:
    """A toy that changed by more than it is, and in its own direction still."""
    base = {f"layers.{i}.weight": torch.randn(30, 100) for i in range(matrices)}
    post = {name: 0.6 * values + 1.2 * torch.randn(30, 100) for name, values in base.items()}
    save_tensors(tmp_path / "base", base)
    save_tensors(tmp_path / "post", post)
    if matrices < 4:
        extracted = store.extract(tmp_path / "base", tmp_path / "post", name="x")
        assert extracted.relative_change is not None
        assert extracted.relative_change > 1
    else:
        error = refused(store, tmp_path / "base", tmp_path / "post", LineageError)
        assert error.facts["cosine"] > 0.2
