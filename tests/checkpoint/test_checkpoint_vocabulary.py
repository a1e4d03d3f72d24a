"""Token ids as transformers numbers them, from every kind of file, and files that lie."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import deltastore
from deltastore.artifact.small_files import read_portable
from deltastore.errors import CheckpointError, MissingExtraError, TokenizerError
from deltastore.manifest.format import MAX_SMALL_FILE_BYTES
from deltastore.tokenizer.reading import MAX_TOKENS, read_vocabulary

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

TEXT = ["the quick brown fox jumps", "over the lazy dog", "über die Straße 東京"] * 20
SPECIAL = ["<unk>", "<s>", "</s>"]

Files = dict[str, bytes]


def trained(kind: str) -> Any:
    """A real tokenizer of one of the library's four kinds."""
    models, pre = tokenizers.models, tokenizers.pre_tokenizers
    if kind == "BPE":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL)
    elif kind == "Unigram":
        made = tokenizers.Tokenizer(models.Unigram())
        made.pre_tokenizer = pre.Metaspace()
        trainer = tokenizers.trainers.UnigramTrainer(
            vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>"
        )
    elif kind == "WordPiece":
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.pre_tokenizer = pre.BertPreTokenizer()
        trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=80, special_tokens=SPECIAL)
    else:
        made = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
        made.pre_tokenizer = pre.WhitespaceSplit()
        trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=SPECIAL)
    made.train_from_iterator(TEXT, trainer, length=len(TEXT))
    return made


