"""Records to bytes and back, and what the bytes look like."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltastore.digest import canonical_json, sha256_digest
from deltastore.manifest import (
    Config,
    DeltaError,
    Descriptor,
    FileEntry,
    Manifest,
    SampleRun,
    Segment,
    SourceModel,
    Stream,
    TensorEntry,
    TensorSide,
    config_bytes,
    manifest_bytes,
    parse_config,
    parse_manifest,
)
from deltastore.manifest import format as fmt
from deltastore.manifest.tensor_rules import METADATA

hexes = st.binary(min_size=32, max_size=32).map(bytes.hex)
digests = hexes.map("sha256:{}".format)
names = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12
).filter(lambda text: text.isprintable() and text != METADATA)
counts = st.integers(0, 1 << 40)
figures = st.floats(0, 1e300, allow_nan=False)
params = st.dictionaries(names, st.booleans() | names | st.integers(-5, 5), max_size=3)
FLOATS = sorted(fmt.DELTA_DTYPES)
OTHERS = sorted(fmt.DTYPE_BYTES.keys() - fmt.DELTA_DTYPES)
CHUNK = 1024


def sides(dtypes: list[str], shape: tuple[int, ...]) -> st.SearchStrategy[TensorSide]:
    return st.builds(TensorSide, st.sampled_from(dtypes), st.just(shape), hexes)


@st.composite
def streams(draw: st.DrawFn, elements: int, *, sparse: bool = False) -> Stream:
    frames = -(-elements // CHUNK)
    cuts = sorted(draw(st.sets(st.integers(1, frames), max_size=3)) | {frames}) if frames else []
    segments, position = [], 0
    for part, cut in enumerate(cuts):
        if not sparse or draw(st.booleans()):
            segments.append(Segment(part, position, cut - position))
        position = cut
    return Stream(draw(names), draw(params), tuple(segments), draw(counts))


@st.composite
def entries(draw: st.DrawFn, name: str) -> TensorEntry:
    kind = draw(st.sampled_from(["unchanged", "delta", "resized", "replaced", "added", "removed"]))
    shape = tuple(draw(st.lists(st.integers(0, 70), max_size=3)))
    any_dtypes = [*FLOATS, *OTHERS]
    if kind == "unchanged":
        side = draw(sides(any_dtypes, shape))
        return TensorEntry(name, kind, side, side)
    if kind == "removed":
        return TensorEntry(name, kind, draw(sides(any_dtypes, shape)), None)
    if kind in ("added", "replaced"):
        post = draw(sides(any_dtypes, shape))
        base = draw(sides(any_dtypes, (3,))) if kind == "replaced" else None
        return TensorEntry(name, kind, base, post, values=draw(streams(post.elements)))
    other = shape
    if kind == "resized":
        shape = shape or (2,)
        other = (draw(st.integers(0, 70).filter(lambda n: n != shape[0])), *shape[1:])
    base, post = draw(sides(FLOATS, shape)), draw(sides(FLOATS, other))
    common = min(base.elements, post.elements)
    further = post.elements - common
    return TensorEntry(
        name,
        kind,
        base,
        post,
        delta=draw(streams(common)),
        values=draw(streams(further)) if kind == "resized" and further else None,
        patch=draw(st.none() | streams(common, sparse=True)),
        changed=draw(st.integers(0, common)),
        l2=draw(figures),
        base_l2=draw(figures),
    )


@st.composite
def untied(draw: st.DrawFn, name: str, source: TensorEntry) -> TensorEntry:
    """An entry whose base is another one's."""
    base = source.base
    assert base is not None
    if draw(st.booleans()):
        return TensorEntry(name, "unchanged", base, base, base_name=source.name)
    rows = draw(st.integers(0, 70)) if base.shape else 0
    post = draw(sides(FLOATS, (rows, *base.shape[1:]) if base.shape else ()))
    further = max(0, post.elements - base.elements)
    kind = "delta" if post.shape == base.shape else "resized"
    common = min(base.elements, post.elements)
    return TensorEntry(
        name,
        kind,
        base,
        post,
        delta=draw(streams(common)),
        values=draw(streams(further)) if further else None,
        patch=draw(st.none() | streams(common, sparse=True)),
        changed=draw(st.integers(0, common)),
        l2=draw(figures),
        base_l2=draw(figures),
        base_name=source.name,
    )


