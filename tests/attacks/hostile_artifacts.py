"""Hostile artifacts: every digest is right, and what documents, parts and frames say is not."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from attack import Action, attack, checkpoint, safetensors

import deltastore

Document = dict[str, Any]
RECORD = {
    "format": 1,
    "name": "evil",
    "version": 1,
    "created": "2025-01-31T12:00:00.000000Z",
    "created_by": "eve",
    "tool": "evil 1",
    "labels": {"base": "b", "post": "p"},
}


def _bf16(values: np.ndarray[Any, Any]) -> bytes:
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


@functools.cache
def honest() -> Path:
    """A directory with an honest base, and a store with one artifact of it."""
    directory = Path(tempfile.mkdtemp(prefix="attacks"))
    rng = np.random.default_rng(5)
    base = rng.normal(0, 0.02, 3000)
    post = base + np.where(rng.random(3000) < 0.5, rng.laplace(0, 1e-3, 3000), 0)
    ids = np.arange(6, dtype="<i8")
    checkpoint(
        directory / "base",
        {"w": ("BF16", [30, 100], _bf16(base)), "ids": ("I64", [6], ids.tobytes())},
    )
    checkpoint(
        directory / "post",
        {
            "w": ("BF16", [30, 100], _bf16(post)),
            "ids": ("I64", [6], (ids + 1).tobytes()),
            "z": ("I64", [6], ids.tobytes()),
        },
    )
    small = {"tokenizer_config.json": "{}", "chat_template.jinja": "{{x}}", "LICENSE": "MIT"}
    for name, text in small.items():
        (directory / "post" / name).write_text(text)
    (directory / "base" / "tokenizer_config.json").write_text('{"a": 1}')
    (directory / "base" / "config.json").write_text('{"model_type": "llama"}')
    with deltastore.open(directory / "store") as store:
        store.extract(directory / "base", directory / "post", name="honest")
    return directory


class Forger:
    """The honest artifact's documents and layers, to be changed and signed anew."""

    def __init__(self, place: Path) -> None:
        self.place = place
        shutil.copytree(honest() / "store", place / "store")
        shutil.copytree(honest() / "base", place / "base")
        self.blobs = place / "store" / "blobs" / "sha256"
        record = json.loads((place / "store/names/honest/v1.json").read_text())
        self.manifest: Document = json.loads(self.blob(record["digest"]))
        self.config: Document = json.loads(self.blob(self.manifest["config"]["digest"]))
        self.tensors = {entry["name"]: entry for entry in self.config["tensors"]}

    def blob(self, digest: str) -> bytes:
        return (self.blobs / digest.removeprefix("sha256:")).read_bytes()

    def put(self, data: bytes) -> Document:
        """Store a blob as an attacker would; its digest and size."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.blobs / digest
        if not path.exists():
            path.write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def layer(self, index: int, data: bytes) -> None:
        self.manifest["layers"][index] |= self.put(data)

    def part(self) -> tuple[Document, bytes]:
        """Header and data of the first part."""
        data = self.blob(self.manifest["layers"][0]["digest"])
        length = int.from_bytes(data[:8], "little")
        return json.loads(data[8 : 8 + length]), data[8 + length :]

    def stream(self, key: str, frame: bytes) -> None:
        """Replace a stream of one frame by another frame."""
        header, data = self.part()
        arrays = {k: (v["dtype"], data[slice(*v["data_offsets"])]) for k, v in header.items()}
        arrays[key] = ("U8", frame)
        arrays[f"{key}.offsets"] = ("I64", struct.pack("<2q", 0, len(frame)))
        self.layer(0, part_of(arrays))

    def publish(self, *, config: bytes | None = None, manifest: bytes | None = None) -> None:
        """Sign config and manifest and give them a record."""
        data = json.dumps(self.config).encode() if config is None else config
        self.manifest["config"] |= self.put(data) | self.manifest["config"].pop("lie", {})
        text = json.dumps(self.manifest).encode() if manifest is None else manifest
        record = json.dumps(RECORD | {"digest": self.put(text)["digest"]})
        directory = self.place / "store" / "names" / "evil"
        directory.mkdir()
        (directory / "v1.json").write_text(record)

    def applied(self) -> Action:
        """What a user does with an artifact: look at it, and apply it."""

        def action() -> None:
            with deltastore.open(self.place / "store") as store:
                store.verify()
                store.apply("evil:v1", base=self.place / "base", out=self.place / "out")

        return action


def part_of(arrays: dict[str, tuple[str, bytes]]) -> bytes:
    sizes = {"U8": 1, "U16": 2, "F32": 4, "I64": 8}
    header, data = {}, b""
    for key, (dtype, content) in arrays.items():
        shape = [len(content) // sizes[dtype]]
        offsets = [len(data), len(data) + len(content)]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    return safetensors(header, data)


def forged(name: str, change: Callable[[Forger], object]) -> None:
    """Register an attack: change something, sign it, apply it."""

    @attack(name)
    def make(place: Path) -> Action:
        forger = Forger(place)
        change(forger)
        if not (place / "store/names/evil").exists():
            forger.publish()
        return forger.applied()


def put(path: str, value: Any) -> Callable[[Forger], None]:
    """Set ``manifest.…``, ``config.…`` or ``<tensor>.…``."""

    def change(forger: Forger) -> None:
        first, *rest = path.split(".")
        holder: Any = {"manifest": forger.manifest, "config": forger.config}.get(first)
        holder = forger.tensors[first] if holder is None else holder
        *way, last = [int(key) if key.isdigit() else key for key in rest]
        for key in way:
            holder = holder[key]
        holder[last] = value

    return change


# --- manifest and config --------------------------------------------------------------------------

DIGEST = "sha256:" + "0" * 64
LAYER = {"mediaType": "application/vnd.deltastore.file.v1", "digest": DIGEST}


def many_layers(forger: Forger, count: int, size: int) -> None:
    for number in range(count):
        forger.manifest["layers"].append(LAYER | {"digest": f"sha256:{number:064x}", "size": size})


def many_files(forger: Forger) -> None:
    """One blob of 32 MiB under many names: 100 MB of documents would take terabytes."""
    blob = forger.put(bytes(32 << 20))
    forger.manifest["layers"].append(LAYER | blob)
    layer = len(forger.manifest["layers"]) - 1
    for number in range(1000):
        item = {"side": "post", "path": f"post-{number}-LICENSE", "layer": layer}
        forger.config["files"].append(item)


def _untied(forger: Forger, *, count: int = 1, chain: bool = False, sampled: bool = False) -> None:
    """Tensors that only post has, and that claim a tensor of the base for theirs."""
    tensors = forger.config["tensors"]
    for number in range(count):
        head = copy.deepcopy(forger.tensors["w"]) | {"name": f"x{number:06}", "base_name": "w"}
        tensors.insert(len(tensors) - 1, head)
    if chain:
        tensors.insert(len(tensors) - 1, head | {"name": "y", "base_name": head["name"]})
    if sampled:
        for run in forger.config["samples"]:
            run[0] = tensors.index(head)


MANIFESTS: dict[str, Callable[[Forger], object]] = {
    "manifest-schema": put("manifest.schemaVersion", 3),
    "manifest-schema-bool": put("manifest.schemaVersion", True),
    "manifest-media-type": put("manifest.mediaType", "text/html"),
    "manifest-artifact-type": put("manifest.artifactType", "application/x-other"),
    "manifest-layers-object": put("manifest.layers", {}),
    "manifest-layers-none": put("manifest.layers", []),
    "manifest-layers-many": lambda f: many_layers(f, 100_001, 1),
    "manifest-sizes-overflow": lambda f: many_layers(f, 40_000, 1 << 48),
    "manifest-size-lies-part": put("manifest.layers.0.size", 1 << 40),
    "manifest-size-lies-samples": lambda f: (
        f.layer(1, bytes(16)),
        put("manifest.layers.1.size", 512)(f),
        put("config.samples", [[f.config["tensors"].index(f.tensors["w"]), 0, 256]])(f),
    ),
    "manifest-size-lies-file": put("manifest.layers.2.size", 1),
    "manifest-size-lies-config": put("manifest.config.lie", {"size": 5}),
    "manifest-size-negative": put("manifest.layers.0.size", -1),
    "manifest-size-huge": put("manifest.layers.0.size", 10**400),
    "manifest-digest-algorithm": put("manifest.layers.0.digest", "md5:" + "0" * 32),
    "manifest-digest-path": put("manifest.layers.0.digest", "sha256:../../../etc/passwd"),
    "manifest-digest-missing": put("manifest.layers.0.digest", DIGEST),
    "manifest-digest-upper": put("manifest.layers.0.digest", "sha256:" + "A" * 64),
    "manifest-layer-twice": lambda f: put("manifest.layers.1", f.manifest["layers"][0])(f),
    "manifest-layer-is-config": lambda f: put(
        "manifest.layers.0", f.manifest["config"] | {"mediaType": LAYER["mediaType"]}
    )(f),
    "manifest-json-bom": lambda f: f.publish(
        manifest=b"\xef\xbb\xbf" + json.dumps(f.manifest).encode()
    ),
    "manifest-json-deep": lambda f: f.publish(manifest=b'{"a":' * 70 + b"1" + b"}" * 70),
    "manifest-json-twice": lambda f: f.publish(manifest=b'{"schemaVersion":2,"schemaVersion":2}'),
    "manifest-not-json": lambda f: f.publish(manifest=b"\x00\xff"),
    "manifest-too-long": lambda f: f.publish(manifest=b" " * ((16 << 20) + 1)),
    "config-format-new": put("config.format", 2),
    "config-format-bool": put("config.format", True),
    "config-chunk-huge": put("config.chunk", 1 << 40),
    "config-chunk-odd": put("config.chunk", 5000),
    "config-parts-beyond": put("config.parts", 100),
    "config-parts-all": lambda f: put("config.parts", len(f.manifest["layers"]))(f),
    "config-parts-negative": put("config.parts", -1),
    "config-content-other": put("config.base.content", DIGEST),
    "config-number-huge": put("w.l2", 10**400),
    "config-number-infinite": lambda f: f.publish(
        config=json.dumps(f.config).replace('"l2": ', '"l2": 1e999, "x": ').encode()
    ),
    "config-json-deep": lambda f: f.publish(config=b'{"a":' * 900 + b"1" + b"}" * 900),
    "config-json-nan": lambda f: f.publish(config=b'{"format":NaN}'),
    "config-params-deep": put("w.delta.params", {"form": [[[[[]]]]]}),
    "config-params-surrogate": put("w.delta.params", {"form": "\ud800", "sparse": False}),
    "config-codec-unknown": put("w.delta.codec", "../../evil"),
    "config-name-path": put("w.name", "../../../w"),
    "config-name-control": put("w.name", "w\x1b[2J"),
    "config-name-metadata": put("ids.name", "__metadata__"),
    "config-name-long": put("z.name", "z" * 1025),
    "config-name-separator": put("z.name", "z\u2028"),
    "config-shape-hidden-by-zero": put("z.post.shape", [1 << 48, 0, 1 << 48]),
    "config-shape-dimensions": put("z.post.shape", [1] * 17),
    "config-shape-huge": lambda f: (
        put("w.base.shape", [1 << 48, 1 << 48])(f),
        put("w.post.shape", [1 << 48, 1 << 48])(f),
    ),
    "config-shape-other": lambda f: (
        put("w.base.shape", [100, 30])(f),
        put("w.post.shape", [100, 30])(f),
    ),
    "config-added-huge": put("z.post.shape", [1 << 40]),
    "config-segments-beyond-parts": put("w.delta.segments", [[1, 0, 1]]),
    "config-segments-overlap": put("w.delta.segments", [[0, 0, 1], [0, 0, 1]]),
    "config-segments-gap": put("w.delta.segments", [[0, 1, 1]]),
    "config-segments-many": put("w.delta.segments", [[0, 0, 1 << 40]]),
    "config-repeated-name": lambda f: f.config["tensors"].append(
        copy.deepcopy(f.config["tensors"][-1])
    ),
    "config-samples-beyond": put("config.samples", [[1, 1 << 40, 1]]),
    "config-samples-of-nothing": put("config.samples", [[10**6, 0, 1]]),
    "config-samples-missing": put("config.samples", []),
    "config-base-name-missing": put("w.base_name", "v"),
    "config-base-name-itself": put("w.base_name", "w"),
    "config-base-name-other": put("w.base_name", "ids"),
    "config-base-name-chain": lambda f: _untied(f, chain=True),
    "config-base-name-kind": put("ids.base_name", "w"),
    "config-base-name-null": put("w.base_name", None),
    "config-base-name-path": put("w.base_name", "../../w\x1b[2J"),
    "config-base-name-sampled": lambda f: _untied(f, sampled=True),
    "config-base-name-added": _untied,
    "config-file-layer-part": put("config.files.0.layer", 0),
    "config-file-layer-beyond": put("config.files.0.layer", 10**9),
    "config-files-together": many_files,
}
for _name, _change in MANIFESTS.items():
    forged(_name, _change)

PATHS = {
    "parent": "../../.bashrc",
    "absolute": "/etc/cron.d/evil",
    "backslash": "..\\..\\evil",
    "drive": "C:evil",
    "nul": "LICENSE\0",
    "dot": "./LICENSE",
    "empty-component": "chat_template//x",
    "long": "LICENSE" + "x" * 300,
    "long-in-bytes": "LICENSE" + "é" * 200,
    "control": "LICENSE\x1b[2J",
    "direction": "LICENSE\u202egpj",
    "surrogate": "LICENSE\ud800",
    "shadows-weights": "model.safetensors",
    "shadows-config": "config.json",
    "shadows-lease": ".lease",
    "shadows-index": "Model.safetensors.Index.json",
    "shadows-provenance": "DeltaStore.json",
    "code": "modeling_evil.py",
    "code-in-templates": "chat_templates/../evil.py",
    "code-as-template": "additional_chat_templates/x.py",
    "code-as-template-file": "chat_template.py",
    "code-as-notice": "notice.so",
    "code-in-the-middle": "modeling.py.json",
    "code-as-version": "tokenizer.model.v1.py",
    "template-of-two-dots": "additional_chat_templates/x.py.jinja",
    "template-hidden": "additional_chat_templates/.x.jinja",
    "case": "Tokenizer_config.json",
    "lookalike": "c\u043enfig.json",
    "dot-behind": "LICENSE.",
    "space-behind": "LICENSE ",
    "device": "con.json",
    "weights": "adapter_model.safetensors",
    "hidden-folder": ".git/hooks/LICENSE",
    "folder": "x/processor_config.json",
    "folder-of-the-index": "model.safetensors.index.json/processor_config.json",
}


def renamed(path: str) -> Callable[[Forger], None]:
    """Call post's licence something else."""

    def change(forger: Forger) -> None:
        for item in forger.config["files"]:
            if (item["side"], item["path"]) == ("post", "LICENSE"):
                item["path"] = path

    return change


