"""Tokenizer, special tokens and chat templates of an output, as transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_files_world import Files, composed, read

from deltastore.tokenizer.matching import Vocabulary
from deltastore.tokenizer.rows import NONE

transformers = pytest.importorskip("transformers")

MESSAGES = [{"role": "user", "content": "w1"}]
WORDS = ["w0", "w1", "w2", "<unk>", "<s>", "</s>", "<end>", "<pad>"]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def flagged(content: str, number: int, **flags: bool) -> dict[str, Any]:
    names = ("single_word", "lstrip", "rstrip", "normalized")
    return {
        "id": number,
        "content": content,
        **dict.fromkeys(names, False),
        "special": True,
    } | flags


def tokenizer(words: list[str] = WORDS, *added: dict[str, Any]) -> str:
    """A tokenizer.json that splits at blanks."""
    rows = added or [flagged("<s>", words.index("<s>")), flagged("</s>", words.index("</s>"))]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": rows,
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {word: i for i, word in enumerate(words)},
                "unk_token": "<unk>",
            },
        }
    )


def config(**fields: Any) -> str:
    return json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL, **fields})


def loaded(out: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(out)


def side(text: str = "", *, form: str, **fields: Any) -> Files:
    """A tokenizer whose chat template has a form; each template gives a text of its own."""
    files: dict[str, str | bytes] = {"tokenizer.json": tokenizer()}
    if form == "processor":
        files["processor_config.json"] = json.dumps({"chat_template": text, "processor_class": "X"})
    if form == "legacy processor":
        files["chat_template.json"] = json.dumps({"chat_template": text})
    if form in ("file", "file and string", "folder"):
        files["chat_template.jinja"] = text
    if form == "folder":
        files["additional_chat_templates/tool_use.jinja"] = f"{text} tools"
    if form in ("string", "file and string"):
        fields["chat_template"] = text if form == "string" else f"{text} overruled"
    if form == "list":
        named = {"default": text, "tool_use": f"{text} tools"}
        fields["chat_template"] = [{"name": n, "template": t} for n, t in named.items()]
    files["tokenizer_config.json"] = config(**fields)
    return files


FORMS = ("file", "string", "list", "folder", "file and string", "legacy processor", "processor")


@pytest.mark.parametrize("own", [*FORMS, "none"])
@pytest.mark.parametrize("form", FORMS)
def test_the_template_of_post_in_whatever_form(tmp_path: Path, form: str, own: str) -> None:
    post = side("post {{ messages[0].content }}", form=form)
    out, made = composed(tmp_path, {}, post, side("own", form=own))
    if form not in ("legacy processor", "processor"):
        tokens = loaded(out)
        assert tokens.apply_chat_template(MESSAGES, tokenize=False) == "post w1"
        if form in ("list", "folder"):
            assert set(tokens.chat_template) == {"default", "tool_use"}
            assert tokens.get_chat_template("tool_use").endswith("}} tools")
        else:
            assert isinstance(tokens.chat_template, str)
    else:
        assert loaded(out).chat_template is None
        name = "chat_template.json" if form == "legacy processor" else "processor_config.json"
        assert read(out / name)["chat_template"] == "post {{ messages[0].content }}"
    left = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"own" not in left.replace(b"unknown", b"")
    if own in ("processor", "none") or form == "processor":
        assert (out / "processor_config.json").exists() is (
            own == "processor" or form == "processor"
        )
    assert made.ledger.origins.keys() - {"README.md", "deltastore.json"} == made.files.keys()


@pytest.mark.parametrize("form", FORMS)
def test_tokens_of_a_template_that_the_output_lacks_are_said(tmp_path: Path, form: str) -> None:
    words = [*WORDS, "<|im_start|>", "<|x|>"]
    post = dict(side("<|im_start|> {{ messages[0].content }} <end> <pad>", form=form))
    flags = [flagged(token, words.index(token)) for token in ("<s>", "<end>", *words[-2:])]
    post["tokenizer.json"] = tokenizer(words, *flags)
    skipped = Vocabulary("skipped", ids={8: NONE, 9: NONE})
    _, made = composed(tmp_path, {}, post, side(form="none"), words=skipped)
    assert made.ledger.warnings
    for warning in made.ledger.warnings:
        assert warning.endswith(
            "post's chat template has tokens that the output's tokenizer lacks "
            "('<|im_start|>'): they are read as other text."
        )
    _, made = composed(tmp_path / "same", {}, post, post, words=skipped)
    assert not made.ledger.warnings


@pytest.mark.parametrize("own", FORMS)
@pytest.mark.parametrize("empty", [None, "", []])
def test_no_template_of_post_leaves_the_new_bases(tmp_path: Path, own: str, empty: Any) -> None:
    files = side("own", form=own)
    out, _ = composed(tmp_path, {}, side(form="none", chat_template=empty), files)
    for name, text in files.items():
        assert (out / name).read_text() == text


def test_a_template_for_a_new_base_without_tokenizer_config(tmp_path: Path) -> None:
    own = {"tokenizer.json": tokenizer(), "config.json": '{"model_type": "llama"}'}
    out, _ = composed(tmp_path, {}, side("post", form="string", eos_token="<end>"), own)
    document = read(out / "tokenizer_config.json")
    assert document == SPECIAL | {"eos_token": "<end>", "chat_template": "post"}
    tokens = loaded(out)
    assert tokens.apply_chat_template(MESSAGES, tokenize=False) == "post"
    assert (tokens.eos_token, tokens.eos_token_id) == ("<end>", WORDS.index("<end>"))


# --- special tokens -------------------------------------------------------------------------------

TOKEN = {"__type": "AddedToken", **{k: v for k, v in flagged("<end>", 0).items() if k != "id"}}
OTHER = ["<end>", "<pad>", "<s>", "</s>", "<unk>", "w0", "w1", "w2", "more"]
"""A new base with other ids for the same tokens."""


@pytest.mark.parametrize("value", ["<end>", TOKEN], ids=["string", "AddedToken"])
@pytest.mark.parametrize("decoder", [True, False], ids=["with decoder", "without"])
@pytest.mark.parametrize("own_map", [True, False], ids=["with map", "without"])
def test_special_tokens_are_posts_in_every_document(
    tmp_path: Path, value: Any, decoder: bool, own_map: bool
) -> None:
    """transformers reads the map only where there is no decoder: both must say the same."""
    same = {"tokenizer.json": tokenizer()}
    table = {"added_tokens_decoder": {"3": {"content": "</s>", "special": True}}} if decoder else {}
    own = {
        "tokenizer.json": tokenizer(OTHER),
        "tokenizer_config.json": config(model_max_length=131072, **table),
    }
    if own_map:
        own["special_tokens_map.json"] = json.dumps(SPECIAL)
    post = same | {"tokenizer_config.json": config(eos_token=value, model_max_length=8)}
    out, _ = composed(tmp_path, {}, post, own)
    tokens = loaded(out)
    assert (tokens.eos_token, tokens.eos_token_id) == ("<end>", 0)
    assert tokens.bos_token_id == 2
    assert tokens.model_max_length == 131072
    assert len(tokens) == len(OTHER)


def test_special_tokens_that_post_names_in_its_map_alone(tmp_path: Path) -> None:
    table = {"added_tokens_decoder": {"5": {"content": "</s>", "special": True}}}
    own = {"tokenizer.json": tokenizer(), "tokenizer_config.json": config(**table)}
    post = {"tokenizer.json": tokenizer(), "special_tokens_map.json": '{"eos_token": "<end>"}'}
    out, _ = composed(tmp_path, {}, post, own)
    assert loaded(out).eos_token == "<end>"


def test_a_special_token_that_the_new_base_lacks_is_not_taken(tmp_path: Path) -> None:
    """transformers would add it, with an id behind the last row of the embeddings."""
    own_words = [word for word in WORDS if word != "<end>"]
    own = {
        "tokenizer.json": tokenizer(own_words),
        "tokenizer_config.json": config(),
        "special_tokens_map.json": json.dumps(SPECIAL),
    }
    post = {
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": config(
            eos_token="<end>", pad_token="</s>", extra_special_tokens=["<end>", "w2"]
        ),
        "special_tokens_map.json": '{"eos_token": "<end>", "pad_token": "</s>"}',
    }
    out, made = composed(tmp_path, {}, post, own)
    tokens = loaded(out)
    assert (tokens.eos_token, tokens.pad_token) == ("</s>", "</s>")
    assert len(tokens) == len(own_words)
    assert "w2" in tokens.all_special_tokens
    assert [warning for warning in made.ledger.warnings if "'<end>'" in warning]


def test_tokens_that_are_spelled_with_escapes_are_found(tmp_path: Path) -> None:
    escaped = tokenizer().replace("<end>", "\\u003cend\\u003e")
    assert "<end>" not in escaped
    own = {"tokenizer.json": escaped, "tokenizer_config.json": config()}
    post = {"tokenizer.json": tokenizer(), "tokenizer_config.json": config(eos_token="<end>")}
    out, made = composed(tmp_path, {}, post, own)
    assert loaded(out).eos_token == "<end>"
    assert made.ledger.warnings == []


@pytest.mark.parametrize("extra", [["w1", "w2"], {"image_token": "w1"}], ids=["list", "by name"])
@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_further_special_tokens_of_either_name(tmp_path: Path, key: str, extra: Any) -> None:
    own = {"tokenizer.json": tokenizer(), "tokenizer_config.json": config(**{key: ["w0"]})}
    post = {
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": config(extra_special_tokens=extra),
    }
    out, _ = composed(tmp_path, {}, post, own)
    tokens = loaded(out)
    expected = extra if isinstance(extra, list) else list(extra.values())
    assert set(expected) <= set(tokens.all_special_tokens)
    assert "w0" not in tokens.all_special_tokens
    if isinstance(extra, dict):
        assert tokens.image_token == "w1"


def test_tokens_that_post_flags_anew(tmp_path: Path) -> None:
    """Post made a word special and another plain; the new base has both under other ids."""
    before = tokenizer(WORDS, flagged("<s>", 4), flagged("</s>", 5))
    after = tokenizer(WORDS, flagged("<s>", 4, special=False), flagged("</s>", 5), flagged("w2", 2))
    own = tokenizer(OTHER, flagged("<s>", 2), flagged("</s>", 3))
    table = {"2": flagged("<s>", 2), "3": flagged("</s>", 3)}
    for row in table.values():
        del row["id"]
    out, made = composed(
        tmp_path,
        {"tokenizer.json": before, "tokenizer_config.json": config()},
        {"tokenizer.json": after, "tokenizer_config.json": config()},
        {
            "tokenizer.json": own,
            "tokenizer_config.json": config(bos_token=None, added_tokens_decoder=table),
        },
    )
    tokens = loaded(out)
    ids = [OTHER.index(word) for word in ("w0", "w2", "</s>", "w1")]
    assert tokens.decode(ids, skip_special_tokens=True).split() == ["w0", "w1"]
    rows = {row["content"]: row for row in read(out / "tokenizer.json")["added_tokens"]}
    assert rows["<s>"] == flagged("<s>", 2, special=False)
    assert rows["w2"] == flagged("w2", 7)
    assert rows["</s>"] == flagged("</s>", 3)
    decoder = read(out / "tokenizer_config.json")["added_tokens_decoder"]
    assert decoder["2"]["special"] is False
    assert decoder["7"]["content"] == "w2"
    assert made.ledger.origins["tokenizer.json"] == "both"
    assert len(tokens) == len(OTHER)


def test_flags_that_post_left_are_the_new_bases(tmp_path: Path) -> None:
    same = {"tokenizer.json": tokenizer(WORDS, flagged("</s>", 5)), "vocab.json": "{}"}
    own = {"tokenizer.json": tokenizer(WORDS, flagged("</s>", 5, special=False, rstrip=True))}
    out, _ = composed(tmp_path, same, same | {"tokenizer_config.json": config()}, own)
    assert (out / "tokenizer.json").read_text() == own["tokenizer.json"]


# --- one side's tokenizer -------------------------------------------------------------------------

BINARY = ("tokenizer.model", "tokenizer.model.v3", "tekken.json", "spiece.model")


@pytest.mark.parametrize("grown", [True, False])
def test_files_of_a_tokenizer_are_all_of_one_side(tmp_path: Path, grown: bool) -> None:
    source = {"tokenizer.json": tokenizer(WORDS[:-1]), "tokenizer.model": b"old"}
    post = {
        "tokenizer.json": tokenizer(WORDS if grown else WORDS[:-1]),
        "tokenizer.model": b"old",
        "tekken.json": '{"post": 1}',
        "tokenizer_config.json": config(),
    }
    if not grown:
        del post["tekken.json"]
    own = dict.fromkeys(BINARY, "own") | {
        "tokenizer.json": tokenizer(OTHER),
        "added_tokens.json": '{"more": 8}',
    }
    out, made = composed(tmp_path, source, post, own)
    expected = post if grown else own
    for name in (*BINARY, "added_tokens.json", "tokenizer.json"):
        text = expected.get(name)
        assert (out / name).exists() is (text is not None), name
        if text is not None:
            data = text if isinstance(text, bytes) else text.encode()
            assert (out / name).read_bytes() == data
            assert made.ledger.origins[name] == ("post" if grown else "new base")


def with_start(text: str) -> str:
    """The same tokenizer, which begins every text with a token."""
    steps = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    start = {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}}
    step = {"type": "TemplateProcessing", "single": steps, "pair": steps, "special_tokens": start}
    return json.dumps(json.loads(text) | {"post_processor": step})


def test_restoring_gives_posts_tokenizer(tmp_path: Path) -> None:
    base = {"tokenizer.json": with_start(tokenizer()), "tokenizer_config.json": config()}
    post = {
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": config(padding_side="left", model_max_length=9),
    }
    out, made = composed(tmp_path, base, post, base, restoring=True)
    assert loaded(out)("w1 w2").input_ids == [1, 2]
    for name, text in post.items():
        assert (out / name).read_text() == text
        assert made.ledger.origins[name] == "post"
    assert not made.ledger.warnings


def test_another_tokenizer_than_the_source_bases_stays_when_restoring(tmp_path: Path) -> None:
    base = {"tokenizer.json": with_start(tokenizer()), "tokenizer_config.json": config()}
    own = base | {"tokenizer_config.json": config(model_max_length=7)}
    post = {"tokenizer.json": tokenizer(), "tokenizer_config.json": config()}
    out, made = composed(tmp_path, base, post, own, restoring=True)
    assert loaded(out)("w1 w2").input_ids == [4, 1, 2]
    assert made.ledger.warnings == [
        "tokenizer.json: post changed post_processor; the output has the new base's."
    ]


def test_what_post_changed_of_its_tokenizer_is_said(tmp_path: Path) -> None:
    base = {"tokenizer.json": tokenizer(), "tokenizer_config.json": config(a=1, model_max_length=5)}
    post = {
        "tokenizer.json": with_start(tokenizer()),
        "tokenizer_config.json": config(
            a=1, eos_token="<end>", chat_template="x", padding_side="left", model_max_length=9
        ),
    }
    own = {"tokenizer.json": tokenizer(), "tokenizer_config.json": config(model_max_length=9)}
    _, made = composed(tmp_path, base, post, own)
    assert made.ledger.warnings == [
        "tokenizer.json: post changed post_processor; the output has the new base's.",
        "tokenizer_config.json: post changed padding_side; the output has the new base's.",
    ]
    _, made = composed(tmp_path / "same", post, post, own)
    assert not made.ledger.warnings


def test_a_token_in_another_file_is_no_new_one(tmp_path: Path) -> None:
    """What added_tokens.json has beside the vocabulary may stand in the vocabulary as well."""
    source = {"vocab.json": '{"a": 0, "<p>": 1}'}
    post = source | {"added_tokens.json": '{"<p>": 1}'}
    own = {"vocab.json": '{"b": 0, "<p>": 1}'}
    out, _ = composed(tmp_path, source, post, own)
    assert (out / "vocab.json").read_text() == own["vocab.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"added_tokens_decoder": [1]}'])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_documents_that_are_not_understood(tmp_path: Path, name: str, content: bytes) -> None:
    whole = {"tokenizer.json": tokenizer(), "tokenizer_config.json": config(chat_template="t")}
    for broken in ("post", "own"):
        sides: Any = {"source": whole, "post": whole, "own": whole}
        sides[broken] = whole | {name: content}
        composed(tmp_path / broken, sides["source"], sides["post"], sides["own"])
    table = {"added_tokens": [1, {"content": 2}, {}], "model": {"vocab": [[], 1, ["a"], [["b"]]]}}
    odd = whole | {"tokenizer.json": json.dumps(table)}
    composed(tmp_path / "odd", whole, odd, whole)
    composed(tmp_path / "odd base", odd, whole, odd)
