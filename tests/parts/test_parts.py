"""Parts as they are built and read, and parts that are not what they should be."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from deltastore.artifact.parts import PartBuilder, PartsReader, reader
from deltastore.errors import FormatError, PartInvalidError
from deltastore.manifest import Descriptor, Segment, Stream
from deltastore.manifest.format import TENSORS_MEDIA_TYPE

DIGEST = "sha256:" + "0" * 64


class Memory:
    """An open blob that lies in memory, and refuses reads past its end as a blob does."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.closed = False
        self.largest = 0

    def read(self, offset: int, count: int) -> bytes:
        assert not self.closed
        assert 0 <= offset <= offset + count <= len(self.data), "a read past the end"
        self.largest = max(self.largest, count)
        return self.data[offset : offset + count]

    def close(self) -> None:
        self.closed = True


class Parts:
    """What a builder handed over, and readers of it."""

    def __init__(self) -> None:
        self.blobs: list[bytes] = []
        self.opened: list[Memory] = []

    def hand_over(self, number: int, pieces: Sequence[bytes]) -> None:
        assert number == len(self.blobs)
        self.blobs.append(b"".join(pieces))

    def open(self, descriptor: Descriptor) -> Memory:
        self.opened.append(Memory(self.blobs[int(descriptor.digest[-8:], 16)]))
        return self.opened[-1]

    def reader(self, **options: Any) -> PartsReader:
        layers = [
            Descriptor(TENSORS_MEDIA_TYPE, f"sha256:{i:064x}", len(blob))
            for i, blob in enumerate(self.blobs)
        ]
        return PartsReader(layers, options.pop("open_blob", self.open), **options)


PALETTE = {"palette": np.array([3, 1, 2], np.uint16)}


def test_one_stream() -> None:
    parts = Parts()
    builder = PartBuilder(parts.hand_over)
    builder.begin("w/delta", "exact", {"form": "palette"}, PALETTE)
    for i, frame in enumerate((b"one", b"", b"three")):
        builder.add("w/delta", i, frame)
        builder.settle()
    stream = builder.end("w/delta")
    builder.finish()
    assert builder.parts == len(parts.blobs) == 1
    assert stream == Stream("exact", {"form": "palette"}, (Segment(0, 0, 3),), 8 + 6 + 4 * 8)
    arrays = safetensors.numpy.load(parts.blobs[0])
    assert arrays.keys() == {"w/delta", "w/delta.offsets", "w/delta.palette"}
    assert arrays["w/delta"].tobytes() == b"onethree"
    assert arrays["w/delta.offsets"].tolist() == [0, 3, 3, 8]
    assert arrays["w/delta.palette"].tolist() == [3, 1, 2]
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "w/delta": "uint8",
        "w/delta.offsets": "int64",
        "w/delta.palette": "uint16",
    }
    reader = parts.reader()
    frames = reader.stream("w/delta", stream)
    assert [frames.frame(i) for i in range(4)] == [b"one", b"", b"three", b""]
    assert {name: array.tolist() for name, array in frames.arrays().items()} == {
        "palette": [3, 1, 2]
    }


def test_nothing_makes_no_part() -> None:
    parts = Parts()
    builder = PartBuilder(parts.hand_over)
    builder.begin("w/delta", "exact", {}, PALETTE)
    assert builder.end("w/delta") is None
    builder.finish()
    assert parts.blobs == []


def test_a_stream_that_was_never_written() -> None:
    frames = Parts().reader().stream("w/delta", Stream("exact", {}, (), 0))
    assert frames.frame(0) == b""
    assert frames.arrays() == {}


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, list[tuple[str, dict[int, bytes], dict[int, bytes]]]]:
    """A size of parts, and tensors with a whole stream and a sparse one."""
    tensors = []
    frames = st.binary(max_size=40)
    for i in range(draw(st.integers(1, 6))):
        name = draw(st.sampled_from(["w", "a/b", "é", "x.delta", "x/delta"])) + str(i)
        whole = dict(enumerate(draw(st.lists(frames, max_size=8))))
        where = draw(st.sets(st.integers(0, 7), max_size=5))
        sparse = {j: draw(frames.filter(len)) for j in sorted(where)}
        tensors.append((name, whole, sparse))
    return draw(st.integers(1, 300)), tensors


def built(
    layout: tuple[int, list[tuple[str, dict[int, bytes], dict[int, bytes]]]],
) -> tuple[Parts, dict[str, Stream | None]]:
    """Both streams of each tensor side by side, as extraction writes them."""
    size, tensors = layout
    parts = Parts()
    builder = PartBuilder(parts.hand_over, part_bytes=size)
    streams = {}
    for name, whole, sparse in tensors:
        builder.begin(f"{name}/delta", "exact", {"n": name}, PALETTE)
        builder.begin(f"{name}/patch", "values", {}, {})
        for index in range(8):
            if index in whole:
                builder.add(f"{name}/delta", index, whole[index])
            if index in sparse:
                builder.add(f"{name}/patch", index, sparse[index])
            builder.settle()
        for role in ("delta", "patch"):
            streams[f"{name}/{role}"] = builder.end(f"{name}/{role}")
    builder.finish()
    assert builder.parts == len(parts.blobs)
    return parts, streams