def as_json(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def written(directory: Path, files: Files) -> Path:
    directory.mkdir(exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return directory


def as_transformers_loads(directory: Path, files: Files) -> dict[str, int]:
    found = transformers.AutoTokenizer.from_pretrained(written(directory, files)).get_vocab()
    return {str(token): int(number) for token, number in found.items()}


# --- tokenizer.json -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordPiece", "WordLevel"])
@pytest.mark.parametrize("added", [False, True])
def test_a_real_tokenizer(tmp_path: Path, kind: str, added: bool) -> None:
    made = trained(kind)
    size = made.get_vocab_size()
    if added:
        made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        made.add_tokens(["plain", "東京都"])
    made.save(str(tmp_path / "tokenizer.json"))
    files = {"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()}
    found = read_vocabulary(files, where="M")
    assert found == {made.id_to_token(number): number for number in range(made.get_vocab_size())}
    assert found["<s>"] == 1
    if added:
        assert found["<|im_end|>"] == size + 1
        assert found["東京都"] == size + 3
    files["tokenizer_config.json"] = as_json({"tokenizer_class": "PreTrainedTokenizerFast"})
    assert as_transformers_loads(tmp_path / "model", files) == found


def listed(*added: tuple[int, str]) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [{"id": n, "content": token, **flags, "special": True} for n, token in added]


def fast(vocabulary: dict[str, int], *added: tuple[int, str], **more: Any) -> bytes:
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"}
    return as_json({"version": "1.0", "added_tokens": listed(*added), "model": model} | more)


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (fast({"a": 0, "b": 5}), {"a": 0, "b": 5}),
        # The library counts added tokens from the number of the others, whatever the file says.
        (fast({"a": 0, "b": 1}, (2, "<x>"), (7, "<y>")), {"a": 0, "b": 1, "<x>": 2, "<y>": 3}),
        (fast({"a": 0, "b": 1}, (9, "<y>"), (2, "<x>")), {"a": 0, "b": 1, "<y>": 2, "<x>": 3}),
        (fast({"a": 0, "b": 5}, (6, "<x>")), {"a": 0, "b": 5, "<x>": 2}),
        (fast({"a": 0, "b": 1}, (0, "a")), {"a": 0, "b": 1}),
    ],
    ids=["gap", "gap in added", "added out of order", "added after a gap", "in both lists"],
)
def test_gaps_are_numbered_as_the_library_does(
    tmp_path: Path, data: bytes, want: dict[str, int]
) -> None:
    files = {"tokenizer.json": data}
    assert read_vocabulary(files, where="M") == want
    files["tokenizer_config.json"] = as_json({"tokenizer_class": "PreTrainedTokenizerFast"})
    assert as_transformers_loads(tmp_path / "model", files) == want


# --- without a tokenizer.json ---------------------------------------------------------------------

GPT2 = as_json({"tokenizer_class": "GPT2Tokenizer"})
WORDS = {chr(code): code - 33 for code in range(33, 127)} | {
    "ab": 94,
    "Ġ": 95,
    "Ġa": 96,
    "<|endoftext|>": 97,
}
MERGES = "#version: 0.2\na b\nĠ a\n".encode()
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def decoder(**tokens: str) -> bytes:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    entries = {n[1:]: {"content": token, **flags, "special": True} for n, token in tokens.items()}
    return as_json({"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": entries})


@pytest.mark.parametrize(
    ("files", "want"),
    [
        ({"tokenizer_config.json": GPT2}, {}),
        ({"tokenizer_config.json": GPT2, "added_tokens.json": b'{"<x>": 98}'}, {"<x>": 98}),
        ({"tokenizer_config.json": decoder(_98="<y>", _99="<z>")}, {"<y>": 98, "<z>": 99}),
        (
            {"tokenizer_config.json": decoder(_98="<y>"), "added_tokens.json": b'{"<x>": 98}'},
            {"<y>": 98},
        ),
    ],
    ids=["plain", "added_tokens.json", "added_tokens_decoder", "both"],
)
def test_vocab_json(tmp_path: Path, files: Files, want: dict[str, int]) -> None:
    files = {"vocab.json": as_json(WORDS), "merges.txt": MERGES} | files
    assert read_vocabulary(files, where="M") == WORDS | want
    assert as_transformers_loads(tmp_path / "model", files) == WORDS | want


STRANGE = [
    "a\u2028b",
    "c\x85d",
    "e\x0bf",
    "g\x1ch",
    "i\rj",
    "\u2029",
    "##k",
    "l ",
    "m\u3000",
    "n\x1d",
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [False, True])
def test_vocab_txt(tmp_path: Path, end: str, last: bool) -> None:
    """Lines end at line feeds alone; what else Unicode calls a separator is part of a token."""
    data = end.join([*BERT, *STRANGE]) + (end if last else "")
    files = {
        "vocab.txt": data.encode(),
        "tokenizer_config.json": as_json({"tokenizer_class": "BertTokenizer"}),
    }
    found = read_vocabulary(files, where="M")
    assert found == as_transformers_loads(tmp_path / "model", files)
    assert found["a\u2028b"] == 5
    assert found["n\x1d"] == 14
    assert found["l"] == 12
    assert len(found) == 15


@pytest.mark.parametrize("text", ["", "\n", "a", "a\n", "a\n\nb\n", "a\nb\na\n", "\ufeffa\nb"])
def test_short_vocab_txt(tmp_path: Path, text: str) -> None:
    """As the library reads lines: a repeated token has the last of its numbers."""
    path = written(tmp_path / "model", {"vocab.txt": text.encode()}) / "vocab.txt"
    want = tokenizers.models.WordPiece.read_file(str(path))
    assert read_vocabulary({"vocab.txt": text.encode()}, where="M") == want


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model"])
def test_sentencepiece(tmp_path: Path, kind: str, name: str) -> None:
    """Against the list of pieces that the trainer writes beside the model."""
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_prefix=str(tmp_path / "m"),
        vocab_size=60,
        hard_vocab_limit=False,
        model_type=kind,
        user_defined_symbols=["<a>"],
        minloglevel=2,
    )
    lines = (tmp_path / "m.vocab").read_text(encoding="utf-8").split("\n")[:-1]
    want = {line.split("\t")[0]: number for number, line in enumerate(lines)}
    files = {name: (tmp_path / "m.model").read_bytes()}
    assert len(want) > 30
    assert want["<a>"] == 3
    assert read_vocabulary(files, where="M") == want
    files["added_tokens.json"] = as_json({"<x>": len(want)})
    assert read_vocabulary(files, where="M") == want | {"<x>": len(want)}


