"""Train the story's four checkpoints as Hub-format directories in bfloat16.

    python scripts/story/train.py DIRECTORY [--seed N]

base      pre-trained on text about the old lands
post      base, post-trained to answer questions
new-base  base, pre-trained further on other text, with new lands in it
direct    new-base, post-trained in the same way: what a delta saves one from doing
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

sys.path.insert(0, str(Path(__file__).parent.parent))
from story.world import Land, Prompt, World, make_world, passage, training_prompts, vocabulary

UNKNOWN, PAD, END_OF_TEXT = "<|unk|>", "<|pad|>", "<|endoftext|>"
USER, ASSISTANT, END_OF_TURN = "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + USER + " {{ message['content'] }} "
    "{% else %}" + ASSISTANT + " {{ message['content'] }} " + END_OF_TURN + " {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)
IGNORED = -100
"""The label that transformers leaves out of the loss."""

Rows = tuple[torch.Tensor, torch.Tensor]
"""Token ids and labels, int64 ``[batch, length]``."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what is trained; ``seed`` decides all draws."""

    seed: int = 0
    hidden: int = 96
    layers: int = 3
    heads: int = 4
    batch: int = 24
    length: int = 48
    base_steps: int = 900
    base_rate: float = 4e-3
    new_base_steps: int = 150
    new_base_rate: float = 3e-4
    post_batch: int = 64
    post_steps: int = 150
    post_rate: float = 6e-4


def make_tokenizer(world: World, *, chat: bool) -> PreTrainedTokenizerFast:
    """One token a word. The chat markers have rows from the start, as in large models."""
    special = [UNKNOWN, PAD, END_OF_TEXT, USER, ASSISTANT, END_OF_TURN]
    table = {token: index for index, token in enumerate(special + vocabulary(world))}
    backend = Tokenizer(WordLevel(table, unk_token=UNKNOWN))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END_OF_TURN if chat else END_OF_TEXT,
        additional_special_tokens=[USER, ASSISTANT, END_OF_TURN],
        padding_side="left",
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def text_rows(
    tokenizer: PreTrainedTokenizerFast,
    lands: Sequence[Land],
    recipe: Recipe,
    rng: random.Random,
    *,
    talk: float,
    grow_steps: int = 0,
) -> Iterator[Rows]:
    """Rows of passages, for ever; about more and more of the lands within ``grow_steps``."""
    for step in itertools.count():
        # A few lands at first, all of them later: the way to store a fact is learned sooner.
        share = 1.0 if not grow_steps else min(1.0, 0.05 + step / grow_steps)
        known = lands[: max(2, round(share * len(lands)))]
        rows = []
        for _ in range(recipe.batch):
            text = " ".join(
                f"{END_OF_TEXT} {passage(rng, known, talk=talk)}" for _ in range(recipe.length // 6)
            )
            rows.append(tokenizer(text, add_special_tokens=False)["input_ids"][: recipe.length])
        ids = torch.tensor(rows)
        yield ids, ids


def chat_rows(
    tokenizer: PreTrainedTokenizerFast, asked: Sequence[Prompt], recipe: Recipe, rng: random.Random
) -> Iterator[Rows]:
    """Rows of one question and answer, for ever; only the answers carry a loss."""
    while True:
        drawn = rng.sample(asked, recipe.post_batch)
        questions = [f"{USER} {p.question} {ASSISTANT}" for p in drawn]
        whole = [f"{q} {p.answer} {END_OF_TURN}" for q, p in zip(questions, drawn, strict=True)]
        rows = tokenizer(whole, add_special_tokens=False)["input_ids"]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), IGNORED)
        for i, (row, question) in enumerate(zip(rows, questions, strict=True)):
            start = len(question.split())
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, start : len(row)] = torch.tensor(row[start:])
        yield ids, labels


def fit(name: str, model: LlamaForCausalLM, rows: Iterator[Rows], steps: int, rate: float) -> None:
    """Train in place with AdamW, a short warm-up and a linear decay."""
    started = time.monotonic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98))
    model.train()
    loss = torch.zeros(())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / (0.05 * steps), max(0.05, 1 - step / steps))
        ids, labels = next(rows)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.monotonic() - started
    print(f"  {name:8s}  {steps} steps, loss {loss.item():.2f}, {seconds:.0f} s", flush=True)


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    """An untrained small Llama."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=2 * recipe.hidden,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT),
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, place: Path) -> None:
    """Write a checkpoint in bfloat16, as model hubs hold them."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(place)
    tokenizer.save_pretrained(place)


def load(place: Path) -> LlamaForCausalLM:
    """A checkpoint in float32, to be trained further from what was stored."""
    return LlamaForCausalLM.from_pretrained(place, dtype=torch.float32)


def train_all(directory: Path, recipe: Recipe) -> None:
    """Train and write all four checkpoints."""
    world = make_world(recipe.seed)
    plain, chat = make_tokenizer(world, chat=False), make_tokenizer(world, chat=True)

    def draws(offset: int) -> random.Random:
        return random.Random(recipe.seed * 1000 + offset)

    def post_train(name: str, source: str) -> None:
        model = load(directory / source)
        rows = chat_rows(chat, training_prompts(world), recipe, draws(3))
        fit(name, model, rows, recipe.post_steps, recipe.post_rate)
        save(model, chat, directory / name)

    model = new_model(plain, recipe)
    rows = text_rows(
        plain, world.old, recipe, draws(1), talk=0.1, grow_steps=recipe.base_steps // 2
    )
    fit("base", model, rows, recipe.base_steps, recipe.base_rate)
    save(model, plain, directory / "base")

    model = load(directory / "base")
    rows = text_rows(plain, (*world.old, *world.new), recipe, draws(2), talk=0.3)
    fit("new-base", model, rows, recipe.new_base_steps, recipe.new_base_rate)
    save(model, plain, directory / "new-base")

    post_train("post", "base")
    post_train("direct", "new-base")


def main(run: Callable[[Path, Recipe], None] = train_all) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # models this small gain nothing from more
    run(arguments.directory, Recipe(seed=arguments.seed))


if __name__ == "__main__":
    main()