@settings(max_examples=80, deadline=None)
@given(layout=layouts())
def test_what_is_built_is_read_back(
    layout: tuple[int, list[tuple[str, dict[int, bytes], dict[int, bytes]]]],
) -> None:
    parts, streams = built(layout)
    opened = parts.reader(max_open=2)
    total = 0
    for name, whole, sparse in layout[1]:
        for role, frames in (("delta", whole), ("patch", sparse)):
            stream = streams[f"{name}/{role}"]
            if stream is None:
                assert not frames
                continue
            got = opened.stream(f"{name}/{role}", stream)
            assert [got.frame(i) for i in range(10)] == [frames.get(i, b"") for i in range(10)]
            assert list(got.arrays()) == (["palette"] if role == "delta" else [])
            ends = [segment.first + segment.frames for segment in stream.segments]
            starts = [segment.first for segment in stream.segments]
            assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
            if role == "delta":
                assert starts[0] == 0
                assert ends[:-1] == starts[1:]
                assert ends[-1] == len(whole)
            numbers = [segment.part for segment in stream.segments]
            assert numbers == sorted(set(numbers))
            total += stream.stored_bytes
    # Every byte of every part but the headers belongs to one stream.
    assert total == sum(len(b) - 8 - int.from_bytes(b[:8], "little") for b in parts.blobs)
    assert sum(not blob.closed for blob in parts.opened) <= 2
    opened.close()
    assert all(blob.closed for blob in parts.opened)


@settings(max_examples=25, deadline=None)
@given(layout=layouts())
def test_parts_are_ordinary_safetensors_files(
    layout: tuple[int, list[tuple[str, dict[int, bytes], dict[int, bytes]]]],
) -> None:
    parts, streams = built(layout)
    for number, blob in enumerate(parts.blobs):
        length = int.from_bytes(blob[:8], "little")
        assert length % 8 == 0
        header = json.loads(blob[8 : 8 + length])
        widths = {"U8": 1, "U16": 2, "F32": 4, "I64": 8}
        for array in header.values():
            assert array["data_offsets"][0] % widths[array["dtype"]] == 0
        named = {key for key, s in streams.items() if s and number in [g.part for g in s.segments]}
        assert named <= safetensors.numpy.load(blob).keys()
    # The same calls give the same bytes.
    assert built(layout)[0].blobs == parts.blobs


def test_parts_close_where_they_are_full() -> None:
    parts = Parts()
    builder = PartBuilder(parts.hand_over, part_bytes=1000)
    builder.begin("w/delta", "exact", {}, {})
    for i in range(20):
        builder.add("w/delta", i, bytes(300))
        builder.settle()
    stream = builder.end("w/delta")
    builder.finish()
    assert stream is not None
    assert [segment.frames for segment in stream.segments] == [4] * 5
    assert all(1200 < len(blob) < 1500 for blob in parts.blobs)


def test_many_threads_read_at_once() -> None:
    parts = Parts()
    builder = PartBuilder(parts.hand_over, part_bytes=500)
    builder.begin("w/delta", "exact", {}, {})
    for i in range(200):
        builder.add("w/delta", i, bytes([i]) * (i % 50))
        builder.settle()
    stream = builder.end("w/delta")
    builder.finish()
    assert stream is not None
    opened = parts.reader(max_open=2)
    frames = opened.stream("w/delta", stream)
    barrier = threading.Barrier(8)

    def work(seed: int) -> None:
        barrier.wait()
        for i in np.random.default_rng(seed).permutation(200):
            assert frames.frame(int(i)) == bytes([i]) * (i % 50)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sum(not blob.closed for blob in parts.opened) <= 2 + 8


def two_parts() -> tuple[Parts, dict[str, Stream]]:
    """Streams ``a`` and ``b``, each in a part of its own."""
    parts = Parts()
    builder = PartBuilder(parts.hand_over, part_bytes=1)
    streams = {}
    for key in ("a", "b"):
        builder.begin(key, "exact", {}, PALETTE)
        builder.add(key, 0, key.encode())
        builder.settle()
        stream = builder.end(key)
        assert stream is not None
        streams[key] = stream
    builder.finish()
    assert len(parts.blobs) == 2
    return parts, streams


