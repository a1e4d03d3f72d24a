"""The small files of an output: which model each comes from, and what is said of its making."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints import Tensors, model, save, trained

import deltastore

Files = Mapping[str, str | bytes]
Made = Callable[..., Path]

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "vocab_size": 96,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def tokenizer(*words: str, added: tuple[str, ...] = ()) -> str:
    return json.dumps(
        {
            "model": {
                "type": "WordLevel",
                "unk_token": words[0],
                "vocab": {word: i for i, word in enumerate(words)},
            },
            "added_tokens": [{"content": word, "id": 50 + i} for i, word in enumerate(added)],
        }
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def made(store: deltastore.DeltaStore, tmp_path: Path) -> Made:
    """Makes an output from the small files, configs and tensors of base, post and new base."""

    def make(
        base: Files | None = None,
        post: Files | None = None,
        new: Files | None = None,
        *,
        configs: Mapping[str, Mapping[str, Any]] | None = None,
        tensors: Mapping[str, Tensors] | None = None,
        **options: Any,
    ) -> Path:
        weights = model("base")
        chosen = {
            "base": weights,
            "post": trained(weights, "post"),
            "new": trained(weights, "new"),
        } | dict(tensors or {})
        for side, files in (("base", base), ("post", post), ("new", new)):
            config = (configs or {}).get(side, CONFIG)
            save(tmp_path / side, chosen[side], config=config, files=files)
        artifact = store.extract(tmp_path / "base", tmp_path / "post", name="delta")
        store.apply(artifact, base=tmp_path / "new", out=tmp_path / "out", **options)
        return tmp_path / "out"

    return make


def read(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


# --- config.json ----------------------------------------------------------------------------------


def test_config_is_the_new_bases(made: Made) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0}
    configs = {
        "base": CONFIG | {"rope_theta": 1.0, "architectures": ["A"], "eos_token_id": 1},
        "post": CONFIG | {"rope_theta": 2.0, "architectures": ["B"], "eos_token_id": 1},
        "new": CONFIG | {"rope_scaling": rope, "max_position_embeddings": 131072},
    }
    out = made(configs=configs)
    assert read(out / "config.json") == configs["new"]


def test_without_any_small_file(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base = model("base")
    save(tmp_path / "base", base)
    save(tmp_path / "post", trained(base, "post"))
    artifact = store.extract(tmp_path / "base", tmp_path / "post")
    store.apply(artifact, base=tmp_path / "base", out=tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"model.safetensors", "deltastore.json", "README.md"}


def resized(tensors: Tensors, rows: int) -> Tensors:
    result = dict(tensors)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old = tensors[name]
        more = torch.ones(max(0, rows - len(old)), old.shape[1]).bfloat16()
        result[name] = torch.cat([old[:rows], more])
    return result


@pytest.mark.parametrize("rows", [90, 100])
@pytest.mark.parametrize("nested", [False, True])
def test_vocab_size_follows_the_embeddings(made: Made, rows: int, nested: bool) -> None:
    config = CONFIG | {"text_config": {"vocab_size": 96, "x": 1}} if nested else CONFIG
    base = model("base")
    out = made(
        configs={"new": config, "post": CONFIG | {"vocab_size": rows}},
        tensors={"post": resized(trained(base, "post"), rows)},
    )
    got = read(out / "config.json")
    assert got["vocab_size"] == rows
    if nested:
        assert got["text_config"] == {"vocab_size": rows, "x": 1}
    assert {k: v for k, v in got.items() if k not in ("vocab_size", "text_config")} == {
        k: v for k, v in CONFIG.items() if k != "vocab_size"
    }


def test_vocab_size_stays_where_the_scale_is_zero(made: Made) -> None:
    base = model("base")
    out = made(tensors={"post": resized(trained(base, "post"), 100)}, scale=0.0)
    assert read(out / "config.json")["vocab_size"] == 96


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_dtype_that_was_asked_for(made: Made, key: str, dtype: str) -> None:
    config = {k: v for k, v in CONFIG.items() if k != "torch_dtype"} | {key: "bfloat16"}
    out = made(configs={"new": config}, dtype=dtype)
    assert read(out / "config.json") == config | {key: dtype}


def test_dtype_that_post_training_changed(made: Made) -> None:
    """The output has post's dtype where it differs from its base's, and the config says so."""
    wide = {name: tensor.float() for name, tensor in model("base").items()}
    post = {name: tensor.bfloat16() for name, tensor in trained(wide, "post").items()}
    single = CONFIG | {"torch_dtype": "float32"}
    out = made(
        configs={"base": single, "post": CONFIG, "new": single},
        tensors={"base": wide, "post": post, "new": trained(wide, "new")},
    )
    assert read(out / "config.json") == CONFIG


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_follow_the_head(made: Made, tied: bool) -> None:
    """Post-training that gave the model a head of its own, or took it away."""
    with_head = model("base")
    without = {name: t for name, t in with_head.items() if name != "lm_head.weight"}
    base, post = (with_head, without) if tied else (without, with_head)
    out = made(
        configs={
            "base": CONFIG | {"tie_word_embeddings": not tied},
            "post": CONFIG | {"tie_word_embeddings": tied},
            "new": CONFIG | {"tie_word_embeddings": not tied},
        },
        tensors={"base": base, "post": trained(post, "post"), "new": trained(base, "new")},
    )
    assert read(out / "config.json")["tie_word_embeddings"] is tied


# --- tokenizer ------------------------------------------------------------------------------------


def test_tokenizer_of_the_new_base(made: Made) -> None:
    """Post trained with its base's tokenizer: the new base keeps its own."""
    same = {"tokenizer.json": tokenizer("a", "b"), "vocab.json": '{"a": 0, "b": 1}'}
    own = {"tokenizer.json": tokenizer("b", "a", "c"), "vocab.json": '{"b": 0, "a": 1, "c": 2}'}
    out = made(same, same, own)
    for name, text in own.items():
        assert (out / name).read_text() == text