def test_without_sentencepiece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError) as caught:
        read_vocabulary({"tokenizer.model": b"x"}, where="org/m")
    assert caught.value.message.startswith("tokenizer.model of org/m is a SentencePiece model")
    assert "deltastore[sentencepiece]" in caught.value.hint
    assert "--skip-embeddings" in caught.value.hint


def test_the_extra_is_declared() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert any(
        "sentencepiece" in need for need in project["optional-dependencies"]["sentencepiece"]
    )


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        (["tekken.json"], "tekken.json"),
        (["sentencepiece.bpe.model"], r"sentencepiece\.bpe\.model"),
        (["tokenizer.model.v3"], r"tokenizer\.model\.v3"),
        (["tokenizer.model.v3", "tekken.json"], r"tekken\.json, tokenizer\.model\.v3"),
    ],
)
def test_kinds_that_are_not_known(files: list[str], kept: str) -> None:
    """No guess: rows that are paired by index would be other tokens'."""
    with pytest.raises(TokenizerError, match=f"of M is kept in {kept} alone") as caught:
        read_vocabulary(dict.fromkeys(files, b"{}"), where="M")
    assert caught.value.exit_code == 68
    assert "--skip-embeddings" in caught.value.hint


def test_no_tokenizer() -> None:
    assert read_vocabulary({}, where="M") is None
    some = {"tokenizer_config.json": b"{}", "merges.txt": b"", "special_tokens_map.json": b"no"}
    assert read_vocabulary(some, where="M") is None


def test_the_order_of_files() -> None:
    """tokenizer.json is the vocabulary where there is one; what is only listed is added to it."""
    slow = {"vocab.json": b'{"b": 0}', "vocab.txt": b"c", "added_tokens.json": b'{"d": 9}'}
    found = read_vocabulary(slow | {"tokenizer.json": fast({"a": 3})}, where="M")
    assert found == {"a": 3, "d": 1}
    assert read_vocabulary(slow, where="M") == {"b": 0, "d": 9}


# --- hostile --------------------------------------------------------------------------------------

PANICS = {
    "a merge's prefix": as_json(
        {
            "version": "1.0",
            "model": {
                "type": "BPE",
                "vocab": {"a": 0, "b": 1, "ab": 2},
                "merges": [["a", "b"]],
                "continuing_subword_prefix": "éééé",
            },
        }
    ),
}

STEPS = {
    "a map of characters on which it panics": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    },
    "an expression that is tried on added tokens": {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}
    },
    "an expression that takes long to compile": {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "(?i)" + "ﬃ" * 60_000},
            "behavior": "Isolated",
            "invert": False,
        }
    },
    "a step that it does not know": {"decoder": {"type": "Nothing"}},
}


@pytest.mark.parametrize("what", PANICS)
def test_what_the_library_does_not_foresee(what: str) -> None:
    with pytest.raises(BaseException) as panic:
        tokenizers.Tokenizer.from_str(PANICS[what].decode())
    assert not isinstance(panic.value, Exception), "the library foresees it by now"
    with pytest.raises(TokenizerError, match=r"^tokenizer\.json of M cannot be read"):
        read_vocabulary({"tokenizer.json": PANICS[what]}, where="M")