def test_a_part_that_is_slow_to_open_holds_up_no_other() -> None:
    parts, streams = two_parts()
    started, go = threading.Event(), threading.Event()
    opened: list[str] = []

    def slow(descriptor: Descriptor) -> Memory:
        opened.append(descriptor.digest[-1])
        if descriptor.digest[-1] == "0":
            started.set()
            assert go.wait(30)
        return parts.open(descriptor)

    reader = parts.reader(open_blob=slow)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(reader.stream("a", streams["a"]).frame, 0) for _ in range(4)]
        assert started.wait(30)
        try:
            assert reader.stream("b", streams["b"]).frame(0) == b"b"
            assert not any(future.done() for future in waiting)
        finally:
            go.set()
        assert [future.result() for future in waiting] == [b"a"] * 4
    assert opened == ["0", "1"]


def test_a_part_that_could_not_be_opened_is_tried_again() -> None:
    parts, streams = two_parts()
    left = 3

    def fail(descriptor: Descriptor) -> Memory:
        nonlocal left
        left -= 1
        if left > 0:
            raise OSError("no answer")
        return parts.open(descriptor)

    reader = parts.reader(open_blob=fail, max_open=1)
    for _ in range(2):
        with pytest.raises(OSError, match="no answer"):
            reader.stream("a", streams["a"]).frame(0)
    assert reader.stream("a", streams["a"]).frame(0) == b"a"
    # Those that failed hold it no more.
    assert reader.stream("b", streams["b"]).frame(0) == b"b"
    assert [blob.closed for blob in parts.opened] == [True, False]
    reader.close()
    assert all(blob.closed for blob in parts.opened)


# --- hostile parts --------------------------------------------------------------------------------