def test_tokenizer_that_differs_without_new_tokens(made: Made) -> None:
    before = {"tokenizer.json": tokenizer("a", "b", "c")}
    after = {"tokenizer.json": tokenizer("a", "b")}
    own = {"tokenizer.json": tokenizer("x")}
    out = made(before, after, own)
    assert (out / "tokenizer.json").read_text() == own["tokenizer.json"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            {"tokenizer.json": tokenizer("a", "b")},
            {"tokenizer.json": tokenizer("a", "b", added=("<|im_end|>",))},
        ),
        ({"tokenizer.json": tokenizer("a")}, {"tokenizer.json": tokenizer("a", "z")}),
        ({"vocab.json": '{"a": 0}'}, {"vocab.json": '{"a": 0, "z": 1}'}),
        ({"added_tokens.json": '{"<s>": 0}'}, {"added_tokens.json": '{"<s>": 0, "<p>": 1}'}),
        ({"tokenizer.model": b"\x00\x01"}, {"tokenizer.model": b"\x00\x01\x02"}),
        ({"vocab.txt": "a\nb"}, {"vocab.txt": "a\nb\nc"}),
        ({"tokenizer.json": "no JSON"}, {"tokenizer.json": "no JSON either"}),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "#"},
            {"vocab.json": '{"a": 0}', "merges.txt": "#", "added_tokens.json": '{"<p>": 1}'},
        ),
        (
            {"tokenizer.model": b"\x00\x01"},
            {"tokenizer.model": b"\x00\x01", "added_tokens.json": '{"<p>": 1}'},
        ),
        ({"tekken.json": '{"vocab": ["a"]}'}, {"tekken.json": '{"vocab": ["a", "b"]}'}),
    ],
    ids=[
        "added token",
        "longer vocabulary",
        "vocab.json",
        "added_tokens.json",
        "tokenizer.model",
        "vocab.txt",
        "not understood",
        "added_tokens.json that is new",
        "added_tokens.json beside a binary vocabulary",
        "tekken.json",
    ],
)
def test_tokenizer_of_post_where_post_added_tokens(made: Made, before: Files, after: Files) -> None:
    own = dict(before) | {"special_tokens_map.json": "{}", "tokenizer_config.json": '{"n": 1}'}
    out = made(before, dict(after) | {"tokenizer_config.json": '{"p": 1}'}, own)
    for name, content in after.items():
        data = content.encode() if isinstance(content, str) else content
        assert (out / name).read_bytes() == data, name
    assert read(out / "tokenizer_config.json") == {"p": 1}
    # Nothing of another tokenizer beside it.
    assert not (out / "special_tokens_map.json").exists()


