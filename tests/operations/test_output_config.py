"""config.json and generation_config.json, field by field: expected documents written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_files_world import composed, read

from deltastore.checkpoint import TensorInfo, TensorSpec
from deltastore.merging.recipes import Recipe
from deltastore.output.configuration.config import Configs, model_config
from deltastore.output.configuration.ids import translated
from deltastore.output.ledger import Ledger
from deltastore.tokenizer.matching import Vocabulary
from deltastore.tokenizer.rows import NONE

BASE = {"model_type": "llama", "vocab_size": 96, "use_cache": True}


def merged(
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    own: dict[str, Any],
    *,
    restoring: bool = False,
    tensors: tuple[str, ...] = (),
    output: tuple[str, ...] | None = None,
    **options: Any,
) -> tuple[dict[str, Any], Ledger]:
    """The output's config, of tensors with these names in the new base and the output."""
    infos = {name: TensorInfo(name, "BF16", (4, 4), 0, 0, 32) for name in tensors}
    names = tensors if output is None else output
    recipes = {n: Recipe(TensorSpec(n, "BF16", (4, 4)), infos.get(n)) for n in names}
    ledger = Ledger(origins={"config.json": "new base"})
    data = model_config(
        json.dumps(own).encode(),
        Configs(before, after, restoring),
        infos,
        recipes,
        ledger,
        **options,
    )
    return json.loads(data), ledger


def left(ledger: Ledger) -> list[str]:
    return [row["field"] for row in ledger.config_left]


IDS = {
    "eos_token_id": (1, [2, 3], 9),
    "bos_token_id": (1, 2, 9),
    "pad_token_id": (None, 4, None),
    "decoder_start_token_id": (0, 5, 9),
    "forced_eos_token_id": (None, 6, 9),
    "image_token_index": (7, 8, 9),
    "suppress_tokens": ([1], [2, 3], [9]),
}


@pytest.mark.parametrize("name", IDS)
def test_ids_that_post_changed_follow_it(name: str) -> None:
    before, after, own = IDS[name]
    got, ledger = merged(BASE | {name: before}, BASE | {name: after}, BASE | {name: own})
    assert got == BASE | {name: after}
    assert ledger.origins["config.json"] == "both"
    assert left(ledger) == []


@pytest.mark.parametrize("name", IDS)
def test_ids_that_post_left_stay_the_new_bases(name: str) -> None:
    before, _, own = IDS[name]
    got, _ = merged(BASE | {name: before}, BASE | {name: before}, BASE | {name: own})
    assert got == BASE | {name: own}


def test_a_field_that_the_file_of_post_lacks_is_no_change() -> None:
    """transformers leaves out what is its default, which differs between versions."""
    own = BASE | {"eos_token_id": 9}
    assert merged(BASE | {"eos_token_id": 1}, BASE, own)[0] == own
    assert merged(BASE, BASE | {"eos_token_id": None}, own)[0] == own


def test_ids_follow_post_where_the_source_base_has_no_configuration() -> None:
    got, ledger = merged(
        None, BASE | {"eos_token_id": 2, "rope_theta": 5}, BASE | {"rope_theta": 7}
    )
    assert got == BASE | {"rope_theta": 7, "eos_token_id": 2}
    assert left(ledger) == []  # nobody knows what post changed


ARCHITECTURE = {
    "max_position_embeddings": (8192, 131072, 32768),
    "rope_theta": (1e4, 1e6, 5e5),
    "rope_scaling": (None, {"type": "linear", "factor": 2}, {"rope_type": "llama3", "factor": 8}),
    "rope_parameters": ({"rope_theta": 1.0}, {"rope_theta": 2.0}, {"rope_theta": 3.0}),
    "sliding_window": (None, 4096, 1024),
    "attention_dropout": (0.0, 0.1, 0.0),
    "hidden_size": (32, 64, 32),
    "model_type": ("llama", "mistral", "llama"),
    "auto_map": (None, {"AutoModel": "evil.Model"}, {"AutoModel": "good.Model"}),
    "quantization_config": (None, {"quant_method": "gptq"}, None),
    "something_new": (1, 2, 3),
}


