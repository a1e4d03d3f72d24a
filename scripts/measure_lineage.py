"""Measures what lineage says of bases that are related and of bases that are not.

    python scripts/measure_lineage.py DIRECTORY [--json FILE] [--plot FILE]

Trains the story's base and post (scripts/story), then new bases of several kinds: the base trained
further for several lengths and rates, once with another vocabulary; the same architecture from ten
other initial seeds; and the base changed without training (quantised and restored, noise added,
units and heads permuted). Each is compared with the samples of the delta's own base, and the delta
is applied to each: the share of held-out questions that the result answers is what lineage is meant
to foretell. Prints a Markdown table. What is in DIRECTORY already is not made again.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from deltastore.merging.planning import MergeOptions
from deltastore.operations.apply import apply
from deltastore.operations.extract import extract
from deltastore.store import Store, open_store

sys.path.insert(0, str(Path(__file__).parent))
from story.evaluate import answers, right
from story.train import (
    Recipe,
    chat_rows,
    fit,
    load,
    make_tokenizer,
    new_model,
    save,
    text_rows,
)
from story.world import make_world, test_prompts, training_prompts

CONTINUED = (
    (50, 3e-4),
    (150, 3e-4),
    (500, 3e-4),
    (1500, 3e-4),
    (150, 1e-3),
    (500, 1e-3),
    (1500, 1e-3),
    (500, 4e-3),
)
"""Steps and rate; the base itself was trained for 900 steps at 4e-3."""

SEEDS = range(1, 11)
SEED_STEPS = 300
NOISE = (0.05, 0.2, 0.5, 1.0, 2.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One new base: its kind, what was done, and what makes it out of the base's model.

    ``other_tokens``: its words are then put into another order, and 100 are added.
    """

    kind: str
    label: str
    make: Callable[[LlamaForCausalLM], LlamaForCausalLM]
    other_tokens: bool = False