def test_tokenizer_of_post_where_the_new_base_has_none(made: Made) -> None:
    files = {"tokenizer.json": tokenizer("a"), "tokenizer_config.json": '{"eos_token": "a"}'}
    out = made(files, files, {})
    for name, text in files.items():
        assert (out / name).read_text() == text


def test_special_tokens_are_posts(made: Made) -> None:
    names = {"tokenizer.json": tokenizer("a", "b")}
    before = {"eos_token": "a", "pad_token": None, "padding_side": "left"}
    after = {"eos_token": "b", "bos_token": "a", "padding_side": "right", "model_max_length": 9}
    own = {"eos_token": "a", "unk_token": "u", "padding_side": "left", "model_max_length": 131072}
    out = made(
        names | {"tokenizer_config.json": json.dumps(before)},
        names
        | {
            "tokenizer_config.json": json.dumps(after),
            "special_tokens_map.json": '{"eos_token": "b"}',
        },
        names
        | {
            "tokenizer_config.json": json.dumps(own),
            "special_tokens_map.json": '{"eos_token": "a"}',
        },
    )
    assert read(out / "tokenizer_config.json") == own | {"eos_token": "b", "bos_token": "a"}
    assert read(out / "special_tokens_map.json") == {"eos_token": "b"}
    assert (out / "tokenizer.json").read_text() == names["tokenizer.json"]


def test_generation_config_is_posts(made: Made) -> None:
    post, own = {"generation_config.json": '{"eos_token_id": [1, 2]}'}, '{"eos_token_id": 0}'
    out = made({}, post, {"generation_config.json": own})
    assert read(out / "generation_config.json") == {"eos_token_id": [1, 2]}


def test_what_post_lacks_stays_the_new_bases(made: Made) -> None:
    own = {
        "generation_config.json": '{"eos_token_id": 0}',
        "special_tokens_map.json": '{"eos_token": "a"}',
        "preprocessor_config.json": '{"size": 3}',
        "chat_template.jinja": "own",
    }
    out = made({}, {}, own)
    for name, text in own.items():
        assert (out / name).read_text() == text


def test_processors_of_post_only_where_the_new_base_has_none(made: Made) -> None:
    post = {"preprocessor_config.json": '{"size": 1}', "processor_config.json": '{"p": 1}'}
    out = made({}, post, {"preprocessor_config.json": '{"size": 3}'})
    assert read(out / "preprocessor_config.json") == {"size": 3}
    assert read(out / "processor_config.json") == {"p": 1}


# --- chat template --------------------------------------------------------------------------------

EMBEDDED = {"tokenizer_config.json": '{"eos_token": "a", "chat_template": "embedded"}'}
PLAIN = {"tokenizer_config.json": '{"eos_token": "a"}'}


def template(out: Path) -> tuple[dict[str, str], str | None]:
    """Template files of an output, and the template in its tokenizer_config.json."""
    files = {
        p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*template*") if p.is_file()
    }
    config = out / "tokenizer_config.json"
    return files, read(config).get("chat_template") if config.exists() else None


@pytest.mark.parametrize("own", [PLAIN, EMBEDDED, PLAIN | {"chat_template.jinja": "own"}])
def test_template_file_of_post(made: Made, own: Files) -> None:
    out = made(PLAIN, PLAIN | {"chat_template.jinja": "post"}, own)
    assert template(out) == ({"chat_template.jinja": "post"}, None)