@pytest.mark.parametrize("name", ARCHITECTURE)
def test_architecture_is_the_new_bases_and_what_post_changed_is_listed(name: str) -> None:
    before, after, own = ARCHITECTURE[name]
    new = BASE | ({} if own is None else {name: own})
    got, ledger = merged(BASE | {name: before}, BASE | {name: after}, new)
    assert got == new
    assert left(ledger) == [name]
    assert json.loads(ledger.config_left[0]["post"]) == after
    assert json.loads(ledger.config_left[0]["output"]) == own


def test_what_post_changed_to_what_the_new_base_has_is_not_listed() -> None:
    got, ledger = merged(BASE | {"x": 1}, BASE | {"x": 2}, BASE | {"x": 2})
    assert got == BASE | {"x": 2}
    assert left(ledger) == []


def test_what_only_says_how_a_file_was_written_is_not_listed() -> None:
    one = {"transformers_version": "4.40", "torch_dtype": "float32", "_name_or_path": "a"}
    other = {"transformers_version": "5.2", "dtype": "bfloat16", "_name_or_path": "b"}
    got, ledger = merged(BASE | one, BASE | other, BASE | one)
    assert got == BASE | one
    assert left(ledger) == []


def test_long_values_are_cut_and_nan_is_no_change() -> None:
    before = BASE | {"x": "short", "y": float("nan")}
    _, ledger = merged(before, before | {"x": "l" * 5000, "y": float("nan")}, before)
    assert left(ledger) == ["x"]
    assert len(ledger.config_left[0]["post"]) == 80


@pytest.mark.parametrize(
    ("before", "after", "own", "expected"),
    [
        (True, False, True, True),
        (None, False, None, None),
        (None, False, False, True),
        (True, False, False, True),
        (False, False, False, False),
        (False, True, False, True),
        (False, False, True, True),
        (False, False, None, None),
    ],
)
def test_use_cache_is_not_turned_off_by_training(
    before: bool | None, after: bool | None, own: bool | None, expected: bool | None
) -> None:
    def doc(value: bool | None) -> dict[str, Any]:
        return {"m": 1} | ({} if value is None else {"use_cache": value})

    got, ledger = merged(doc(before), doc(after), doc(own))
    assert got.get("use_cache") is expected
    assert left(ledger) == []


LABELS = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}


def test_another_head_brings_its_class_and_labels() -> None:
    lm, head = (
        BASE | {"architectures": ["LlamaForCausalLM"]},
        {
            "architectures": ["LlamaForSequenceClassification"],
            "problem_type": "single_label_classification",
            "classifier_dropout": 0.5,
        },
    )
    got, ledger = merged(
        lm,
        lm | head | LABELS,
        lm | {"rope_theta": 5},
        tensors=("e", "lm_head"),
        output=("e", "score"),
    )
    assert got == lm | {"rope_theta": 5} | head | LABELS
    assert left(ledger) == []


def test_the_class_stays_where_the_tensors_do() -> None:
    lm, other = BASE | {"architectures": ["A"]}, BASE | {"architectures": ["B"]}
    got, ledger = merged(lm, other, lm, tensors=("e",))
    assert got == lm
    assert left(ledger) == ["architectures"]


def test_labels_that_post_changed_are_posts_as_a_whole() -> None:
    old = BASE | {"id2label": {"0": "x"}, "num_labels": 1}
    got, _ = merged(old, BASE | LABELS, old, tensors=("score",))
    assert got == BASE | LABELS
    got, _ = merged(old, old, BASE | LABELS, tensors=("score",))
    assert got == BASE | LABELS


def test_nested_configurations_follow_the_same_rules() -> None:
    def doc(eos: int, rope: float, cache: bool) -> dict[str, Any]:
        text = {"eos_token_id": eos, "rope_theta": rope, "use_cache": cache, "dtype": "bfloat16"}
        return {"text_config": text, "vision_config": {"patch_size": rope}, "model_type": "x"}

    got, ledger = merged(doc(1, 1.0, True), doc(2, 2.0, False), doc(7, 3.0, True))
    assert got == doc(2, 3.0, True)
    assert sorted(left(ledger)) == ["text_config.rope_theta", "vision_config.patch_size"]


