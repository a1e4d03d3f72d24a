"""Names of tied sets: those that transformers' own classes tie, and what stands for what."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator

import pytest

from deltastore.tensor_names.token_rows import (
    embedding_of,
    head_of,
    is_embedding,
    is_head,
    may_tie,
    stand_in,
)

pytestmark = pytest.mark.usefixtures("quiet")

_FAMILIES = (
    *("albert", "bart", "bert", "bloom", "deberta_v2", "distilbert", "electra", "falcon"),
    *("gemma3", "gpt2", "gpt_neox", "llama", "llava", "m2m_100", "mamba", "mbart", "mistral"),
    *("modernbert", "opt", "pegasus", "qwen2", "qwen2_vl", "qwen3_moe", "roberta", "rwkv", "t5"),
    *("trocr", "whisper", "xlnet"),
)
"""Those that people fine-tune most; importing all there are takes a minute."""


def _ties() -> Iterator[tuple[str, str, str]]:
    """Class, and the two names of one tensor, as far as they are plain names of weights."""
    for family in _FAMILIES:
        for module in pkgutil.iter_modules(
            importlib.import_module(f"transformers.models.{family}").__path__
        ):
            if not module.name.startswith("modeling_") or "_flax" in module.name:
                continue
            found = importlib.import_module(f"transformers.models.{family}.{module.name}")
            for name, cls in inspect.getmembers(found, inspect.isclass):
                keys = vars(cls).get("_tied_weights_keys")
                for target, source in (keys or {}).items() if isinstance(keys, dict) else ():
                    if re.fullmatch(r"[\w.]+", target + source):
                        yield name, target, source


def test_all_that_the_usual_classes_tie() -> None:
    """Whichever of the two names is stored, it stands for the other."""
    seen = 0
    for cls, target, source in _ties():
        seen += 1
        assert stand_in(target, [source, "x.weight"], ties=True) == source, (cls, target, source)
        assert stand_in(source, [target, "x.weight"], ties=True) == target, (cls, target, source)
    assert seen > 40


@pytest.mark.parametrize(
    ("name", "stored", "ties", "found"),
    [
        ("lm_head.weight", ["m.embed_tokens.weight"], True, "m.embed_tokens.weight"),
        ("lm_head.weight", ["m.embed_tokens.weight"], False, None),
        # A head of its own is none but itself.
        ("lm_head.weight", ["m.embed_tokens.weight", "output.weight"], True, None),
        ("m.embed_tokens.weight", ["lm_head.weight"], False, "lm_head.weight"),
        ("m.embed_tokens.weight", ["lm_head.weight", "n.wte.weight"], True, None),
        ("encoder.embed_tokens.weight", ["shared.weight"], False, "shared.weight"),
        (
            "m.shared.weight",
            ["m.decoder.embed_tokens.weight", "m.encoder.embed_tokens.weight"],
            False,
            "m.encoder.embed_tokens.weight",
        ),
        ("lm_head.weight", ["shared.weight", "decoder.embed_tokens.weight"], True, "shared.weight"),
        (
            "proj_out.weight",
            ["model.decoder.embed_tokens.weight", "model.encoder.embed_positions.weight"],
            True,
            "model.decoder.embed_tokens.weight",
        ),
        ("cls.predictions.decoder.bias", ["cls.predictions.bias"], False, "cls.predictions.bias"),
        ("layers.0.bias", ["cls.predictions.bias"], True, None),
        ("layers.0.weight", ["lm_head.weight"], True, None),
    ],
)
def test_what_stands_for_what(name: str, stored: list[str], ties: bool, found: str | None) -> None:
    assert stand_in(name, stored, ties=ties) == found


def test_a_block_that_predicts_several_tokens_has_no_embeddings_of_the_model() -> None:
    names = ["model.embed_tokens.weight", "model.layers.61.embed_tokens.weight"]
    assert embedding_of(names) == names[0]
    assert embedding_of(names[1:]) == names[1]


def test_names_that_are_parts_of_layers() -> None:
    for name in ("layers.0.attention.output.weight", "unet.proj_out.weight", "a.decoder.weight"):
        assert not is_head(name)
    assert not is_embedding("model.embed_positions.weight")
    assert head_of(["lm_head.weight", "embed_out.weight"]) is None


@pytest.mark.parametrize(
    ("config", "ties"),
    [
        (None, False),
        ({}, True),
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}, True),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, True),
        ({"text_config": {"tie_word_embeddings": False}}, False),
        ({"decoder": {"tie_word_embeddings": False}}, False),
        ({"thinker_config": {"text_config": {"tie_word_embeddings": False}}}, False),
        # What a vision tower's file says of words is a default that nobody reads.
        ({"tie_word_embeddings": False, "vision_config": {"tie_word_embeddings": True}}, False),
        ({"tie_word_embeddings": "yes"}, True),
    ],
)
def test_the_level_that_ties(config: dict[str, object] | None, ties: bool) -> None:
    assert may_tie(config) is ties
