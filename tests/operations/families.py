"""Tiny models of real families, made, saved and loaded with transformers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from checkpoints import Tensors
from tokenizers import Tokenizer, models, pre_tokenizers

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
WORDS = [f"w{i}" for i in range(60)]
VOCABULARY = len(SPECIAL) + len(WORDS)
PROMPT = "w1 w2 w3 w4 w5"

_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    **_IDS,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 2}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.3,
    **_IDS,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture as transformers configures, makes and loads it."""

    config: str
    fields: Mapping[str, Any]
    auto: str = "AutoModelForCausalLM"

    def build(self, seed: int, rows: int = VOCABULARY) -> Any:
        """A new model in bfloat16, the same for the same seed, resized to so many tokens."""
        config = getattr(transformers, self.config)(**self.fields)
        torch.manual_seed(seed)
        auto = getattr(transformers, self.auto)
        model = auto.from_config(config, dtype=torch.bfloat16).eval()
        if rows != VOCABULARY:
            model.resize_token_embeddings(rows, mean_resizing=False)
            head = model.get_output_embeddings()
            if head is not None and head.bias is not None and not config.tie_word_embeddings:
                # Resizing makes the two biases of an untied masked BERT one, which is saved under
                # one name; loading expects both.
                head.bias = torch.nn.Parameter(head.bias.detach().clone())
        return model

    def load(self, path: Path) -> Any:
        """The model at ``path``, of which nothing may be missing, left over or of another shape."""
        return load_whole(self.auto, path)


def _heads(name: str, config: str, fields: Mapping[str, Any], **more: Any) -> dict[str, Family]:
    """One family with the head tied to the embeddings, and with a head of its own."""
    return {
        f"{how} {name}": Family(config, {**fields, "tie_word_embeddings": how == "tied"}, **more)
        for how in ("tied", "untied")
    }


FAMILIES = {
    **_heads("llama", "LlamaConfig", _DECODER),
    **_heads("qwen2", "Qwen2Config", _DECODER),
    **_heads("mistral", "MistralConfig", _DECODER),
    **_heads("gemma", "GemmaConfig", {**_DECODER, "head_dim": 8}),
    **_heads("mixtral", "MixtralConfig", {**_DECODER, **_EXPERTS}),
    **_heads("gpt2", "GPT2Config", _GPT2),
    **_heads("masked bert", "BertConfig", _ENCODER, auto="AutoModelForMaskedLM"),
    "bert encoder": Family("BertConfig", _ENCODER, auto="AutoModel"),
}


def load_whole(auto: str, path: Path) -> Any:
    """What that class of transformers loads from ``path``, if every weight found its place."""
    model, report = getattr(transformers, auto).from_pretrained(
        path, output_loading_info=True, dtype="auto"
    )
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= report.keys()
    assert not {kind: names for kind, names in report.items() if names}
    return model.eval()


def move(model: Any, seed: int, size: float) -> None:
    """A step of something like training, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            step = torch.randn(parameter.shape, generator=generator) * size
            parameter.copy_((parameter.float() + step).to(parameter.dtype))


def make_tokenizer(*added: str, template: str | None = None, words: int = len(WORDS)) -> Any:
    """A tokenizer of the special tokens, the first ``words`` words, and what is added."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS[:words]])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    if added:
        made.add_tokens(list(added), special_tokens=True)
    if template is not None:
        made.chat_template = template
    return made


def save(model: Any, tokenizer: Any, path: Path, *, shard: str = "12KB") -> Path:
    """Write both as transformers does, the weights in several shards."""
    model.save_pretrained(path, max_shard_size=shard)
    tokenizer.save_pretrained(path)
    return path


def answer(model: Any, tokenizer: Any) -> torch.Tensor:
    """What the model makes of the prompt: 12 greedy tokens, or an encoder's own output."""
    inputs = tokenizer(PROMPT, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        output = model(**inputs)[0]
        assert torch.isfinite(output).all()
        if model.can_generate():
            options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
            return model.generate(**inputs, **options)[0]
    return output


def by_hand(base: Tensors, post: Tensors, new: Tensors, scale: float) -> Tensors:
    """Θ_out in torch, summed in float32 (float64 of float32 weights) and rounded once.

    Rows that only post has are post's; the result has post's tensors.
    """
    result = {}
    for name, after in post.items():
        rows = min(len(after), len(base[name]))
        before, end, start = base[name][:rows], after[:rows], new[name][:rows]
        wide = torch.float64 if start.dtype == torch.float32 else torch.float32
        moved = start.to(wide) + scale * (end.to(wide) - before.to(wide))
        common = torch.where(before == end, start, moved.to(start.dtype))
        result[name] = torch.cat([common, after[rows:]])
    return result
