"""Post's tokens in a new base's tokenizer, as transformers reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deltastore.errors import TokenizerError
from deltastore.tokenizer.added import with_post_tokens
from deltastore.tokenizer.matching import Vocabulary, match_tokens
from deltastore.tokenizer.reading import read_vocabulary

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

TEXT = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen jugs"] * 10
OTHER = ["sphinx of black quartz judge my vow", "how vexingly quick daft zebras jump the fox"] * 10
SPECIAL = ["<unk>", "<s>", "</s>"]
SENTENCES = [
    "the lazy fox",
    "my quick vow",
    "a box of zebras judge five dogs",
    "unseen words: 東京",
]

Files = dict[str, bytes]


def trained(kind: str, text: Sequence[str], special: Sequence[str] = SPECIAL) -> Any:
    """A tokenizer of one of the kinds that language models have."""
    models, pre = tokenizers.models, tokenizers.pre_tokenizers
    if kind == "BPE":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=330, special_tokens=special, initial_alphabet=pre.ByteLevel.alphabet()
        )
    elif kind == "Unigram":
        made = tokenizers.Tokenizer(models.Unigram())
        made.pre_tokenizer = pre.Metaspace()
        made.decoder = tokenizers.decoders.Metaspace()
        trainer = tokenizers.trainers.UnigramTrainer(
            vocab_size=70, special_tokens=special, unk_token="<unk>"
        )
    else:
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre.BertPreTokenizer()
        made.decoder = tokenizers.decoders.WordPiece()
        trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=90, special_tokens=special)
    made.train_from_iterator(text, trainer, length=len(text))
    return wrapped(made)


def wrapped(tokenizer: Any) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def renamed_copy(tokenizer: Any, **names: str) -> Any:
    """Another one like it; training again would not give the same tokens."""
    text = tokenizer.backend_tokenizer.to_str()
    for old, new in names.items():
        text = text.replace(json.dumps(f"<{old}>"), json.dumps(new))
    return wrapped(tokenizers.Tokenizer.from_str(text))


def files_of(tokenizer: Any, place: Path) -> Files:
    tokenizer.save_pretrained(place)
    return {path.name: path.read_bytes() for path in place.iterdir()}


def read(files: Files, place: Path) -> Any:
    """What a user of the output has."""
    place.mkdir()
    for name, data in files.items():
        (place / name).write_bytes(data)
    return transformers.AutoTokenizer.from_pretrained(place)


def matched(source: Files, post: Files, new: Files, *, padding: int = 0) -> Vocabulary:
    """How tokens go where embeddings have a row for each token, and ``padding`` more."""
    found = [read_vocabulary(files, where="M") for files in (source, post, new)]
    assert None not in found
    rows = [max(ids.values()) + 1 + padding for ids in found if ids is not None]
    return match_tokens(*found, common=rows[0], post_rows=rows[1], new_rows=rows[2])


def plain(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return found


def flags(token: Any) -> dict[str, bool]:
    keys = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {key: getattr(token, key) for key in keys}


def added_tokens() -> list[Any]:
    one = tokenizers.AddedToken
    return [
        one("<|im_start|>", special=True, normalized=False),
        one("<|mask|>", special=True, normalized=False, lstrip=True),
        one("<tool>", special=False, normalized=False, rstrip=True),
        one("whole", special=False, normalized=False, single_word=True),
        one("東 京", special=True, normalized=False),
    ]


@dataclass(frozen=True)
class World:
    source_tokenizer: Any
    source: Files
    post: Files
    new: Files
    post_tokenizer: Any
    new_tokenizer: Any


def world(kind: str, place: Path, special: Sequence[str] = SPECIAL) -> World:
    """Post adds tokens of every sort; the new base was trained on another text."""
    source, new = trained(kind, TEXT, special), trained(kind, OTHER, special)
    post = renamed_copy(source)
    post.add_tokens(added_tokens())
    saved = [
        files_of(tokenizer, place / name)
        for name, tokenizer in (("source", source), ("post", post), ("new", new))
    ]
    return World(source, *saved, post, new)


KINDS = ["BPE", "Unigram", "WordPiece"]


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens(tmp_path: Path, kind: str, listed: bool, padding: int) -> None:
    """They are one id each, decode to themselves, and are recognised as post recognises them.

    ``listed``: ``tokenizer_config.json`` has a list of added tokens, as transformers 4 writes it.
    """
    here = world(kind, tmp_path)
    new = dict(here.new)
    if listed:
        config = json.loads(new["tokenizer_config.json"])
        config["added_tokens_decoder"] = {
            str(number): {"content": str(token), **flags(token)}
            for number, token in here.new_tokenizer.added_tokens_decoder.items()
        }
        new["tokenizer_config.json"] = json.dumps(config).encode()
    words = matched(here.source, here.post, new, padding=padding)
    assert [token.content for token in words.added] == [t.content for t in added_tokens()]
    size = len(here.new_tokenizer)
    assert [token.id for token in words.added] == list(range(size, size + 5))
    out = read(with_post_tokens(new, here.post, words), tmp_path / "out")
    assert out.get_vocab() == here.new_tokenizer.get_vocab() | {
        token.content: token.id for token in words.added
    }
    for token in words.added:
        assert plain(out, token.content) == [token.id]
        assert out.decode([token.id]).strip() == token.content
        theirs = here.post_tokenizer.added_tokens_decoder[token.post_id]
        assert flags(out.added_tokens_decoder[token.id]) == flags(theirs)
    for text in SENTENCES:
        assert plain(out, text) == plain(here.new_tokenizer, text)
        with_token = f"{text} <|mask|><tool> {text}wholesome<|im_start|>"
        number = {token.content: token.id for token in words.added}
        found = plain(out, with_token)
        assert [i for i in found if i >= size] == [
            number["<|mask|>"],
            number["<tool>"],
            number["<|im_start|>"],
        ]
        # Space before a mask, and after a tool, belongs to them.
        assert found.index(number["<|mask|>"]) == len(plain(here.new_tokenizer, text))


@pytest.mark.parametrize("kind", KINDS)
def test_renamed_reserved_tokens(tmp_path: Path, kind: str) -> None:
    reserved = [*SPECIAL, "<r0>", "<r1>", "<r2>"]
    here = world(kind, tmp_path, reserved)
    renamed = {"<r0>": "<|user|>", "<r2>": "<|tool|>"}
    post = renamed_copy(here.source_tokenizer, r0="<|user|>", r2="<|tool|>")
    assert post.convert_tokens_to_ids("<|tool|>") == 5
    new_tokenizer = trained(kind, OTHER, ["<x>", *reserved])
    new_tokenizer.pad_token = "<r0>"
    new = files_of(new_tokenizer, tmp_path / "new2")
    words = matched(here.source, files_of(post, tmp_path / "post2"), new)
    assert dict(words.renamed) == renamed
    assert not words.added
    out = read(with_post_tokens(new, here.post, words), tmp_path / "out")
    assert out.get_vocab() == {
        renamed.get(token, token): n for token, n in new_tokenizer.get_vocab().items()
    }
    assert plain(out, "<|user|>") == [4]
    assert plain(out, "<|tool|>") == [6]
    assert 4 not in plain(out, "<r0>")
    assert out.decode([4, 6]).replace(" ", "") == "<|user|><|tool|>"
    # Otherwise a reader would add the old name after the last row.
    assert out.pad_token == "<|user|>"
    assert out.pad_token_id == 4


FLAGGED = {"__type": "AddedToken", "content": "<r0>", "special": True, "normalized": False}


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("special_tokens_map.json", "additional_special_tokens", ["<r0>"]),
        ("special_tokens_map.json", "pad_token", {"content": "<r0>", "lstrip": False}),
        ("tokenizer_config.json", "additional_special_tokens", [FLAGGED]),
        ("tokenizer_config.json", "extra_special_tokens", {"image_token": "<r0>"}),
        ("tokenizer_config.json", "extra_special_tokens", {"image_token": FLAGGED}),
    ],
)
def test_a_renamed_token_is_named_anew_wherever_it_stands(
    tmp_path: Path, name: str, field: str, value: Any
) -> None:
    """One old name that stays is added behind the last row of the embeddings."""
    here = world("BPE", tmp_path, [*SPECIAL, "<r0>"])
    post = files_of(renamed_copy(here.source_tokenizer, r0="<|user|>"), tmp_path / "post2")
    new = dict(here.source)
    document = json.loads(new.get(name, b"{}"))
    new[name] = json.dumps(document | {field: value}).encode()
    out = read(with_post_tokens(new, post, matched(here.source, post, new)), tmp_path / "out")
    assert len(out) == len(here.source_tokenizer)
    assert "<|user|>" in out.all_special_tokens
    assert "<r0>" not in out.get_vocab()


def test_a_renamed_token_that_stands_for_the_unknown(tmp_path: Path) -> None:
    source, new = trained("WordPiece", TEXT), trained("WordPiece", OTHER)
    post = json.loads(files_of(source, tmp_path / "a")["tokenizer.json"].replace(b"<unk>", b"[U]"))
    words = matched(
        files_of(source, tmp_path / "source"),
        {"tokenizer.json": json.dumps(post).encode()},
        files_of(new, tmp_path / "new"),
    )
    assert words.renamed == (("<unk>", "[U]"),)
    files = with_post_tokens(files_of(new, tmp_path / "b"), {}, words)
    out = read(files, tmp_path / "out")
    assert out.unk_token == "[U]"
    assert plain(out, "東") == [out.get_vocab()["[U]"]]
    assert len(out) == len(new)


BYTES = {chr(code): code - 33 for code in range(33, 127)} | {"ab": 94, "Ġ": 95, "Ġa": 96}
SLOW: Files = {
    "vocab.json": json.dumps(BYTES | {"<|endoftext|>": 97}, ensure_ascii=False).encode(),
    "merges.txt": "#version: 0.2\na b\nĠ a\n".encode(),
    "tokenizer_config.json": b'{"tokenizer_class": "GPT2Tokenizer"}',
}


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_a_tokenizer_without_tokenizer_json(tmp_path: Path, listed: bool, before: bool) -> None:
    post_config = {
        "tokenizer_class": "GPT2Tokenizer",
        "added_tokens_decoder": {
            "98": {
                "content": "<|im|>",
                "lstrip": True,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
                "special": True,
            }
        },
    }
    post = SLOW | {"tokenizer_config.json": json.dumps(post_config).encode()}
    old = {"<old>": 98} if before else {}
    new = dict(SLOW)
    if before and not listed:
        new["added_tokens.json"] = json.dumps(old).encode()
    if listed:
        entries = {str(n): {"content": token, "special": True} for token, n in old.items()}
        config = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": entries}
        new["tokenizer_config.json"] = json.dumps(config).encode()
    words = matched(SLOW, post, new)
    (token,) = words.added
    assert (token.content, token.id) == ("<|im|>", 98 + before)
    out = read(with_post_tokens(new, post, words), tmp_path / "out")
    assert out.get_vocab() == BYTES | {"<|endoftext|>": 97} | old | {"<|im|>": token.id}
    assert plain(out, "ab<|im|>ab") == [94, token.id, 94]
    assert out.decode([token.id]) == "<|im|>"
    if listed:
        assert flags(out.added_tokens_decoder[token.id]) == {
            key: value
            for key, value in post_config["added_tokens_decoder"]["98"].items()
            if key != "content"
        }


def level(vocabulary: dict[str, int], *added: str) -> Files:
    entries = [
        {
            "id": len(vocabulary) + i,
            "content": token,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            "special": True,
        }
        for i, token in enumerate(added)
    ]
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"}
    document = {"version": "1.0", "added_tokens": entries, "model": model}
    return {"tokenizer.json": json.dumps(document).encode()}


def test_files_that_would_number_tokens_otherwise_are_refused() -> None:
    """The library numbers added tokens from the vocabulary's size, which a gap makes too low."""
    source = level({"a": 0, "b": 1})
    post = level({"a": 0, "b": 1}, "<x>")
    new = level({"a": 0, "b": 5})
    words = matched(source, post, new)
    assert [(token.content, token.id) for token in words.added] == [("<x>", 6)]
    with pytest.raises(TokenizerError, match="'<x>' would get another id than its row") as caught:
        with_post_tokens(new, post, words)
    assert caught.value.exit_code == 68
    assert "--skip-embeddings" in caught.value.hint


