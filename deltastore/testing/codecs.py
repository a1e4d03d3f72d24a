"""What every codec must do: pytest tests that a class inherits.

::

    class TestMyCodec(CodecContract):
        @pytest.fixture
        def codec(self):
            return MyCodec()

The codec is registered, so that its name means it. One that is ``lossy`` also says how far off it
may be: ``allowed_error``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deltastore.codecs import (
    BoundedEncoder,
    Codec,
    Decoder,
    Encoder,
    PaletteDecoder,
    PaletteEncoder,
    get_codec,
)
from deltastore.codecs.contract import DeltaChunk
from deltastore.errors import DeltastoreError, PartInvalidError, UsageError
from deltastore.kernels.palette import TOKEN_ESCAPE
from deltastore.manifest import format as fmt

SIZES = (1, 2, 7, 8, 9, 255, 256, 257, 2047, 2048, 2049, 70_001)
KINDS = ("tuned", "sparse", "wild", "kept", "zeros", "one value", "specials")
_ARRAYS = (np.uint8, np.uint16, np.float32, np.int64)

_SPECIALS = (
    *(0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x00800000),
    *(0x3F800000, 0xBF800000, 0x3F800001, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F7F0000),
    *(0x7F800000, 0xFF800000, fmt.CANONICAL_NAN, fmt.KEEP, 0x00010000, 0x0000FFFF),
)


def chunk(kind: str, n: int, *, wide: bool = False, seed: int = 0) -> DeltaChunk:
    """Deltas as ``extract`` may hand them to a codec.

    Args:
        kind: One of ``KINDS``: of a model tuned a little, of few changed elements, any bits at
            all, all elements kept, no change, a single value, the values that go wrong.
        n: Elements.
        wide: Float64 bits in place of float32 bits.
        seed: For other deltas of the same kind.
    """
    rng = np.random.default_rng([seed, n, KINDS.index(kind)])
    if kind == "wild":
        bits = rng.integers(0, 1 << 32, n, dtype=np.uint32)
        # The only NaNs that reach a codec are the two marks.
        bits[np.isnan(bits.view(np.float32))] = fmt.CANONICAL_NAN
    elif kind == "specials":
        bits = np.resize(np.array(_SPECIALS, np.uint32), n)
    elif kind in ("tuned", "sparse"):
        base = _to_bfloat16(rng.normal(0, 0.02, n))
        bits = (_to_bfloat16(base + rng.laplace(0, 3e-4, n)) - base).view(np.uint32)
        bits[rng.random(n) < (0.05 if kind == "tuned" else 0.95)] = fmt.KEEP
        bits[::97] = fmt.CANONICAL_NAN
    else:
        value = {"kept": fmt.KEEP, "zeros": 0, "one value": 0x3C230000}[kind]
        bits = np.full(n, value, np.uint32)
    return _widened(bits, rng) if wide else bits


class CodecContract:
    """The promises of ``Codec``, a test each. Needs a fixture ``codec``."""

    def allowed_error(
        self, encoder: Encoder, delta: npt.NDArray[np.float64]
    ) -> float | npt.NDArray[np.float64]:
        """How far decoded numbers may be from ``delta``, all of them finite; each, or any.

        Of a bounded codec that is its bound.
        """
        if isinstance(encoder, BoundedEncoder):
            return encoder.bound
        raise NotImplementedError("say how exact your codec is")

    # --- there and back ---------------------------------------------------------------------

    @pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_encoded_is_decoded(self, codec: Codec, kind: str, wide: bool) -> None:
        """Every size, dtype and kind of values, as exactly as the codec says."""
        for n in SIZES:
            delta = chunk(kind, n, wide=wide)
            encoder = codec.encoder(delta, n)
            out = np.full_like(delta, 7)
            opened(codec, encoder).decode(_frame(encoder, delta), out)
            self._assert_near(codec, encoder, out, delta)

    @pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
    def test_chunks_may_be_unlike_the_sample(self, codec: Codec, wide: bool) -> None:
        """A sample only says what to expect: the rest of the tensor may be anything."""
        for expected in KINDS:
            encoder = codec.encoder(chunk(expected, 3000, wide=wide), 1 << 20)
            decoder = opened(codec, encoder)
            for kind in KINDS:
                delta = chunk(kind, 2100, wide=wide, seed=1)
                out = np.full_like(delta, 7)
                decoder.decode(_frame(encoder, delta), out)
                self._assert_near(codec, encoder, out, delta)

    @pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
    def test_an_empty_sample_and_an_empty_chunk(self, codec: Codec, wide: bool) -> None:
        """A tensor may have no elements."""
        delta = chunk("zeros", 0, wide=wide)
        encoder = codec.encoder(delta, 0)
        opened(codec, encoder).decode(_frame(encoder, delta), np.empty_like(delta))

    def test_a_decoder_needs_no_more_than_what_is_stored(self, codec: Codec) -> None:
        """Parameters are JSON, arrays of the dtypes that parts may have."""
        for kind in KINDS:
            encoder = codec.encoder(chunk(kind, 3000), 1 << 20)
            assert json.loads(json.dumps(encoder.params, allow_nan=False)) == encoder.params
            for array in encoder.arrays.values():
                assert array.dtype in _ARRAYS

    def test_a_frame_may_lie_anywhere_in_memory(self, codec: Codec) -> None:
        """Readers hand out views into what they have read."""
        delta = chunk("tuned", 5000)
        encoder = codec.encoder(delta, delta.size)
        frame = _frame(encoder, delta)
        out = np.full_like(delta, 7)
        opened(codec, encoder).decode(memoryview(b"abc" + frame + b"d")[3:-1], out)
        self._assert_near(codec, encoder, out, delta)

    # --- the same every time ----------------------------------------------------------------

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_same_chunk_gives_the_same_frame(self, codec: Codec, kind: str) -> None:
        """From the same encoder and from another; and the chunk stays as it is."""
        delta = chunk(kind, 5000)
        kept = delta.copy()
        encoder, other = codec.encoder(delta, delta.size), codec.encoder(delta.copy(), delta.size)
        assert encoder.params == other.params
        assert {k: v.tobytes() for k, v in encoder.arrays.items()} == {
            k: v.tobytes() for k, v in other.arrays.items()
        }
        first = _frame(encoder, delta)
        _frame(encoder, chunk("wild", 3000))
        assert _frame(encoder, delta) == first == _frame(other, kept)
        assert np.array_equal(delta, kept)

    def test_threads_encode_and_decode_at_once(self, codec: Codec) -> None:
        """One encoder and one decoder for all, chunks in any order."""
        encoder = codec.encoder(chunk("tuned", 5000), 1 << 20)
        decoder = opened(codec, encoder)
        chunks = [
            chunk(KINDS[i % len(KINDS)], 20_000 + 999 * (i % 5), seed=i % 11) for i in range(60)
        ]
        alone = [_frame(encoder, delta) for delta in chunks]
        expected = []
        for delta, frame in zip(chunks, alone, strict=True):
            out = np.empty_like(delta)
            decoder.decode(frame, out)
            expected.append(out)

        def work(number: int) -> None:
            assert _frame(encoder, chunks[number]) == alone[number]
            out = np.full_like(chunks[number], 7)
            decoder.decode(alone[number], out)
            assert np.array_equal(out, expected[number])

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(len(chunks))))

    # --- what it says of itself ---------------------------------------------------------------

    def test_it_says_what_it_is(self, codec: Codec) -> None:
        """A name that means this codec, and how exact it is."""
        found = get_codec(codec.name)
        assert (found.name, found.exactness) == (codec.name, codec.exactness)
        assert codec.name.isprintable()
        assert len(codec.name) <= 64
        assert codec.exactness in ("exact", "bounded", "lossy")
        encoder = codec.encoder(chunk("tuned", 3000), 1 << 20)
        assert codec.exactness != "bounded" or isinstance(encoder, BoundedEncoder)

    @pytest.mark.parametrize("option", ["", "x", "-1", "0", "nan", "1e999", "9" * 50, "٣", "\0"])
    def test_strange_options_are_refused(self, codec: Codec, option: str) -> None:
        """Or they have a canonical form, like any other."""
        try:
            found = get_codec(f"{codec.name.partition(':')[0]}:{option}")
        except UsageError:
            return
        assert get_codec(found.name).name == found.name
        assert len(found.name) <= 64

    @pytest.mark.parametrize("kind", ["tuned", "sparse", "wild"])
    def test_bytes_per_element_are_about_right(self, codec: Codec, kind: str) -> None:
        """Of the sample: at most half as much again, and no less than half."""
        delta = chunk(kind, 60_000)
        encoder = codec.encoder(delta, 1 << 20)
        real = len(_frame(encoder, delta)) / delta.size
        assert real / 2 < encoder.bytes_per_element < 1.5 * real + 0.1

    @pytest.mark.parametrize("kind", KINDS)
    def test_tokens_are_the_same_chunk(self, codec: Codec, kind: str) -> None:
        """Where an encoder can be handed tokens, frames and deltas are the same as without."""
        delta = chunk(kind, 5001)
        encoder = codec.encoder(chunk("tuned", 5000), 1 << 20)
        frame = _frame(encoder, delta)
        decoder = opened(codec, encoder)
        assert isinstance(encoder, PaletteEncoder) == isinstance(decoder, PaletteDecoder)
        if not isinstance(encoder, PaletteEncoder) or not isinstance(decoder, PaletteDecoder):
            return
        table = encoder.token_table
        found = decoder.tokens(frame, delta.size)
        assert table.shape == (1 << 16,)
        high = np.where(delta & 0xFFFF == 0, delta >> 16, fmt.ESCAPE_HIGH)
        tokens = table[high]
        assert encoder.encode_tokens(tokens, delta[tokens == TOKEN_ESCAPE]) == frame
        escaped = np.asarray(found.tokens) == TOKEN_ESCAPE
        planes = found.escapes.reshape(4, -1).astype(np.uint32)
        values = found.table[found.tokens]
        values[escaped] = planes[0] | planes[1] << 8 | planes[2] << 16 | planes[3] << 24
        out = np.empty_like(delta)
        decoder.decode(frame, out)
        assert np.array_equal(values, out)

    # --- what strangers send ------------------------------------------------------------------

    @pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
    @pytest.mark.parametrize("kind", ["tuned", "sparse", "wild"])
    def test_damaged_frames_are_refused_or_decode_to_something(
        self, codec: Codec, kind: str, wide: bool
    ) -> None:
        """Any bit changed, anything cut off or added: an error of ours, or other values."""
        delta = chunk(kind, 3000, wide=wide)
        encoder = codec.encoder(delta, delta.size)
        decoder = opened(codec, encoder)
        for frame in _damaged(_frame(encoder, delta)):
            for decode in (decoder.decode, *_through_tokens(decoder, narrow=not wide)):
                try:
                    decode(frame, np.empty_like(delta))
                except DeltastoreError as error:
                    assert error.exit_code != 1  # noqa: PT017 - most decode

    @pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
    def test_a_frame_that_is_no_frame_is_refused(self, codec: Codec, wide: bool) -> None:
        """Nothing, cuts, noise."""
        delta = chunk("tuned", 3000, wide=wide)
        encoder = codec.encoder(delta, delta.size)
        decoder = opened(codec, encoder)
        frame = _frame(encoder, delta)
        for bad in (b"", frame[:1], frame[: len(frame) // 2], frame[:-1], bytes(100), b"\xff" * 99):
            with pytest.raises(PartInvalidError):
                decoder.decode(bad, np.empty_like(delta))

    @pytest.mark.parametrize("kind", ["tuned", "wild"])
    def test_a_frame_of_another_size_is_refused(self, codec: Codec, kind: str) -> None:
        """A frame cannot fill fewer elements, nor more, than it was made of."""
        delta = chunk(kind, 3000)
        encoder = codec.encoder(delta, delta.size)
        decoder = opened(codec, encoder)
        frame = _frame(encoder, delta)
        for n in (1, 1500, 2999, 3001, 6000, 1 << 19):
            with pytest.raises(PartInvalidError):
                decoder.decode(frame, np.empty(n, delta.dtype))

    @pytest.mark.parametrize("value", [None, -1, 1 << 70, 1.5, "x", [], {}, True])
    def test_strange_parameters_are_refused(self, codec: Codec, value: object) -> None:
        """Every one of another type, and none at all."""
        encoder = codec.encoder(chunk("tuned", 3000), 3000)
        for params in ({}, *({**encoder.params, key: value} for key in encoder.params)):
            if params == encoder.params:
                continue
            try:
                codec.decoder(params, encoder.arrays, where="t")
            except DeltastoreError as error:
                assert error.exit_code != 1  # noqa: PT017 - some are allowed

    def test_strange_arrays_are_refused(self, codec: Codec) -> None:
        """Missing, of another dtype, too long, too short: then no frame decodes to nonsense."""
        delta = chunk("tuned", 3000)
        encoder = codec.encoder(delta, delta.size)
        frame = _frame(encoder, delta)
        for name, array in encoder.arrays.items():
            others = [array[:0], np.resize(array, 1 << 17), array.astype(np.float32)]
            for arrays in (
                {key: value for key, value in encoder.arrays.items() if key != name},
                *({**encoder.arrays, name: other} for other in others),
            ):
                with pytest.raises(DeltastoreError):
                    codec.decoder(encoder.params, arrays, where="t").decode(
                        frame, np.empty_like(delta)
                    )

    def _assert_near(
        self, codec: Codec, encoder: Encoder, out: DeltaChunk, delta: DeltaChunk
    ) -> None:
        if codec.exactness == "exact":
            assert np.array_equal(out, delta)
            return
        float_type = np.float64 if delta.dtype == np.uint64 else np.float32
        wanted = delta.view(float_type).astype(np.float64)
        usual = np.isfinite(wanted)
        # The marks are no values: an element that is kept stays kept.
        assert np.array_equal(out[~usual], delta[~usual])
        found = out.view(float_type).astype(np.float64)
        allowed = self.allowed_error(encoder, wanted[usual])
        assert (np.abs(found[usual] - wanted[usual]) <= allowed).all()


def opened(codec: Codec, encoder: Encoder) -> Decoder:
    """A decoder for what ``encoder`` writes, by way of what is stored of it."""
    params: dict[str, Any] = json.loads(json.dumps(encoder.params))
    arrays = {name: np.frombuffer(a.tobytes(), a.dtype) for name, a in encoder.arrays.items()}
    return codec.decoder(params, arrays, where="t")


def _frame(encoder: Encoder, delta: DeltaChunk) -> bytes:
    frame = encoder.encode(delta)
    assert len(frame) > 0, "an empty frame means that all elements are kept"
    return bytes(frame)


def _through_tokens(
    decoder: Decoder, *, narrow: bool
) -> Iterator[Callable[[bytes, DeltaChunk], object]]:
    if narrow and isinstance(decoder, PaletteDecoder):
        yield lambda frame, out: decoder.tokens(frame, out.size)


def _damaged(frame: bytes) -> Iterator[bytes]:
    rng = np.random.default_rng(2)
    for at in rng.integers(0, len(frame), 80):
        damaged = bytearray(frame)
        damaged[at] ^= 1 << int(rng.integers(0, 8))
        yield bytes(damaged)
    for at in rng.integers(0, len(frame), 20):
        yield frame[:at] + rng.bytes(8) + frame[at + 8 :]
        yield frame[:at] + frame[at + 1 :]
    yield from (frame + b"\0", frame + frame, rng.bytes(len(frame)))


def _to_bfloat16(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    return (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _widened(bits: npt.NDArray[np.uint32], rng: np.random.Generator) -> npt.NDArray[np.uint64]:
    wide = bits.view(np.float32).astype(np.float64)
    wide[::5] *= 1 + 1e-12  # no float32 any more
    out = wide.view(np.uint64)
    out[np.isnan(wide)] = fmt.CANONICAL_NAN_WIDE
    out[bits == fmt.KEEP] = fmt.KEEP_WIDE
    out[rng.random(out.size) < 0.01] = np.float64(1e300).view(np.uint64)
    return out
