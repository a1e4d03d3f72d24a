"""New bases with other tokens than the delta's own base, in transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import Tensors, assert_same_bits
from families import (
    FAMILIES,
    SPECIAL,
    WORDS,
    Family,
    answer,
    by_hand,
    make_tokenizer,
    move,
    save,
)
from tokenizers import Tokenizer, models, pre_tokenizers

import deltastore
from deltastore.errors import StructureMismatchError

pytestmark = pytest.mark.usefixtures("quiet")

ADDED = ("<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for m in messages %}<|im_start|> {{ m.content }} <|im_end|>{% endfor %}"
NEW_WORDS = {
    "grown": ["x1", *WORDS, "x2", "x3"],
    "shrunk": WORDS[:50],
    "reordered": random.Random(5).sample(WORDS, len(WORDS)),
}
ROWS_OF_TOKENS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "lm_head.weight",
    "predictions.bias",
    "decoder.weight",
    "decoder.bias",
)


def other_tokenizer(words: list[str]) -> Any:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


def with_tokens_of(model: Any, source: Any, own: dict[str, int], theirs: dict[str, int]) -> None:
    """Give a model the weights of another, its rows by token; tokens it lacks keep their rows."""
    state, given = model.state_dict(), source.state_dict()
    for name, value in state.items():
        if not name.endswith(ROWS_OF_TOKENS):
            value.copy_(given[name])
            continue
        for token, row in own.items():
            if token in theirs:
                value[row] = given[name][theirs[token]]


def one_row(table: torch.Tensor, row: int | None) -> torch.Tensor:
    return table[:0] if row is None else table[row : row + 1]


def assembled(
    states: tuple[Tensors, Tensors, Tensors],
    vocabularies: tuple[dict[str, int], dict[str, int], dict[str, int]],
    out: dict[str, int],
) -> Tensors:
    """The output by hand: every row of it by the string of its token."""
    base, post, new = states
    ours, theirs, own = vocabularies
    expected = {}
    for name in new:
        if not name.endswith(ROWS_OF_TOKENS):
            expected |= by_hand({name: base[name]}, {name: post[name]}, {name: new[name]}, 1.0)
            continue
        rows = [torch.empty(0)] * len(out)
        for token, row in out.items():
            after = one_row(post[name], theirs.get(token))
            start = one_row(new[name], own.get(token))
            if token not in own:
                rows[row] = after
            elif token in ours:
                sides = (one_row(base[name], ours[token]), after, start)
                (rows[row],) = by_hand(*({"row": side} for side in sides), 1.0).values()
            else:
                rows[row] = start
        expected[name] = torch.cat(rows)
    return expected


@pytest.mark.parametrize("vocabulary", NEW_WORDS)
@pytest.mark.parametrize(
    "name", ["tied llama", "untied llama", "tied gpt2", "tied qwen2", "tied masked bert"]
)
def test_other_tokens(
    store: deltastore.DeltaStore, tmp_path: Path, name: str, vocabulary: str
) -> None:
    family = FAMILIES[name]
    tokenizer, other = make_tokenizer(), other_tokenizer(NEW_WORDS[vocabulary])
    chat = make_tokenizer(*ADDED, template=TEMPLATE)
    chat.eos_token = "<|im_end|>"
    base, post, new = family.build(1), family.build(1, len(chat)), family.build(7, len(other))
    move(post, 2, 0.02)
    if hasattr(post, "generation_config"):
        post.generation_config.eos_token_id = [chat.eos_token_id, 2]
    with_tokens_of(new, base, other.get_vocab(), tokenizer.get_vocab())
    move(new, 3, 0.02)
    save(base, tokenizer, tmp_path / "base")
    save(post, chat, tmp_path / "post")
    save(new, other, tmp_path / "new")
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    result = store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")
    assert result.lineage[0]["verdict"] == "related"
    assert result.vocabulary[0]["added"]["tokens"] == list(ADDED)

    loaded = family.load(tmp_path / "out")
    again = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    words = again.get_vocab()
    assert words == other.get_vocab() | {t: len(other) + i for i, t in enumerate(ADDED)}
    assert loaded.config.vocab_size == len(words)
    expected = assembled(
        tuple(model.state_dict() for model in (base, post, new)),
        (tokenizer.get_vocab(), chat.get_vocab(), other.get_vocab()),
        words,
    )
    assert_same_bits(dict(loaded.state_dict()), expected)
    model = family.build(9, len(words))
    model.load_state_dict(expected)
    if model.can_generate():  # tokens that end the text are held back at first
        model.generation_config = loaded.generation_config
    assert torch.equal(answer(loaded, again), answer(model, again))

    messages = [{"role": "user", "content": "w1 w2"}]
    prompt = again.apply_chat_template(messages, tokenize=False)
    assert again(prompt).input_ids == [
        words[token] for token in ("<|im_start|>", "w1", "w2", "<|im_end|>")
    ]
    assert again.eos_token_id == words["<|im_end|>"]
    written = tmp_path / "out" / "generation_config.json"
    if written.exists():
        assert json.loads(written.read_text())["eos_token_id"] == [words["<|im_end|>"], 2]


def test_a_column_for_each_token_stays_out_of_reach(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    """BART's bias of its head is a row: it is refused, and what is advised works."""
    family = Family(
        "BartConfig",
        {"vocab_size": 64, "d_model": 16, "max_position_embeddings": 16}
        | {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
        | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "init_std": 0.3},
        auto="AutoModelForSeq2SeqLM",
    )
    base, new = family.build(1), family.build(1, rows=70)
    save(base, make_tokenizer(), tmp_path / "base")
    move(base, 2, 0.01)
    save(base, make_tokenizer(), tmp_path / "post")
    move(new, 3, 0.01)
    save(new, other_tokenizer([*reversed(WORDS), *(f"x{i}" for i in range(6))]), tmp_path / "new")
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    with pytest.raises(StructureMismatchError, match="final_logits_bias") as caught:
        store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")
    assert "`--skip-embeddings`" in caught.value.hint
    store.apply("delta", base=tmp_path / "new", out=tmp_path / "out", skip_embeddings=True)
    family.load(tmp_path / "out")
