"""Hostile checkpoints: headers, indices, pickles and small files."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from attack import Action, Make, attack, checkpoint, entry, safetensors

import deltastore

GOOD = entry("BF16", [2], 0, 4)


def read(place: Path) -> Action:
    """What a user does with a checkpoint: take it for a base."""
    checkpoint(place / "post", {"w": ("BF16", [2], b"\0\0\0\0")})

    def action() -> object:
        with deltastore.open(place / "store") as store:
            return store.extract(place / "base", place / "post", name="x", force=True)

    return action


def header(content: Any, data: bytes = b"\0" * 4, **options: Any) -> Make:
    def make(place: Path) -> Action:
        (place / "base").mkdir()
        file = safetensors(content, data, **options)
        (place / "base" / "model.safetensors").write_bytes(file)
        return read(place)

    return make


HEADERS: dict[str, Make] = {
    "length-beyond-file": header({"w": GOOD}, length=1 << 20),
    "length-huge": header({"w": GOOD}, length=(1 << 64) - 1),
    "length-zero": header(b"", length=0),
    "shape-overflow": header({"w": entry("BF16", [1 << 32, 1 << 32], 0, 4)}),
    "shape-hidden-by-zero": header({"w": entry("BF16", [0, 1 << 62, 1 << 62], 0, 0)}, b""),
    "shape-negative": header({"w": entry("BF16", [-1, -2], 0, 4)}),
    "shape-float": header({"w": entry("BF16", [2.0], 0, 4)}),
    "shape-bool": header({"w": entry("BF16", [True, 2], 0, 4)}),
    "shape-string": header({"w": entry("BF16", ["2"], 0, 4)}),
    "shape-dimensions": header({"w": entry("BF16", [1] * 1000 + [2], 0, 4)}),
    "offsets-beyond-file": header({"w": entry("BF16", [1 << 40], 0, 1 << 41)}),
    "offsets-overlap": header({"v": GOOD, "w": GOOD}),
    "offsets-hole": header({"v": GOOD, "w": entry("BF16", [2], 8, 12)}, bytes(12)),
    "offsets-backwards": header({"w": entry("BF16", [2], 4, 0)}),
    "offsets-huge": header({"w": entry("BF16", [2], 10**400, 10**400 + 4)}),
    "offsets-many": header({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0] * 9}}),
    "dtype-unknown": header({"w": entry("F4" * 100, [2], 0, 4)}),
    "dtype-object": header({"w": {"dtype": {"a": [[[]]]}, "shape": [2], "data_offsets": [0, 4]}}),
    "name-empty": header({"": GOOD}),
    "name-long": header({"w" * 2000: GOOD}),
    "name-control": header({"w\x1b[2J": GOOD}),
    "name-surrogate": header(b'{"w\\ud800":' + json.dumps(GOOD).encode() + b"}"),
    "name-twice": header(b'{"w":%s,"w":%s}' % ((json.dumps(GOOD).encode(),) * 2)),
    "json-deep": header(b'{"w":' + b"[" * 900 + b"]" * 900 + b"}"),
    "json-very-deep": header(b'{"w":' + b"[" * 1_000_000),
    "json-nan": header(b'{"w":NaN}'),
    "json-digits": header(b'{"w":' + b"9" * 100_000 + b"}"),
    "json-not-utf8": header(b'{"\xff":0}'),
    "json-bom": header(b'\xef\xbb\xbf{"w":0}'),
    "metadata-object": header({"__metadata__": {"a": {}}, "w": GOOD}),
}
for _name, _make in HEADERS.items():
    attack(f"header-{_name}")(_make)


def index(filename: Any, tensor: str = "w") -> Make:
    def make(place: Path) -> Action:
        outside = {"w": ("BF16", [2], b"\0\0\0\0")}
        checkpoint(place / "outside", outside)
        checkpoint(place / "base", outside)
        (place / "base/model.safetensors").rename(place / "base/model-1.safetensors")
        document = {"metadata": {}, "weight_map": {tensor: filename}}
        (place / "base" / "model.safetensors.index.json").write_text(json.dumps(document))
        return read(place)

    return make


INDICES: dict[str, Make] = {
    "parent": index("../outside/model.safetensors"),
    "absolute": index("/etc/passwd"),
    "backslash": index("..\\outside\\model.safetensors"),
    "nul": index("model-1.safetensors\0.txt"),
    "dots": index(".."),
    "number": index(1),
    "long": index("m" * 100_000 + ".safetensors"),
    "control": index("model-1.safetensors", tensor="w\x1b[2J"),
    "itself": index("model.safetensors.index.json"),
}
for _name, _make in INDICES.items():
    attack(f"index-{_name}")(_make)


@attack("index-deep")
def _index_deep(place: Path) -> Action:
    action = index("model-1.safetensors")(place)
    text = '{"weight_map":' + '{"a":' * 500 + "1" + "}" * 501
    (place / "base" / "model.safetensors.index.json").write_text(text)
    return action


@attack("index-pipe")
def _index_pipe(place: Path) -> Action:
    action = index("model-1.safetensors")(place)
    (place / "base" / "model.safetensors.index.json").unlink()
    os.mkfifo(place / "base" / "model.safetensors.index.json")
    return action


@attack("shard-pipe")
def _shard_pipe(place: Path) -> Action:
    (place / "base").mkdir()
    os.mkfifo(place / "base" / "model.safetensors")
    return read(place)


@attack("shard-device")
def _shard_device(place: Path) -> Action:
    (place / "base").mkdir()
    (place / "base" / "model.safetensors").symlink_to("/dev/zero")
    return read(place)


@attack("shard-link-out")
def _shard_link(place: Path) -> Action:
    checkpoint(place / "outside", {"w": ("BF16", [2], b"\0\0\0\0")})
    (place / "base").mkdir()
    (place / "base" / "model.safetensors").symlink_to(place / "outside/model.safetensors")
    return read(place)


@attack("shard-link-loop")
def _shard_loop(place: Path) -> Action:
    (place / "base").mkdir()
    (place / "base" / "model.safetensors").symlink_to("model.safetensors")
    return read(place)


@attack("config-deep")
def _config_deep(place: Path) -> Action:
    checkpoint(place / "base", {"w": ("BF16", [2], b"\0\0\0\0")})
    (place / "base" / "config.json").write_text('{"a":' * 900 + "1" + "}" * 900)
    return read(place)


@attack("config-values")
def _config_values(place: Path) -> Action:
    checkpoint(place / "base", {"w": ("BF16", [2], b"\0\0\0\0")})
    (place / "base" / "config.json").write_text('{"a":[' + "{}," * 4_000_000 + "{}]}")
    return read(place)


@attack("index-values")
def _index_values(place: Path) -> Action:
    checkpoint(place / "base", {"w": ("BF16", [2], b"\0\0\0\0")})
    index = '{"weight_map":{"w":"model.safetensors"},"a":[' + "{}," * 2_000_000 + "{}]}"
    (place / "base" / "model.safetensors.index.json").write_text(index)
    return read(place)


@attack("config-pipe")
def _config_pipe(place: Path) -> Action:
    checkpoint(place / "base", {"w": ("BF16", [2], b"\0\0\0\0")})
    os.mkfifo(place / "base" / "config.json")
    return read(place)


@attack("small-file-huge")
def _small_huge(place: Path) -> Action:
    checkpoint(place / "base", {"w": ("BF16", [2], b"\0\0\0\0")})
    with (place / "base" / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    return read(place)


@attack("small-file-of-the-kernel")
def _small_kernel(place: Path) -> Action:
    checkpoint(place / "base", {"w": ("BF16", [2], b"\0\0\0\0")})
    (place / "base" / "tokenizer.json").symlink_to("/proc/self/environ")
    return read(place)


@attack("small-file-waited-for")
def _small_waiting(place: Path) -> Action:
    checkpoint(place / "base", {"w": ("BF16", [2], b"\0\0\0\0")})
    (place / "base" / "tokenizer.json").symlink_to("/proc/kmsg")
    return read(place)


@attack("small-files-together")
def _small_many(place: Path) -> Action:
    action = read(place)
    checkpoint(place / "base", {"w": ("BF16", [2], b"\0\0\0\0")})
    for name in ("LICENSE", "NOTICE", "COPYING", "USE_POLICY.md", "chat_template.jinja"):
        with (place / "post" / name).open("wb") as file:
            file.truncate(60 << 20)
    return action


# --- tokenizers, which are read where rows go by token --------------------------------------------

EMBEDDINGS = "model.embed_tokens.weight"


def tokenizer(vocabulary: Any, *added: str, **more: Any) -> dict[str, bytes]:
    """A tokenizer.json of words; ``added`` are numbered after them."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    entries = [
        {"id": len(vocabulary) + i, "content": token, **flags, "special": True}
        for i, token in enumerate(added)
    ]
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"}
    document = {"version": "1.0", "added_tokens": entries, "model": model} | more
    return {"tokenizer.json": json.dumps(document).encode()}


