"""An output's config.json fits its tensors: transformers finds none missing, left over or odd."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, make_tokenizer, move, save

import deltastore
from deltastore.errors import StructureMismatchError

pytestmark = pytest.mark.usefixtures("quiet")

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SEQ2SEQ = {
    "vocab_size": 60,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1, "decoder_start_token_id": 2}
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
VIT = {**SMALL, "image_size": 16, "patch_size": 8}
del VIT["vocab_size"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of transformers, its configuration, and how it is made."""

    name: str
    config: Callable[..., Any]

    def build(self, seed: int, **fields: Any) -> Any:
        torch.manual_seed(seed)
        return getattr(transformers, self.name)(self.config(**fields)).eval()


def of(config: str, **fixed: Any) -> Callable[..., Any]:
    return lambda **fields: getattr(transformers, config)(**(fixed | fields))


def llava(**fields: Any) -> Any:
    text = transformers.LlamaConfig(**SMALL, num_key_value_heads=2)
    vision = transformers.CLIPVisionConfig(**VIT, projection_dim=32)
    return transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=5, **fields
    )


def donut(**fields: Any) -> Any:
    decoder = transformers.MBartConfig(
        **SEQ2SEQ, is_decoder=True, add_cross_attention=True, tie_word_embeddings=False
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VIT), decoder
    )
    config.tie_word_embeddings = False
    return config