@pytest.mark.parametrize("part", ["decoder", "text_encoder", "generator"])
def test_parts_that_are_called_as_they_are(part: str) -> None:
    """As in a VisionEncoderDecoderConfig."""

    def config(end: int, theta: float) -> dict[str, Any]:
        return {"model_type": "x", part: {"eos_token_id": end, "rope_theta": theta}}

    got, ledger = merged(config(1, 1.0), config(2, 2.0), config(1, 3.0))
    assert got == config(2, 3.0)
    assert left(ledger) == [f"{part}.rope_theta"]


def test_restoring_gives_posts_configuration() -> None:
    """Where the new base is the source base, its file says nothing that post's does not."""
    before = BASE | {
        "rope_theta": 1.0,
        "rope_scaling": {"f": 1},
        "eos_token_id": 1,
        "torch_dtype": "b",
    }
    after = BASE | {"rope_theta": 2.0, "eos_token_id": 2, "y": {"z": 1}, "use_cache": False}
    got, ledger = merged(before, after, before, restoring=True)
    assert got == after | {"torch_dtype": "b", "use_cache": True}
    assert left(ledger) == []
    # A file that was changed by hand keeps what was changed.
    got, ledger = merged(before, after, before | {"rope_theta": 7.0}, restoring=True)
    assert got["rope_theta"] == 7.0
    assert left(ledger) == ["rope_theta"]