def tokenized(directory: Path, rows: int, files: dict[str, bytes]) -> None:
    checkpoint(directory, {EMBEDDINGS: ("BF16", [rows, 2], b"\0\x3f" * 2 * rows)})
    for name, data in files.items():
        (directory / name).write_bytes(data)


def new_base(files: dict[str, bytes], *, rows: int = 2) -> Make:
    """Post adds a token; the new base has other tokens, as ``files`` say."""

    def make(place: Path) -> Action:
        tokenized(place / "base", 2, tokenizer({"a": 0, "b": 1}))
        tokenized(place / "post", 3, tokenizer({"a": 0, "b": 1}, "<x>"))
        tokenized(place / "new", rows, files)
        with deltastore.open(place / "store") as store:
            store.extract(place / "base", place / "post", name="x", force=True)

        def action() -> object:
            with deltastore.open(place / "store") as store:
                return store.apply("x", base=place / "new", out=place / "out")

        return action

    return make


_SWAPPED = tokenizer({"b": 0, "a": 1})
_PREFIXED = {
    "type": "BPE",
    "vocab": {"b": 0, "a": 1, "ab": 2},
    "merges": [["a", "b"]],
    "continuing_subword_prefix": "éééé",
}
_SLOW = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}
_TRIED = [
    {"id": 2 + n, "content": f"{'a' * 16}!{n}", "normalized": True, "special": False}
    | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    for n in range(20_000)
]
TOKENIZERS: dict[str, dict[str, bytes]] = {
    "panic": tokenizer({}, model=_PREFIXED),
    "steps": tokenizer({"b": 0, "a": 1}, normalizer=_SLOW, added_tokens=_TRIED),
    "deep": {"tokenizer.json": b'{"model":' + b"[" * 900 + b"]" * 900 + b"}"},
    "values": {"tokenizer.json": b'{"model":[' + b"[]," * 3_000_000 + b"[]]}"},
    "config-values": _SWAPPED | {"tokenizer_config.json": b'{"a":[' + b"[]," * 2_000_000 + b"[]]}"},
    "map-values": _SWAPPED
    | {"special_tokens_map.json": b'{"x_token":[' + b'"",' * 2_000_000 + b'""]}'},
    "id-huge": tokenizer({"b": 0, "a": (1 << 32) - 1}),
    "id-bool": {"vocab.json": b'{"b": 0, "a": true}'},
    "sentencepiece": {"tokenizer.model": b"\x0a\xff\xff\xff\xff\x07abc"},
    "unknown": {"tekken.json": b"{}"},
    "decoder-lists": _SWAPPED
    | {"tokenizer_config.json": b'{"added_tokens_decoder": {"1": {"content": ["a"]}, "x": []}}'},
}
for _name, _files in TOKENIZERS.items():
    attack(f"tokens-{_name}")(new_base(_files))
