"""One configuration in two spellings, of transformers 4 and 5, which transformers reads alike."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from deltastore.output.configuration.config import Configs, model_config
from deltastore.output.configuration.spellings import spelled_alike
from deltastore.output.ledger import Ledger

transformers = pytest.importorskip("transformers")

Document = dict[str, Any]

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
}

MODELS: dict[str, tuple[str, Document]] = {
    "plain": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "yarn": ("Qwen2", {"rope_parameters": YARN}),
    "window": ("Qwen2", {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 9}),
    "unused window": ("Qwen2", {"use_sliding_window": False, "sliding_window": 4096}),
    "longrope": ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 64}),
    "part": (
        "Glm",
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "head_dim": 16},
    ),
    "by kind of layer": (
        "Gemma3Text",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "other names": (
        "GPTNeoX",
        {"rope_parameters": {"rope_theta": 2e4, "partial_rotary_factor": 0.25}},
    ),
    "heads for all": ("Llama", {"num_key_value_heads": 4}),
    "labels": ("Bert", {"num_labels": 3}),
    "two labels": ("Bert", {}),
}


def as_new(case: str) -> Document:
    """As transformers 5 writes it."""
    name, fields = MODELS[case]
    config = getattr(transformers, f"{name}Config")(**SIZES | copy.deepcopy(fields))
    document = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in document.items() if value is not None}


def as_old(case: str) -> Document:
    """As transformers 4 did: rope in fields of its own, and less of what follows from others."""
    document = as_new(case)
    rope = document.pop("rope_parameters", None)
    if document["model_type"] == "gemma3_text":
        document["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        document["sliding_window_pattern"] = 6
        rope = rope["full_attention"]
    theta, part = ("rope_theta", "partial_rotary_factor")
    if document["model_type"] == "gpt_neox":
        theta, part = ("rotary_emb_base", "rotary_pct")
    if rope is not None:
        document[theta] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            document[part] = rope.pop("partial_rotary_factor")
        if case == "longrope":
            del rope["original_max_position_embeddings"]
        document["rope_scaling"] = rope if rope != {"rope_type": "default"} else None
        if case in ("yarn", "longrope"):
            rope["type"] = rope.pop("rope_type")
    document.pop("layer_types", None)
    if case not in ("by kind of layer", "part"):
        document.pop("head_dim", None)
    if case == "heads for all":
        del document["num_key_value_heads"]
    if case == "unused window":
        document["sliding_window"] = 4096
    if case == "labels":
        del document["id2label"], document["label2id"]
        document["num_labels"] = 3
    if case == "two labels":
        document |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
        document |= {"label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    document["torch_dtype"] = document.pop("dtype", "float32")
    document["transformers_version"] = "4.45.0"
    return document


def as_read(case: str, document: Document) -> Document:
    """What a reader makes of it, without what says how it was written."""
    kind = getattr(transformers, f"{MODELS[case][0]}Config")
    found = kind.from_dict(copy.deepcopy(document)).to_dict()
    if isinstance(found.get("rope_parameters"), dict):
        found["rope_parameters"].pop("type", None)  # beside rope_type it is read by nobody
    left = ("transformers_version", "dtype", "partial_rotary_factor", "sliding_window_pattern")
    return {name: value for name, value in found.items() if name not in left}


def merged(
    before: Document, after: Document, own: Document, *, restoring: bool = False
) -> tuple[Document, list[str]]:
    ledger = Ledger(origins={"config.json": "new base"})
    configs = Configs(copy.deepcopy(before), copy.deepcopy(after), restoring)
    data = model_config(json.dumps(own).encode(), configs, {}, {}, ledger)
    return json.loads(data), [row["field"] for row in ledger.config_left]


@pytest.mark.parametrize("restoring", [False, True])
@pytest.mark.parametrize("written", ["oon", "ono", "noo", "nno", "non", "onn"])
@pytest.mark.parametrize("case", MODELS)
def test_what_means_the_same_is_no_change(case: str, written: str, restoring: bool) -> None:
    """``written``: base, post and new base, each by the old or the new version."""
    sides = {"o": as_old(case), "n": as_new(case)}
    assert as_read(case, sides["o"]) == as_read(case, sides["n"])
    before, after, own = (sides[letter] for letter in written)
    output, left = merged(before, after, own, restoring=restoring)
    assert left == []
    assert as_read(case, output) == as_read(case, own)
    rope = [name for name in output if "rope" in name or "rotary" in name]
    assert set(rope) == {name for name in own if "rope" in name or "rotary" in name}


@pytest.mark.parametrize("written", ["oon", "ono", "noo", "nno", "non", "onn", "nnn", "ooo"])
@pytest.mark.parametrize("case", ["plain", "llama3", "yarn", "part", "by kind of layer"])
def test_what_changed_is_said_in_the_new_bases_words(case: str, written: str) -> None:
    """And is what a reader finds, where the output is post."""
    moved = {}
    for letter, document in (("o", as_old(case)), ("n", as_new(case))):
        moved[letter] = (document, copy.deepcopy(document))
        changed = moved[letter][1]
        if letter == "o":
            changed["rope_theta"] = 7e6
        else:
            rope = changed["rope_parameters"]
            rope.get("full_attention", rope)["rope_theta"] = 7e6
    before, after = moved[written[0]][0], moved[written[1]][1]
    own = moved[written[2]][0]
    output, left = merged(before, after, own)
    assert left == ["rope_theta" if written[2] == "o" else "rope_parameters"]
    assert output == own
    restored, left = merged(before, after, own, restoring=True)
    assert left == []
    assert as_read(case, restored) == as_read(case, after)


@pytest.mark.parametrize(
    ("own", "side", "wanted"),
    [
        ({"n_embd": 8}, {"hidden_size": 8}, {"n_embd": 8}),
        ({"hidden_size": 8}, {"n_embd": 8}, {"hidden_size": 8}),
        ({"d_model": 8, "num_heads": 2}, {"hidden_size": 8}, {"d_model": 8}),
        ({"n_embd": 8, "hidden_size": 9}, {"hidden_size": 9}, {"hidden_size": 9}),
        ({"image_token_index": 7}, {"image_token_id": 7}, {"image_token_index": 7}),
        ({"model_type": "a", "n_embd": 8}, {"hidden_size": 8}, {"hidden_size": 8}),
    ],
)
def test_names_of_one_number(own: Document, side: Document, wanted: Document) -> None:
    assert spelled_alike(own, side, None) == (wanted, None)
    assert spelled_alike(own, None, side) == (None, wanted)


def test_an_id_has_one_name_in_the_output() -> None:
    before, after = {"image_token_id": 5}, {"image_token_id": 6}
    output, _ = merged(before, after, {"image_token_index": 5})
    assert output == {"image_token_index": 6}


@pytest.mark.parametrize(
    "strange",
    [
        {"rope_parameters": []},
        {"rope_parameters": {"full_attention": 3}},
        {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_theta": {}}}},
        {"rope_scaling": 4, "rope_theta": "x"},
        {"rope_scaling": {"rope_type": []}, "rope_local_base_freq": []},
        {"num_labels": 10**30, "id2label": None},
        {"num_labels": True, "id2label": []},
        {"num_hidden_layers": 10**12, "layer_types": 3},
        {"hidden_size": -1, "num_attention_heads": 0, "head_dim": 3},
        {"sliding_window_pattern": "x", "sliding_window": {}, "num_hidden_layers": 3},
    ],
)
def test_what_nobody_wrote_does_no_harm(strange: Document) -> None:
    plain = {"rope_theta": 1e4, "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    for own in (strange, plain, {"rope_parameters": {"rope_theta": 1e4}}):
        for before, after in ((strange, plain), (plain, strange), (strange, strange)):
            for restoring in (False, True):
                output, _ = merged(before, after, own, restoring=restoring)
                assert isinstance(output, dict)
