"""Names that differ by wrappers and beginnings, and those that no rule may touch."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltastore.tensor_names.recognising import as_options, recognised, renamed, without_wrappers
from deltastore.tensor_names.selectors import Renaming

LLAMA = [
    *(f"model.layers.{i}.{part}.weight" for i in range(3) for part in ("q_proj", "up", "norm")),
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
]
NEW_LLAVA = [
    *(re.sub(r"^model\.", "model.language_model.", name) for name in LLAMA),
    "model.vision_tower.layers.0.q_proj.weight",
    "model.multi_modal_projector.weight",
]
OLD_LLAVA = [
    *(f"language_model.{name}" for name in LLAMA),
    "vision_tower.layers.0.q_proj.weight",
    "multi_modal_projector.weight",
]


@pytest.mark.parametrize(
    ("names", "known"),
    [
        ([f"module.{name}" for name in LLAMA], LLAMA),
        ([f"_orig_mod.{name}" for name in LLAMA], LLAMA),
        ([f"module._orig_mod.module.{name}" for name in LLAMA], LLAMA),
        ([name.replace(".q_proj", "._fsdp_wrapped_module.q_proj") for name in LLAMA], LLAMA),
        ([f"base_model.model.{n.replace('q_proj', 'q_proj.base_layer')}" for n in LLAMA], LLAMA),
        ([name.removeprefix("model.") for name in LLAMA], LLAMA),
        (LLAMA, [name.removeprefix("model.") for name in LLAMA]),
        (NEW_LLAVA, OLD_LLAVA),
        (OLD_LLAVA, NEW_LLAVA),
        ([name.replace("model.", "transformer.", 1) for name in LLAMA], LLAMA),
        # A model has one head.
        ([n.replace("lm_head", "embed_out") for n in LLAMA], LLAMA),
        # Beside what is recognised there may be more.
        ([f"module.{name}" for name in LLAMA] + ["module.v_head.weight"], LLAMA),
    ],
)
def test_recognised(names: list[str], known: list[str]) -> None:
    """The rules are ones that ``--map`` takes, and find each name its counterpart."""
    rules = recognised(names, known)
    typed = re.findall(r"--map '(.*?)'", as_options(rules))
    found = Renaming.parse(typed).names([names])[0]
    assert found == renamed(names, rules)
    assert set(found.values()) & set(known) == set(known)


def test_a_head_stays_beside_the_body() -> None:
    """Where the other model ties its head, no name says what it would be called."""
    more = [f"vision_tower.layers.{i}.v_proj.weight" for i in range(20)]
    tied = [*(n for n in NEW_LLAVA if n != "lm_head.weight"), *(f"model.{n}" for n in more)]
    old = [*OLD_LLAVA, *more]
    found = renamed(old, recognised(old, tied))
    assert found["language_model.lm_head.weight"] == "lm_head.weight"
    assert set(tied) <= set(found.values())
    lightning = [f"model.{name}" for name in LLAMA]
    found = renamed(lightning, recognised(lightning, [n for n in LLAMA if "head" not in n]))
    assert found == dict(zip(lightning, LLAMA, strict=True))


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (LLAMA, LLAMA),
        ([], LLAMA),
        (LLAMA, []),
        # A layer is never taken for another one.
        ([n.replace("layers.2", "layers.3") for n in LLAMA], LLAMA),
        ([f"wrong.{i}" for i in range(9)], LLAMA),
        # Two names of a tied set.
        (["lm_head.weight", "a.norm.weight"], ["a.embed_tokens.weight", "a.norm.weight"]),
        (["a.encoder.embed_tokens.weight", "lm_head.weight"], ["a.shared.weight"]),
        # A second name of what the other has.
        (
            ["bert.layer.weight", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"],
            ["bert.layer.weight", "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"],
        ),
        # Nothing in common but what every tensor has.
        (["layer.weight", "score.weight"], ["layer.weight", "lm_head.weight"]),
        # The two would become one.
        (["module.a.weight", "a.weight"], ["a.weight"]),
    ],
)
def test_not_recognised(names: list[str], known: list[str]) -> None:
    assert recognised(names, known) == []


def test_both_sides_are_unwrapped() -> None:
    names = [f"module.{name}" for name in LLAMA]
    known = [f"_orig_mod.{name}" for name in LLAMA]
    assert without_wrappers(names, known) == dict(zip(names, LLAMA, strict=True))
    assert without_wrappers(names, names) is None
    assert without_wrappers(LLAMA, names) is None
    assert without_wrappers(names, ["something.else"]) is None
    plain = dict(zip(names, LLAMA, strict=True))
    assert without_wrappers(names, names, always=True) == plain
    assert without_wrappers(names, [*names, "v_head.weight"], always=True) == plain
    assert without_wrappers(LLAMA, LLAMA, always=True) is None


def test_names_of_older_libraries() -> None:
    old = ["bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.beta", "conv.weight_g"]
    new = [
        "bert.embeddings.LayerNorm.weight",
        "bert.embeddings.LayerNorm.bias",
        "conv.parametrizations.weight.original0",
    ]
    assert without_wrappers(old, new) == dict(zip(old, new, strict=True))
    # A scale of a layer is called gamma, too, and stays.
    assert without_wrappers(["layer_scale.gamma"], ["layer_scale.weight"]) is None


_PARTS = st.sampled_from(["module", "model", "a", "b", "0", "1", "_orig_mod", "weight", "x+(", "é"])
_NAMES = st.sets(st.lists(_PARTS, min_size=1, max_size=4).map(".".join), max_size=12)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_NAMES, _NAMES)
def test_whatever_is_recognised_is_a_renaming_that_helps(names: set[str], known: set[str]) -> None:
    rules = recognised(names, known)
    if not rules:
        return
    found = renamed(names, rules)
    assert len(set(found.values())) == len(names)
    assert all(found[name] == name for name in names & known)
    assert len(set(found.values()) & known) > len(names & known)