@pytest.mark.parametrize(
    "own",
    [
        PLAIN,
        {"tokenizer_config.json": '{"eos_token": "a", "chat_template": "own"}'},
        PLAIN | {"chat_template.jinja": "own"},
        PLAIN | {"chat_template.json": '{"chat_template": "own"}'},
    ],
)
def test_template_that_post_has_in_its_tokenizer(made: Made, own: Files) -> None:
    out = made(PLAIN, EMBEDDED, own)
    assert template(out) == ({}, "embedded")


def test_no_template_of_post_leaves_the_new_bases(made: Made) -> None:
    out = made(PLAIN, PLAIN, EMBEDDED | {"chat_template.jinja": "own"})
    assert template(out) == ({"chat_template.jinja": "own"}, "embedded")


def test_several_templates_as_transformers_saves_them(made: Made, tmp_path: Path) -> None:
    weights = model("base")
    folder = "additional_chat_templates"
    for side, text in (("base", ""), ("post", "post"), ("new", "own")):
        files = PLAIN | ({"chat_template.jinja": text} if text else {})
        save(tmp_path / "x" / side, weights, config=CONFIG, files=files)
        if text:
            (tmp_path / "x" / side / folder).mkdir()
            name = "tool_use.jinja" if side == "post" else "rag.jinja"
            (tmp_path / "x" / side / folder / name).write_text(text)
    with deltastore.open(tmp_path / "store") as store:
        artifact = store.extract(tmp_path / "x" / "base", tmp_path / "x" / "post", force=True)
        store.apply(artifact, base=tmp_path / "x" / "new", out=tmp_path / "out")
    files = {
        p.relative_to(tmp_path / "out").as_posix(): p.read_text()
        for p in (tmp_path / "out").rglob("*.jinja")
    }
    assert files == {"chat_template.jinja": "post", f"{folder}/tool_use.jinja": "post"}


# --- licences -------------------------------------------------------------------------------------


def test_both_licences_hold(made: Made) -> None:
    out = made(
        {"LICENSE": "base"},
        {"LICENSE": "post", "NOTICE": "made by post", "USE_POLICY.md": "be good"},
        {"LICENSE": "new", "NOTICE": "made by new"},
    )
    found = {
        p.name: p.read_text()
        for p in out.iterdir()
        if any(word in p.name for word in ("LICENSE", "NOTICE", "POLICY"))
    }
    assert found == {
        "LICENSE": "new",
        "post-LICENSE": "post",
        "NOTICE": "made by new",
        "post-NOTICE": "made by post",
        "USE_POLICY.md": "be good",
    }


def test_the_same_licence_is_there_once(made: Made) -> None:
    text = {"LICENSE.txt": "MIT"}
    out = made(text, text, text)
    assert [p.name for p in out.iterdir() if "LICENSE" in p.name] == ["LICENSE.txt"]