attack("tokens-gap")(new_base(tokenizer({"b": 0, "a": 5}), rows=6))


# --- pickles --------------------------------------------------------------------------------------


class _Runs:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def _pickle(place: Path, data: bytes) -> Action:
    (place / "base").mkdir(exist_ok=True)
    (place / "base" / "pytorch_model.bin").write_bytes(data)
    return read(place)


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@attack("pickle-code")
def _code(place: Path) -> Action:
    return _pickle(place, pickle.dumps(_Runs(place / "pwned"), protocol=2))


@attack("pickle-code-in-zip")
def _code_zip(place: Path) -> Action:
    return _pickle(place, _saved({"w": _Runs(place / "pwned")}))


@attack("pickle-expanded-tensor")
def _expanded(place: Path) -> Action:
    return _pickle(place, _saved({"w": torch.zeros(1).expand(1, 1 << 40)}))


@attack("pickle-compressed")
def _compressed(place: Path) -> Action:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": bytes(64 << 20)}, protocol=2))
        archive.writestr("archive/version", "3\n")
    return _pickle(place, buffer.getvalue())


@attack("pickle-zip-cut")
def _zip_cut(place: Path) -> Action:
    data = _saved({"w": torch.zeros(1000)})
    return _pickle(place, data[: len(data) // 2])


@attack("pickle-bytearray")
def _bytearray(place: Path) -> Action:
    data = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R."
    return _pickle(place, data)


@attack("pickle-storage-missing")
def _storage(place: Path) -> Action:
    source, target = io.BytesIO(_saved({"w": torch.zeros(1000)})), io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            new.writestr(member.filename, data[:16] if "/data/" in member.filename else data)
    return _pickle(place, target.getvalue())


@attack("pickle-storage-huge")
def _storage_huge(place: Path) -> Action:
    """The old format, whose pickle says how large a storage is to be made."""
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(1000)}, buffer, _use_new_zipfile_serialization=False)
    data, small = buffer.getvalue(), b"M\xe8\x03Nt"
    assert small in data
    return _pickle(place, data.replace(small, b"\x8a\x06\0\0\0\0\0\x01Nt"))
