"""Every rule of the manifest and the config, each broken once, and documents mutated at random."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltastore.errors import ManifestInvalidError
from deltastore.manifest import Config, DeltaError, Manifest, parse_config, parse_manifest
from deltastore.manifest import format as fmt
from deltastore.manifest.tensor_rules import name_problem, shape_problem

DIGEST = "sha256:" + "0123456789abcdef" * 4
CONTENT = "blake3:" + "0123456789abcdef" * 4
BLAKE3 = "fedcba9876543210" * 4

Document = dict[str, Any]
Change = Callable[[Document], object]


def descriptor(media_type: str, size: int, **annotations: str) -> Document:
    document: Document = {"mediaType": media_type, "digest": DIGEST, "size": size}
    if annotations:
        document["annotations"] = {fmt.TITLE_ANNOTATION: annotations["title"]}
    return document


def manifest_document() -> Document:
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.deltastore.delta.v1",
        "config": descriptor("application/vnd.deltastore.config.v1+json", 5000),
        "layers": [
            descriptor("application/vnd.deltastore.tensors.v1+safetensors", 70_000_000),
            descriptor("application/vnd.deltastore.tensors.v1+safetensors", 1000),
            descriptor("application/vnd.deltastore.samples.v1", 28),
            descriptor("application/vnd.deltastore.file.v1", 10, title="base/config.json"),
            descriptor("application/vnd.deltastore.file.v1", 12, title="post/chat.jinja"),
        ],
    }


def side(dtype: str, *shape: int) -> Document:
    return {"dtype": dtype, "shape": list(shape), "blake3": BLAKE3}


def stream(*segments: list[int], codec: str = "exact", **params: Any) -> Document:
    return {"codec": codec, "params": params, "segments": list(segments), "bytes": 100}


def source() -> Document:
    return {
        "content": CONTENT,
        "fingerprint": DIGEST,
        "nbytes": 1000,
        "parameters": 500,
        "repo": "org/name",
        "revision": "0" * 40,
    }


def config_document() -> Document:
    figures = {"changed": 7, "l2": 0.5, "base_l2": 2}
    tensors = [
        {
            "name": "added",
            "kind": "added",
            "base": None,
            "post": side("F32", 3, 4),
            "values": stream([0, 0, 1], codec="values"),
        },
        {
            "name": "delta",
            "kind": "delta",
            "base": side("BF16", 5, 1024),
            "post": side("BF16", 5, 1024),
            "delta": stream([0, 0, 2], [1, 2, 3], form="palette", sparse=False),
            "patch": stream([0, 1, 1], [1, 4, 1], codec="values"),
            **figures,
        },
        {
            "name": "empty",
            "kind": "delta",
            "base": side("BF16", 0),
            "post": side("F32", 0),
            "delta": stream(),
            **(figures | {"changed": 0}),
        },
        {
            "name": "grown",
            "kind": "resized",
            "base": side("F16", 2, 1024),
            "post": side("F16", 4, 1024),
            "delta": stream([0, 0, 2]),
            "values": stream([0, 0, 1], [1, 1, 1], codec="values"),
            **figures,
        },
        {"name": "removed", "kind": "removed", "base": side("I64", 2), "post": None},
        {
            "name": "replaced",
            "kind": "replaced",
            "base": side("I64", 2),
            "post": side("I32", 3),
            "values": stream([1, 0, 1], codec="values"),
        },
        {
            "name": "same head",
            "kind": "unchanged",
            "base": side("F16", 2, 1024),
            "post": side("F16", 2, 1024),
            "base_name": "grown",
        },
        {
            "name": "shrunk",
            "kind": "resized",
            "base": side("F64", 2000),
            "post": side("BF16", 1000),
            "delta": stream([1, 0, 1]),
            **figures,
        },
        {
            "name": "unchanged",
            "kind": "unchanged",
            "base": side("BOOL", 2),
            "post": side("BOOL", 2),
        },
        {
            "name": "untied",
            "kind": "delta",
            "base": side("F16", 2, 1024),
            "post": side("F32", 2, 1024),
            "base_name": "grown",
            "delta": stream([1, 0, 2]),
            "patch": stream([1, 1, 1], codec="values"),
            **figures,
        },
        {
            "name": "untied, grown",
            "kind": "resized",
            "base": side("BF16", 2),
            "post": side("BF16", 3),
            "base_name": "with a twin",
            "delta": stream([0, 0, 1]),
            "values": stream([1, 0, 1], codec="values"),
            **(figures | {"changed": 2}),
        },
        {
            "name": "with a twin",
            "kind": "removed",
            "base": side("BF16", 2),
            "post": None,
        },
    ]
    return {
        "format": 1,
        "codec": "exact",
        "exactness": "exact",
        "chunk": 1024,
        "restore_only": False,
        "base": source(),
        "post": source() | {"repo": None, "revision": None},
        "parts": 2,
        "tensors": tensors,
        "samples": [[1, 0, 4], [1, 5118, 2], [3, 0, 4], [5, 1, 1]],
        "files": [
            {"side": "base", "path": "config.json", "layer": 3},
            {"side": "post", "path": "chat/chat.jinja", "layer": 4},
        ],
    }


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def manifest(document: Document | None = None) -> Manifest:
    return parse_manifest(encoded(document or manifest_document()), where="M")


def config(document: Document) -> Config:
    return parse_config(encoded(document), manifest(), where="C")


def tensor(document: Document, name: str) -> Document:
    return next(entry for entry in document["tensors"] if entry["name"] == name)


def put(path: str, value: Any) -> Change:
    """Change the value at a path such as ``layers.2.size``; tensors go by their names."""

    def change(document: Document) -> None:
        holder, last = walk(document, path)
        holder[last] = value

    return change


def drop(path: str) -> Change:
    def change(document: Document) -> None:
        holder, last = walk(document, path)
        del holder[last]

    return change


def walk(document: Any, path: str) -> tuple[Any, Any]:
    *steps, last = path.split(".")
    for step in steps:
        if isinstance(document, list):
            named = {entry.get("name"): entry for entry in document if isinstance(entry, dict)}
            document = named[step] if step in named else document[int(step)]
        else:
            document = document[step]
    return document, int(last) if isinstance(document, list) else last


def all_of(*changes: Change) -> Change:
    def change(document: Document) -> None:
        for each in changes:
            each(document)

    return change


def test_the_documents_are_valid() -> None:
    parsed = manifest()
    assert len(parsed.layers) == 5
    assert parsed.layers[3].title == "base/config.json"
    assert [entry.name for entry in config(config_document()).tensors] == [
        entry["name"] for entry in config_document()["tensors"]
    ]


WRONG_DIGESTS = [
    "",
    "sha256:",
    DIGEST[:-1],
    DIGEST + "0",
    DIGEST.upper(),
    "md5:0",
    DIGEST + "\n",
    5,
]
WRONG_SIZES = [-1, 1.0, "5", None, True, 1 << 70, float("1e30")]

MANIFEST_RULES: dict[str, tuple[str, list[Any]]] = {
    "schema version": ("schemaVersion", [1, 3, "2", 2.0, None, True]),
    "media type": ("mediaType", ["application/json", None, 5]),
    "artifact type": ("artifactType", ["application/vnd.deltastore.delta.v2", None]),
    "config": ("config", [None, [], "x"]),
    "config's media type": ("config.mediaType", ["application/json", None, ""]),
    "config's digest": ("config.digest", WRONG_DIGESTS),
    "config's size": ("config.size", [*WRONG_SIZES, fmt.MAX_CONFIG_BYTES + 1]),
    "layers": ("layers", [None, {}, "x", [5], [None], [[]]]),
    "a layer's media type": ("layers.0.mediaType", [None, "", "x" * 2000, "a\nb", 5]),
    "a layer's digest": ("layers.1.digest", WRONG_DIGESTS),
    "a layer's size": ("layers.1.size", WRONG_SIZES),
    "annotations": ("layers.3.annotations", [None, [], "x"]),
    "a title": ("", [5, "", "a\0b", "x" * 2000]),
}


def titled(value: Any) -> Change:
    def change(document: Document) -> None:
        document["layers"][3]["annotations"][fmt.TITLE_ANNOTATION] = value

    return change


def manifest_changes() -> list[Any]:
    changes = []
    for rule, (path, values) in MANIFEST_RULES.items():
        for value in values:
            change = titled(value) if rule == "a title" else put(path, value)
            changes.append(pytest.param(change, id=f"{rule}: {value!r:.30}"))
    for path in ("schemaVersion", "mediaType", "artifactType", "config", "layers"):
        changes.append(pytest.param(drop(path), id=f"no {path}"))
    for key in ("mediaType", "digest", "size"):
        changes.append(pytest.param(drop(f"config.{key}"), id=f"no {key} in config"))
        changes.append(pytest.param(drop(f"layers.0.{key}"), id=f"no {key} in a layer"))
    return changes


@pytest.mark.parametrize("change", manifest_changes())
def test_a_broken_manifest(change: Change) -> None:
    document = manifest_document()
    change(document)
    with pytest.raises(ManifestInvalidError) as caught:
        manifest(document)
    assert caught.value.message.startswith("M: field ")
    assert caught.value.exit_code == 51
    assert caught.value.hint


def test_too_many_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fmt, "MAX_LAYERS", 4)
    with pytest.raises(ManifestInvalidError, match="at most 4 items"):
        manifest()


WRONG_COUNTS = [-1, 1.0, "5", None, True, 1 << 63]
WRONG_NAMES: list[Any] = ["", "x" * 1025, "a\nb", "a\0", "\ud800", "a\x1b[31m", "‮x", 5, None]

CONFIG_RULES: dict[str, tuple[str, list[Any]]] = {
    "format": ("format", [0, 2, 10**9, "1", 1.0, None, True]),
    "chunk": ("chunk", [0, 512, 1000, 1023, 1025, 1 << 25, -1024, "1024", 1024.0, None]),
    "codec": ("codec", ["", "x" * 65, 5, None, "a\nb"]),
    "exactness": ("exactness", ["Exact", "", None, 5, []]),
    "restore_only": ("restore_only", [0, 1, None, "false"]),
    "what is not stored": (
        "not_stored",
        [
            None,
            {},
            "x",
            [5],
            [""],
            ["a\x1b[2J"],
            ["a" * 1025],
            ["b", "a"],
            ["a", "a"],
            ["a"] * 1001,
        ],
    ),
    "parts": ("parts", [-1, 3, 4, 5, 6, "2", 2.0, None, True, 1, 0]),
    "base": ("base", [None, [], "x"]),
    "content digest": ("base.content", [None, DIGEST, "blake3:0", CONTENT.upper(), CONTENT + "0"]),
    "fingerprint": ("post.fingerprint", WRONG_DIGESTS),
    "nbytes": ("base.nbytes", WRONG_COUNTS),
    "parameters": ("post.parameters", WRONG_COUNTS),
    "repo": ("base.repo", ["", 5, "a\nb", [], "x" * 1025]),
    "revision": ("base.revision", ["", 5, "a\nb", {}]),
    "tensors": ("tensors", [None, {}, [5], [None], [[]]]),
    "a name": ("tensors.delta.name", WRONG_NAMES),
    "the order of names": ("tensors.delta.name", ["a", "empty", "z"]),
    "a kind": ("tensors.delta.kind", ["", "Delta", "moved", None, 5, [], {}]),
    "a side": ("tensors.delta.base", [[], "x", 5, {}]),
    "a dtype": ("tensors.delta.base.dtype", ["", "bf16", "U4", "F128", None, 5, []]),
    "a shape": (
        "tensors.delta.post.shape",
        [None, {}, "5", 5, [5.0, 1024], [-5, 1024], [True], [None], [1] * 17, [1 << 49], [1 << 62]],
    ),
    "a tensor's size": ("tensors.delta.post.shape", [[1 << 25, 1 << 25], [1 << 47, 4]]),
    "a tensor's digest": ("tensors.delta.base.blake3", [None, "", BLAKE3[:-1], BLAKE3.upper(), 5]),
    "no delta": ("tensors.delta.delta", [None, [], "x"]),
    "a stream's codec": ("tensors.delta.delta.codec", ["", None, "x" * 65, "a\n"]),
    "a stream's parameters": ("tensors.delta.delta.params", [None, [], "x", 5]),
    "a stream's bytes": ("tensors.delta.delta.bytes", WRONG_COUNTS),
    "segments": (
        "tensors.delta.delta.segments",
        [None, {}, "x", [5], [[]], [[0, 0]], [[0, 0, 5, 1]]],
    ),
    "a segment's numbers": (
        "tensors.delta.delta.segments",
        [
            [["0", 0, 5]],
            [[0, 0.0, 5]],
            [[0, 0, True]],
            [[0, None, 5]],
            [[-1, 0, 5]],
            [[0, -1, 5]],
            [[0, 0, -5]],
        ],
    ),
    "a part that is not there": ("tensors.delta.delta.segments", [[[2, 0, 5]], [[1 << 61, 0, 5]]]),
    "parts out of order": (
        "tensors.delta.delta.segments",
        [[[1, 0, 2], [0, 2, 3]], [[0, 0, 2], [0, 2, 3]]],
    ),
    "frames that do not follow": (
        "tensors.delta.delta.segments",
        [
            [[0, 1, 4]],
            [[0, 0, 2], [1, 3, 2]],
            [[0, 0, 3], [1, 2, 3]],
            [[0, 0, 2], [1, 2, 2]],
            [[0, 0, 2], [1, 2, 4]],
            [[0, 0, 4]],
            [[0, 0, 6]],
            [[0, 0, 1 << 40]],
            [[0, 0, 0], [1, 0, 5]],
            [],
        ],
    ),
    "frames of values": ("tensors.grown.values.segments", [[[0, 0, 3]], [[0, 0, 1]], []]),
    "frames of an added tensor": ("tensors.added.values.segments", [[], [[0, 0, 2]], [[0, 1, 1]]]),
    "a patch": ("tensors.delta.patch", [None, [], {}]),
    "frames of a patch": (
        "tensors.delta.patch.segments",
        [[[0, 5, 1]], [[0, 4, 2]], [[0, 2, 1], [1, 2, 1]], [[0, 2, 2], [1, 1, 1]], [[2, 0, 1]]],
    ),
    "changed": ("tensors.delta.changed", [*WRONG_COUNTS, 5121]),
    "l2": ("tensors.delta.l2", [-1.0, "1", None, True, float("1e999"), [], -1]),
    "base_l2": ("tensors.delta.base_l2", [-0.1, "1", None, False]),
    "an error of an exact delta": ("tensors.delta.error", [{"l2": 0.0, "max": 0.0}]),
    "a base's name": ("tensors.untied.base_name", WRONG_NAMES),
    "a base's name of no tensor": ("tensors.untied.base_name", ["other", "Grown", "grown "]),
    "a base's name of itself": ("tensors.untied.base_name", ["untied"]),
    "a base's name of one that has no base": ("tensors.untied.base_name", ["added"]),
    "a base's name of another side": (
        "tensors.untied.base_name",
        ["delta", "shrunk", "removed", "replaced", "unchanged", "with a twin"],
    ),
    "a base's name of one that has a name too": ("tensors.untied.base_name", ["same head"]),
    "a base's name where that is no longer its base": (
        "tensors.grown.base",
        [side("F16", 2, 1024) | {"blake3": "0" * 64}, side("BF16", 2, 1024), side("F16", 3, 1024)],
    ),
    "samples": ("samples", [None, {}, [5], [[]], [[1, 0]], [[1, 0, 4, 4]], [["1", 0, 4]]]),
    "a sampled tensor": ("samples.0", [[12, 0, 4], [-1, 0, 4], [0, 0, 4], [1 << 61, 0, 4]]),
    "a sampled tensor with a base's name": ("samples.2", [[6, 0, 4], [9, 0, 4]]),
    "a sample's range": (
        "samples.0",
        [[1, 5118, 4], [1, -1, 4], [1, 0, 0], [1, 0, -4], [1, 5120, 1], [1, 1 << 61, 4], [2, 0, 1]],
    ),
    "a sample's size": ("samples.0", [[1, 0, 3], [1, 0, 5], [1, 0, 5120]]),
    "no samples where there are some": ("samples", [[]]),
    "files": ("files", [None, {}, [5], [None]]),
    "a file's side": ("files.0.side", ["", "new", None, 5]),
    "a file's layer": ("files.0.layer", [2, 0, -1, 5, 1 << 61, "3", 3.0, None, True]),
    "a file's path": (
        "files.0.path",
        [
            "",
            None,
            5,
            "/etc/passwd",
            "..",
            "../x",
            "a/../../x",
            "a/..",
            "./x",
            ".",
            "a/./b",
            "a//b",
            "a/",
            "\\\\host\\x",
            "a\\b",
            "C:x",
            "c:/x",
            "a\0b",
            "a\nb",
            "x" * 256,
            "\ud800",
        ],
    ),
}

CONFIG_CHANGES: dict[str, Change] = {
    "too many elements": all_of(
        put("tensors.unchanged.base.shape", [1 << 25, 1 << 25]),
        put("tensors.unchanged.post.shape", [1 << 25, 1 << 25]),
    ),
    "too many dimensions": all_of(
        put("tensors.unchanged.base.shape", [1] * 17), put("tensors.unchanged.post.shape", [1] * 17)
    ),
    "kind delta, other shapes": put("tensors.delta.post.shape", [1024, 5]),
    "kind delta of integers": all_of(
        put("tensors.delta.base.dtype", "I16"), put("tensors.delta.post.dtype", "I16")
    ),
    "kind delta of scales": put("tensors.empty.base.dtype", "F8_E8M0"),
    "kind delta of complex numbers": put("tensors.empty.post.dtype", "C64"),
    "kind resized, equal shapes": put("tensors.shrunk.post.shape", [2000]),
    "kind resized, other widths": put("tensors.grown.post.shape", [4, 512]),
    "kind resized of a scalar": put("tensors.shrunk.base.shape", []),
    "kind resized, other ranks": put("tensors.grown.post.shape", [4, 1024, 1]),
    "kind resized of integers": put("tensors.grown.base.dtype", "I16"),
    "kind unchanged, other shapes": put("tensors.unchanged.post.shape", [1, 2]),
    "kind unchanged, other dtypes": put("tensors.unchanged.post.dtype", "U8"),
    "kind unchanged, other digests": put("tensors.unchanged.post.blake3", "0" * 64),
    "kind unchanged with a delta": put("tensors.unchanged.delta", stream()),
    "kind unchanged with values": put("tensors.unchanged.values", stream([0, 0, 1])),
    "kind unchanged without post": put("tensors.unchanged.post", None),
    "kind added with a base": put("tensors.added.base", side("F32", 3, 4)),
    "kind added without post": put("tensors.added.post", None),
    "kind added without values": drop("tensors.added.values"),
    "kind added with a delta": put("tensors.added.delta", stream([0, 0, 1])),
    "kind added with a patch": put("tensors.added.patch", stream()),
    "kind removed with post": put("tensors.removed.post", side("I64", 2)),
    "kind removed without base": put("tensors.removed.base", None),
    "kind removed with values": put("tensors.removed.values", stream()),
    "kind replaced without values": drop("tensors.replaced.values"),
    "kind replaced without base": put("tensors.replaced.base", None),
    "kind delta without base": put("tensors.delta.base", None),
    "kind delta without post": put("tensors.delta.post", None),
    "kind delta without a delta": drop("tensors.delta.delta"),
    "kind delta with values": put("tensors.delta.values", stream([0, 0, 5])),
    "kind grown without values": drop("tensors.grown.values"),
    "kind shrunk with values": put("tensors.shrunk.values", stream([0, 0, 1])),
    "kind replaced with a base's name": all_of(
        put("tensors.replaced.base", side("F16", 2, 1024)),
        put("tensors.replaced.base_name", "grown"),
    ),
    "kind removed with a base's name": all_of(
        put("tensors.removed.base", side("F16", 2, 1024)),
        put("tensors.removed.base_name", "grown"),
    ),
    "kind added with a base's name": put("tensors.added.base_name", "grown"),
    "a repeated name": put("tensors.empty.name", "delta"),
    "the same file twice": put("files.1", {"side": "base", "path": "config.json", "layer": 4}),
    "no tensors, but samples": put("tensors", []),
}
for _key in (
    "format",
    "chunk",
    "codec",
    "exactness",
    "restore_only",
    "parts",
    "base",
    "post",
    "tensors",
    "samples",
    "files",
    "base.content",
    "base.fingerprint",
    "base.nbytes",
    "base.parameters",
    "tensors.delta.name",
    "tensors.delta.kind",
    "tensors.delta.base.dtype",
    "tensors.delta.base.shape",
    "tensors.delta.base.blake3",
    "tensors.delta.delta.codec",
    "tensors.delta.delta.params",
    "tensors.delta.delta.segments",
    "tensors.delta.delta.bytes",
    "tensors.delta.changed",
    "tensors.delta.l2",
    "tensors.delta.base_l2",
    "files.0.side",
    "files.0.path",
    "files.0.layer",
):
    CONFIG_CHANGES[f"no {_key}"] = drop(_key)


def config_changes() -> list[Any]:
    changes = [
        pytest.param(
            put(path, value), id=f"{rule}: {value!r:.40}".encode("ascii", "replace").decode()
        )
        for rule, (path, values) in CONFIG_RULES.items()
        for value in values
    ]
    return changes + [pytest.param(change, id=rule) for rule, change in CONFIG_CHANGES.items()]


@pytest.mark.parametrize("change", config_changes())
def test_a_broken_config(change: Change) -> None:
    document = config_document()
    change(document)
    with pytest.raises(ManifestInvalidError) as caught:
        config(document)
    assert caught.value.message.startswith(("C: field ", "C is "))
    assert caught.value.exit_code == 51
    assert caught.value.hint
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("exactness", ["bounded", "lossy"])
def test_the_error_of_a_delta_that_is_not_exact(exactness: str) -> None:
    """It may be there, and is what it says; elsewhere, or broken, it is refused."""
    document = config_document()
    document["exactness"] = exactness
    assert all(entry.error is None for entry in config(document).tensors)
    right = {"l2": 0.5, "max": 1}
    tensor(document, "delta")["error"] = right
    found = {entry.name: entry.error for entry in config(document).tensors}
    assert found.pop("delta") == DeltaError(l2=0.5, max=1.0)
    assert set(found.values()) == {None}
    for name, wrong in (
        *(("delta", value) for value in (None, [], 0.5, {}, {"l2": 0.5}, {"max": 0.5})),
        *(("delta", right | {"l2": value}) for value in (-1, "1", None, True)),
        ("unchanged", right),
        ("added", right),
    ):
        document = config_document()
        document["exactness"] = exactness
        tensor(document, name)["error"] = wrong
        with pytest.raises(ManifestInvalidError, match=r"\.error"):
            config(document)


@pytest.mark.parametrize(
    "change",
    [
        put("layers.0.mediaType", fmt.FILE_MEDIA_TYPE),
        put("layers.2.mediaType", fmt.TENSORS_MEDIA_TYPE),
        put("layers.2.size", fmt.MAX_SAMPLE_BYTES + 1),
        put("layers.2.size", 27),
        put("layers.3.mediaType", fmt.SAMPLES_MEDIA_TYPE),
        put("layers.4.size", fmt.MAX_SMALL_FILE_BYTES + 1),
        drop("layers.4"),
        put("layers", []),
    ],
    ids=[
        "a part that is a file",
        "samples that are a part",
        "too large samples",
        "samples of another size",
        "a file that is samples",
        "too large a file",
        "a file without a layer",
        "no layers",
    ],
)
def test_a_manifest_that_contradicts_its_config(change: Change) -> None:
    document = manifest_document()
    change(document)
    with pytest.raises(ManifestInvalidError):
        parse_config(encoded(config_document()), manifest(document), where="C")


@pytest.mark.parametrize(
    ("limit", "value"),
    [("MAX_TENSORS", 11), ("MAX_SEGMENTS", 1), ("MAX_SAMPLE_RUNS", 3), ("MAX_SAMPLE_TENSORS", 2)],
)
def test_limits(monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    config(config_document())
    monkeypatch.setattr(fmt, limit, value)
    with pytest.raises(ManifestInvalidError, match="at most"):
        config(config_document())


def test_documents_that_are_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = manifest()
    monkeypatch.setattr(fmt, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(ManifestInvalidError, match="the format allows 100"):
        manifest()
    monkeypatch.setattr(fmt, "MAX_CONFIG_BYTES", 100)
    with pytest.raises(ManifestInvalidError, match="the format allows 100"):
        parse_config(encoded(config_document()), parsed, where="C")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b'"text"',
        b"{",
        b"{}x",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 2}',
        b'{"b": {"a": 1, "a": 1}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
        "{}".encode("utf-16"),
        b"\x00" * 100,
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(ManifestInvalidError):
        parse_manifest(data, where="M")
    with pytest.raises(ManifestInvalidError):
        parse_config(data, manifest(), where="C")


def test_a_number_that_is_too_large_for_a_float() -> None:
    data = encoded(config_document()).replace(b'"l2": 0.5', b'"l2": 1e999')
    with pytest.raises(ManifestInvalidError, match="a finite number"):
        parse_config(data, manifest(), where="C")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("__metadata__", [2]),
        ("x" * 1025, [2]),
        ("a\u202eb", [2]),
        ("\ud800", [2]),
        ("", [2]),
        ("z", [1 << 48, 0, 1 << 48]),
        ("z", [1 << 49, 0]),
        ("z", [1] * 17),
        ("z", [-1]),
    ],
    ids=ascii,
)
def test_what_no_checkpoint_may_hold_is_in_no_artifact(name: str, shape: list[int]) -> None:
    document = config_document()
    added = tensor(document, "added")
    added["name"] = name
    added["post"]["shape"] = shape
    with pytest.raises(ManifestInvalidError, match=r"tensors\[0\]\.(name|post\.shape)"):
        config(document)
    assert name_problem(name) or shape_problem(shape)


def test_a_newer_format_says_so_before_anything_else() -> None:
    with pytest.raises(ManifestInvalidError, match="is of format 2") as caught:
        config({"format": 2, "everything": "else is new"})
    assert "pgrade" in caught.value.hint


def test_a_base_under_another_name() -> None:
    """It is the other tensor's own, and no tensor of the base besides."""
    entries = {entry.name: entry for entry in config(config_document()).tensors}
    named = {name: entry.base_name for name, entry in entries.items() if entry.base_name}
    assert named == {"same head": "grown", "untied": "grown", "untied, grown": "with a twin"}
    for name, entry in entries.items():
        assert entry.source == named.get(name, name)
        assert entry.own_base == (None if name in named else entry.base)


