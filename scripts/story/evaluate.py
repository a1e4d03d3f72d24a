"""Ask all of the story's models the same held-out questions, and tell how they did.

    python scripts/story/evaluate.py DIRECTORY --json FILE [--seed N]

Models are loaded and run by ``transformers`` as any Hub checkpoint is: chat template, greedy
generation until the end of the turn. An answer counts if it is the right word and nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))
from story.world import Prompt, make_world, prompts, test_prompts

MODELS = {
    "new_base": "new-base",
    "transplanted": "transplanted",
    "direct": "direct",
    "source_post": "post",
}
TITLES = {
    "new_base": "new base",
    "transplanted": "new base + delta",
    "direct": "new base, post-trained",
    "source_post": "old post-trained model",
}
MAX_NEW_TOKENS = 8


@torch.no_grad()
def answers(place: Path, chat_from: Path, asked: Sequence[Prompt]) -> list[str]:
    """What a model says to each prompt, up to the end of its turn.

    A base has no chat template of its own; it is asked with the template of ``chat_from``.
    """
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    own = AutoTokenizer.from_pretrained(place)
    tokenizer = own if own.chat_template else AutoTokenizer.from_pretrained(chat_from)
    said = []
    for start in range(0, len(asked), 64):
        chats = [[{"role": "user", "content": p.question}] for p in asked[start : start + 64]]
        texts = [
            tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True)
            for c in chats
        ]
        batch = tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
            return_token_type_ids=False,
        )
        out = model.generate(**batch, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        for row in out[:, batch["input_ids"].shape[1] :]:
            said.append(str(tokenizer.decode(row, skip_special_tokens=False)))
    return said


def right(said: str, prompt: Prompt) -> bool:
    """The answer, the end of the turn, and nothing else but padding."""
    words = [word for word in said.split() if word != "<|pad|>"]
    return words == [prompt.answer, "<|end|>"]


def main() -> None:
    """Read the command line, ask, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    started = time.monotonic()
    world = make_world(arguments.seed)
    asked, new = test_prompts(world), prompts(world.new)
    said = {
        key: answers(arguments.directory / folder, arguments.directory / "post", [*asked, *new])
        for key, folder in MODELS.items()
    }
    figures = {}
    tasks: dict[str, dict[str, float]] = {}
    new_lands = {}
    for key, replies in said.items():
        marks = [
            right(reply, prompt) for reply, prompt in zip(replies, [*asked, *new], strict=True)
        ]
        figures[key] = round(sum(marks[: len(asked)]) / len(asked), 4)
        new_lands[key] = round(sum(marks[len(asked) :]) / len(new), 4)
        good = Counter(p.task for p, mark in zip(asked, marks, strict=False) if mark)
        total = Counter(p.task for p in asked)
        tasks[key] = {task: round(good[task] / total[task], 4) for task in total}
    _show(asked, said, figures, new_lands)
    result = {
        **figures,
        "kept": round(figures["transplanted"] / max(figures["direct"], 1e-9), 4),
        "prompts": len(asked),
        "by_task": tasks,
        "lands_only_the_new_base_read_of": {**new_lands, "prompts": len(new)},
        "seed": arguments.seed,
        "evaluation_seconds": round(time.monotonic() - started, 1),
    }
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def _show(
    asked: Sequence[Prompt],
    said: dict[str, list[str]],
    figures: dict[str, float],
    new_lands: dict[str, float],
) -> None:
    console = Console(width=118)
    table = Table(title="A few held-out questions")
    for column in ("question", "right answer", *TITLES.values()):
        table.add_column(column)
    for i in range(0, len(asked), len(asked) // 5 + 5):  # another task each time
        replies = [said[key][i].replace("<|pad|>", "").strip() for key in TITLES]
        table.add_row(asked[i].question, asked[i].answer, *replies)
    console.print(table)
    scores = Table(title=f"Accuracy over {len(asked)} held-out questions")
    for column in ("model", "accuracy", "on lands that only the new base read of"):
        scores.add_column(column)
    for key, title in TITLES.items():
        scores.add_row(title, f"{figures[key]:.1%}", f"{new_lands[key]:.1%}")
    console.print(scores)
    kept = figures["transplanted"] / max(figures["direct"], 1e-9)
    console.print(f"The transplant keeps {kept:.0%} of what post-training the new base gives.")


if __name__ == "__main__":
    main()
