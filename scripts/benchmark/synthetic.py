"""Synthetic checkpoints with the statistics of real ones.

Makes DIR/base, DIR/post and DIR/new-base: Llama-shaped, bf16, sharded with an index, of a given
size. Weights are N(0, 0.02); post is base plus a Laplace delta whose size relative to the base
varies by tensor (1 % to 2 % by default), with some layers frozen; new-base is base plus a Gaussian
drift, as continued pre-training leaves it. Everything is drawn anew, nothing is repeated, so that
no compressor finds matches that real weights do not have. The same arguments give the same bytes.
"""

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

MODELS = ("base", "post", "new-base")
WEIGHT_STD = 0.02
NORM_MEAN, NORM_STD = 0.4, 0.05
HEAD_DIM = 64
CHUNK = 1 << 18  # elements: the float32 scratch of a thread stays near the L2 cache
MARKER = "synthetic.json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a triple is made from; stored beside it once it is complete."""

    size_gb: float
    seed: int = 0
    relative_change: float = 0.015
    drift: float = 0.1


@dataclass(frozen=True, slots=True)
class Model:
    """A Llama-like shape."""

    hidden: int
    layers: int
    vocab: int

    @property
    def intermediate(self) -> int:
        """The width of the gated MLP."""
        return self.hidden * 11 // 4

    @property
    def heads(self) -> int:
        """The number of query heads."""
        return self.hidden // HEAD_DIM

    @property
    def kv_heads(self) -> int:
        """The number of key and value heads (grouped queries, eight to one)."""
        return max(1, self.heads // 8)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor and the place of its bytes in the shard files."""

    name: str
    shape: tuple[int, ...]
    shard: str
    offset: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def choose_model(parameters: int) -> Model:
    """The shape with about this many parameters and usual proportions (hidden / layers near 90)."""
    vocab = 32_000 if parameters > 50_000_000 else 2_000
    candidates = []
    for hidden in (64, 128, 256, 512, 1024, 2048, 4096, 8192):
        one, none = Model(hidden, 1, vocab), Model(hidden, 0, vocab)
        rest = _parameters(none)
        layers = round((parameters - rest) / (_parameters(one) - rest))
        if layers >= 1:
            candidates.append(Model(hidden, layers, vocab))
    if not candidates:
        raise ValueError(f"no model is as small as {parameters} parameters")
    return min(candidates, key=lambda m: abs(math.log(m.hidden / m.layers / 90)))


def shapes(model: Model) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, in the order of the model's layers."""
    hidden, wide, kv = model.hidden, model.intermediate, model.kv_heads * HEAD_DIM
    yield "model.embed_tokens.weight", (model.vocab, hidden)
    for layer in range(model.layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "mlp.down_proj.weight", (hidden, wide)
        yield prefix + "mlp.gate_proj.weight", (wide, hidden)
        yield prefix + "mlp.up_proj.weight", (wide, hidden)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield prefix + "self_attn.k_proj.weight", (kv, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, hidden)
        yield prefix + "self_attn.q_proj.weight", (hidden, hidden)
        yield prefix + "self_attn.v_proj.weight", (kv, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (model.vocab, hidden)


def make_triple(out: Path, recipe: Recipe, jobs: int) -> None:
    """Write the three checkpoints under `out`; a complete triple of the same recipe is kept."""
    if read_recipe(out) == recipe:
        return
    (out / MARKER).unlink(missing_ok=True)
    model = choose_model(round(recipe.size_gb * 1e9 / 2))
    headers, tensors = _plan(model)
    for name in MODELS:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
        _write_small_files(out / name, name, model, tensors)
    with ExitStack() as stack:
        files: dict[tuple[str, str], int] = {}
        for name in MODELS:
            for shard, header in headers.items():
                handle = stack.enter_context((out / name / shard).open("wb"))
                handle.write(header)
                handle.flush()
                files[name, shard] = handle.fileno()
        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        work = [
            pool.submit(
                _write_tensor, files, tensor, np.random.default_rng((recipe.seed, i)), recipe
            )
            for i, tensor in enumerate(tensors)
        ]
        for done in work:
            done.result()
    (out / MARKER).write_text(json.dumps(asdict(recipe)) + "\n")


def read_recipe(out: Path) -> Recipe | None:
    """The recipe of a complete triple, or None where there is none."""
    try:
        return Recipe(**json.loads((out / MARKER).read_text()))
    except FileNotFoundError:
        return None


def _parameters(model: Model) -> int:
    return sum(math.prod(shape) for _, shape in shapes(model))


def _frozen(name: str) -> bool:
    """Whether fine-tuning left this tensor alone: one layer in ten."""
    parts = name.split(".")
    return parts[1] == "layers" and int(parts[2]) % 10 == 1


def _plan(model: Model) -> tuple[dict[str, bytes], list[Tensor]]:
    """Divide the tensors over shards, in order: three, or as many of 5 GB as it takes."""
    named = list(shapes(model))
    limit = min(5_000_000_000, -(-2 * _parameters(model) // 3))
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, shape in named:
        size = 2 * math.prod(shape)
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += size
    headers: dict[str, bytes] = {}
    tensors: list[Tensor] = []
    for number, members in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        table: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        places = []
        for name, shape in sorted(members):
            end = at + 2 * math.prod(shape)
            table[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
            places.append((name, shape, at))
            at = end
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        headers[file] = len(text).to_bytes(8, "little") + text
        tensors += [Tensor(n, s, file, len(headers[file]) + start) for n, s, start in places]
    return headers, tensors


def _write_tensor(
    files: dict[tuple[str, str], int], tensor: Tensor, rng: np.random.Generator, recipe: Recipe
) -> None:
    norm = len(tensor.shape) == 1
    mean, std = (NORM_MEAN, NORM_STD) if norm else (0.0, WEIGHT_STD)
    size = math.hypot(mean, std)  # root mean square: what a change is relative to
    # A third to either side: 1 % to 2 % around the default of 1.5 %.
    change = recipe.relative_change * rng.uniform(2 / 3, 4 / 3) * size
    drift = recipe.drift * rng.uniform(2 / 3, 4 / 3) * (std if norm else size)
    frozen = _frozen(tensor.name)
    one, two, base = (np.empty(min(CHUNK, tensor.elements), np.float32) for _ in range(3))
    for start in range(0, tensor.elements, CHUNK):
        n = min(CHUNK, tensor.elements - start)
        a, b, base_f = one[:n], two[:n], base[:n]

        def put(
            model: str, values: NDArray[np.float32], at: int = tensor.offset + 2 * start
        ) -> NDArray[np.generic]:
            rounded = values.astype(ml_dtypes.bfloat16)
            _pwrite(files[model, tensor.shard], rounded.view(np.uint8).data, at)
            return rounded

        _normal(rng, a, std)
        a += np.float32(mean)
        base_f[:] = put("base", a)
        if frozen:
            put("post", base_f)
        else:
            # The difference of two exponential variables is a Laplace variable of variance 2.
            rng.standard_exponential(dtype=np.float32, out=a)
            rng.standard_exponential(dtype=np.float32, out=b)
            a -= b
            a *= np.float32(change / math.sqrt(2))
            a += base_f
            put("post", a)
        _normal(rng, a, drift)
        a += base_f
        put("new-base", a)


def _normal(rng: np.random.Generator, out: NDArray[np.float32], std: float) -> None:
    rng.standard_normal(dtype=np.float32, out=out)
    out *= np.float32(std)


def _pwrite(file: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written


def _write_small_files(folder: Path, name: str, model: Model, tensors: list[Tensor]) -> None:
    """Config, generation config and index; they differ among the three as real ones do."""
    extended = name == "new-base"
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "initializer_range": WEIGHT_STD,
        "intermediate_size": model.intermediate,
        "max_position_embeddings": 131_072 if extended else 8_192,
        "model_type": "llama",
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 4_000_000.0 if extended else 500_000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": model.vocab,
    }
    chat = name == "post"
    generation = {"bos_token_id": 1, "eos_token_id": [2, 3] if chat else 2, "do_sample": chat}
    index = {
        "metadata": {"total_size": sum(2 * t.elements for t in tensors)},
        "weight_map": {t.name: t.shard for t in tensors},
    }
    for file, value in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("model.safetensors.index.json", index),
    ):
        (folder / file).write_text(json.dumps(value, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Make one triple from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--size-gb", type=float, required=True, help="of each checkpoint, 10^9 bytes"
    )
    parser.add_argument("--out", type=Path, required=True, help="gets base, post and new-base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--relative-change", type=float, default=0.015, help="|delta| / |base|")
    parser.add_argument("--drift", type=float, default=0.1, help="|new base - base| / |base|")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    recipe = Recipe(given.size_gb, given.seed, given.relative_change, given.drift)
    make_triple(given.out, recipe, given.jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
