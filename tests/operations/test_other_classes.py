"""Posts of another class than their base: heads that go and come, and what only ends as they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from operations.checkpoints import assert_same_bits
from operations.families import move

import deltastore

pytestmark = pytest.mark.usefixtures("quiet")

_ENCODER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
_DISTIL = {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 4}
_SIDES = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
_HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
_VIT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
PAIRS = {
    "a classifier of a decoder": ("Llama", _ENCODER, "ForCausalLM", "ForSequenceClassification"),
    "a classifier of an encoder": ("Bert", _ENCODER, "ForMaskedLM", "ForSequenceClassification"),
    "its body, with a pooler": ("Bert", _ENCODER, "ForMaskedLM", "Model"),
    "a masked one of the body": ("Bert", _ENCODER, "Model", "ForMaskedLM"),
    "a masked one": ("Roberta", _ENCODER, "ForSequenceClassification", "ForMaskedLM"),
    "a head with a norm": ("DistilBert", _DISTIL, "ForMaskedLM", "ForSequenceClassification"),
    "another such": ("Electra", _ENCODER, "ForMaskedLM", "ForSequenceClassification"),
    "a norm called a head's": (
        "ModernBert",
        _ENCODER | {"cls_token_id": 1, "sep_token_id": 2},
        "ForMaskedLM",
        "Model",
    ),
    "an encoder and a decoder": (
        "Bart",
        {"vocab_size": 64, "d_model": 32, "max_position_embeddings": 32, **_SIDES, **_HEADS},
        "ForConditionalGeneration",
        "ForSequenceClassification",
    ),
    "images": ("ViT", _VIT, "ForImageClassification", "Model"),
}


def weights(path: Path) -> dict[str, torch.Tensor]:
    """What the class that config.json names loads, if every weight finds its place."""
    name = json.loads((path / "config.json").read_text())["architectures"][0]
    kind = getattr(transformers, name)
    model, report = kind.from_pretrained(path, output_loading_info=True, dtype="auto")
    assert not {kind: names for kind, names in report.items() if names}
    return dict(model.state_dict())


@pytest.mark.parametrize("name", PAIRS)
def test_the_output_is_whole(store: deltastore.DeltaStore, tmp_path: Path, name: str) -> None:
    family, fields, before, after = PAIRS[name]
    config = getattr(transformers, f"{family}Config")(**fields, num_labels=3)

    def model(kind: str, seed: int) -> Any:
        torch.manual_seed(seed)
        return getattr(transformers, f"{family}{kind}")(config).to(torch.bfloat16)

    base, post = model(before, 1), model(after, 2)
    base.save_pretrained(tmp_path / "base")
    found = getattr(transformers, f"{family}{after}").from_pretrained(
        tmp_path / "base", num_labels=3, dtype=torch.bfloat16
    )
    post.load_state_dict(found.state_dict())
    move(post, 3, 0.01)
    post.save_pretrained(tmp_path / "post")
    move(base, 4, 0.02)
    base.save_pretrained(tmp_path / "new")
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    store.apply("delta", base=tmp_path / "base", out=tmp_path / "own")
    assert_same_bits(weights(tmp_path / "own"), dict(post.state_dict()))
    options: list[dict[str, Any]] = [{}, {"skip_embeddings": True}, {"scale": 0.5}]
    for number, how in enumerate([*options, {"scale": 0.0}]):
        out = tmp_path / str(number)
        store.apply("delta", base=tmp_path / "new", out=out, **how)
        assert weights(out).keys() == (base if how.get("scale") == 0 else post).state_dict().keys()
    left = weights(tmp_path / "1")
    for key, value in base.state_dict().items():
        if key in left and ("embed_tokens" in key or "word_embeddings" in key):
            assert_same_bits({key: left[key]}, {key: value})
