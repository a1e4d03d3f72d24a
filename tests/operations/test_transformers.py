"""Outputs load in transformers, whole, and compute what they should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, assert_same_bits, load

import deltastore

transformers = pytest.importorskip("transformers")

WORDS = [f"w{i}" for i in range(60)]
PROMPT = "w1 w2 w3 w4 w5"
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
IDS = {"bos_token_id": 61, "eos_token_id": 62, "pad_token_id": 63}

Config = Callable[[], Any]
FAMILIES: dict[str, Config] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, **IDS, tie_word_embeddings=False),
    "tied llama": lambda: transformers.LlamaConfig(**SMALL, **IDS, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, **IDS, tie_word_embeddings=True),
    "mistral": lambda: transformers.MistralConfig(**SMALL, **IDS, tie_word_embeddings=False),
    "gemma": lambda: transformers.GemmaConfig(**SMALL, **IDS, head_dim=8, tie_word_embeddings=True),
    "mixtral": lambda: transformers.MixtralConfig(
        **SMALL, **IDS, num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False
    ),
    "gpt2": lambda: transformers.GPT2Config(**GPT2, **IDS, initializer_range=0.3),
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The progress bars of loading; and one thread, as the models are tiny."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as opened:
        yield opened


def built(config: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def moved(model: Any, seed: int, size: float) -> None:
    """A step of something like training, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            step = torch.randn(parameter.shape, generator=generator) * size
            parameter.copy_((parameter.float() + step).to(parameter.dtype))


