"""Tokens that only lie beside tokenizer.json: they have ids, and the model rows for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import deltastore

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["<unk>", *(f"w{i}" for i in range(11))]
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}


def save(path: Path, model: Any, *added: str, listed: tuple[str, ...] = (), **fields: Any) -> Path:
    """A model and its tokenizer; ``listed`` tokens are in ``tokenizer_config.json`` alone."""
    words = {word: number for number, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    made.add_tokens(list(added), special_tokens=True)
    model.save_pretrained(path)
    made.save_pretrained(path)
    config = json.loads((path / "tokenizer_config.json").read_text()) | fields
    if listed:
        config["added_tokens_decoder"] = {
            str(len(made) + i): {"content": token, **FLAGS} for i, token in enumerate(listed)
        }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def model(rows: int, like: Any = None, step: float = 0.0) -> Any:
    """A small Llama with so many tokens; like another one, moved by a step."""
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS) if like is None else like.config.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    made = transformers.AutoModelForCausalLM.from_config(config)
    if like is not None:
        made.load_state_dict(like.state_dict())
    made.resize_token_embeddings(rows, mean_resizing=False)
    generator = torch.Generator().manual_seed(rows)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * step)
    return made


def embeddings(path: Path) -> Any:
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(info.values())
    return loaded.get_input_embeddings().weight.detach(), loaded.lm_head.weight.detach()


def apply(tmp_path: Path, base: Path, post: Path, new: Path) -> Path:
    with deltastore.open(tmp_path / "store") as store:
        store.apply(store.extract(base, post, name="x"), base=new, out=tmp_path / "out")
    return tmp_path / "out"


def test_a_token_that_the_new_base_lists_keeps_its_row(tmp_path: Path) -> None:
    """Post's own token has the same id in post; it comes after it."""
    size, start = len(WORDS), model(len(WORDS))
    base = save(tmp_path / "base", start)
    post = save(tmp_path / "post", model(size + 1, start, 0.01), "<post>")
    new = save(tmp_path / "new", model(size + 1, start, 0.01), listed=("<own>",))
    assert transformers.AutoTokenizer.from_pretrained(new).convert_tokens_to_ids("<own>") == size

    out = apply(tmp_path, base, post, new)
    loaded = transformers.AutoTokenizer.from_pretrained(out)
    assert loaded.convert_tokens_to_ids(["<own>", "<post>"]) == [size, size + 1]
    assert len(loaded) == size + 2
    for got, own, theirs in zip(*map(embeddings, (out, new, post)), strict=True):
        assert got.shape[0] == size + 2
        assert torch.equal(got[size], own[size])
        assert torch.equal(got[size + 1], theirs[size])


def test_a_listed_token_without_a_row_makes_way(tmp_path: Path) -> None:
    """As ``pad_token = "<pad>"`` without resizing leaves it."""
    size, start = len(WORDS), model(len(WORDS))
    base = save(tmp_path / "base", start)
    post = save(tmp_path / "post", model(size + 1, start, 0.01), "<post>")
    moved = model(size + 1, start, 0.01)
    new = save(tmp_path / "new", moved, "<new>", listed=("<own>",), pad_token="<pad>")
    out = apply(tmp_path, base, post, new)
    loaded = transformers.AutoTokenizer.from_pretrained(out)
    found = loaded.convert_tokens_to_ids(["<new>", "<post>", "<own>", "<pad>"])
    assert found == [size, size + 1, size + 2, size + 3]
    for got, theirs in zip(*map(embeddings, (out, post)), strict=True):
        assert got.shape[0] == size + 2
        assert torch.equal(got[size + 1], theirs[size])


def test_a_token_that_only_post_lists_comes_with_its_row(tmp_path: Path) -> None:
    size, start = len(WORDS), model(len(WORDS))
    base = save(tmp_path / "base", start)
    post = save(tmp_path / "post", model(size + 1, start, 0.01), listed=("<post>",))
    for label, new in (
        ("by index", save(tmp_path / "new", model(size, start, 0.01))),
        ("by token", save(tmp_path / "other", model(size + 1, start, 0.02), "<own>")),
    ):
        out = apply(tmp_path / label, base, post, new)
        loaded = transformers.AutoTokenizer.from_pretrained(out)
        place = size + (label == "by token")
        assert loaded.convert_tokens_to_ids("<post>") == place
        for got, theirs in zip(*map(embeddings, (out, post)), strict=True):
            assert got.shape[0] == len(loaded)
            assert torch.equal(got[place], theirs[size])


def test_ids_stay_where_special_tokens_are_posts(tmp_path: Path) -> None:
    """The new base names its token in a role that post gives to another."""
    size, start = len(WORDS), model(len(WORDS))
    base = save(tmp_path / "base", model(size + 2, start), pad_token="<a>", sep_token="<b>")
    moved = model(size + 2, start, 0.01)
    post = save(tmp_path / "post", moved, pad_token="w3", sep_token="<b>", eos_token="<a>")
    new = save(tmp_path / "new", model(size + 2, start, 0.02), pad_token="<a>", sep_token="<b>")
    before = transformers.AutoTokenizer.from_pretrained(new).get_vocab()
    assert [before["<b>"], before["<a>"]] == [size, size + 1]
    out = apply(tmp_path, base, post, new)
    loaded = transformers.AutoTokenizer.from_pretrained(out)
    assert loaded.get_vocab() == before
    assert (loaded.pad_token, loaded.eos_token, loaded.sep_token) == ("w3", "<a>", "<b>")