for _name, _path in PATHS.items():
    forged(f"path-{_name}", renamed(_path))


def _twins(forger: Forger) -> None:
    """Two names that some file systems take for one: both are kept, or neither."""
    layer = forger.config["files"][-1]["layer"]
    for path in ("LICENSE-\u00e9", "LICENSE-e\u0301"):
        forger.config["files"].append({"side": "post", "path": path, "layer": layer})


forged("path-unicode-twins", _twins)


def _below(forger: Forger) -> None:
    layer = forger.config["files"][-1]["layer"]
    forger.config["files"].append({"side": "post", "path": "LICENSE/x", "layer": layer})


forged("path-below-a-file", _below)


def small_file(name: str, content: bytes) -> Callable[[Forger], None]:
    def change(forger: Forger) -> None:
        for item in forger.config["files"]:
            if (item["side"], item["path"]) == ("post", name):
                forger.layer(item["layer"], content)
                return
        layer = LAYER | forger.put(content)
        forger.manifest["layers"].append(layer)
        index = len(forger.manifest["layers"]) - 1
        forger.config["files"].append({"side": "post", "path": name, "layer": index})

    return change


CARD = (
    "---\nlicense: other\nlicense_name: 'x](javascript:1)'\nlicense_link: https://e\u202e.example/\n"
    "tags: ['region:us', 'a\u202eb', 'x\u3164', '<script>', ok]\nlanguage: [en, 'x\\ny']\n"
    "extra_gated_prompt: phish\ninference: false\n---\n# <script>alert(1)</script>\n"
).encode()

