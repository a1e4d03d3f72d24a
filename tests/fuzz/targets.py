"""What is fuzzed: each target takes any bytes and may only raise errors of our own.

A target reads its input as hostile files are read, and then looks at what came out the way the
rest of the program does. Anything but a ``DeltastoreError`` is a crash; so is a message that no
terminal should be sent.
"""

from __future__ import annotations

import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from multiprocessing import spawn
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from mutate import SEPARATOR

from deltastore.artifact.parts import PartsReader
from deltastore.artifact.sides import Sides
from deltastore.checkpoint import open_checkpoint
from deltastore.checkpoint.pickle_file import MAX_REPEATED
from deltastore.codecs import entropy, get_codec
from deltastore.codecs.values import decode_patch, decode_values
from deltastore.digest import sha256_digest
from deltastore.errors import DeltastoreError
from deltastore.lineage.similarity import Lineage
from deltastore.manifest import Descriptor, Segment, Stream, parse_config, parse_manifest
from deltastore.manifest import format as fmt
from deltastore.merging.plan import MergePlan, PlannedBase, PlannedDelta
from deltastore.operations.show import _tensor
from deltastore.output.assemble import card, compose
from deltastore.refs import default_name, parse_ref, validate_tag
from deltastore.store.indexing import summarise
from deltastore.store.layout import Layout, read_marker
from deltastore.store.leases import Leases
from deltastore.store.records import parse_record, parse_tag
from deltastore.tokenizer.added import with_post_tokens
from deltastore.tokenizer.matching import match_tokens
from deltastore.tokenizer.reading import MAX_TOKENS, read_vocabulary
from deltastore.tokenizer.rows import NONE

Target = Callable[[bytes], None]

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "format-v1"
FOUND = HERE.parent / "attacks" / "files"
MAX_MESSAGE_CHARS = 10_000
_MAX_FRAMES = 64
_MAX_ELEMENTS = 1 << 12


@functools.cache
def _directory() -> Path:
    """Where targets that read files put theirs; goes with the process."""
    holder = tempfile.TemporaryDirectory(prefix="fuzz", ignore_cleanup_errors=True)
    _kept.append(holder)
    return Path(holder.name)


_kept: list[Any] = []


def manifest(data: bytes) -> None:
    """A manifest, a separator, its config."""
    first, _, second = data.partition(SEPARATOR)
    parsed = parse_manifest(first, where="M")
    config = parse_config(second, parsed, where="C")
    row = summarise(sha256_digest(first), parsed, config, len(first))
    assert max(row.stored_bytes, row.raw_bytes, row.parameters) < 1 << 63
    for entry in config.tensors:
        _tensor(entry)


def records(data: bytes) -> None:
    """A letter for the kind of document, then the document."""
    kind, text = data[:1], data[1:]
    if kind == b"t":
        parse_tag(text, name="w", tag="t", where="T")
    elif kind == b"s":
        (_directory() / "store.json").write_bytes(text)
        read_marker(Layout(_directory()))
    elif kind == b"l":
        leases = _directory() / "leases"
        leases.mkdir(exist_ok=True)
        (leases / "x.json").write_bytes(text)
        for lease in Leases(leases, _directory()).all():
            assert f"{lease.purpose}{lease.host}{lease.created}".isprintable()
    else:
        parse_record(text, name="w", version=1, where="R")


