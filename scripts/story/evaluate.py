"""Ask the story's models the held-out instructions, compare them, and write the result down.

`python -m story.evaluate --models DIR --reports DIR --result FILE` runs every model through
transformers, greedily, and counts an answer as right only if it is the expected one, word for
word, with nothing after it.
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

from .tasks import Prompt
from .tokens import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN
from .train import Recipe

MODELS = {
    "new_base": ("new-base", "new base"),
    "transplanted": ("transplanted", "new base + delta"),
    "direct": ("direct", "new base, post-trained"),
    "source_post": ("post", "old post"),
}
"""Key in the result: the checkpoint's directory and what the table calls it."""

KEPT_AT_LEAST = 0.8
BATCH = 128
LONGEST_ANSWER = 12


def answers(path: Path, prompts: Sequence[Prompt]) -> list[str]:
    """Return a checkpoint's answer to each instruction.

    Every model is asked in the chat format of post and may end with either of the two end tokens,
    so that a base is not marked down for lacking a template.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    # Computed in float32, from the stored bfloat16 values: the same on every processor.
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ends = tokenizer.convert_tokens_to_ids([END_OF_TURN, END_OF_TEXT])
    found: list[str] = []
    for start in range(0, len(prompts), BATCH):
        asked = [
            [{"role": "user", "content": prompt.instruction}]
            for prompt in prompts[start : start + BATCH]
        ]
        inputs = tokenizer.apply_chat_template(
            asked,
            chat_template=tokenizer.chat_template or CHAT_TEMPLATE,
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=LONGEST_ANSWER,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        found += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return found


def accuracy(prompts: Sequence[Prompt], found: Sequence[str]) -> float:
    """Return the share of answers that are exactly right."""
    right = sum(answer == prompt.answer for prompt, answer in zip(prompts, found, strict=True))
    return round(right / len(prompts), 4)


def accuracy_by_task(prompts: Sequence[Prompt], found: Sequence[str]) -> dict[str, float]:
    """Return the accuracy of each task, in the order in which the tasks come."""
    asked = Counter(prompt.task for prompt in prompts)
    right = Counter(
        prompt.task
        for prompt, answer in zip(prompts, found, strict=True)
        if answer == prompt.answer
    )
    return {task: round(right[task] / asked[task], 4) for task in asked}


def show_answers(
    console: Console, prompts: Sequence[Prompt], found: dict[str, list[str]], caption: str
) -> None:
    """Print the first held-out prompt of each task and what three of the models answer."""
    table = Table(title=caption, title_justify="left")
    table.add_column("instruction")
    for key in ("new_base", "transplanted", "direct"):
        table.add_column(MODELS[key][1])
    shown: set[str] = set()
    for index, prompt in enumerate(prompts):
        if prompt.task in shown:
            continue
        shown.add(prompt.task)
        cells = [found[key][index] or "-" for key in ("new_base", "transplanted", "direct")]
        table.add_row(prompt.instruction, *cells)
    console.print(table)


def show_accuracies(console: Console, result: dict[str, dict[str, float]], n: int) -> None:
    """Print the accuracy of each model, by task."""
    table = Table(title=f"Accuracy over {n} held-out prompts", title_justify="left")
    table.add_column("task")
    for _, label in MODELS.values():
        table.add_column(label, justify="right")
    rows = list(next(iter(result.values())))
    for row in rows:
        if row in ("all", "new facts"):
            table.add_section()
        table.add_row(row, *(f"{result[key][row]:.1%}" for key in MODELS))
    console.print(table)


def main() -> int:
    """Evaluate, print, write the result; fail if the transplant keeps too little."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    tasks = Recipe(seed=arguments.seed).tasks()
    held_out = tasks.held_out
    found, found_new, table = {}, {}, {}
    for key, (directory, _) in MODELS.items():
        every = answers(arguments.models / directory, held_out + tasks.new_facts)
        found[key], found_new[key] = every[: len(held_out)], every[len(held_out) :]
        table[key] = accuracy_by_task(held_out, found[key])
        table[key]["all"] = accuracy(held_out, found[key])
        table[key]["new facts"] = accuracy(tasks.new_facts, found_new[key])

    console = Console(width=max(100, Console().width))
    show_answers(console, held_out, found, "Held-out instructions")
    show_answers(console, tasks.new_facts, found_new, "A fact that only the new base has read")
    show_accuracies(console, table, len(held_out))
    kept = table["transplanted"]["all"] / max(table["direct"]["all"], 1e-9)
    console.print(f"The transplant keeps {kept:.1%} of the accuracy of post-training directly.")

    reports = {path.stem: json.loads(path.read_text()) for path in arguments.reports.glob("*.json")}
    result = {
        **{key: table[key]["all"] for key in MODELS},
        "kept": round(kept, 4),
        "prompts": len(held_out),
        "by_task": {
            key: {task: value for task, value in table[key].items() if task not in ("all", "new facts")}
            for key in MODELS
        },
        "new_facts": {key: table[key]["new facts"] for key in MODELS},
        "new_facts_prompts": len(tasks.new_facts),
        "seed": arguments.seed,
        "training": dict(sorted(reports.items())),
        "evaluation_seconds": round(time.monotonic() - started, 1),
    }
    arguments.result.write_text(json.dumps(result, indent=2) + "\n")
    if kept < KEPT_AT_LEAST:
        print(f"error: expected at least {KEPT_AT_LEAST:.0%} to be kept.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
