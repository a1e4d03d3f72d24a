"""Train the story's four checkpoints: base, post, new-base and direct.

base      pre-trained on text about the old countries
post      base, post-trained on instructions
new-base  base, pre-trained further on other text, with new countries in it
direct    new-base, post-trained on the same instructions: what a delta saves one from doing
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from .corpus import base_mix, new_base_mix, write_passages
from .tasks import Prompt, make_tasks
from .tokens import ASSISTANT, CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, USER, make_tokenizer
from .world import make_world

IGNORED = -100
"""The label that transformers leaves out of the loss."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what is trained; `seed` decides all draws."""

    seed: int = 0
    base_steps: int = 1300
    new_base_steps: int = 350
    post_steps: int = 350
    batch: int = 16
    length: int = 48
    post_batch: int = 64
    base_lr: float = 6e-3
    new_base_lr: float = 2e-3
    post_lr: float = 2e-3
    hidden: int = 64
    layers: int = 3
    heads: int = 2
    list_instructions: int = 400
    held_out: int = 70


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids and labels of one step, both int64 `[batch, length]`."""

    ids: torch.Tensor
    labels: torch.Tensor


def text_batches(
    passages: Sequence[str], tokenizer: PreTrainedTokenizerFast, *, batch: int, length: int
) -> Iterator[Batch]:
    """Pack passages, separated by end-of-text, into full rows, without end over the passages."""
    text = f" {END_OF_TEXT} ".join(passages)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    rows = ids[: len(ids) // length * length].view(-1, length)
    for start in range(0, len(rows) - batch + 1, batch):
        yield Batch(rows[start : start + batch], rows[start : start + batch])


def chat_batches(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerFast, *, batch: int, seed: int
) -> Iterator[Batch]:
    """Draw batches of chats, for ever; only the answers carry a loss."""
    rng = random.Random(seed)
    pad = tokenizer.pad_token_id
    encoded = [_encode_chat(prompt, tokenizer) for prompt in prompts]
    while True:
        drawn = rng.sample(encoded, batch)
        width = max(len(ids) for ids, _ in drawn)
        ids = torch.full((batch, width), pad)
        labels = torch.full((batch, width), IGNORED)
        for row, (chat, asked) in enumerate(drawn):
            ids[row, : len(chat)] = torch.tensor(chat)
            labels[row, asked : len(chat)] = torch.tensor(chat[asked:])
        yield Batch(ids, labels)


def _encode_chat(prompt: Prompt, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], int]:
    """Return a chat's token ids and how many of them ask rather than answer."""
    question = f"{USER} {prompt.instruction} {ASSISTANT}"
    asked = tokenizer(question, add_special_tokens=False)["input_ids"]
    answer = tokenizer(f"{prompt.answer} {END_OF_TURN}", add_special_tokens=False)["input_ids"]
    return asked + answer, len(asked)


def fit(model: LlamaForCausalLM, batches: Iterator[Batch], *, steps: int, lr: float) -> None:
    """Train in place with AdamW, a short warm-up and a linear decay to a tenth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, steps // 20)
    model.train()
    for step in range(steps):
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        scale = min((step + 1) / warmup, 1.0 - 0.9 * progress)
        for group in optimizer.param_groups:
            group["lr"] = lr * scale
        batch = next(batches)
        loss = model(input_ids=batch.ids, labels=batch.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"  step {step:4d}  loss {loss.item():.3f}", flush=True)
