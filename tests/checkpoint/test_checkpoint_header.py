"""Every rule of the safetensors format, broken once; and the library as the oracle."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from deltastore.checkpoint import TensorSpec, open_checkpoint
from deltastore.checkpoint.header import build_header, read_header
from deltastore.errors import (
    CheckpointCorruptError,
    CheckpointError,
    NoWeightsError,
    UnsupportedDtypeError,
)
from deltastore.manifest.format import DTYPE_BYTES

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}


def test_a_valid_file_is_read(raw: Any) -> None:
    path = raw({"__metadata__": {"k": "v"}, "b": B, "a": A}, b"12345678abcd")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.shards[0].tensors == ("a", "b")
        assert checkpoint.shards[0].metadata == {"k": "v"}
        buffer = bytearray(4)
        checkpoint.read_into("b", 0, buffer)
        assert buffer == b"abcd"
        checkpoint.read_into("a", 2, buffer)
        assert buffer == b"3456"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [-1]}, "outside 0"),
        ({"shape": [1 << 63]}, "outside 0"),
        ({"shape": [10**400]}, "outside 0"),
        ({"shape": [2.0]}, "list of integers"),
        ({"shape": [True, 2]}, "list of integers"),
        ({"shape": "2"}, "list of integers"),
        ({"shape": None}, "list of integers"),
        ({"shape": [1] * 17}, "17 dimensions"),
        ({"shape": [1 << 30, 1 << 30]}, "elements"),
        ({"shape": [0, 1 << 62]}, "elements"),
        ({"shape": [(1 << 48) + 1]}, "elements"),
        ({"shape": [3]}, "expected 12 for F32"),
        ({"data_offsets": [8, 0]}, "expected begin, end"),
        ({"data_offsets": [0]}, "expected begin, end"),
        ({"data_offsets": [0, 8, 16]}, "expected begin, end"),
        ({"data_offsets": [-8, 0]}, "outside 0"),
        ({"data_offsets": [0, "8"]}, "list of integers"),
        ({"data_offsets": [0, 7]}, "7 bytes"),
        ({"dtype": 5}, "expected a string"),
    ],
)
def test_a_bad_field_is_refused(raw: Any, change: dict[str, Any], message: str) -> None:
    path = raw({"a": A | change}, b"12345678")
    with pytest.raises(CheckpointCorruptError, match=message) as caught:
        open_checkpoint(path)
    assert caught.value.hint
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": A}, b"1234567", "truncated"),
        ({"a": A}, b"", "truncated"),
        ({"a": A}, b"123456789", "trail"),
        ({"a": A, "b": B | {"data_offsets": [4, 8]}}, b"12345678", "overlaps"),
        ({"a": A, "b": A}, b"12345678", "overlaps"),
        ({"a": A, "b": B | {"data_offsets": [9, 13]}}, b"1234567890123", "hole"),
        ({"a": A | {"data_offsets": [1, 9]}}, b"123456789", "hole"),
        ({"a": A, "b": B | {"data_offsets": [1 << 40, (1 << 40) + 4]}}, b"12345678", "hole"),
        ({"a": A, "b": 5}, b"12345678", "by a int"),
        ({"": A}, b"12345678", "0 characters"),
        ({"n" * 1025: A}, b"12345678", "1025 characters"),
        ({"a\nb": A}, b"12345678", "printable"),
        ({"a\x00": A}, b"12345678", "printable"),
        ({"\ud800": A}, b"12345678", "printable"),
        ({"\u202e": A}, b"12345678", "printable"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        ({"__metadata__": []}, b"", "__metadata__"),
        ('{"a": 1, "a": 2}', b"", "appears twice"),
        ("{", b"", "no valid JSON"),
        ("[]", b"", "starts with"),
        (' {"a":1}', b"", "starts with"),
        ("", b"", "starts with"),
        (b'{"\xff": 1}', b"", "no valid JSON"),
        ('{"a": NaN}', b"", "no valid JSON"),
        ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", b"", "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", b"", "no valid JSON"),
        ('{"__metadata__": {"a": "b", "a": "c"}}', b"", "appears twice"),
    ],
)
def test_a_bad_header_is_refused(raw: Any, header: Any, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointCorruptError, match=message):
        open_checkpoint(raw(header, data))


@pytest.mark.parametrize("length", [9, 100_000_000, 100_000_001, 1 << 62, (1 << 64) - 1])
def test_a_header_beyond_the_file_is_refused(raw: Any, length: int) -> None:
    with pytest.raises(CheckpointCorruptError, match=f"a header of {length} bytes"):
        open_checkpoint(raw("{}", length=length))


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_without_room_for_a_length_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"\x00" * size)
    with pytest.raises(CheckpointCorruptError, match=f"has {size} bytes"):
        open_checkpoint(path)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2", "F8_E4M3FNUZ", "F7", "bf16", ""])
def test_an_unsupported_dtype_is_named(raw: Any, dtype: str) -> None:
    with pytest.raises(UnsupportedDtypeError, match="'a'") as caught:
        open_checkpoint(raw({"a": A | {"dtype": dtype}}, b"12345678"))
    assert caught.value.facts["dtype"] == dtype
    assert caught.value.facts["tensor"] == "a"


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(CheckpointCorruptError, match="LFS pointer") as caught:
        open_checkpoint(tmp_path)
    assert "git lfs pull" in caught.value.hint


def test_padding_unknown_fields_and_empty_tensors_are_accepted(raw: Any) -> None:
    empty = {"dtype": "F32", "shape": [0, 5], "data_offsets": [8, 8], "more": 1}
    path = raw(json.dumps({"z": A, "b": B, "a": empty}) + "   ", b"12345678abcd")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.shards[0].tensors == ("z", "a", "b")
        assert checkpoint.tensors["a"].elements == 0
        checkpoint.read_into("a", 0, memoryview(b""))
        checkpoint.read_into("a", 0, np.empty((0, 5), np.float32))


def test_a_file_without_tensors_holds_no_weights(raw: Any) -> None:
    with pytest.raises(NoWeightsError, match="no tensors"):
        open_checkpoint(raw({"__metadata__": {}}))


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=8),
        st.tuples(
            st.sampled_from(sorted(set(DTYPE_BYTES) - {"F8_E8M0", "C64"})),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        min_size=1,
        max_size=6,
    ).filter(lambda tensors: "__metadata__" not in tensors),
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        max_size=3,
    ),
)
def test_written_headers_are_read_alike_by_the_library(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, tuple[str, list[int]]],
    metadata: dict[str, str],
) -> None:
    outputs = [TensorSpec(n, dtype, tuple(shape)) for n, (dtype, shape) in tensors.items()]
    header = build_header(outputs, metadata, "x")
    assert len(header) % 8 == 0
    path = tmp_path_factory.mktemp("header") / "model.safetensors"
    path.write_bytes(header + bytes(sum(t.nbytes for t in outputs)))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        entries, found = read_header(descriptor, path)
    finally:
        os.close(descriptor)
    assert found == metadata
    with safe_open(path, "np") as oracle:
        assert (oracle.metadata() or {}) == metadata
        assert {e.name: (e.dtype, list(e.shape)) for e in entries} == {
            name: (oracle.get_slice(name).get_dtype(), oracle.get_slice(name).get_shape())
            for name in oracle.keys()  # noqa: SIM118 - it is no mapping
        }


VALID = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(5, np.int8)})


@settings(deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_read_as_the_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content))) or len(content)]
    path = tmp_path_factory.mktemp("damage") / "model.safetensors"
    path.write_bytes(content)
    try:
        with open_checkpoint(path) as checkpoint:
            mine = {n: (t.dtype, list(t.shape)) for n, t in checkpoint.tensors.items()}
    except CheckpointError:
        return
    # Whatever is accepted here, the reference implementation must accept too, and alike.
    try:
        with safe_open(path, "np") as oracle:
            names = oracle.keys()
            theirs = {
                n: (oracle.get_slice(n).get_dtype(), oracle.get_slice(n).get_shape()) for n in names
            }
    except SafetensorError as error:
        pytest.fail(f"accepted what safetensors refuses: {error}")
    assert mine == theirs


@settings(deadline=None)
@given(st.binary(max_size=64), st.integers(0, 80))
def test_garbage_never_raises_anything_unexpected(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes, length: int
) -> None:
    path = tmp_path_factory.mktemp("garbage") / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{" + garbage)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


def test_a_header_over_the_limit_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltastore.checkpoint.header.MAX_HEADER_BYTES", 64)
    with pytest.raises(CheckpointError, match="a header of"):
        build_header([TensorSpec("a" * 64, "F32", (1,))], {}, "x")


@pytest.mark.parametrize(
    "tensors",
    [
        [TensorSpec("__metadata__", "F32", (1,))],
        [TensorSpec("", "F32", (1,))],
        [TensorSpec("x" * 1025, "F32", (1,))],
        [TensorSpec("a\u202e", "F32", (1,))],
        [TensorSpec("\ud800", "F32", (1,))],
        [TensorSpec("a", "F32", (1 << 48, 0, 2))],
        [TensorSpec("a", "F32", (1,) * 17)],
        [TensorSpec("a", "F32", (1,)), TensorSpec("a", "F32", (1,))],
        [TensorSpec(str(i), "F64", (1 << 48,)) for i in range(1 << 12)],
    ],
    ids=[
        "metadata",
        "empty",
        "long",
        "hidden",
        "surrogate",
        "shape",
        "dimensions",
        "twice",
        "bytes",
    ],
)
def test_what_no_reader_takes_is_not_written(tensors: list[TensorSpec]) -> None:
    with pytest.raises(CheckpointError, match="nothing could read it"):
        build_header(tensors, {}, "x")


def test_more_tensors_than_are_read_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltastore.manifest.format.MAX_TENSORS", 1)
    with pytest.raises(CheckpointError, match="would have 2 tensors"):
        build_header([TensorSpec(name, "F32", ()) for name in "ab"], {}, "x")


def test_too_many_tensors_are_refused(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltastore.manifest.format.MAX_TENSORS", 1)
    with pytest.raises(CheckpointCorruptError, match="holds 2 tensors"):
        open_checkpoint(raw({"a": A, "b": B}, b"12345678abcd"))