def tokenizer(*added: str, template: str | None = None) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate([*WORDS, "<unk>", "<s>", "</s>", "<pad>"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
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


def save(model: Any, tokens: Any, path: Path, *, shard: str = "12KB") -> Path:
    model.save_pretrained(path, max_shard_size=shard)
    tokens.save_pretrained(path)
    return path


def loaded(path: Path) -> Any:
    """The model at ``path``, of which nothing may be missing, left over or of another shape."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        path, output_loading_info=True, dtype="auto"
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report.get(kind), (kind, report[kind])
    return model.eval()


def generated(model: Any, tokens: Any) -> list[int]:
    """Twelve greedy tokens; and the logits must be numbers."""
    inputs = tokens(PROMPT, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()
        out = model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    return out[0].tolist()


def by_hand(base: Tensors, post: Tensors, new: Tensors, scale: float) -> Tensors:
    """Θ_out as one line of torch."""
    return {
        name: torch.where(
            base[name] == post[name],
            new[name],
            (new[name].float() + scale * (post[name].float() - base[name].float())).bfloat16(),
        )
        for name in new
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_transplanted(store: deltastore.DeltaStore, tmp_path: Path, family: str) -> None:
    config = FAMILIES[family]
    tokens = tokenizer()
    base, post, new = built(config(), 1), built(config(), 1), built(config(), 1)
    moved(post, 2, 0.02)
    moved(new, 3, 0.02)
    paths = {
        name: save(model, tokens, tmp_path / name)
        for name, model in (("base", base), ("post", post), ("new", new))
    }
    assert len(list(paths["new"].glob("*.safetensors"))) > 2
    artifact = store.extract(paths["base"], paths["post"], name=family.replace(" ", "-"))

    store.apply(artifact, base=paths["base"], out=tmp_path / "restored")
    assert_same_bits(load(tmp_path / "restored"), load(paths["post"]))
    restored = loaded(tmp_path / "restored")
    assert generated(restored, tokens) == generated(post, tokens)
    assert generated(restored, tokens) != generated(base, tokens)

    store.apply(artifact, base=paths["new"], out=tmp_path / "out", scale=0.7)
    result = loaded(tmp_path / "out")
    expected = built(config(), 4)
    scaled = by_hand(base.state_dict(), post.state_dict(), new.state_dict(), 0.7)
    expected.load_state_dict(scaled)
    assert_same_bits(dict(result.state_dict()), dict(expected.state_dict()))
    again = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert generated(result, again) == generated(expected, tokens)
    assert type(result) is type(base)


def test_two_deltas(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    config = FAMILIES["llama"]
    tokens = tokenizer()
    base = built(config(), 1)
    base_path = save(base, tokens, tmp_path / "base")
    states = []
    for i in range(2):
        post = built(config(), 1)
        moved(post, 10 + i, 0.02)
        store.extract(base_path, save(post, tokens, tmp_path / f"p{i}"), name=f"p{i}")
        states.append(post.state_dict())
    store.apply(["p0", "p1"], base=base_path, out=tmp_path / "out", scale=[1.0, 0.5])
    expected = {}
    for name, start in base.state_dict().items():
        total = start.float() + 1.0 * (states[0][name].float() - start.float())
        expected[name] = (total + 0.5 * (states[1][name].float() - start.float())).bfloat16()
    assert_same_bits(dict(loaded(tmp_path / "out").state_dict()), expected)


def test_new_tokens_and_a_chat_template(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    config = FAMILIES["llama"]
    plain, template = tokenizer(), "{% for m in messages %}<|im|>{{ m['content'] }}{% endfor %}"
    chat = tokenizer("<|im|>", "<|end|>", template=template)
    base, post, new = built(config(), 1), built(config(), 1), built(config(), 1)
    moved(post, 2, 0.02)
    moved(new, 3, 0.02)
    post.resize_token_embeddings(len(chat), mean_resizing=False)
    post.generation_config.eos_token_id = [62, 65]
    new.config.rope_parameters = dict(new.config.rope_parameters, rope_theta=5e5)
    paths = [
        save(model, tokens, tmp_path / name)
        for name, model, tokens in (
            ("base", base, plain),
            ("post", post, chat),
            ("new", new, plain),
        )
    ]
    artifact = store.extract(*paths[:2])
    store.apply(artifact, base=paths[2], out=tmp_path / "out")
    result = loaded(tmp_path / "out")
    assert result.config.vocab_size == 66
    assert result.get_input_embeddings().weight.shape[0] == 66
    assert result.config.rope_parameters["rope_theta"] == 5e5
    assert result.generation_config.eos_token_id == [62, 65]
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(again) == 66
    message = [{"role": "user", "content": "w7"}]
    assert again.apply_chat_template(message, tokenize=False) == "<|im|>w7"
    assert again.convert_tokens_to_ids("<|end|>") == 65
    rows = post.state_dict()["model.embed_tokens.weight"][64:]
    assert torch.equal(result.state_dict()["model.embed_tokens.weight"][64:], rows)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_post_training_tied_or_untied(
    store: deltastore.DeltaStore, tmp_path: Path, tied: bool
) -> None:
    tokens = tokenizer()
    before = FAMILIES["llama" if tied else "tied llama"]
    after = FAMILIES["tied llama" if tied else "llama"]
    base, post = built(before(), 1), built(after(), 2)
    paths = save(base, tokens, tmp_path / "base"), save(post, tokens, tmp_path / "post")
    artifact = store.extract(*paths)
    store.apply(artifact, base=paths[0], out=tmp_path / "out")
    result = loaded(tmp_path / "out")
    assert_same_bits(dict(result.state_dict()), dict(post.state_dict()))
    assert generated(result, tokens) == generated(post, tokens)


def test_another_dtype(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    config = FAMILIES["qwen2"]
    tokens = tokenizer()
    base, post = built(config(), 1), built(config(), 1)
    moved(post, 2, 0.02)
    paths = save(base, tokens, tmp_path / "base"), save(post, tokens, tmp_path / "post")
    artifact = store.extract(*paths)
    store.apply(artifact, base=paths[0], out=tmp_path / "out", dtype="float16")
    result = loaded(tmp_path / "out")
    assert {p.dtype for p in result.parameters()} == {torch.float16}
    assert str(result.config.dtype).removeprefix("torch.") == "float16"


def test_old_pickles(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """As transformers saved models before safetensors: the tied head is there as well."""
    config = FAMILIES["gpt2"]
    tokens = tokenizer()
    base, post = built(config(), 1), built(config(), 1)
    moved(post, 2, 0.02)
    paths = []
    for name, model in (("base", base), ("post", post)):
        path = save(model, tokens, tmp_path / name)
        for file in (*path.glob("*.safetensors"), path / "model.safetensors.index.json"):
            file.unlink()
        torch.save(model.state_dict(), path / "pytorch_model.bin")
        paths.append(path)
    artifact = store.extract(*paths)
    result = store.apply(artifact, base=paths[0], out=tmp_path / "out")
    assert result.restored
    restored = loaded(tmp_path / "out")
    assert_same_bits(dict(restored.state_dict()), dict(post.state_dict()))
    assert generated(restored, tokens) == generated(post, tokens)
