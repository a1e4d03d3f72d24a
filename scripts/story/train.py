"""Train one of the story's four checkpoints.

    base      pre-trained on text about the old countries
    post      base, post-trained on instructions
    new-base  base, pre-trained further on other text, with facts about new countries in it
    direct    new-base, post-trained on the same instructions: what a delta saves one from doing

`python -m story.train STAGE --models DIR --report FILE` trains in float32 from the stored bfloat16
weights of the stage before, and stores bfloat16 again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from .batches import Batch, chat_batches, text_batches
from .corpus import Domain, base_mix, new_base_mix, write_passages
from .tasks import TaskSet, make_tasks
from .tokens import CHAT_TEMPLATE, END_OF_TURN, make_tokenizer
from .world import World, make_world


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what is trained; `seed` decides every draw."""

    seed: int = 0
    hidden: int = 64
    layers: int = 3
    heads: int = 2
    batch: int = 16
    length: int = 48
    base_steps: int = 1300
    base_lr: float = 6e-3
    new_base_steps: int = 300
    new_base_lr: float = 5e-4
    post_batch: int = 64
    post_steps: int = 400
    post_lr: float = 3e-4
    train_lists: int = 400
    held_out: int = 70

    def world(self) -> World:
        """Return the world that the corpus and the instructions talk about."""
        return make_world(self.seed)

    def tasks(self) -> TaskSet:
        """Return the instructions, split into those trained on and those held out."""
        return make_tasks(
            self.world(), self.seed, n_lists=self.train_lists, n_held_out=self.held_out
        )


def train_base(recipe: Recipe, models: Path) -> dict[str, float]:
    """Pre-train from random weights."""
    world = recipe.world()
    tokenizer = make_tokenizer(world)
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(_config(recipe, tokenizer))
    figures = _pretrain(
        model,
        tokenizer,
        recipe,
        base_mix(world),
        steps=recipe.base_steps,
        lr=recipe.base_lr,
        seed=recipe.seed + 1,
        # Few entries first: see write_passages.
        start=0.03,
    )
    _save(model, tokenizer, models / "base")
    return figures


def train_new_base(recipe: Recipe, models: Path) -> dict[str, float]:
    """Pre-train the base further on other text."""
    model, tokenizer = _load(models / "base")
    figures = _pretrain(
        model,
        tokenizer,
        recipe,
        new_base_mix(recipe.world()),
        steps=recipe.new_base_steps,
        lr=recipe.new_base_lr,
        seed=recipe.seed + 2,
    )
    # The newer base promises a longer context, which a transplanted model must keep.
    model.config.max_position_embeddings *= 2
    _save(model, tokenizer, models / "new-base")
    return figures


def train_post(recipe: Recipe, models: Path, *, source: str, name: str) -> dict[str, float]:
    """Post-train the source checkpoint on the instructions."""
    model, tokenizer = _load(models / source)
    batches = chat_batches(
        recipe.tasks().train, tokenizer, batch=recipe.post_batch, seed=recipe.seed + 3
    )
    loss = fit(model, batches, steps=recipe.post_steps, lr=recipe.post_lr)
    tokenizer.chat_template = CHAT_TEMPLATE
    end_of_turn = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[end_of_turn, tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    _save(model, tokenizer, models / name)
    return {"answer_loss": loss}


STAGES: dict[str, Callable[[Recipe, Path], dict[str, float]]] = {
    "base": train_base,
    "post": lambda recipe, models: train_post(recipe, models, source="base", name="post"),
    "new-base": train_new_base,
    "direct": lambda recipe, models: train_post(recipe, models, source="new-base", name="direct"),
}


def fit(model: LlamaForCausalLM, batches: Iterator[Batch], *, steps: int, lr: float) -> float:
    """Train in place with AdamW, a short warm-up and a linear decay to a tenth.

    Returns:
        The mean loss of the last twentieth of the steps.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    tail = max(1, steps // 20)
    losses: list[float] = []
    model.train()
    for step in range(steps):
        progress = max(0.0, (step - tail) / (steps - tail))
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / tail, 1.0 - 0.9 * progress)
        batch = next(batches)
        loss = model(input_ids=batch.ids, labels=batch.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-tail:]) / tail


def _pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    mix: dict[Domain, float],
    *,
    steps: int,
    lr: float,
    seed: int,
    start: float = 1.0,
) -> dict[str, float]:
    """Train on a mix, and return the loss on unseen text of that mix before and after."""
    before = _text_loss(model, tokenizer, recipe, mix, seed)
    # A passage has nine tokens or more, so this is enough text for every step.
    passages = write_passages(mix, steps * recipe.batch * recipe.length // 9, seed, start=start)
    batches = text_batches(passages, tokenizer, batch=recipe.batch, length=recipe.length)
    fit(model, batches, steps=steps, lr=lr)
    return {
        "text_loss_before": before,
        "text_loss_after": _text_loss(model, tokenizer, recipe, mix, seed),
    }


@torch.no_grad()
def _text_loss(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    mix: dict[Domain, float],
    seed: int,
) -> float:
    """Return the loss per token on text of the mix that no stage trains on."""
    model.eval()
    passages = write_passages(mix, 500, seed + 1000)
    batches = list(text_batches(passages, tokenizer, batch=recipe.batch, length=recipe.length))
    losses = [model(input_ids=batch.ids, labels=batch.labels).loss.item() for batch in batches]
    return float(sum(losses) / len(losses))


def _config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the architecture: Llama, tied, with weights that start large enough to learn fast."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=3 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=128,
        initializer_range=0.08,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _load(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Load a checkpoint for training: its bfloat16 weights, as float32."""
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(path)


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Store a checkpoint as the Hub's are: bfloat16 safetensors, configs, tokenizer."""
    model.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)


def main() -> None:
    """Train the stage that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=tuple(STAGES))
    parser.add_argument("--models", type=Path, required=True, help="where the checkpoints are")
    parser.add_argument("--report", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--seed", type=int, default=Recipe.__dataclass_fields__["seed"].default)
    arguments = parser.parse_args()
    # Matrices this small gain nothing from more threads, and one makes the result the same on
    # any number of cores; stages that do not need each other run beside each other instead.
    torch.set_num_threads(1)
    recipe = Recipe(seed=arguments.seed)
    started = time.monotonic()
    figures = STAGES[arguments.stage](recipe, arguments.models)
    figures["seconds"] = time.monotonic() - started
    report = {name: round(value, 3) for name, value in figures.items()}
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text(json.dumps({**report, "recipe": asdict(recipe)}, indent=2) + "\n")
    print(f"{arguments.stage:9s}", "  ".join(f"{key} {value:g}" for key, value in report.items()))


if __name__ == "__main__":
    main()