def test_unknown_keys_are_left_for_later_versions() -> None:
    document = config_document()
    document["later"] = {"x": 1}
    tensor(document, "delta")["later"] = True
    manifest_with_more = manifest_document() | {"annotations": {"a": "b"}, "subject": None}
    parsed = parse_config(encoded(document), manifest(manifest_with_more), where="C")
    assert parsed == config(config_document())


# --- random changes -------------------------------------------------------------------------------

junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["delta", "resized", "BF16", "F32", DIGEST, CONTENT, BLAKE3, "exact"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every container of a document with every key of it."""
    found: list[tuple[Any, Any]] = []
    if isinstance(document, dict):
        found += [(document, key) for key in document]
        for value in document.values():
            found += places(value)
    elif isinstance(document, list):
        found += [(document, index) for index in range(len(document))]
        for value in document:
            found += places(value)
    return found


def mutate(data: st.DataObject, document: Any) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        spots = places(document)
        if not spots:
            return
        holder, key = data.draw(st.sampled_from(spots))
        how = data.draw(st.sampled_from(["put", "number", "drop", "swap", "repeat"]))
        if how == "put":
            holder[key] = data.draw(junk)
        elif how == "number" and isinstance(holder[key], int) and not isinstance(holder[key], bool):
            holder[key] += data.draw(st.sampled_from([-1, 1, 2, -holder[key], 1 << 40, -(1 << 40)]))
        elif how == "drop":
            del holder[key]
        elif how == "swap":
            other, place = data.draw(st.sampled_from(spots))
            holder[key] = copy.deepcopy(other[place]) if _has(other, place) else None
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_mutated_documents_are_read_or_refused(data: st.DataObject) -> None:
    first, second = manifest_document(), config_document()
    mutate(data, data.draw(st.sampled_from([first, second])))
    try:
        parsed = parse_config(encoded(second), manifest(first), where="C")
    except ManifestInvalidError:
        return
    consistent(parsed, manifest(first))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_bytes_are_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(encoded(config_document()))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(raw)))
        stop = data.draw(st.integers(start, min(len(raw), start + 30)))
        raw[start:stop] = data.draw(st.binary(max_size=6) | st.just(bytes(raw[start:stop] * 2)))
    try:
        parsed = parse_config(bytes(raw), manifest(), where="C")
    except ManifestInvalidError:
        return
    consistent(parsed, manifest())


@given(data=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ManifestInvalidError):
        parse_manifest(data, where="M")


def consistent(parsed: Config, owner: Manifest) -> None:
    """What the rest of the program relies on without looking again."""
    assert parsed.chunk in [1 << n for n in range(10, 25)]
    assert parsed.parts < len(owner.layers)
    for entry in parsed.tensors:
        elements = {
            "delta": entry.common_elements if entry.kind in ("delta", "resized") else 0,
            "patch": entry.common_elements if entry.kind in ("delta", "resized") else 0,
        }
        post = entry.post.elements if entry.post is not None else 0
        elements["values"] = post - elements["delta"]
        for role in ("delta", "values", "patch"):
            found = getattr(entry, role)
            if found is None:
                continue
            frames = -(-elements[role] // parsed.chunk)
            position = 0
            for segment in found.segments:
                assert 0 <= segment.part < parsed.parts
                assert segment.first >= position
                assert segment.first == position or role == "patch"
                position = segment.first + segment.frames
            assert position <= frames
            assert position == frames or role == "patch"
        for each in (entry.base, entry.post):
            assert each is None or each.elements <= fmt.MAX_ELEMENTS
        if entry.base_name is not None:
            assert entry.kind in ("unchanged", "delta", "resized")
            (named,) = (other for other in parsed.tensors if other.name == entry.base_name)
            assert (named.base, named.base_name) == (entry.base, None)
    size = 0
    for run in parsed.samples:
        base = parsed.tensors[run.tensor].own_base
        assert base is not None
        assert 0 <= run.start < run.start + run.count <= base.elements
        size += run.count * fmt.DTYPE_BYTES[base.dtype]
    assert size == owner.layers[parsed.parts].size
    for file in parsed.files:
        assert parsed.parts < file.layer < len(owner.layers)
        assert not file.path.startswith("/")
        assert ".." not in file.path.split("/")


def test_what_is_shared_between_tensors_is_what_each_says() -> None:
    document = config_document()
    entries = [
        {
            "name": name,
            "kind": "delta",
            "base": side("BF16"),
            "post": side("BF16"),
            "delta": stream([0, 0, 1], **params),
            "changed": 1,
            "l2": 1.0,
            "base_l2": 1.0,
        }
        for name, params in (
            ("a", {}),
            ("b", {"sparse": True}),
            ("c", {"sparse": 1}),
            ("d", {"sparse": 1.0}),
            ("e", {"sparse": True}),
            ("f", {"sparse": [True]}),
        )
    ]
    document["tensors"] = entries
    document["samples"] = []
    manifest_of_it = manifest_document()
    manifest_of_it["layers"][2]["size"] = 0
    config = parse_config(encoded(document), manifest(manifest_of_it), where="t")
    streams = [entry.delta for entry in config.tensors]
    for stream_read, entry in zip(streams, entries, strict=True):
        assert stream_read is not None
        said = entry["delta"]["params"]  # type: ignore[index]
        assert json.dumps(stream_read.params) == json.dumps(said)
    assert streams[1] is not None
    assert streams[4] is not None
    assert streams[1].params is streams[4].params
    assert all(entry.base is not None and entry.base.shape == () for entry in config.tensors)
