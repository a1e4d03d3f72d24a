"""Sentence encoders: their modules, pooling and prompts are files of their own beside the weights.

All checkpoints are saved by sentence-transformers or transformers, and all outputs loaded by them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import deltastore

transformers = pytest.importorskip("transformers")
pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules import (  # noqa: E402
    Dense,
    Normalize,
    Pooling,
    Transformer,
)

pytestmark = pytest.mark.usefixtures("quiet")

WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *[f"w{i}" for i in range(28)]]
TEXTS = ["w1 w2 w3", "w9 w4 w4 w7"]
MODULES = ("modules.json", "1_Pooling/config.json")


def body(place: Path, seed: int, size: float) -> Path:
    """A small BERT, moved from the one that all share, with its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    model = transformers.BertModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    model.save_pretrained(place)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(place)
    return place


MOVED = {"base": (1, 0.0), "post": (2, 0.05), "new": (3, 0.02)}


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    """Saves base, post or new base: as a sentence encoder with these modules, or plainly."""

    def save(side: str, *modules: Any, **options: Any) -> Path:
        if not modules:
            return body(tmp_path / side, *MOVED[side])
        plain = body(tmp_path / f"plain-{side}", *MOVED[side])
        whole = SentenceTransformer(
            modules=[Transformer(str(plain)), *modules], device="cpu", **options
        )
        whole.save_pretrained(str(tmp_path / side))
        return tmp_path / side

    return save


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as opened:
        yield opened


def applied(
    store: deltastore.DeltaStore, base: Path, post: Path, new: Path, out: Path
) -> tuple[SentenceTransformer, Any]:
    result = store.apply(store.extract(base, post, name="enc"), base=new, out=out)
    return SentenceTransformer(str(out), device="cpu"), result


def kinds(model: SentenceTransformer) -> list[str]:
    return [type(module).__name__ for module in model]


def assert_encodes_alike(first: SentenceTransformer, second: Path) -> None:
    other = SentenceTransformer(str(second), device="cpu")
    assert kinds(first) == kinds(other)
    assert torch.equal(torch.tensor(first.encode(TEXTS)), torch.tensor(other.encode(TEXTS)))
    assert first.prompts == other.prompts


def whose(result: Any) -> dict[str, str]:
    return {row["name"]: row["from"] for row in result.files}


def test_on_its_own_base_it_encodes_as_post(
    store: deltastore.DeltaStore, saved: Any, tmp_path: Path
) -> None:
    base = saved("base", Pooling(16, pooling_mode="mean"))
    post = saved("post", Pooling(16, pooling_mode="cls"), Normalize(), prompts={"query": "w5 "})
    model, result = applied(store, base, post, base, tmp_path / "out")
    assert result.restored
    assert_encodes_alike(model, post)
    assert {whose(result)[name] for name in MODULES} == {"post"}


def test_modules_that_post_dropped_are_dropped_on_its_own_base(
    store: deltastore.DeltaStore, saved: Any, tmp_path: Path
) -> None:
    base = saved("base", Pooling(16, pooling_mode="mean"), Normalize())
    post = saved("post")
    applied(store, base, post, base, tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {"modules.json", "1_Pooling", "2_Normalize"} & found
    # On another base they are its own.
    new = saved("new", Pooling(16, pooling_mode="mean"), Normalize())
    model, _ = applied(store, base, post, new, tmp_path / "other")
    assert kinds(model) == ["Transformer", "Pooling", "Normalize"]


def test_what_post_changed_goes_onto_another_base(
    store: deltastore.DeltaStore, saved: Any, tmp_path: Path
) -> None:
    base = saved("base", Pooling(16, pooling_mode="mean"))
    post = saved("post", Pooling(16, pooling_mode="cls"), Normalize(), prompts={"query": "w5 "})
    new = saved("new", Pooling(16, pooling_mode="mean"))
    model, _ = applied(store, base, post, new, tmp_path / "out")
    assert kinds(model) == ["Transformer", "Pooling", "Normalize"]
    assert model[1].pooling_mode == "cls"
    assert model.prompts["query"] == "w5 "


def test_what_post_left_alone_stays_the_new_bases(
    store: deltastore.DeltaStore, saved: Any, tmp_path: Path
) -> None:
    base = saved("base", Pooling(16, pooling_mode="cls"))
    post = saved("post", Pooling(16, pooling_mode="cls"))
    new = saved("new", Pooling(16, pooling_mode="mean"), Normalize())
    model, result = applied(store, base, post, new, tmp_path / "out")
    assert kinds(model) == ["Transformer", "Pooling", "Normalize"]
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert pooling == json.loads((new / "1_Pooling" / "config.json").read_text())
    assert {whose(result)[name] for name in MODULES} == {"new base"}


@pytest.mark.parametrize("onto", ["base", "new"])
def test_a_plain_base_becomes_an_encoder(
    store: deltastore.DeltaStore, saved: Any, tmp_path: Path, onto: str
) -> None:
    base = saved("base")
    post = saved("post", Pooling(16, pooling_mode="cls"), Normalize())
    new = base if onto == "base" else saved("new")
    model, result = applied(store, base, post, new, tmp_path / "out")
    assert kinds(model) == ["Transformer", "Pooling", "Normalize"]
    assert {whose(result)[name] for name in MODULES} == {"post"}
    if onto == "base":
        assert_encodes_alike(model, post)


def test_weights_of_a_module_are_named(
    store: deltastore.DeltaStore, saved: Any, tmp_path: Path
) -> None:
    """They are in no artifact and in no output, which then does not load rather than load wrong."""
    sides = [saved(side, Pooling(16), Dense(16, 8)) for side in ("base", "post")]
    extracted = store.extract(*sides, name="dense")
    row = {"name": "2_Dense/model.safetensors", "why": "weights"}
    assert extracted.not_stored == [{"side": side} | row for side in ("base", "post")]
    result = store.apply("dense", base=sides[0], out=tmp_path / "out")
    assert [(row["of"], row["name"]) for row in result.not_copied] == [
        ("new base", "2_Dense/model.safetensors"),
        ("post of dense:v1", "2_Dense/model.safetensors"),
    ]
    said = json.loads((tmp_path / "out" / "deltastore.json").read_text())
    assert said["not_copied"] == result.not_copied
    assert (tmp_path / "out" / "2_Dense" / "config.json").exists()
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        SentenceTransformer(str(tmp_path / "out"), device="cpu")


def test_a_module_of_its_own_code_is_named(
    store: deltastore.DeltaStore, saved: Any, tmp_path: Path
) -> None:
    base = saved("base")
    post = saved("post", Pooling(16))
    modules = json.loads((post / "modules.json").read_text())
    modules[1]["type"] = "modeling_pool.Pool"
    (post / "modules.json").write_text(json.dumps(modules))
    (post / "modeling_pool.py").write_text("class Pool: ...")
    extracted = store.extract(base, post, name="own")
    left = {row["name"]: row["why"] for row in extracted.not_stored if row["side"] == "post"}
    assert left == {
        "1_Pooling/config.json": "of a folder that no modules.json names",
        "modeling_pool.py": "code",
        "modules.json": "names code (modeling_pool.Pool)",
    }
    result = store.apply("own", base=base, out=tmp_path / "out")
    assert {row["name"] for row in result.not_copied} == left.keys()
    found = {path.name for path in (tmp_path / "out").rglob("*")}
    assert not found & {"modules.json", "modeling_pool.py", "1_Pooling"}