def test_licences_of_all_deltas_hold(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base = model("base")
    save(tmp_path / "base", base, files={"LICENSE": "base"})
    for i in range(2):
        save(tmp_path / f"post{i}", trained(base, f"{i}"), files={"LICENSE": f"post {i}"})
        store.extract(tmp_path / "base", tmp_path / f"post{i}")
    store.apply(["post0", "post1"], base=tmp_path / "base", out=tmp_path / "out")
    texts = {p.read_text() for p in (tmp_path / "out").iterdir() if "LICENSE" in p.name}
    assert texts == {"base", "post 0", "post 1"}


# --- provenance and card --------------------------------------------------------------------------


def front_matter(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    document = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(document, dict)
    return document


def test_provenance(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base = model("base")
    save(tmp_path / "base", base)
    for i in range(2):
        save(tmp_path / f"post{i}", trained(base, f"{i}"))
    results = [
        store.extract(tmp_path / "base", tmp_path / f"post{i}", name=f"d{i}") for i in (0, 1)
    ]
    save(tmp_path / "new", trained(base, "new"))
    applied = store.apply(
        ["d0", "d1"],
        base=tmp_path / "new",
        out=tmp_path / "out",
        scale=[0.5, -1.0],
        dtype="float32",
    )
    document = read(tmp_path / "out" / "deltastore.json")
    assert document["base"] == {"label": "new", "repo": None, "revision": None}
    assert document["dtype"] == "float32"
    assert document["restored"] is False
    assert document["left_out"] is None
    assert deltastore.__version__ in document["tool"]
    for i, delta in enumerate(document["deltas"]):
        assert delta["ref"] == f"d{i}:v1"
        assert delta["digest"] == results[i].digest
        assert delta["scale"] == (0.5, -1.0)[i]
        assert delta["base"] == "base"
        assert delta["post"] == f"post{i}"
        assert delta["source_base"].startswith("blake3:")
        assert delta["source_post"].startswith("blake3:")
        assert delta["lineage"]["same"] is False
        assert 0.99 < delta["lineage"]["cosine"] < 1
        assert 0 < delta["lineage"]["distance"] < 0.1
    assert [d["scale"] for d in applied.refs] == [0.5, -1.0]

    card = (tmp_path / "out" / "README.md").read_text()
    assert set(front_matter(card)["tags"]) >= {"deltastore"}
    assert "base_model" not in front_matter(card)
    for result in results:
        assert result.ref in card
        assert result.digest in card
    # The result is not to depend on where it was made.
    assert str(tmp_path) not in card
    assert str(tmp_path) not in (tmp_path / "out" / "deltastore.json").read_text()


def test_provenance_of_a_restoration(made: Made, tmp_path: Path) -> None:
    weights = model("base")
    out = made(tensors={"new": weights})
    document = read(out / "deltastore.json")
    assert document["restored"] is True
    assert document["deltas"][0]["lineage"]["same"] is True


def test_provenance_is_json_whatever_the_weights_hold(made: Made) -> None:
    """NaN and infinities have no place in JSON."""
    broken = {n: torch.full_like(t, torch.nan) for n, t in model("base").items()}
    huge = {n: torch.full_like(t.double(), 1e308) for n, t in model("base").items()}
    zero = {n: torch.zeros_like(t) for n, t in model("base").items()}
    out = made(tensors={"base": zero, "post": broken, "new": huge})
    assert read(out / "deltastore.json")["restored"] is False


def test_the_card_is_not_the_new_bases(made: Made) -> None:
    out = made({}, {"README.md": "# Post"}, {"README.md": "# New base\nsecret"})
    card = (out / "README.md").read_text()
    assert "secret" not in card
    assert "new" in card
    assert "delta:v1" in card


@pytest.mark.parametrize("label", ["a: b", "- x", "---", "# y", "{z}", "é\U0001f600", "'\"\\"])
def test_names_that_mean_something_in_yaml_or_markdown(
    store: deltastore.DeltaStore, tmp_path: Path, label: str
) -> None:
    base = model("base")
    place = save(tmp_path / label, base)
    post = save(tmp_path / f"{label} post", trained(base, "post"))
    artifact = store.extract(place, post, name="x")
    store.apply(artifact, base=place, out=tmp_path / "out")
    matter = front_matter((tmp_path / "out" / "README.md").read_text())
    assert matter["tags"]
    assert read(tmp_path / "out" / "deltastore.json")["base"]["label"] == label


def test_the_last_delta_decides(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base = model("base")
    save(tmp_path / "base", base)
    for i in range(2):
        files = {"generation_config.json": json.dumps({"i": i})}
        save(tmp_path / f"post{i}", trained(base, f"{i}"), files=files)
        store.extract(tmp_path / "base", tmp_path / f"post{i}", name=f"d{i}")
    for order in ((0, 1), (1, 0)):
        out = tmp_path / f"out{order[0]}"
        store.apply([f"d{i}" for i in order], base=tmp_path / "base", out=out)
        assert read(out / "generation_config.json") == {"i": order[1]}