T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
WHISPER = {k: v for k, v in SEQ2SEQ.items() if k != "max_position_embeddings"} | {
    "max_source_positions": 30,
    "max_target_positions": 40,
    "num_mel_bins": 8,
}
KINDS = {
    "opt": Kind(
        "OPTForCausalLM",
        of(
            "OPTConfig",
            **{k: v for k, v in SMALL.items() if k != "intermediate_size"},
            ffn_dim=48,
            max_position_embeddings=40,
            word_embed_proj_dim=32,
            **IDS,
        ),
    ),
    "gpt-neox": Kind("GPTNeoXForCausalLM", of("GPTNeoXConfig", **SMALL)),
    "qwen moe": Kind(
        "Qwen2MoeForCausalLM",
        of(
            "Qwen2MoeConfig",
            **SMALL,
            num_key_value_heads=2,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=24,
        ),
    ),
    "roberta": Kind(
        "RobertaForMaskedLM", of("RobertaConfig", **SMALL, max_position_embeddings=42, **IDS)
    ),
    "bart": Kind("BartForConditionalGeneration", of("BartConfig", **SEQ2SEQ, **IDS)),
    "t5": Kind("T5ForConditionalGeneration", of("T5Config", **T5)),
    "whisper": Kind("WhisperForConditionalGeneration", of("WhisperConfig", **WHISPER, **IDS)),
    "llava": Kind("LlavaForConditionalGeneration", llava),
    "donut": Kind("VisionEncoderDecoderModel", donut),
    "gpt2": Kind("GPT2LMHeadModel", of("GPT2Config", **GPT2)),
    "llama": Kind("LlamaForCausalLM", of("LlamaConfig", **SMALL, num_key_value_heads=2)),
    "deep llama": Kind(
        "Qwen3ForCausalLM", of("Qwen3Config", **SMALL, num_key_value_heads=2, head_dim=8)
    ),
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as store:
        yield store


def write(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    return path


def check(path: Path, like: Any) -> Any:
    """Load what is there as that model's class, and find every tensor of it in its place."""
    loaded, report = type(like).from_pretrained(path, output_loading_info=True)
    assert not {kind: names for kind, names in report.items() if names}
    return loaded


def resize(model: Any, rows: int) -> None:
    part = model.decoder if isinstance(model, transformers.VisionEncoderDecoderModel) else model
    part.resize_token_embeddings(rows, mean_resizing=False)
    if part is not model:
        model.config.decoder.vocab_size = rows


@pytest.mark.parametrize("rows", [57, 64])
@pytest.mark.parametrize("name", [name for name in KINDS if name != "deep llama"])
def test_more_and_fewer_tokens(
    store: deltastore.DeltaStore, tmp_path: Path, name: str, rows: int
) -> None:
    kind = KINDS[name]
    base, post, new = kind.build(1), kind.build(1), kind.build(1)
    resize(post, rows)
    move(post, 2, 0.002)
    move(new, 3, 0.002)
    paths = {n: write(m, tmp_path / n) for n, m in (("base", base), ("post", post), ("new", new))}
    check(paths["post"], post)
    store.extract(paths["base"], paths["post"], name="d")
    for where in ("base", "new"):
        out = tmp_path / f"on-{where}"
        done = store.apply("d", base=paths[where], out=out)
        assert done.restored is (where == "base")
        loaded = check(out, post)
        assert loaded.state_dict().keys() == post.state_dict().keys()
    for how in ({"scale": 0.0}, {"skip_embeddings": True}):
        out = tmp_path / f"out-{next(iter(how))}"
        store.apply("d", base=paths["new"], out=out, **how)
        check(out, new)


POSITIONS = {
    "gpt2": ("n_positions", 40, 56, "wpe"),
    "opt": ("max_position_embeddings", 40, 56, "embed_positions"),
    "roberta": ("max_position_embeddings", 42, 58, "position_embeddings"),
    "bart": ("max_position_embeddings", 40, 56, "embed_positions"),
    "whisper": ("max_source_positions", 30, 44, "encoder.embed_positions"),
}


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("documents", ["all", "post's is stale", "the new base's alone"])
def test_more_positions(
    store: deltastore.DeltaStore, tmp_path: Path, name: str, documents: str
) -> None:
    """With the offsets of each family: OPT and BART have two rows more than they say."""
    field, before, after, part = POSITIONS[name]
    kind = KINDS[name]
    base, new = kind.build(1, **{field: before}), kind.build(1, **{field: before})
    post = kind.build(1, **{field: after})
    move(new, 3, 0.002)
    fill(post, base, part)
    paths = {n: write(m, tmp_path / n) for n, m in (("base", base), ("post", post), ("new", new))}
    if documents == "post's is stale":
        change(paths["post"], **{field: before})
    elif documents != "all":
        for side in ("base", "post"):
            (paths[side] / "config.json").unlink()
    store.extract(paths["base"], paths["post"], name="d")
    for where in ("base", "new"):
        if (paths[where] / "config.json").exists():
            store.apply("d", base=paths[where], out=tmp_path / f"on-{where}")
            loaded = check(tmp_path / f"on-{where}", post)
            assert getattr(loaded.config, field) == after
    store.apply("d", base=paths["new"], out=tmp_path / "zero", scale=0.0)
    assert getattr(check(tmp_path / "zero", new).config, field) == before


@pytest.mark.parametrize("name", FAMILIES)
def test_another_vocabulary(store: deltastore.DeltaStore, tmp_path: Path, name: str) -> None:
    """Rows by token: the output has neither the new base's number of them nor post's."""
    family = FAMILIES[name]
    tokenizers = make_tokenizer(), make_tokenizer("<|a|>"), make_tokenizer(words=52)
    models = [family.build(1, len(tokenizer)) for tokenizer in tokenizers]
    paths = []
    for seed, (model, tokenizer) in enumerate(zip(models, tokenizers, strict=True)):
        move(model, seed, 0.002)
        paths.append(save(model, tokenizer, tmp_path / str(seed)))
    store.extract(paths[0], paths[1], name="d")
    for rows, options in ((57, {}), (56, {"skip_embeddings": True}), (56, {"scale": 0.0})):
        out = tmp_path / f"out-{len(options)}{next(iter(options), '')}"
        store.apply("d", base=paths[2], out=out, **options)
        assert family.load(out).config.vocab_size == rows


def fill(post: Any, base: Any, *parts: str) -> None:
    """Base's weights in a larger model, whose further rows stay its own."""
    state = base.state_dict()
    with torch.no_grad():
        for name, parameter in post.state_dict().items():
            if name in state and parameter.shape == state[name].shape:
                parameter.copy_(state[name] + 0.001)
            else:
                assert any(part in name for part in parts), name


def change(path: Path, **fields: Any) -> None:
    document = json.loads((path / "config.json").read_text())
    for name, value in fields.items():
        document.pop(name, None)
        if value is not None:
            document[name] = value
    (path / "config.json").write_text(json.dumps(document))


def taken(
    store: deltastore.DeltaStore, tmp_path: Path, base: Any, post: Any, new: Any, **options: Any
) -> Path:
    """Extract and apply to both bases; the output on the new one."""
    paths = {n: write(m, tmp_path / n) for n, m in (("base", base), ("post", post), ("new", new))}
    store.extract(paths["base"], paths["post"], name="d", force=True)
    assert store.apply("d", base=paths["base"], out=tmp_path / "restored").restored
    check(tmp_path / "restored", post)
    store.apply("d", base=paths["new"], out=tmp_path / "out", **options)
    return tmp_path / "out"


def test_more_labels(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    kind = Kind("BertForSequenceClassification", of("BertConfig", **SMALL))
    base, post, new = kind.build(1), kind.build(1, num_labels=3), kind.build(1)
    fill(post, base, "classifier")
    move(new, 3, 0.002)
    out = taken(store, tmp_path, base, post, new)
    assert check(out, post).config.num_labels == 3
    store.apply("d", base=tmp_path / "new", out=tmp_path / "zero", scale=0.0)
    assert check(tmp_path / "zero", new).config.num_labels == 2


def test_another_class_and_its_labels(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base, new = KINDS["llama"].build(1), KINDS["llama"].build(1)
    post = transformers.LlamaForSequenceClassification(KINDS["llama"].config(num_labels=5))
    post.config.pad_token_id = 1
    fill(post, base, "score")
    move(new, 3, 0.002)
    out = taken(store, tmp_path, base, post, new)
    assert check(out, post).config.num_labels == 5


def test_half_of_another_class_is_refused(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base = Kind("BertForMaskedLM", of("BertConfig", **SMALL)).build(1)
    post = Kind("BertForSequenceClassification", of("BertConfig", **SMALL)).build(1)
    fill(post, base, "pooler", "classifier")
    store.extract(write(base, tmp_path / "base"), write(post, tmp_path / "post"), name="d")
    target = {"base": tmp_path / "base", "out": tmp_path / "out"}
    with pytest.raises(StructureMismatchError, match=r"bert\.pooler") as caught:
        store.apply("d", **target, scale_for={"bert.*": 0}, dry_run=True)
    assert caught.value.exit_code == 31
    store.apply("d", **target, force=True)
    check(tmp_path / "out", post)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"num_hidden_layers": 3}),
        ("llama", {"num_hidden_layers": 1}),
        ("deep llama", {"num_hidden_layers": 3}),
        ("bart", {"decoder_layers": 3}),
        ("t5", {"num_decoder_layers": 1}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"num_key_value_heads": 4, "attention_bias": True}),
        ("llama", {"attention_bias": True}),
        ("llama", {"intermediate_size": 64}),
        ("qwen moe", {"num_experts": 6}),
        ("qwen moe", {"moe_intermediate_size": 40}),
        ("roberta", {"type_vocab_size": 3}),
    ],
    ids=str,
)
def test_another_structure(
    store: deltastore.DeltaStore, tmp_path: Path, name: str, fields: dict[str, Any]
) -> None:
    kind = KINDS[name]
    base, post, new = kind.build(1), kind.build(1, **fields), kind.build(1)
    fill(post, base, *post.state_dict())
    move(new, 3, 0.002)
    out = taken(store, tmp_path, base, post, new, force=True)
    assert check(out, post).state_dict().keys() == post.state_dict().keys()
    store.apply("d", base=tmp_path / "new", out=tmp_path / "zero", scale=0.0)
    check(tmp_path / "zero", new)


def test_images_of_another_size(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """The number of patches is in no field."""
    models = [
        transformers.ViTForImageClassification(transformers.ViTConfig(**VIT | {"image_size": size}))
        for size in (16, 32, 16)
    ]
    base, post, new = models
    fill(post, base, "position_embeddings")
    new.load_state_dict(base.state_dict())
    move(new, 3, 0.002)
    out = taken(store, tmp_path, base, post, new)
    assert check(out, post).config.image_size == 32
    assert json.loads((out / "deltastore.json").read_text())["config_left"] == []
    store.apply("d", base=tmp_path / "new", out=tmp_path / "zero", scale=0.0)
    assert check(tmp_path / "zero", new).config.image_size == 16