@pytest.mark.parametrize("what", STEPS)
def test_steps_are_not_run(what: str) -> None:
    """They say which tokens a text becomes, and nothing of tokens and ids."""
    document = json.loads(fast({"a": 0})) | STEPS[what]
    document["added_tokens"] = [
        {"id": n, "content": f"{'a' * 200}!{n}", "special": False, "normalized": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for n in range(1, 50)
    ]
    found = read_vocabulary({"tokenizer.json": json.dumps(document).encode()}, where="M")
    assert found == {"a": 0} | {token["content"]: token["id"] for token in document["added_tokens"]}


def test_an_interrupt_is_no_panic(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        @staticmethod
        def from_str(_: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(tokenizers, "Tokenizer", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_vocabulary({"tokenizer.json": fast({"a": 0})}, where="M")


WRONG_IDS = [
    "-1",
    str(MAX_TOKENS),
    str(1 << 64),
    "9" * 400,
    "true",
    "1.0",
    '"1"',
    "null",
    "[1]",
    "{}",
]
WRONG_KEYS = [
    "-1",
    str(MAX_TOKENS),
    "0" * 9 + "99999999",
    "9" * 400,
    "1.0",
    " 1",
    "١",
    "1_0",
    "",
    "9" * 5000,
]

HOSTILE: dict[str, Files] = {
    "tokenizer.json: not UTF-8": {"tokenizer.json": b"\xff" * 1000},
    "tokenizer.json: UTF-16": {"tokenizer.json": "{}".encode("utf-16")},
    "tokenizer.json: empty": {"tokenizer.json": b""},
    "tokenizer.json: list": {"tokenizer.json": b"[]"},
    "tokenizer.json: deep": {"tokenizer.json": b'{"a":' * 100_000},
    "tokenizer.json: deep list": {"tokenizer.json": b'{"model":' + b"[" * 900 + b"]" * 900 + b"}"},
    "tokenizer.json: no model": {"tokenizer.json": b'{"version": "1.0", "added_tokens": []}'},
    "tokenizer.json: surrogate": {"tokenizer.json": b'{"model": {"vocab": {"\\ud800": 0}}}'},
    "tokenizer.json: huge id": {"tokenizer.json": fast({"a": (1 << 32) - 1})},
    "tokenizer.json: id over the limit": {"tokenizer.json": fast({"a": MAX_TOKENS})},
    "tokenizer.json: negative id": {"tokenizer.json": fast({"a": -1})},
    "vocab.json: not UTF-8": {"vocab.json": b'{"\xff": 0}'},
    "vocab.json: no JSON": {"vocab.json": b"a 0"},
    "vocab.json: list": {"vocab.json": b'["a"]'},
    "vocab.json: languages": {"vocab.json": b'{"eng": {"a": 0}}'},
    "vocab.json: deep": {"vocab.json": b'{"a":' * 100_000},
    "vocab.json: digits": {"vocab.json": b'{"a": ' + b"9" * 100_000 + b"}"},
    "vocab.txt: not UTF-8": {"vocab.txt": b"a\n\xff\n"},
    "tokenizer.model: empty": {"tokenizer.model": b""},
    "tokenizer.model: no model": {"tokenizer.model": b"\xff" * 1000},
    "tokenizer.model: text": {"tokenizer.model": b"aGk= 0\n"},
    "spiece.model: a length beyond": {"spiece.model": b"\x0a\xff\xff\xff\xff\x07abc"},
    "added_tokens.json: list": {"vocab.json": b"{}", "added_tokens.json": b"[]"},
    "added_tokens.json: deep": {"vocab.json": b"{}", "added_tokens.json": b"[" * 100_000},
    "tokenizer_config.json: no JSON": {"vocab.json": b"{}", "tokenizer_config.json": b"{"},
}
for _number in WRONG_IDS:
    _data = f'{{"a": 0, "b": {_number}}}'.encode()
    HOSTILE[f"vocab.json: id {_number:.9}"] = {"vocab.json": _data}
    HOSTILE[f"added_tokens.json: id {_number:.9}"] = {"vocab.txt": b"x", "added_tokens.json": _data}
for _key in WRONG_KEYS:
    _data = as_json({"added_tokens_decoder": {_key: {"content": "b"}}})
    HOSTILE[f"decoder: id {_key!a:.9}, {len(_key)}"] = {
        "vocab.txt": b"x",
        "tokenizer_config.json": _data,
    }
for _token in (None, 5, "b", [], {}, {"content": None}, {"content": ["b"]}):
    _data = as_json({"added_tokens_decoder": {"1": _token}})
    HOSTILE[f"decoder: {_token}"] = {"vocab.txt": b"x", "tokenizer_config.json": _data}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files(what: str) -> None:
    if ".model" in what:
        pytest.importorskip("sentencepiece")
    with pytest.raises(TokenizerError) as caught:
        read_vocabulary(HOSTILE[what], where="org/m")
    assert "org/m" in caught.value.message
    assert len(caught.value.message) < 600
    assert caught.value.message.isprintable()
    assert "--skip-embeddings" in caught.value.hint


def test_ids_up_to_the_limit() -> None:
    data = as_json({"a": 0, "b": MAX_TOKENS - 1})
    assert read_vocabulary({"vocab.json": data}, where="M") == {"a": 0, "b": MAX_TOKENS - 1}
    zeros = as_json({"added_tokens_decoder": {"0000000000012": {"content": "b"}}})
    files = {"vocab.txt": b"x", "tokenizer_config.json": zeros}
    assert read_vocabulary(files, where="M") == {"x": 0, "b": 12}


def test_a_decoder_that_is_no_list_of_tokens_counts_for_nothing() -> None:
    files = {"vocab.txt": b"x", "tokenizer_config.json": b'{"added_tokens_decoder": null}'}
    assert read_vocabulary(files | {"added_tokens.json": b'{"y": 1}'}, where="M") == {
        "x": 0,
        "y": 1,
    }


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.txt"])
def test_files_over_the_limit_are_not_read(
    tmp_path: Path, name: str, small_pair: Callable[[Path], None]
) -> None:
    """64 MiB: `apply` says so before it reads the file, with nothing left behind."""
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(MAX_SMALL_FILE_BYTES + 1)
    with pytest.raises(CheckpointError, match=f"has {MAX_SMALL_FILE_BYTES + 1} bytes"):
        read_portable(name, path)
    small_pair(tmp_path)
    with deltastore.open(tmp_path / "store") as store:
        store.extract(tmp_path / "base", tmp_path / "post", name="x")
        path.rename(tmp_path / "base" / name)
        with pytest.raises(CheckpointError, match=f"has {MAX_SMALL_FILE_BYTES + 1} bytes"):
            store.apply("x", base=tmp_path / "base", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_pair() -> Callable[[Path], None]:
    """Writes a base and a post with embeddings and a tokenizer."""
    import torch
    from safetensors.torch import save_file

    def write(place: Path) -> None:
        for side in ("base", "post"):
            weights = torch.full((2, 4), 1.0 + (side == "post"))
            files = {"tokenizer.json": fast({"a": 0, "b": 1}), "config.json": b"{}"}
            directory = written(place / side, files)
            save_file({"model.embed_tokens.weight": weights}, directory / "model.safetensors")

    return write


@pytest.mark.parametrize(
    "files",
    [
        {"spm.model": b"x"},
        {"source.spm": b"x", "tokenizer_config.json": b"{}"},
        {"qwen.tiktoken": b"x"},
        {"vocab.bpe": b"x", "encoder.json": b"{}"},
        # PhoBERT's vocab.txt is a table of words and counts, numbered in another way.
        {"vocab.txt": b"word 12\n", "bpe.codes": b"x"},
    ],
    ids=lambda files: ", ".join(files),
)
def test_kinds_whose_ids_are_not_known(files: dict[str, bytes]) -> None:
    with pytest.raises(TokenizerError, match="whose token ids are not known here") as caught:
        read_vocabulary(files, where="here")
    assert caught.value.exit_code == 68
    # Where a file that is known gives the ids, the others do not matter.
    assert read_vocabulary(files | {"tokenizer.json": TINY}, where="here") == {"a": 0}


def test_files_that_make_no_tokenizer_by_themselves() -> None:
    names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
    assert read_vocabulary(dict.fromkeys(names, b"{}"), where="here") is None


TINY = b'{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'