SMALL: dict[str, Callable[[Forger], object]] = {
    "tokenizer-surrogate": small_file("tokenizer_config.json", b'{"bos_token": "\\ud800"}'),
    "tokenizer-deep": small_file(
        "tokenizer_config.json", b'{"chat_template":' + b"[" * 900 + b"]" * 900 + b"}"
    ),
    "tokenizer-digits": small_file("tokenizer_config.json", b'{"bos_token":' + b"9" * 10**5 + b"}"),
    "tokenizer-vocabulary": small_file(
        "tokenizer.json", b'{"model":{"vocab":[[[[[[]]]]],5,[null]]},"added_tokens":[5,{}]}'
    ),
    "tokenizer-no-json": small_file("tokenizer.json", b"\xff" * 1000),
    "template-huge": small_file("chat_template.jinja", b"{" * (8 << 20)),
    "tokenizer-code": small_file(
        "tokenizer_config.json", b'{"a": [{"auto_map": {"AutoTokenizer": "evil.Evil"}}]}'
    ),
    "tokenizer-code-deep": small_file(
        "tokenizer_config.json",
        b'{"auto_map": {"AutoTokenizer": "evil.Evil"}, "x": ' + b"[" * 99 + b"]" * 99 + b"}",
    ),
    "tokenizer-code-escaped": small_file(
        "tokenizer.json",
        b'{"model": {"vocab": {}}, "auto\\u005fmap": {"AutoTokenizer": "evil.Evil"}}',
    ),
    "special-tokens-code": small_file("special_tokens_map.json", b'{"auto_map": {"x": "evil.E"}}'),
    "template-code": small_file("chat_template.json", b'{"x": {"trust_remote_code": true}}'),
    "generation-code": small_file("generation_config.json", b'{"custom_generate": "evil/evil"}'),
    "processor-code": small_file("processor_config.json", b'{"x": {"auto_map": {"y": "evil.E"}}}'),
    "processor-kernels": small_file("processor_config.json", b'{"attn_implementation": "evil/x"}'),
    "document-code": small_file("x.json", b'{"a": [[{"auto_map": {"y": "evil.E"}}]]}'),
    "document-hydra": small_file("x.json", b'{"_target_": "x", "y": 1}'),
    "document-entry-point": small_file("x.json", b'{"a": "evil-mod.sub:run"}'),
    "document-key-twice": small_file("x.json", b'{"a": 1, "a": 2}'),
    "templates-many": lambda f: [
        small_file(f"additional_chat_templates/t{n}.jinja", b"x")(f) for n in range(500)
    ],
    "card": small_file("README.md", CARD),
    "licences-many": small_file(
        "README.md", b"---\nlicense: [" + b", ".join([b"x" * 90] * 600) + b"]\n---\n"
    ),
    "code-named-licence": small_file("LICENSE.py", b"import os"),
    "code-in-a-folder": small_file(".git/hooks/processor_config.json", b"{}"),
    "modules-of-code": small_file("modules.json", b'[{"type": "os.system", "path": ""}]'),
    "modules-above": small_file(
        "modules.json", b'[{"type": "sentence_transformers.models.Dense", "path": "../x"}]'
    ),
    "document-huge": small_file("x.json", b"[" + b"[]," * (1 << 20) + b"[]]"),
    "template-too-huge": small_file("chat_template.jinja", b"{" * ((64 << 20) + 1)),
}
for _name, _change in SMALL.items():
    forged(f"small-{_name}", _change)