def test_tokens_that_cannot_be_renamed_are_refused() -> None:
    post = SLOW | {"vocab.json": SLOW["vocab.json"].replace(b"<|endoftext|>", b"<|end|>")}
    words = matched(SLOW, post, SLOW)
    assert words.renamed == (("<|endoftext|>", "<|end|>"),)
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json, in which tokens"):
        with_post_tokens(SLOW, post, words)


def test_a_renamed_token_that_merges_need_is_refused() -> None:
    def bpe(token: str) -> Files:
        model = {"type": "BPE", "vocab": {"a": 0, "b": 1, token: 2}, "merges": []}
        return {"tokenizer.json": json.dumps({"version": "1.0", "model": model}).encode()}

    new = json.loads(bpe("ab")["tokenizer.json"])
    new["model"]["merges"] = [["a", "b"]]
    files = {"tokenizer.json": json.dumps(new).encode()}
    words = matched(bpe("ab"), bpe("xy"), files)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json of the output cannot be read"):
        with_post_tokens(files, bpe("xy"), words)


def test_nothing_to_add_leaves_the_files_as_they_are() -> None:
    files = level({"b": 0, "a": 1}) | {"tokenizer_config.json": b"no JSON"}
    words = matched(level({"a": 0, "b": 1}), level({"a": 0, "b": 1}), files)
    assert with_post_tokens(files, {}, words) == files


@pytest.mark.parametrize(
    "config",
    [
        b"no JSON",
        b"[]",
        b'{"added_tokens_decoder": []}',
        b'{"added_tokens_decoder": {"1": [], "x": {"content": ["a"]}, "y": {"content": {}}}}',
        b'{"eos_token": ["b"], "pad_token": {"content": ["b"]}, "extra_tokens": [["b"], {}]}',
        b'{"chat_template": "\\ud800", "added_tokens_decoder": {}}',
        b'{"added_tokens_decoder": ' + b'{"a":' * 90 + b"1" + b"}" * 91,
    ],
)
def test_a_strange_tokenizer_config_does_no_harm(config: bytes) -> None:
    source, new = level({"a": 0, "b": 1}), level({"b": 0, "a": 1})
    words = matched(source, level({"a": 0, "c": 1}, "<x>"), new)
    assert (len(words.renamed), len(words.added)) == (1, 1)
    files = with_post_tokens(
        new | {"tokenizer_config.json": config}, {"tokenizer_config.json": config}, words
    )
    files["tokenizer_config.json"].decode()
    assert read_vocabulary(files, where="M") == {"c": 0, "a": 1, "<x>": 2}
