"""Tokens that are listed beside a tokenizer.json, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltastore.tokenizer.listed_tokens import listed_tokens
from deltastore.tokenizer.reading import read_listed, read_vocabulary

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"

Documents = dict[str, dict[str, Any]]


def decoder(**tokens: str) -> dict[str, Any]:
    """``n7="<x>"`` lists ``<x>`` as number 7."""
    return {
        "added_tokens_decoder": {
            number[1:]: {"content": token, **FLAGS} for number, token in tokens.items()
        }
    }


def token(content: str) -> dict[str, Any]:
    return {"__type": "AddedToken", "content": content, **FLAGS}


CASES: dict[str, Documents] = {
    "decoder": {CONFIG: decoder(n4="<n>", n3="<m>")},
    "decoder with gaps": {CONFIG: decoder(n9="<n>", n7="<m>")},
    "decoder of what is there": {CONFIG: decoder(n0="a", n4="<n>")},
    "decoder and the rest": {
        CONFIG: decoder(n4="<n>", n0="a")
        | {"pad_token": "<pad>", "extra_special_tokens": ["<n>", "<q>"], "bos_token": None}
    },
    "a decoder hides the map and added_tokens.json": {
        CONFIG: decoder(n4="<n>"),
        MAP: {"pad_token": "<pad>"},
        ADDED: {"<m>": 3},
    },
    "an empty decoder does": {CONFIG: decoder(), MAP: {"pad_token": "<pad>"}, ADDED: {"<m>": 3}},
    "roles": {CONFIG: {"pad_token": "<pad>", "eos_token": "<e>", "image_token": "<img>"}},
    "roles with flags": {
        CONFIG: {"image_token": token("<img>"), "audio_token": "<aud>", "eos_token": token("<e>")}
    },
    "a map": {
        CONFIG: {},
        MAP: {"pad_token": "<pad>", "eos_token": {"content": "<e>", **FLAGS}}
        | {"additional_special_tokens": ["<q>", "<r>"]},
    },
    "a map over roles": {
        CONFIG: {"pad_token": "<pad>", "image_token": "<img>"},
        MAP: {
            "pad_token": "<other>",
            "sep_token": "<sep>",
            "image_token": "<i>",
            "boi_token": "<b>",
        },
    },
    "a list": {CONFIG: {"extra_special_tokens": ["<q>", "<r>"], "eos_token": "<e>"}},
    "a list by name": {
        CONFIG: {"extra_special_tokens": {"z_token": "<q>", "y_token": "<r>"}}
        | {"image_token": "<img>", "eos_token": "<e>"}
    },
    "an old list": {CONFIG: {"additional_special_tokens": ["<q>", "<r>"], "eos_token": "<e>"}},
    "both lists": {CONFIG: {"additional_special_tokens": ["<q>"], "extra_special_tokens": ["<r>"]}},
    "both, one empty": {CONFIG: {"additional_special_tokens": ["<q>"], "extra_special_tokens": []}},
    "lists in both files": {
        CONFIG: {"extra_special_tokens": ["<r>"]},
        MAP: {"extra_special_tokens": ["<q>"]},
    },
    "old list in the map": {
        CONFIG: {"extra_special_tokens": ["<r>"]},
        MAP: {"additional_special_tokens": ["<q>"]},
    },
    "old lists in both": {
        CONFIG: {"additional_special_tokens": ["<r>"]},
        MAP: {"additional_special_tokens": ["<q>"]},
    },
    "named in both": {
        CONFIG: {"image_token": "<img>", "extra_special_tokens": {"k_token": "<k>"}},
        MAP: {"boi_token": "<boi>", "extra_special_tokens": {"l_token": "<l>"}},
    },
    "added_tokens.json": {CONFIG: {}, ADDED: {"<n>": 5, "<m>": 4}},
    "added_tokens.json with a number that is taken": {CONFIG: {}, ADDED: {"<n>": 3, "<m>": 4}},
}


def as_files(documents: Documents, *added: str) -> dict[str, bytes]:
    """A tokenizer of three words, and documents beside it."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 2}, "a"))
    made.add_special_tokens(list(added))
    files = {"tokenizer.json": made.to_str().encode()}
    for name, document in documents.items():
        named = {"tokenizer_class": "PreTrainedTokenizerFast"} if name == CONFIG else {}
        files[name] = json.dumps(document | named).encode()
    return files


@pytest.mark.parametrize("added", [(), ("<own>",)])
@pytest.mark.parametrize("case", CASES)
def test_ids_as_transformers_gives_them(tmp_path: Path, case: str, added: tuple[str, ...]) -> None:
    files = as_files(CASES[case], *added)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    found = read_vocabulary(files, where="M")
    assert found == loaded
    beside = read_listed(files, where="M")
    assert beside.keys() == loaded.keys() - {"a", "b", "c", *added}


def test_those_without_a_row_are_left_out() -> None:
    files = as_files(CASES["decoder"])
    words = {"a": 0, "b": 1, "c": 2}
    assert read_vocabulary(files, where="M", rows=5) == words | {"<m>": 3, "<n>": 4}
    assert read_vocabulary(files, where="M", rows=4) == words | {"<m>": 3}
    assert read_vocabulary(files, where="M", rows=2) == words


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 100_000,
        json.dumps({"added_tokens_decoder": {"x": 1, "-1": {"content": "<x>"}, "²": {}}}).encode(),
        json.dumps({"added_tokens_decoder": {"9" * 5000: {"content": ["<x>"]}}}).encode(),
        json.dumps({"added_tokens_decoder": 7, "eos_token": 3, "pad_token": ""}).encode(),
        json.dumps({"extra_special_tokens": [1, None, {}], "image_token": []}).encode(),
        json.dumps({"extra_special_tokens": "<x>", "additional_special_tokens": 3}).encode(),
    ],
)
@pytest.mark.parametrize("name", [CONFIG, MAP])
def test_what_is_no_list_of_tokens_lists_none(name: str, data: bytes) -> None:
    files = as_files({}) | {name: data}
    assert listed_tokens(files) == []
    assert read_vocabulary(files, where="M") is not None
