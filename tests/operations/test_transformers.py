"""Outputs load in transformers, whole, and compute what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import assert_same_bits, load
from families import FAMILIES, answer, by_hand, make_tokenizer, move, save

import deltastore

LLAMA, TIED_LLAMA = FAMILIES["untied llama"], FAMILIES["tied llama"]


pytestmark = pytest.mark.usefixtures("quiet")

TOKENIZERS = {
    "as many tokens": lambda: make_tokenizer(),
    "more tokens": lambda: make_tokenizer("<|im|>", "<|end|>"),
    "fewer tokens": lambda: make_tokenizer(words=52),
}


@pytest.mark.parametrize("vocabulary", TOKENIZERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_transplanted(
    store: deltastore.DeltaStore, tmp_path: Path, name: str, vocabulary: str
) -> None:
    family = FAMILIES[name]
    tokenizer, post_tokenizer = make_tokenizer(), TOKENIZERS[vocabulary]()
    rows = len(post_tokenizer)
    base, post, new = family.build(1), family.build(1, rows), family.build(1)
    move(post, 2, 0.02)
    move(new, 3, 0.02)
    paths = [
        save(base, tokenizer, tmp_path / "base"),
        save(post, post_tokenizer, tmp_path / "post"),
    ]
    new_path = save(new, tokenizer, tmp_path / "new")
    assert len(list(new_path.glob("*.safetensors"))) > 2
    artifact = store.extract(*paths)

    assert store.apply(artifact, base=paths[0], out=tmp_path / "restored").restored
    assert_same_bits(load(tmp_path / "restored"), load(paths[1]))
    restored = family.load(tmp_path / "restored")
    assert_same_bits(dict(restored.state_dict()), dict(post.state_dict()))
    assert torch.equal(answer(restored, tokenizer), answer(post, tokenizer))
    assert not torch.equal(answer(post, tokenizer), answer(base, tokenizer))

    store.apply(artifact, base=new_path, out=tmp_path / "out", scale=0.7)
    result = family.load(tmp_path / "out")
    expected = family.build(4, rows)
    scaled = by_hand(base.state_dict(), post.state_dict(), new.state_dict(), 0.7)
    expected.load_state_dict(scaled)
    assert_same_bits(dict(result.state_dict()), dict(expected.state_dict()))
    again = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert len(again) == result.config.vocab_size == rows
    assert torch.equal(answer(result, again), answer(expected, tokenizer))
    assert type(result) is type(base)


def test_two_deltas(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    base = LLAMA.build(1)
    base_path = save(base, tokenizer, tmp_path / "base")
    states = []
    for i in range(2):
        post = LLAMA.build(1)
        move(post, 10 + i, 0.02)
        store.extract(base_path, save(post, tokenizer, tmp_path / f"p{i}"), name=f"p{i}")
        states.append(post.state_dict())
    store.apply(["p0", "p1"], base=base_path, out=tmp_path / "out", scale=[1.0, 0.5])
    expected = {}
    for name, start in base.state_dict().items():
        total = start.float() + 1.0 * (states[0][name].float() - start.float())
        expected[name] = (total + 0.5 * (states[1][name].float() - start.float())).bfloat16()
    assert_same_bits(dict(LLAMA.load(tmp_path / "out").state_dict()), expected)


def test_new_tokens_and_a_chat_template(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    plain, template = (
        make_tokenizer(),
        "{% for m in messages %}<|im|>{{ m['content'] }}{% endfor %}",
    )
    chat = make_tokenizer("<|im|>", "<|end|>", template=template)
    base, post, new = LLAMA.build(1), LLAMA.build(1, len(chat)), LLAMA.build(1)
    move(post, 2, 0.02)
    move(new, 3, 0.02)
    post.generation_config.eos_token_id = [2, 65]
    new.config.rope_parameters = dict(new.config.rope_parameters, rope_theta=5e5)
    paths = [
        save(model, tokenizer, tmp_path / name)
        for name, model, tokenizer in (
            ("base", base, plain),
            ("post", post, chat),
            ("new", new, plain),
        )
    ]
    artifact = store.extract(*paths[:2])
    store.apply(artifact, base=paths[2], out=tmp_path / "out")
    result = LLAMA.load(tmp_path / "out")
    assert result.config.vocab_size == 66
    assert result.get_input_embeddings().weight.shape[0] == 66
    assert result.config.rope_parameters["rope_theta"] == 5e5
    assert result.generation_config.eos_token_id == [2, 65]
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(again) == 66
    message = [{"role": "user", "content": "w7"}]
    assert again.apply_chat_template(message, tokenize=False) == "<|im|>w7"
    assert again.convert_tokens_to_ids("<|end|>") == 65
    rows = post.state_dict()["model.embed_tokens.weight"][64:]
    assert torch.equal(result.state_dict()["model.embed_tokens.weight"][64:], rows)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_post_training_tied_or_untied(
    store: deltastore.DeltaStore, tmp_path: Path, tied: bool
) -> None:
    tokenizer = make_tokenizer()
    before, after = (LLAMA, TIED_LLAMA) if tied else (TIED_LLAMA, LLAMA)
    base, post = before.build(1), after.build(2)
    paths = save(base, tokenizer, tmp_path / "base"), save(post, tokenizer, tmp_path / "post")
    artifact = store.extract(*paths, force=True)
    store.apply(artifact, base=paths[0], out=tmp_path / "out")
    result = after.load(tmp_path / "out")
    assert_same_bits(dict(result.state_dict()), dict(post.state_dict()))
    assert torch.equal(answer(result, tokenizer), answer(post, tokenizer))


def test_another_dtype(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    family, tokenizer = FAMILIES["tied qwen2"], make_tokenizer()
    base, post = family.build(1), family.build(1)
    move(post, 2, 0.02)
    paths = save(base, tokenizer, tmp_path / "base"), save(post, tokenizer, tmp_path / "post")
    artifact = store.extract(*paths)
    store.apply(artifact, base=paths[0], out=tmp_path / "out", dtype="float16")
    result = family.load(tmp_path / "out")
    assert {p.dtype for p in result.parameters()} == {torch.float16}
    assert str(result.config.dtype).removeprefix("torch.") == "float16"


def as_pickle(path: Path, model: Any) -> Path:
    """The weights as transformers saved them before safetensors."""
    for file in (*path.glob("*.safetensors"), path / "model.safetensors.index.json"):
        file.unlink()
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    return path


@pytest.mark.parametrize("name", ["tied gpt2", "tied masked bert"])
def test_old_pickles(store: deltastore.DeltaStore, tmp_path: Path, name: str) -> None:
    """The tied head is there as well."""
    family, tokenizer = FAMILIES[name], make_tokenizer()
    base, post = family.build(1), family.build(1)
    move(post, 2, 0.02)
    paths = [
        as_pickle(save(model, tokenizer, tmp_path / name), model)
        for name, model in (("base", base), ("post", post))
    ]
    artifact = store.extract(*paths)
    result = store.apply(artifact, base=paths[0], out=tmp_path / "out")
    assert result.restored
    restored = family.load(tmp_path / "out")
    assert_same_bits(dict(restored.state_dict()), dict(post.state_dict()))
    assert torch.equal(answer(restored, tokenizer), answer(post, tokenizer))
