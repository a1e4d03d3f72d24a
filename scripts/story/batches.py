"""Batches for pre-training and for post-training."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from .tasks import Prompt
from .tokens import END_OF_TEXT, chat

IGNORED = -100
"""The label that transformers leaves out of the loss."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids and labels of one step, both int64 `[batch, length]`."""

    ids: torch.Tensor
    labels: torch.Tensor


def text_batches(
    passages: Sequence[str], tokenizer: PreTrainedTokenizerFast, *, batch: int, length: int
) -> Iterator[Batch]:
    """Pack passages, separated by end-of-text, into full rows, and walk over them once."""
    text = f" {END_OF_TEXT} ".join(passages)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    rows = ids[: len(ids) // length * length].view(-1, length)
    for start in range(0, len(rows) - batch + 1, batch):
        yield Batch(rows[start : start + batch], rows[start : start + batch])


def chat_batches(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerFast, *, batch: int, seed: int
) -> Iterator[Batch]:
    """Draw chats without end, each task as often as any other; only answers carry a loss."""
    rng = random.Random(seed)
    by_task: dict[str, list[tuple[list[int], int]]] = defaultdict(list)
    for prompt in prompts:
        by_task[prompt.task].append(_encode(prompt, tokenizer))
    tasks = tuple(by_task.values())
    while True:
        drawn = [rng.choice(rng.choice(tasks)) for _ in range(batch)]
        width = max(len(ids) for ids, _ in drawn)
        ids = torch.full((batch, width), tokenizer.pad_token_id)
        labels = torch.full((batch, width), IGNORED)
        for row, (whole, asked) in enumerate(drawn):
            ids[row, : len(whole)] = torch.tensor(whole)
            labels[row, asked : len(whole)] = torch.tensor(whole[asked:])
        yield Batch(ids, labels)


def _encode(prompt: Prompt, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], int]:
    """Return a chat's token ids and how many of them ask rather than answer."""
    question, answer = chat(prompt.instruction, prompt.answer)
    asked = tokenizer(question, add_special_tokens=False)["input_ids"]
    return asked + tokenizer(answer, add_special_tokens=False)["input_ids"], len(asked)