def part(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def array(dtype: str = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


OFFSETS = np.array([0, 1, 4], np.int64).tobytes()
WHOLE = {"w/delta.offsets": array("I64", [3], [0, 24]), "w/delta": array("U8", [4], [24, 28])}
STREAM = Stream("exact", {}, (Segment(0, 0, 2),), 0)


def read(blob: bytes, stream: Stream = STREAM) -> list[bytes]:
    parts = Parts()
    parts.blobs = [blob]
    frames = parts.reader().stream("w/delta", stream)
    frames.arrays()
    return [frames.frame(i) for i in range(2)]


def test_the_part_that_is_broken_below_is_whole() -> None:
    assert read(part(WHOLE, OFFSETS + b"abcd")) == [b"a", b"bcd"]


HEADERS: dict[str, bytes] = {
    "nothing": b"",
    "seven bytes": b"\x02\0\0\0\0\0\0",
    "no header": part(b""),
    "a header of one byte": part(b"{"),
    "a header past the end": part(WHOLE, length=100_000),
    "a header of 2^63 bytes": part(WHOLE, length=1 << 63),
    "a header that is the whole rest and more": part(b"{}", length=3),
    "a list": part([]),
    "a number": part(b"5 "),
    "no JSON": part(b"{]"),
    "NaN": part(b'{"a": NaN}'),
    "a repeated key": part(b'{"a": 1, "a": 1}'),
    "no UTF-8": part(b'{"\xff": 1}'),
    "deep": part(b"[" * 5000),
    "an array that is a number": part(WHOLE | {"x": 5}, OFFSETS + b"abcd"),
    "an array that is a list": part(WHOLE | {"x": []}, OFFSETS + b"abcd"),
    "an array that is null": part(WHOLE | {"x": None}, OFFSETS + b"abcd"),
}
ARRAYS: dict[str, Any] = {
    "no dtype": {"shape": [4], "data_offsets": [24, 28]},
    "no shape": {"dtype": "U8", "data_offsets": [24, 28]},
    "no offsets": {"dtype": "U8", "shape": [4]},
    "unknown dtype": array("BF16", [2], [24, 28]),
    "dtype that is a list": array([], [4], [24, 28]),  # type: ignore[arg-type]
    "dtype that is null": array(None, [4], [24, 28]),  # type: ignore[arg-type]
    "another dtype": array("U16", [2], [24, 28]),
    "two dimensions": array("U8", [2, 2], [24, 28]),
    "no dimension": array("U8", [], [24, 28]),
    "a fractional dimension": array("U8", [4.0], [24, 28]),
    "a negative dimension": array("U8", [-4], [28, 24]),
    "a dimension that is true": array("U8", [True], [24, 25]),
    "a dimension that is text": array("U8", ["4"], [24, 28]),
    "one offset": array("U8", [4], [24]),
    "three offsets": array("U8", [4], [24, 26, 28]),
    "offsets backwards": array("U8", [4], [28, 24]),
    "negative offsets": array("U8", [4], [-4, 0]),
    "offsets past the end": array("U8", [4], [25, 29]),
    "enormous offsets": array("U8", [4], [1 << 70, (1 << 70) + 4]),
    "fractional offsets": array("U8", [4], [24.0, 28.0]),
    "text offsets": array("U8", [4], ["24", "28"]),
    "more items than bytes": array("U8", [5], [24, 28]),
    "fewer items than bytes": array("U8", [3], [24, 28]),
}
TABLES: dict[str, tuple[Any, bytes]] = {
    "no offsets": (None, b""),
    "offsets of another dtype": (array("F32", [6], [0, 24]), OFFSETS),
    "bytes as offsets": (array("U8", [24], [0, 24]), OFFSETS),
    "too few offsets": (array("I64", [2], [0, 16]), OFFSETS),
    "not from zero": (array("I64", [3], [0, 24]), np.array([1, 2, 4], np.int64).tobytes()),
    "not to the end": (array("I64", [3], [0, 24]), np.array([0, 2, 3], np.int64).tobytes()),
    "past the end": (array("I64", [3], [0, 24]), np.array([0, 2, 5], np.int64).tobytes()),
    "descending": (array("I64", [3], [0, 24]), np.array([0, 5, 4], np.int64).tobytes()),
    "negative": (array("I64", [3], [0, 24]), np.array([0, -1, 4], np.int64).tobytes()),
    "enormous": (array("I64", [3], [0, 24]), np.array([0, 1 << 62, 4], np.int64).tobytes()),
    "wrapping": (
        array("I64", [3], [0, 24]),
        np.array([0, -(1 << 63), 4], np.int64).tobytes(),
    ),
    "no items": (array("I64", [0], [0, 0]), OFFSETS),
}


def refused(make: Callable[[], list[bytes]]) -> None:
    with pytest.raises(FormatError) as caught:
        make()
    assert 50 <= caught.value.exit_code < 60
    assert "sha256:" in caught.value.message


@pytest.mark.parametrize("case", HEADERS)
def test_a_broken_header(case: str) -> None:
    refused(lambda: read(HEADERS[case]))


@pytest.mark.parametrize("case", ARRAYS)
def test_a_broken_array(case: str) -> None:
    refused(lambda: read(part(WHOLE | {"w/delta": ARRAYS[case]}, OFFSETS + b"abcd")))


@pytest.mark.parametrize("case", TABLES)
def test_broken_offsets(case: str) -> None:
    entry, data = TABLES[case]
    header = {"w/delta": array("U8", [4], [24, 28])}
    if entry is not None:
        header["w/delta.offsets"] = entry
    refused(lambda: read(part(header, (data or OFFSETS) + b"abcd")))


def test_a_stream_that_the_part_lacks() -> None:
    refused(lambda: read(part({}, b"")))
    refused(lambda: read(part(WHOLE, OFFSETS + b"abcd"), Stream("x", {}, (Segment(0, 0, 3),), 0)))


def test_a_header_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_HEADER_BYTES", 50)
    parts = Parts()
    parts.blobs = [part(WHOLE, OFFSETS + b"abcd")]
    frames = parts.reader().stream("w/delta", STREAM)
    refused(lambda: [frames.frame(0)])
    assert parts.opened[0].largest <= 50


def test_a_static_array_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_STATIC_BYTES", 100)
    big = WHOLE | {"w/delta.palette": array("U16", [1000], [28, 2028])}
    refused(lambda: read(part(big, OFFSETS + b"abcd" + bytes(2000))))


def test_arrays_of_other_streams_are_not_taken() -> None:
    more = {
        "w/delta.palette": array("U16", [1], [28, 30]),
        "w/delta.x/delta": array("U8", [1], [28, 29]),
        "w/deltas": array("U8", [1], [28, 29]),
        "w/values.palette": array("U16", [1], [28, 30]),
        "__metadata__": {"format": "pt"},
    }
    parts = Parts()
    parts.blobs = [part(WHOLE | more, OFFSETS + b"abcd" + b"\x05\x00")]
    got = parts.reader().stream("w/delta", STREAM).arrays()
    assert {name: value.tolist() for name, value in got.items()} == {"palette": [5]}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_parts_are_read_or_refused(data: st.DataObject) -> None:
    blob = bytearray(part(WHOLE, OFFSETS + b"abcd"))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(blob)))
        stop = data.draw(st.integers(start, min(len(blob), start + 8)))
        blob[start:stop] = data.draw(st.binary(max_size=8))
    try:
        frames = read(bytes(blob))
    except FormatError:
        return
    assert sum(map(len, frames)) <= len(blob)


def test_a_part_that_is_refused_is_closed() -> None:
    parts = Parts()
    parts.blobs = [part([])]
    frames = parts.reader().stream("w/delta", STREAM)
    refused(lambda: [frames.frame(0)])
    assert [blob.closed for blob in parts.opened] == [True]


def test_the_error_of_a_broken_part_is_its_own() -> None:
    with pytest.raises(PartInvalidError):
        read(part({}, b""))