def test_the_dtype_is_that_of_the_tensors() -> None:
    got, _ = merged(BASE, BASE, BASE | {"torch_dtype": "float32"}, tensors=("a",))
    assert got["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("text", ["[]", "{", '{"a":' * 70 + "1" + "}" * 70, "\ud800"])
@pytest.mark.parametrize("side", ["source", "post", "own"])
def test_configurations_that_are_not_understood(tmp_path: Path, side: str, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    sides = {name: {"config.json": json.dumps(BASE)} for name in ("source", "post", "own")}
    out, made = composed(tmp_path, **(sides | {side: {"config.json": data}}))
    assert (out / "config.json").read_bytes() == (
        data if side == "own" else json.dumps(BASE).encode()
    )
    assert bool(made.ledger.warnings) is (side == "own")


# --- ids of post as ids of the output -------------------------------------------------------------


def moved(token: int) -> int | None:
    """As if post's tokens lay 100 further on, but for one that is not there."""
    return None if token == 13 else token + 100


@pytest.mark.parametrize(
    ("name", "value", "expected", "lost"),
    [
        ("eos_token_id", 5, 105, []),
        ("eos_token_id", [5, 13, 0], [105, 100], [13]),
        ("pad_token_id", None, None, []),
        ("pad_token_id", -1, -1, []),
        ("eos_token_id", True, True, []),
        ("eos_token_id", "x", "x", []),
        ("suppress_tokens", [1, 2], [101, 102], []),
        ("bad_words_ids", [[1, 13], [2, 3]], [[102, 103]], [13]),
        ("force_words_ids", [[[1], [13]], [[2]]], [[[101]], [[102]]], [13]),
        ("forced_decoder_ids", [[1, 5], [2, 13], [3, None]], [[1, 105], [3, None]], [13]),
        ("sequence_bias", [[[1, 2], -2.0], [[13], 1.0]], [[[101, 102], -2.0]], [13]),
        ("lang_to_id", {"en": 1, "xx": 13}, {"en": 101}, [13]),
    ],
)
def test_translated(name: str, value: Any, expected: Any, lost: list[int]) -> None:
    got = translated(name, value, moved)
    assert got.value == expected
    assert type(got.value) is type(expected)
    assert got.lost == lost
    assert not got.gone


def test_what_is_lost_wholly_is_gone() -> None:
    for name, value in (("eos_token_id", 13), ("eos_token_id", [13]), ("bad_words_ids", [[13]])):
        got = translated(name, value, moved)
        assert (got.gone, got.lost, got.value) == (True, [13], None)


def test_an_id_may_become_the_first_one() -> None:
    assert translated("eos_token_id", 5, lambda _: 0).value == 0
    assert not translated("eos_token_id", 5, lambda _: 0).gone


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    max_leaves=8,
)
NAMES = [*IDS, "bad_words_ids", "forced_decoder_ids", "sequence_bias", "lang_to_id"]


@settings(deadline=None)
@given(name=st.sampled_from(NAMES), value=JSON)
def test_nothing_changes_where_the_ids_are_the_same(name: str, value: Any) -> None:
    got = translated(name, value, lambda token: token)
    assert json.dumps(got.value) == json.dumps(value)
    assert (got.gone, got.lost) == (False, [])


def test_ids_of_config_and_generation_config_are_translated(tmp_path: Path) -> None:
    before = {"config.json": json.dumps({"eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 1})}
    post = {
        "config.json": json.dumps({"eos_token_id": [2, 13], "bos_token_id": 13, "pad_token_id": 1}),
        "generation_config.json": json.dumps(
            {"eos_token_id": [3, 4], "bos_token_id": 13, "pad_token_id": 13, "temperature": 0.5}
        ),
    }
    own = {
        "config.json": json.dumps({"eos_token_id": 7, "bos_token_id": 8, "pad_token_id": 9}),
        "generation_config.json": json.dumps({"bos_token_id": 8, "top_p": 0.5}),
    }
    words = Vocabulary("matched", ids={i: moved(i) or NONE for i in range(14)})
    out, made = composed(tmp_path, before, post, own, words=words)
    assert read(out / "config.json") == {
        "eos_token_id": [102],
        "bos_token_id": 8,
        "pad_token_id": 9,
    }
    assert read(out / "generation_config.json") == {
        "eos_token_id": [103, 104],
        "bos_token_id": 8,
        "temperature": 0.5,
    }
    said = "\n".join(made.ledger.warnings)
    for field in ("eos_token_id", "bos_token_id", "pad_token_id"):
        assert field in said
    assert "(13)" in said
    assert made.ledger.origins["config.json"] == "both"


# --- generation_config.json -----------------------------------------------------------------------


def generation(tmp_path: Path, post: Any, own: Any, **ids: int) -> tuple[Any, Any]:
    """The output's generation config, of a post whose config.json has these ids."""

    def side(document: Any, config: dict[str, int]) -> dict[str, str]:
        files = {"config.json": json.dumps(BASE | config)}
        if document is not None:
            files["generation_config.json"] = json.dumps(document)
        return files

    out, made = composed(tmp_path, side(None, {}), side(post, ids), side(own, {}))
    path = out / "generation_config.json"
    return read(path) if path.exists() else None, made.ledger


def test_generation_config_of_post_stays_byte_for_byte(tmp_path: Path) -> None:
    text = '{"eos_token_id":[1,  2],"max_length":4096 }'
    out, made = composed(
        tmp_path, {}, {"generation_config.json": text}, {"generation_config.json": '{"top_k": 1}'}
    )
    assert (out / "generation_config.json").read_text() == text
    assert made.ledger.origins["generation_config.json"] == "post"


def test_without_one_of_post_the_new_bases_has_posts_ids(tmp_path: Path) -> None:
    own = {"eos_token_id": 0, "top_p": 0.5}
    got, ledger = generation(tmp_path, None, own, eos_token_id=2)
    assert got == {"eos_token_id": 2, "top_p": 0.5}
    assert ledger.origins["generation_config.json"] == "both"


def test_no_generation_config_is_made_up(tmp_path: Path) -> None:
    assert generation(tmp_path, None, None, eos_token_id=2)[0] is None


def test_the_new_bases_stays_where_post_changed_no_id(tmp_path: Path) -> None:
    assert generation(tmp_path, None, {"eos_token_id": 0})[0] == {"eos_token_id": 0}


@pytest.mark.parametrize(("own", "expected"), [(True, True), (None, True), (False, False)])
def test_training_does_not_turn_off_the_cache_of_generation(
    tmp_path: Path, own: bool | None, expected: bool
) -> None:
    document = {} if own is None else {"use_cache": own}
    assert generation(tmp_path, {"use_cache": False}, document)[0] == {"use_cache": expected}


def test_a_generation_config_of_post_that_is_not_understood(tmp_path: Path) -> None:
    own = {"generation_config.json": '{"eos_token_id": 0}'}
    out, made = composed(tmp_path, {}, {"generation_config.json": "{"}, own)
    assert read(out / "generation_config.json") == {"eos_token_id": 0}
    assert any("generation_config.json" in warning for warning in made.ledger.warnings)