def cases(recipe: Recipe) -> Iterator[Case]:
    """All new bases."""
    world = make_world(recipe.seed)
    plain = make_tokenizer(world, chat=False)

    def continued(steps: int, rate: float) -> Callable[[LlamaForCausalLM], LlamaForCausalLM]:
        def make(model: LlamaForCausalLM) -> LlamaForCausalLM:
            rng = random.Random(recipe.seed * 1000 + 2)
            rows = text_rows(plain, (*world.old, *world.new), recipe, rng, talk=0.3)
            fit(f"{steps}", model, rows, steps, rate)
            return model

        return make

    def seeded(seed: int) -> Callable[[LlamaForCausalLM], LlamaForCausalLM]:
        def make(_model: LlamaForCausalLM) -> LlamaForCausalLM:
            model = new_model(plain, dataclasses.replace(recipe, seed=seed))
            rng = random.Random(seed)
            rows = text_rows(plain, world.old, recipe, rng, talk=0.1, grow_steps=SEED_STEPS // 2)
            fit(f"seed {seed}", model, rows, SEED_STEPS, recipe.base_rate)
            return model

        return make

    yield Case("same", "the base itself", lambda model: model)
    for steps, rate in CONTINUED:
        label = f"trained {steps} steps further at {rate:g}"
        yield Case("continued", label, continued(steps, rate))
    for steps, rate in CONTINUED[5:6]:
        label = f"the same, {steps} steps at {rate:g}, with its words in another order and 100 more"
        yield Case("other tokens", label, continued(steps, rate), other_tokens=True)
    for bits in (8, 4, 3):
        yield Case("changed", f"quantised to {bits} bits and restored", quantised(bits))
    for share in NOISE:
        yield Case("changed", f"noise of {share:g} of each tensor's size", noisy(share))
    yield Case("permuted", "units of the MLPs permuted", permuted("units"))
    yield Case("permuted", "heads of the attention permuted", permuted("heads"))
    yield Case("permuted", "both permuted, and the residual stream", permuted("residual"))
    for seed in SEEDS:
        yield Case("other seed", f"seed {seed}", seeded(seed))


def quantised(bits: int) -> Callable[[LlamaForCausalLM], LlamaForCausalLM]:
    """Matrices rounded to so many bits a weight, with a scale for each row."""

    def make(model: LlamaForCausalLM) -> LlamaForCausalLM:
        for weight in model.parameters():
            if weight.ndim > 1:
                scale = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                scale = scale.clamp(min=1e-9)  # the row of the padding is zero
                weight.data = (weight / scale).round() * scale
        return model

    return make


def noisy(share: float) -> Callable[[LlamaForCausalLM], LlamaForCausalLM]:
    """Gaussian noise on the matrices."""

    def make(model: LlamaForCausalLM) -> LlamaForCausalLM:
        torch.manual_seed(0)
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.data += share * weight.std() * torch.randn_like(weight)
        return model

    return make


def permuted(what: str) -> Callable[[LlamaForCausalLM], LlamaForCausalLM]:
    """The same function with its parts in another order: ``units``, ``heads``, or all."""

    def make(model: LlamaForCausalLM) -> LlamaForCausalLM:
        state = model.state_dict()
        stream = shuffled(model.config.hidden_size, 1000)
        size = model.config.hidden_size // model.config.num_attention_heads
        for name, weight in state.items():
            layer = int(name.split(".")[2]) if ".layers." in name else 0
            if what != "heads" and ".mlp." in name:
                order = shuffled(model.config.intermediate_size, layer)
                weight = weight[:, order] if "down_proj" in name else weight[order]
            if what != "units" and ".self_attn." in name:
                heads = shuffled(model.config.num_attention_heads, layer)
                order = (heads[:, None] * size + torch.arange(size)).flatten()
                weight = weight[:, order] if "o_proj" in name else weight[order]
            if what == "residual":
                rows = name.endswith(("o_proj.weight", "down_proj.weight")) or weight.ndim == 1
                weight = weight[stream] if rows else weight[:, stream]
            state[name] = weight.contiguous()
        model.load_state_dict(state)
        return model

    return make


def shuffled(size: int, seed: int) -> torch.Tensor:
    """A permutation that leaves hardly anything in its place."""
    return torch.roll(torch.randperm(size, generator=torch.Generator().manual_seed(seed)), 1)


def with_other_tokens(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The same model with its rows in another order and 100 rows more, and their tokenizer."""
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    old = document["model"]["vocab"]
    extra = [f"more-{number}" for number in range(100)]
    words = [*old, *extra]
    order = shuffled(len(words), 2000).tolist()
    table = {words[place]: row for row, place in enumerate(order)}
    document["model"]["vocab"] = table
    for token in document["added_tokens"]:
        token["id"] = table[token["content"]]
    state = model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = torch.randn(len(words), state[name].shape[1]) * state[name].std()
        for word, row in old.items():
            rows[table[word]] = state[name][row]
        state[name] = rows
    config = copy.deepcopy(model.config)
    config.vocab_size = len(words)
    config.pad_token_id = table[tokenizer.pad_token]
    grown = LlamaForCausalLM(config)
    grown.load_state_dict(state)
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)),
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token,
        eos_token=tokenizer.eos_token,
        padding_side="left",
    )
    return grown, made


def prepare(directory: Path, recipe: Recipe) -> None:
    """Base and post, as the quickstart trains them."""
    world = make_world(recipe.seed)
    plain, chat = make_tokenizer(world, chat=False), make_tokenizer(world, chat=True)
    if not (directory / "base").exists():
        model = new_model(plain, recipe)
        rng = random.Random(recipe.seed * 1000 + 1)
        grow = recipe.base_steps // 2
        rows = text_rows(plain, world.old, recipe, rng, talk=0.1, grow_steps=grow)
        fit("base", model, rows, recipe.base_steps, recipe.base_rate)
        save(model, plain, directory / "base")
    if not (directory / "post").exists():
        model = load(directory / "base")
        rows = chat_rows(
            chat, training_prompts(world), recipe, random.Random(recipe.seed * 1000 + 3)
        )
        fit("post", model, rows, recipe.post_steps, recipe.post_rate)
        save(model, chat, directory / "post")


def measure_case(directory: Path, recipe: Recipe, store: Store, case: Case) -> dict[str, Any]:
    """Lineage's figures of one new base, and how well the delta works on it."""
    world = make_world(recipe.seed)
    place = directory / case.label.replace(" ", "-").replace("'", "")
    if not place.exists():
        model, tokenizer = case.make(load(directory / "base")), make_tokenizer(world, chat=False)
        if case.other_tokens:
            model, tokenizer = with_other_tokens(model, tokenizer)
        save(model, tokenizer, place)
    out, forced = directory / f"{place.name}.out", MergeOptions(force=True)
    if not out.exists():
        apply(store, ["delta"], base=place, out=out, options=forced)
    dry = apply(store, ["delta"], base=place, out=directory / "dry", options=forced, dry_run=True)
    (figures,) = dry.lineage
    asked = test_prompts(world)
    said = answers(out, directory / "post", asked)
    correct = sum(right(reply, prompt) for reply, prompt in zip(said, asked, strict=True))
    return {
        "kind": case.kind,
        "label": case.label,
        **figures,
        "accuracy": round(correct / len(asked), 4),
    }


def plot(rows: list[dict[str, Any]], target: Path) -> None:
    """Accuracy over the cosine, a colour for each kind."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2))
    for kind in dict.fromkeys(row["kind"] for row in rows):
        chosen = [row for row in rows if row["kind"] == kind]
        axes.scatter(
            [row["cosine"] for row in chosen], [row["accuracy"] for row in chosen], label=kind
        )
    axes.set_xlabel("lineage: mean cosine between the samples of both bases")
    axes.set_ylabel("held-out questions answered with the delta")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(target, dpi=120)


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    prepare(arguments.directory, recipe)
    rows = []
    with open_store(arguments.directory / "store") as store:
        extract(store, arguments.directory / "base", arguments.directory / "post", name="delta")
        for case in cases(recipe):
            rows.append(measure_case(arguments.directory, recipe, store, case))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print("| new base | verdict | cosine | distance | unlike | questions answered |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['label']} | {row['verdict']} | {row['cosine']:.3f} "
            f"| {row['distance']:.2f} | {row['unlike']} of {row['tensors']} "
            f"| {row['accuracy']:.1%} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