@attack("record-labels-markup")
def _labels(place: Path) -> Action:
    forger = Forger(place)
    forger.config["post"]["repo"] = "evil/x) [y](https://evil"
    forger.publish()
    record = place / "store/names/evil/v1.json"
    labels = {
        "base": "[x](javascript:alert(1)) <img src=x onerror=alert(1)> \u3164",
        "post": "`</code> | **b** ![i](https://evil/t.png) www.evil.example",
    }
    record.write_text(json.dumps(json.loads(record.read_text()) | {"labels": labels}))
    return forger.applied()


def samples(content: bytes) -> Callable[[Forger], None]:
    return lambda forger: forger.layer(forger.config["parts"], content)


forged("samples-longer", samples(bytes(1 << 17)))
forged("samples-empty", samples(b""))


def _samples_nan(forger: Forger) -> None:
    layer = forger.config["parts"]
    forger.layer(layer, b"\xff\x7f" * (forger.manifest["layers"][layer]["size"] // 2))


forged("samples-nan", _samples_nan)

# --- parts ----------------------------------------------------------------------------------------


def part_header(change: Callable[[Document], object]) -> Callable[[Forger], None]:
    def apply(forger: Forger) -> None:
        header, data = forger.part()
        changed = change(header)
        forger.layer(0, safetensors(changed if isinstance(changed, bytes) else header, data))

    return apply


def _array(key: str, **fields: Any) -> Callable[[Forger], None]:
    return part_header(lambda header: header[key].update(fields))


PARTS: dict[str, Callable[[Forger], object]] = {
    "empty": lambda f: f.layer(0, b""),
    "length-huge": lambda f: f.layer(0, safetensors({}, length=(1 << 64) - 1)),
    "header-deep": part_header(lambda _: b'{"a":' * 900 + b"1" + b"}" * 900),
    "header-list": part_header(lambda _: b"[]"),
    "header-keys-long": part_header(lambda h: h.update({"x" * (1 << 20): 5})),
    "array-missing": part_header(lambda h: h.pop("w/delta")),
    "array-beyond": _array("w/delta", data_offsets=[0, 1 << 60], shape=[1 << 60]),
    "array-negative": _array("w/delta", data_offsets=[-8, 0], shape=[8]),
    "array-bool": _array("w/delta", data_offsets=[False, True], shape=[True]),
    "array-float": _array("w/delta", data_offsets=[0.0, 8.0], shape=[8.0]),
    "array-text": _array("w/delta", data_offsets=["\x1b[2J" * 9999, 8], shape=[8]),
    "array-dtype": _array("w/delta", dtype=["U8"]),
    "array-dimensions": _array("w/delta", shape=[1, 1]),
    "array-digits": _array("w/delta", data_offsets=[0, 10**4000], shape=[10**4000]),
}
for _name, _change in PARTS.items():
    forged(f"part-{_name}", _change)


def offsets(*numbers: int) -> Callable[[Forger], None]:
    def change(forger: Forger) -> None:
        header, data = forger.part()
        arrays = {k: (v["dtype"], data[slice(*v["data_offsets"])]) for k, v in header.items()}
        arrays["w/delta.offsets"] = ("I64", struct.pack(f"<{len(numbers)}q", *numbers))
        forger.layer(0, part_of(arrays))

    return change


forged("offsets-not-ascending", offsets(8, 0))
forged("offsets-negative", offsets(-(1 << 62), 1 << 62))
forged("offsets-beyond", offsets(0, 1 << 60))
forged("offsets-few", offsets(0))
forged("offsets-many", offsets(*range(100_000)))


def _palette(items: int) -> Callable[[Forger], None]:
    def change(forger: Forger) -> None:
        header, data = forger.part()
        arrays = {k: (v["dtype"], data[slice(*v["data_offsets"])]) for k, v in header.items()}
        arrays["w/delta.palette"] = ("U16", bytes(2 * items))
        forger.layer(0, part_of(arrays))
        put("w.delta.params", {"form": "palette", "sparse": False})(forger)

    return change


forged("palette-too-large", _palette(1 << 20))

# --- frames ---------------------------------------------------------------------------------------

ELEMENTS = 3000
CONTENT = bytes(2 * ELEMENTS)
"""3000 elements of form `half`, all of them zero."""


def compressed(content: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(content)


def _unsized() -> bytes:
    stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return stream.compress(CONTENT) + stream.flush()


def _stating(size: int) -> bytes:
    """A frame whose header states another content size than it has."""
    frame = compressed(CONTENT)
    # Descriptor 0x60: single segment, two bytes of content size, less 256.
    assert frame[4] == 0x60
    return frame[:5] + struct.pack("<H", size - 256) + frame[7:]


def _huge_window() -> bytes:
    # No single segment; window descriptor 0xF8 is 2 to the 41; one byte of content size follows
    # only with a flag, so that four bytes are stated.
    block = (1 | 1 << 1 | len(CONTENT) << 3).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\x80\xf8" + struct.pack("<I", len(CONTENT)) + block


def _bomb() -> bytes:
    return compressed(bytes(256 << 20))


def _dictionary() -> bytes:
    samples = [f"{i} {i * i} {i % 7} some text".encode() * 3 for i in range(500)]
    dictionary = zstandard.train_dictionary(2048, samples)
    return compressed(CONTENT, dict_data=dictionary)


FRAMES: dict[str, Callable[[], bytes]] = {
    "bomb": _bomb,
    "no-content-size": _unsized,
    "size-too-small": lambda: _stating(300),
    "size-too-large": lambda: _stating(9000),
    "two-frames": lambda: compressed(CONTENT[:3000]) + compressed(CONTENT[3000:]),
    "empty-frame-behind": lambda: compressed(CONTENT) + compressed(b""),
    "skippable-behind": lambda: compressed(CONTENT) + b"\x50\x2a\x4d\x18\x04\0\0\0abcd",
    "skippable-before": lambda: b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + compressed(CONTENT),
    "skippable-alone": lambda: b"\x50\x2a\x4d\x18\xff\xff\xff\xff",
    "trailing-bytes": lambda: compressed(CONTENT) + b"x",
    "cut": lambda: compressed(CONTENT)[:-1],
    "dictionary": _dictionary,
    "huge-window": _huge_window,
    "no-frame": lambda: b"not a frame at all",
    "gzip": lambda: b"\x1f\x8b\x08" + bytes(20),
    "too-few-elements": lambda: compressed(bytes(100)),
    "too-many-escapes": lambda: compressed(CONTENT + bytes(4)),
}


def frame(make: Callable[[], bytes], key: str) -> Callable[[Forger], None]:
    def change(forger: Forger) -> None:
        if key == "w/delta":
            put("w.delta.params", {"form": "half", "sparse": False})(forger)
        forger.stream(key, make())

    return change


for _name, _frame in FRAMES.items():
    forged(f"frame-{_name}", frame(_frame, "w/delta"))
forged("frame-values-bomb", frame(_bomb, "z/values"))
forged("frame-values-short", frame(lambda: compressed(bytes(40)), "z/values"))
forged("frame-values-empty", frame(lambda: b"", "z/values"))


def _mask_beyond(forger: Forger) -> None:
    put("w.delta.params", {"form": "half", "sparse": True})(forger)
    bits = 2 * -(-ELEMENTS // 16) * 8
    forger.stream("w/delta", compressed(b"\xff" * (ELEMENTS // 8 + 1) + bytes(bits * 2)))


forged("frame-mask", _mask_beyond)


def patch(positions: list[int], *, values: int | None = None) -> Callable[[Forger], None]:
    def change(forger: Forger) -> None:
        header, data = forger.part()
        arrays = {k: (v["dtype"], data[slice(*v["data_offsets"])]) for k, v in header.items()}
        count = len(positions) if values is None else values
        content = struct.pack(f"<{len(positions)}I", *positions) + bytes(2 * count)
        arrays["w/patch"] = ("U8", compressed(content))
        size = len(arrays["w/patch"][1])
        arrays["w/patch.offsets"] = ("I64", struct.pack("<2q", 0, size))
        forger.layer(0, part_of(arrays))
        stream = {"codec": "values", "params": {}, "segments": [[0, 0, 1]], "bytes": size}
        put("w.patch", stream)(forger)

    return change


forged("patch-beyond", patch([0, 1 << 31]))
forged("patch-not-ascending", patch([5, 4]))
forged("patch-repeated", patch([5, 5]))
forged("patch-half", patch([5, 6], values=1))


# --- work -----------------------------------------------------------------------------------------


@attack("work-empty-frames")
def _empty_frames(place: Path) -> Action:
    """A delta of 2^36 elements in empty frames is compared."""
    forger = Forger(place)
    chunk, elements = 1 << 24, 1 << 36
    frames = elements // chunk
    forger.config["chunk"] = chunk
    for entry in forger.config["tensors"]:
        for role in {"delta", "values", "patch"} & entry.keys():
            entry[role]["segments"] = [[0, 0, 1]]
    side = {"dtype": "BF16", "shape": [elements], "blake3": "0" * 64}
    forger.config["tensors"].append(
        {
            "name": "zz",
            "kind": "delta",
            "base": side,
            "post": side | {"blake3": "1" * 64},
            "delta": {
                "codec": "exact",
                "params": {"form": "palette", "sparse": False},
                "segments": [[0, 0, frames]],
                "bytes": 8 * (frames + 1),
            },
            "changed": 0,
            "l2": 1.0,
            "base_l2": 1.0,
        }
    )
    header, data = forger.part()
    arrays = {k: (v["dtype"], data[slice(*v["data_offsets"])]) for k, v in header.items()}
    arrays["zz/delta"] = ("U8", b"")
    arrays["zz/delta.offsets"] = ("I64", bytes(8 * (frames + 1)))
    arrays["zz/delta.palette"] = ("U16", struct.pack("<2H", 0x3C00, 0x7FFF))
    forger.layer(0, part_of(arrays))
    forger.publish()

    def action() -> None:
        with deltastore.open(place / "store") as store:
            store.compare("evil:v1", "evil:v1")

    return action


@attack("work-unknown-names")
def _unknown_names(place: Path) -> Action:
    """The new base has 20,000 tensors that the artifact lacks, and calls all of them heads."""
    forger = Forger(place)
    forger.publish()
    shutil.rmtree(place / "base")
    row = ("BF16", [1, 4], b"\0\x3f" * 4)
    checkpoint(place / "base", {f"x.{n}.lm_head.weight": row for n in range(20_000)})
    return forger.applied()


@attack("work-removed-names")
def _removed_names(place: Path) -> Action:
    """The artifact removes 20,000 tensors that the new base lacks, all of the same bytes."""
    forger = Forger(place)
    side = {"dtype": "U8", "shape": [], "blake3": "0" * 64}
    forger.config["tensors"] += [
        {"name": f"x.{n:05}.lm_head.bias", "kind": "removed", "base": side, "post": None}
        for n in range(20_000)
    ]
    forger.config["tensors"].sort(key=lambda entry: entry["name"])
    names = [entry["name"] for entry in forger.config["tensors"]]
    old = list(forger.tensors)
    forger.config["samples"] = [
        [names.index(old[index]), *run] for index, *run in forger.config["samples"]
    ]
    forger.publish()
    return forger.applied()


@attack("work-map")
def _map(place: Path) -> Action:
    """An expression of the user's own, which matches a name in too many ways."""
    name = "a" * 1000
    forger = Forger(place)
    checkpoint(place / "base2", {f"{name}?": ("BF16", [64], bytes(128))})
    checkpoint(place / "post2", {f"{name}?": ("BF16", [64], b"\0\x3f" * 64)})

    def action() -> None:
        with deltastore.open(place / "store") as store:
            rename = {"(a|aa)+$": "b"}
            store.apply("long", base=place / "base2", out=place / "out", rename=rename)

    with deltastore.open(forger.place / "store") as store:
        store.extract(place / "base2", place / "post2", name="long", force=True)
    return action


@attack("work-config-tensors")
def _config_tensors(place: Path) -> Action:
    """A config of more tensors than there may be."""
    forger = Forger(place)
    rows = b'{"name":"t"},' * 300_000
    data = json.dumps(forger.config).encode().replace(b'"tensors": [', b'"tensors": [' + rows)
    forger.publish(config=data)
    return forger.applied()


@attack("work-config-values")
def _config_documents(place: Path) -> Action:
    """A config of nine million empty lists, which would take more than a gigabyte."""
    forger = Forger(place)
    forger.publish(config=b'{"tensors":[' + b"[]," * 9_000_000 + b"[]]}")
    return forger.applied()