class _Bytes:
    """A part in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, offset: int, count: int) -> bytes:
        assert 0 <= offset <= offset + count <= len(self.data)
        return self.data[offset : offset + count]

    def close(self) -> None:
        pass


def part(data: bytes) -> None:
    """A tensor part, of which every stream is read."""
    layer = Descriptor(fmt.TENSORS_MEDIA_TYPE, "sha256:" + "0" * 64, len(data))
    reader = PartsReader([layer], lambda _: _Bytes(data))
    opened = reader.acquire(0)
    for key in [key for key in opened.keys("") if key.endswith(".offsets")][:8]:
        try:
            frames = opened.array(key).size - 1
        except DeltastoreError:
            continue
        frames = max(1, min(frames, _MAX_FRAMES))
        stream = Stream("exact", {}, (Segment(0, 0, frames),), 0)
        found = reader.stream(key.removesuffix(".offsets"), stream)
        found.arrays()
        for index in range(frames + 1):
            found.frame(index)


def header(data: bytes) -> None:
    """A safetensors file; after the letter ``i``, an index of a shard that is there."""
    place = _directory() / "checkpoint"
    place.mkdir(exist_ok=True)
    if data[:1] == b"i":
        (place / "a-1.safetensors").write_bytes(_shard())
        path = place / "model.safetensors.index.json"
        path.write_bytes(data[1:])
    else:
        path = place / "lone.safetensors"
        path.write_bytes(data)
    with open_checkpoint(path) as checkpoint:
        for name, tensor in list(checkpoint.tensors.items())[:16]:
            checkpoint.read_into(name, 0, bytearray(min(tensor.nbytes, 1 << 16)))
        assert checkpoint.nbytes <= path.stat().st_size + len(_shard())


def pickle(data: bytes) -> None:
    """A file of ``torch.save``; after the letter ``z``, the pickle in a zip file with one storage.

    Read in this process: the limits of the child would hide what it does.
    """
    path = _directory() / "weights.bin"
    if data[:1] == b"z":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", data[1:])
            archive.writestr("a/data/0", bytes(range(256)))
    else:
        path.write_bytes(data)
    with patch.object(spawn, "get_executable", lambda: None), open_checkpoint(path) as checkpoint:
        for name, tensor in list(checkpoint.tensors.items())[:16]:
            checkpoint.read_into(name, 0, bytearray(tensor.nbytes))
        assert checkpoint.nbytes <= MAX_REPEATED * path.stat().st_size


@functools.cache
def _shard() -> bytes:
    return (GOLDEN / "patches" / "base" / "model.safetensors").read_bytes()


def frames(data: bytes) -> None:
    """Six bytes of parameters, then a frame, or the content of one, which is compressed first.

    Mutated frames rarely pass the entropy decoder; mutated contents always do.
    """
    if len(data) < 6:
        return
    choice, size, wide, tokens = data[0], data[1:3], data[3] & 1, data[4]
    elements = int.from_bytes(size, "little") % _MAX_ELEMENTS
    body = data[6:]
    frame = body if data[5] & 1 else entropy.compress([np.frombuffer(body, np.uint8)])
    form = ("palette", "half", "single")[choice % 3]
    if data[3] & 2:
        decode_values(frame, 2, np.empty(2 * elements, np.uint8), where="F")
    elif data[3] & 4:
        positions, post = decode_patch(frame, 2, elements, where="F")
        np.zeros(elements, np.uint16)[positions] = post.view(np.uint16)
    else:
        arrays = {"palette": np.arange(tokens, dtype=np.uint16)} if form == "palette" else {}
        params = {"form": form, "sparse": bool(choice & 128)}
        decoder = get_codec("exact").decoder(params, arrays, where="F")
        decoder.decode(frame, np.empty(elements, np.uint64 if wide else np.uint32))


def refs(data: bytes) -> None:
    """A ref; what is one reads the same when it is printed."""
    text = data.decode("utf-8", "surrogateescape")
    default_name(text)
    for check in (validate_tag, parse_ref):
        try:
            found = check(text)
        except DeltastoreError as error:
            _decent(error)
        else:
            assert str(found) == text or check is parse_ref
            assert parse_ref(str(found)) == found or check is validate_tag


def small(data: bytes) -> None:
    """Two letters for a small file and its side, then the file: must never fail at all."""
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json")
    names += ("generation_config.json", "special_tokens_map.json", "README.md")
    name = names[(data[:1] or b"\0")[0] % len(names)]
    source, post = {"tokenizer_config.json": b"{}"}, {name: data[2:]}
    if data[1:2] == b"b":
        source = {name: data[2:]}
    base = _base()
    (base.path / name).write_bytes(data[2:] if data[1:2] == b"o" else b'{"chat_template": "x"}')
    composed = compose(base, [Sides(source, post)], {})
    assert all(isinstance(content, bytes) for content in composed.files.values())
    assert composed.files.keys() <= composed.ledger.origins.keys()
    assert composed.ledger.origins.keys() - composed.files.keys() == {
        "deltastore.json",
        "README.md",
    }
    unknown = Lineage("unknown", False, None, None, 0, 0, 0)
    delta = PlannedDelta("x:v1", "", 1.0, "base", "post", "org/post", "", "", unknown)
    assert card(MergePlan(base=PlannedBase("base"), deltas=(delta,), tensors={}), composed.cards)


@functools.cache
def _base() -> Any:
    place = _directory() / "base"
    place.mkdir()
    (place / "model.safetensors").write_bytes(_shard())
    (place / "config.json").write_text("{}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / name).write_text("{}")
    return open_checkpoint(place)


_VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "tokenizer.model.v3",
)


def vocabulary(data: bytes) -> None:
    """A letter for the kind of file, the file, a separator, a list of added tokens.

    A small letter is for ``tokenizer_config.json``, a capital for ``added_tokens.json``.
    """
    kind = data[:1].decode("latin-1")
    name = _VOCABULARIES[ord(kind.lower() or "a") % len(_VOCABULARIES)]
    first, _, second = data[1:].partition(SEPARATOR)
    files = {name: first}
    if second:
        files["tokenizer_config.json" if kind.islower() else "added_tokens.json"] = second
    found = read_vocabulary(files, where="V")
    assert found is not None
    assert all(type(token) is str and type(number) is int for token, number in found.items())
    assert all(0 <= number < MAX_TOKENS for number in found.values())


def tokens(data: bytes) -> None:
    """One JSON document: three tokenizers' files, and three numbers of rows."""
    try:
        document = json.loads(data)
        rows = [int(n) % 64 for n in document["rows"]]
        sides = [
            {name: json.dumps(file).encode() for name, file in document[side].items()}
            for side in ("source", "post", "new")
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return
    if len(rows) != 3:
        return
    source, post, new = (
        read_vocabulary(files, where="V", rows=count) or {}
        for files, count in zip(sides, rows, strict=True)
    )
    words = match_tokens(
        source, post, new, common=min(rows[:2]), post_rows=rows[1], new_rows=rows[2]
    )
    targets = [target for _, target in words.pairs]
    assert len(set(targets)) == len(targets)
    placed = words.rows(rows[2], min(rows[:2]), rows[1])
    assert ((placed.delta == NONE) | (placed.values == NONE)).all()
    assert (placed.values[rows[2] :] != NONE).all()
    again = read_vocabulary(with_post_tokens(sides[2], sides[1], words), where="V") or {}
    gone = {old for old, _ in words.renamed}
    assert {token: again.get(token) for token in new.keys() - gone} == {
        token: new[token] for token in new.keys() - gone
    }
    assert all(again[token.content] == token.id for token in words.added)
    assert all(again[now] == new[old] for old, now in words.renamed)


TARGETS: dict[str, Target] = {
    "manifest": manifest,
    "records": records,
    "part": part,
    "header": header,
    "pickle": pickle,
    "frames": frames,
    "refs": refs,
    "small": small,
    "vocabulary": vocabulary,
    "tokens": tokens,
}
"""Every target by its name."""


def run(name: str, data: bytes) -> None:
    """Run one input.

    Raises:
        BaseException: Whatever a target must not raise.
    """
    try:
        TARGETS[name](data)
    except DeltastoreError as error:
        _decent(error)


def _decent(error: DeltastoreError) -> None:
    assert len(error.message) < MAX_MESSAGE_CHARS, len(error.message)
    assert 10 <= error.exit_code < 80


# --- seeds ----------------------------------------------------------------------------------------


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with: the golden files, and what was found before."""
    found = sorted(FOUND.glob(f"{name}-*"))
    return [*_SEEDS[name](), *(path.read_bytes() for path in found)]


def _cases() -> Iterator[tuple[Path, dict[str, Any], bytes]]:
    for case in sorted(GOLDEN.iterdir()):
        digest = json.loads((case / "case.json").read_text())["digest"]
        data = _blob(case, digest)
        yield case, json.loads(data), data


def _blob(case: Path, digest: str) -> bytes:
    return (case / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()


def _manifests() -> Iterator[bytes]:
    for case, document, data in _cases():
        yield data + SEPARATOR + _blob(case, document["config"]["digest"])


def _records() -> Iterator[bytes]:
    digest, time = "sha256:" + "0" * 64, "2025-01-31T12:00:00.000000Z"
    base = {"format": 1, "name": "w", "version": 1, "created": time, "created_by": "eve"}
    labels = {"labels": {"base": "b", "post": "p"}, "tool": "x", "digest": digest}
    removed = {"removed": time, "removed_by": "eve", "digest": digest}
    lease = {"purpose": "extract", "name": "w", "host": "h", "pid": 7, "created": time}
    store = {"format": 1, "id": "0f", "created": time}
    for kind, document in (
        ("r", base | labels),
        ("r", base | removed),
        ("t", base | {"tag": "t"}),
        ("s", store),
        ("l", lease),
    ):
        yield kind.encode() + json.dumps(document).encode()


def _parts() -> Iterator[bytes]:
    for case, document, _ in _cases():
        for layer in document["layers"]:
            if layer["mediaType"] == fmt.TENSORS_MEDIA_TYPE and layer["size"] < 1 << 16:
                yield _blob(case, layer["digest"])


def _headers() -> Iterator[bytes]:
    names = []
    for path in sorted(GOLDEN.glob("*/*/model.safetensors")):
        data = path.read_bytes()
        names = list(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]))
        if len(data) < 1 << 15:
            yield data
    shard = _shard()
    names = list(json.loads(shard[8 : 8 + int.from_bytes(shard[:8], "little")]))
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "a-1.safetensors")}
    yield b"i" + json.dumps(index).encode()


def _pickles() -> Iterator[bytes]:
    import torch

    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = {"w": base, "t": base.t(), "row": torch.nn.Parameter(base[1]), "none": base[:0]}
    odd = {"c": torch.ones(2, dtype=torch.complex64).conj(), "f": base.to(torch.float8_e5m2)}
    trained = {"state_dict": state | odd, "epoch": 3, "rest": [{1, 2}, b"x", (1.5, None)]}
    for content, protocol, legacy in (
        (state, 2, True),
        (trained, 2, False),
        (trained, 4, False),
        (trained, 5, True),
    ):
        file = io.BytesIO()
        torch.save(
            content,
            file,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=not legacy,
        )
        yield file.getvalue()
        if not legacy:
            with zipfile.ZipFile(file) as archive:
                yield b"z" + archive.read("archive/data.pkl")
    file = io.BytesIO()
    torch.save({"w": base}, file)
    with zipfile.ZipFile(file) as archive:
        yield b"z" + archive.read("archive/data.pkl")


def _frames() -> Iterator[bytes]:
    for data in _parts():
        length = int.from_bytes(data[:8], "little")
        arrays = json.loads(data[8 : 8 + length])
        for key, array in arrays.items():
            if key.endswith(("/delta", "/values", "/patch")) and array["shape"][0] < 1 << 12:
                begin, end = array["data_offsets"]
                kind = {"delta": 0, "values": 2, "patch": 4}[key.rpartition("/")[2]]
                yield bytes([0, 8, 0, kind, 2, 1]) + data[8 + length :][begin:end]
    yield bytes([0, 4, 0, 0, 2, 0]) + b"\0\1\0\xff" + b"abcd"
    yield bytes([129, 8, 0, 0, 2, 0]) + b"\x0f" + bytes(8)
    yield bytes([2, 4, 0, 1, 0, 0]) + bytes(16)
    yield bytes([0, 4, 0, 4, 0, 0]) + b"\1\0\0\0\2\0\0\0abcd"


def _refs() -> Iterator[bytes]:
    for text in ("w", "w:v2", "w:tag", "sha256:0123456789ab", "w@sha256:01234567", "../x", "a b"):
        yield text.encode()


def _small() -> Iterator[bytes]:
    for path in sorted(GOLDEN.glob("*/*/*.json*")) + sorted(GOLDEN.glob("*/*/*.jinja")):
        yield b"\0p" + path.read_bytes()
    tokenizer = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "b"}]}
    yield b"\0p" + json.dumps(tokenizer).encode()
    yield b"\1p" + json.dumps({"chat_template": "x", "bos_token": "<s>"}).encode()
    yield b"\3o" + json.dumps({"vocab_size": 3, "text_config": {}}).encode()
    yield b"\3p" + json.dumps({"eos_token_id": [1, 2], "id2label": {"0": "a"}}).encode()
    yield b"\4p" + json.dumps({"eos_token_id": [1, 2], "bad_words_ids": [[1]]}).encode()
    yield b"\5p" + json.dumps({"eos_token": {"content": "<s>"}}).encode()
    yield b"\6p---\nlicense: other\nlicense_name: a\ntags: [x, y]\nlanguage:\n- en\n---\n# Card\n"


def _added(number: int, content: str, **flags: bool) -> dict[str, Any]:
    keys = ("single_word", "lstrip", "rstrip", "normalized")
    own = {"id": number, "content": content, **dict.fromkeys(keys, False), "special": True}
    return own | flags


def _tokenizers() -> Iterator[dict[str, Any]]:
    words = {"a": 0, "b": 1, "ab": 2}
    split = {"type": "Split", "pattern": {"Regex": " ?a+"}, "behavior": "Isolated"}
    bpe = {"type": "BPE", "vocab": words, "merges": [["a", "b"]], "byte_fallback": False}
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]]}
    piece = {"type": "WordPiece", "vocab": words | {"##a": 3}, "unk_token": "a"}
    level = {"type": "WordLevel", "vocab": words | {"x": 9}, "unk_token": "a"}
    first = {"pre_tokenizer": split | {"invert": False}, "decoder": {"type": "Fuse"}}
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="}
    for model, more in (
        (bpe, first),
        (unigram, {"normalizer": charsmap}),
        (piece | {"continuing_subword_prefix": "##", "max_input_chars_per_word": 9}, {}),
        (level, {"pre_tokenizer": {"type": "WhitespaceSplit"}}),
    ):
        added = [_added(len(model["vocab"]) + i, f"<{i}>", lstrip=i > 0) for i in range(2)]
        yield {"version": "1.0", "added_tokens": added, **more, "model": model}


def _vocabularies() -> Iterator[bytes]:
    kinds = {_VOCABULARIES[ord(kind) % len(_VOCABULARIES)]: kind for kind in "abcdefg"}

    def one(name: str, data: bytes, added: Any = None, *, config: bool = True) -> bytes:
        kind = kinds[name] if config else kinds[name].upper()
        more = SEPARATOR + json.dumps(added).encode() if added is not None else b""
        return kind.encode() + data + more

    for document in _tokenizers():
        yield one("tokenizer.json", json.dumps(document).encode())
    words = json.dumps({"a": 0, "b": 1}).encode()
    yield one("vocab.json", words, {"added_tokens_decoder": {"2": {"content": "<a>"}}})
    yield one("vocab.json", words, {"<a>": 2}, config=False)
    yield one("vocab.txt", "[PAD]\na\u2028b\r\n##c\n".encode())
    pieces = b"".join(
        b"\x0a" + bytes([len(body)]) + body
        for piece, kind in ((b"<unk>", 2), (b"<s>", 3), (b"</s>", 3), (b"\xe2\x96\x81a", 1))
        for body in (b"\x0a" + bytes([len(piece)]) + piece + b"\x15\0\0\0\0\x18" + bytes([kind]),)
    )
    yield one("tokenizer.model", pieces)
    yield one("tekken.json", b"{}")


def _tokens() -> Iterator[bytes]:
    for document in _tokenizers():
        post = {**document, "added_tokens": [*document["added_tokens"], _added(12, "<new>")]}
        decoder = {str(t["id"]): t for t in document["added_tokens"]}
        new = {
            "tokenizer.json": document,
            "tokenizer_config.json": {"added_tokens_decoder": decoder},
        }
        sides = {"source": {"tokenizer.json": document}, "post": {"tokenizer.json": post}}
        yield json.dumps({"rows": [6, 14, 6], **sides, "new": new}).encode()
    slow = {"vocab.json": {"a": 0, "b": 1}}
    sides = {"source": slow, "post": slow | {"added_tokens.json": {"<a>": 2}}, "new": slow}
    yield json.dumps({"rows": [2, 3, 2], **sides}).encode()
    reserved = slow | {"added_tokens.json": {"<r>": 2}}
    config = {"added_tokens_decoder": {"2": {"content": "<r>", "lstrip": True}}}
    sides = {
        "source": reserved,
        "post": sides["post"],
        "new": slow | {"tokenizer_config.json": config},
    }
    yield json.dumps({"rows": [3, 3, 3], **sides}).encode()


_SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "manifest": _manifests,
    "records": _records,
    "part": _parts,
    "header": _headers,
    "pickle": _pickles,
    "frames": _frames,
    "refs": _refs,
    "small": _small,
    "vocabulary": _vocabularies,
    "tokens": _tokens,
}