@st.composite
def artifacts(draw: st.DrawFn) -> tuple[Manifest, Config]:
    table = tuple(draw(entries(name)) for name in sorted(draw(st.sets(names, max_size=5))))
    bases = [entry for entry in table if entry.base is not None and entry.base.dtype in FLOATS]
    if bases:
        further = draw(
            st.sets(names.filter(lambda n: n not in {e.name for e in table}), max_size=2)
        )
        heads = [draw(untied(name, draw(st.sampled_from(bases)))) for name in sorted(further)]
        table = tuple(sorted((*table, *heads), key=lambda entry: entry.name))
    exactness = draw(st.sampled_from(["exact", "bounded", "lossy"]))
    if exactness != "exact":
        errors = st.none() | st.builds(DeltaError, l2=figures, max=figures)
        table = tuple(
            replace(entry, error=draw(errors)) if entry.delta is not None else entry
            for entry in table
        )
    parts = 4
    samples = []
    for index, entry in enumerate(table):
        if entry.base is not None and entry.base_name is None and entry.base.elements:
            start = draw(st.integers(0, entry.base.elements - 1))
            samples.append(
                SampleRun(index, start, draw(st.integers(1, entry.base.elements - start)))
            )
    size = sum(run.count * fmt.DTYPE_BYTES[table[run.tensor].base.dtype] for run in samples)
    if size > fmt.MAX_SAMPLE_BYTES:
        samples, size = [], 0
    paths = sorted(draw(st.sets(st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5})?\.json", fullmatch=True))))[
        :3
    ]
    sources = [
        SourceModel(
            content=f"blake3:{draw(hexes)}",
            fingerprint=draw(digests),
            nbytes=draw(counts),
            parameters=draw(counts),
            repo=draw(st.none() | names),
            revision=draw(st.none() | names),
        )
        for _ in range(2)
    ]
    layers = [Descriptor(fmt.TENSORS_MEDIA_TYPE, draw(digests), draw(counts)) for _ in range(parts)]
    layers.append(Descriptor(fmt.SAMPLES_MEDIA_TYPE, draw(digests), size))
    layers += [Descriptor(fmt.FILE_MEDIA_TYPE, draw(digests), 7, f"post/{path}") for path in paths]
    config = Config(
        codec=draw(names),
        exactness=exactness,
        chunk=CHUNK,
        base=sources[0],
        post=sources[1],
        tensors=table,
        parts=parts,
        samples=tuple(samples),
        files=tuple(FileEntry("post", path, parts + 1 + i) for i, path in enumerate(paths)),
        restore_only=draw(st.booleans()),
        not_stored=tuple(sorted(draw(st.sets(names, max_size=3)))),
    )
    data = config_bytes(config)
    return Manifest(
        Descriptor(fmt.CONFIG_MEDIA_TYPE, sha256_digest(data), len(data)), tuple(layers)
    ), config


@settings(max_examples=60, deadline=None)
@given(artifact=artifacts())
def test_what_is_written_is_read_back(artifact: tuple[Manifest, Config]) -> None:
    manifest, config = artifact
    read = parse_manifest(manifest_bytes(manifest), where="M")
    assert read == manifest
    again = parse_config(config_bytes(config), read, where="C")
    assert again == config
    assert config_bytes(again) == config_bytes(config)
    assert manifest_bytes(read) == manifest_bytes(manifest)


@given(artifact=artifacts())
@settings(max_examples=10, deadline=None)
def test_bytes_are_canonical(artifact: tuple[Manifest, Config]) -> None:
    """By the standard library's own writer: sorted keys, no white space, plain UTF-8."""
    manifest, config = artifact
    for data in (manifest_bytes(manifest), config_bytes(config)):
        text = json.dumps(
            json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        assert data == text.encode()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_json_is_not_written(value: float) -> None:
    with pytest.raises(ValueError):
        canonical_json({"x": [value]})


def test_a_base_name_is_written_only_where_there_is_one() -> None:
    side = TensorSide("BF16", (2,), "0" * 64)
    source = SourceModel("blake3:" + "0" * 64, "sha256:" + "0" * 64, 4, 2)
    entries = (
        TensorEntry("embed", "unchanged", side, side),
        TensorEntry("head", "unchanged", side, side, base_name="embed"),
    )
    config = Config("exact", "exact", CHUNK, source, source, entries, 0, ())
    written = json.loads(config_bytes(config))["tensors"]
    assert [entry.get("base_name", "absent") for entry in written] == ["absent", "embed"]


def test_what_is_not_stored_is_written_only_where_there_is_something() -> None:
    """An artifact of a checkpoint that has nothing beside it is what it always was."""
    source = SourceModel("blake3:" + "0" * 64, "sha256:" + "0" * 64, 4, 2)
    config = Config("exact", "exact", CHUNK, source, source, (), 0, ())
    assert "not_stored" not in json.loads(config_bytes(config))
    named = replace(config, not_stored=("value_head.safetensors",))
    assert json.loads(config_bytes(named))["not_stored"] == ["value_head.safetensors"]


def test_figures() -> None:
    def side(*shape: int) -> TensorSide:
        return TensorSide("BF16", shape, "0" * 64)

    stream = Stream("exact", {}, (), 10)
    grown = TensorEntry(
        "x", "resized", side(2, 3), side(4, 3), stream, stream, stream, 6, l2=1.0, base_l2=4.0
    )
    assert grown.common_elements == 6
    assert grown.stored_bytes == 30
    assert grown.relative_change == 0.25
    assert not grown.wide
    added = TensorEntry("y", "added", None, side(3), values=stream)
    assert (added.common_elements, added.relative_change, added.stored_bytes) == (0, None, 10)
    assert side().elements == 1
    assert side(0, 5).nbytes == 0
