"""The exact codec: bits back, in every form, and nothing believed of a frame."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from deltastore.codecs import entropy
from deltastore.codecs.exact import ExactCodec, ExactEncoder, _choose_palette
from deltastore.codecs.values import decode_patch, decode_values, encode_patch, encode_values
from deltastore.errors import CodecUnknownError, PartInvalidError
from deltastore.manifest.format import CANONICAL_NAN, KEEP, KEEP_WIDE
from deltastore.testing.codecs import CodecContract

CODEC = ExactCodec()


class TestExactCodec(CodecContract):
    @pytest.fixture
    def codec(self) -> ExactCodec:
        return CODEC


FORMS = [(form, sparse) for form in ("palette", "half", "single") for sparse in (False, True)]


def encoder(form: str, sparse: bool, sample: np.ndarray) -> ExactEncoder:
    narrow = sample if sample.dtype == np.uint32 else narrowed(sample)
    return ExactEncoder(form, sparse, _choose_palette(narrow) if form == "palette" else None)


def narrowed(wide: np.ndarray) -> np.ndarray:
    from deltastore.codecs.exact import _singles

    return _singles(wide).copy()


def deltas(seed: int, n: int, sigma: float, kept: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = (rng.normal(0, 0.02, n).astype(np.float32).view(np.uint32) >> 16 << 16).view(np.float32)
    post = (base + rng.laplace(0, sigma, n).astype(np.float32)).view(np.uint32) >> 16 << 16
    bits = (post.view(np.float32) - base).view(np.uint32)
    bits[rng.random(n) < kept] = KEEP
    bits[::97] = CANONICAL_NAN
    return bits


def widened(bits: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wide = bits.view(np.float32).astype(np.float64)
    wide[::5] *= 1 + 1e-12  # no float32 any more
    out = wide.view(np.uint64)
    out[bits == KEEP] = KEEP_WIDE
    out[rng.random(out.size) < 0.01] = np.float64(1e300).view(np.uint64)
    return out


def round_trip(encoding: ExactEncoder, chunk: np.ndarray) -> None:
    frame = encoding.encode(chunk)
    assert frame == encoding.encode(chunk.copy()), "not deterministic"
    decoder = CODEC.decoder(encoding.params, encoding.arrays, where="t")
    out = np.full_like(chunk, 7)
    decoder.decode(frame, out)
    assert np.array_equal(out, chunk)


@pytest.mark.parametrize(("form", "sparse"), FORMS)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 2047, 2049, 70_001])
def test_every_form_gives_the_bits_back(form: str, sparse: bool, n: int) -> None:
    chunk = deltas(n, n, 3e-4)
    round_trip(encoder(form, sparse, chunk), chunk)
    wide = widened(chunk, n)
    round_trip(encoder(form, sparse, wide), wide)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_bits(data: st.DataObject) -> None:
    """NaN patterns other than the canonical ones never reach a codec; all else may."""
    wide = data.draw(st.booleans())
    kind, width = (np.uint64, 64) if wide else (np.uint32, 32)
    raw = data.draw(st.lists(st.integers(0, (1 << width) - 1), min_size=1, max_size=200))
    chunk = np.array(raw, kind)
    values = chunk.view(np.float64 if wide else np.float32)
    chunk[np.isnan(values)] = KEEP_WIDE if wide else KEEP
    form, sparse = data.draw(st.sampled_from(FORMS))
    round_trip(encoder(form, sparse, chunk), chunk)


@pytest.mark.parametrize(
    ("sigma", "kept", "form", "sparse"),
    [(2e-4, 0.0, "palette", False), (2e-6, 0.9, "palette", True)],
)
def test_chooses_by_cost(sigma: float, kept: float, form: str, sparse: bool) -> None:
    chunk = deltas(1, 60_000, sigma, kept)
    chosen = CODEC.encoder(chunk, 10_000_000)
    assert (chosen.form, chosen.sparse) == (form, sparse)
    sizes = {f: len(encoder(*f, chunk).encode(chunk)) for f in FORMS}
    assert sizes[form, sparse] <= 1.06 * min(sizes.values())


def test_small_tensors_pay_for_their_palette() -> None:
    rng = np.random.default_rng(3)
    chunk = rng.normal(0, 1, 64).astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    assert CODEC.encoder(chunk, 64).form != "palette"


def test_size_stays_near_the_entropy() -> None:
    chunk = deltas(5, 400_000, 1.5e-4, kept=0.0)
    chunk = chunk[chunk != CANONICAL_NAN]
    chosen = CODEC.encoder(chunk[:65536].copy(), chunk.size)
    rounded = np.where(chunk == KEEP, 0, chunk)
    counts = np.unique((rounded + 0x7FFF + ((rounded >> 16) & 1)) >> 16, return_counts=True)[1]
    p = counts / counts.sum()
    joint = float(-(p * np.log2(p)).sum())
    assert 8 * len(chosen.encode(chunk)) / chunk.size < 1.05 * joint


@pytest.mark.parametrize(("form", "sparse"), FORMS)
@pytest.mark.parametrize("wide", [False, True])
def test_damaged_frames_are_refused_or_decode_to_something(
    form: str, sparse: bool, wide: bool
) -> None:
    """Any byte changed, any cut: an error of the right class or other values, never a crash."""
    chunk = deltas(11, 3_000, 3e-4)
    chunk = widened(chunk, 1) if wide else chunk
    encoding = encoder(form, sparse, chunk)
    frame = encoding.encode(chunk)
    decoder = CODEC.decoder(encoding.params, encoding.arrays, where="t")
    rng = np.random.default_rng(2)
    out = np.empty_like(chunk)
    for at in rng.integers(0, len(frame), 60):
        damaged = bytearray(frame)
        damaged[at] ^= 1 << int(rng.integers(0, 8))
        try:
            decoder.decode(bytes(damaged), out)
        except PartInvalidError:
            continue
    for cut in (0, 1, 3, len(frame) // 2, len(frame) - 1):
        with pytest.raises(PartInvalidError):
            decoder.decode(frame[:cut], out)


def test_a_frame_cannot_expand_past_its_chunk() -> None:
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(50_000_000))
    palette = np.array([KEEP >> 16], np.uint16)
    decoder = CODEC.decoder({"form": "palette", "sparse": False}, {"palette": palette}, where="t")
    with pytest.raises(PartInvalidError, match="at most"):
        decoder.decode(bomb, np.empty(1000, np.uint32))


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    stream = zstandard.ZstdCompressor().compressobj()
    unsized = stream.compress(bytes(100)) + stream.flush()
    with pytest.raises(PartInvalidError):
        entropy.decompress(unsized, max_bytes=1000, where="t")


def test_a_frame_is_one_frame_and_nothing_else() -> None:
    frame = entropy.compress([np.arange(200, dtype=np.uint8)])
    checked = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(100))
    skippable = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    for wrong in (
        frame * 2,
        frame + skippable,
        skippable + frame,
        frame + b"\0",
        checked[:-1],
        checked[:-4],
        b"",
        skippable,
    ):
        with pytest.raises(PartInvalidError, match=r"no zstd frame|one zstd frame|states? "):
            entropy.decompress(wrong, max_bytes=1000, where="t")
    for right in (frame, checked):
        assert entropy.decompress(right, max_bytes=1000, where="t").size in (100, 200)


def test_a_frame_may_not_ask_for_a_large_window_or_a_dictionary() -> None:
    # One that states its content and a window of its own, which the library never writes for so
    # little: descriptor, window 2^28, size in four bytes, one last block of the type RLE.
    large = b"\x28\xb5\x2f\xfd\x80" + bytes([(28 - 10) << 3]) + (100).to_bytes(4, "little")
    large += (100 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    with pytest.raises(PartInvalidError, match="window"):
        entropy.decompress(large, max_bytes=1000, where="t")
    small = large.replace(bytes([(28 - 10) << 3]), bytes([(20 - 10) << 3]))
    assert entropy.decompress(small, max_bytes=1000, where="t").tolist() == [0] * 100
    dictionary = zstandard.train_dictionary(
        4096, [bytes([i, j] * 40) for i in range(99) for j in range(9)]
    )
    named = zstandard.ZstdCompressor(dict_data=dictionary).compress(bytes(100))
    with pytest.raises(PartInvalidError, match="dictionary"):
        entropy.decompress(named, max_bytes=1000, where="t")


def test_escapes_must_match_their_symbols() -> None:
    palette = np.array([KEEP >> 16], np.uint16)
    decoder = CODEC.decoder({"form": "palette", "sparse": False}, {"palette": palette}, where="t")
    tokens = np.zeros(16, np.uint8)
    tokens[3] = 255
    frame = entropy.compress([tokens])
    with pytest.raises(PartInvalidError, match="escapes"):
        decoder.decode(frame, np.empty(16, np.uint32))
    unused = entropy.compress([np.full(16, 9, np.uint8)])
    for kind in (np.uint32, np.uint64):
        with pytest.raises(PartInvalidError, match="beyond its palette"):
            decoder.decode(unused, np.empty(16, kind))


def test_masks_must_stay_within_the_chunk() -> None:
    palette = np.array([KEEP >> 16], np.uint16)
    decoder = CODEC.decoder({"form": "palette", "sparse": True}, {"palette": palette}, where="t")
    frame = entropy.compress([np.array([0, 0x80], np.uint8), np.zeros(1, np.uint8)])
    with pytest.raises(PartInvalidError, match="past"):
        decoder.decode(frame, np.empty(9, np.uint32))


@pytest.mark.parametrize(
    ("params", "arrays", "error"),
    [
        ({"form": "cubic", "sparse": False}, {}, CodecUnknownError),
        ({"form": "half", "sparse": 1}, {}, PartInvalidError),
        ({"form": "palette", "sparse": False}, {}, PartInvalidError),
        (
            {"form": "palette", "sparse": False},
            {"palette": np.zeros(256, np.uint16)},
            PartInvalidError,
        ),
        (
            {"form": "palette", "sparse": False},
            {"palette": np.zeros(2, np.float32)},
            PartInvalidError,
        ),
    ],
)
def test_parameters_are_checked(params: dict, arrays: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        CODEC.decoder(params, arrays, where="t")


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_values_round_trip(itemsize: int) -> None:
    raw = np.random.default_rng(itemsize).integers(0, 256, 1001 * itemsize, dtype=np.uint8)
    frame = encode_values(raw, itemsize)
    out = np.empty_like(raw)
    decode_values(frame, itemsize, out, where="t")
    assert np.array_equal(out, raw)
    with pytest.raises(PartInvalidError):
        decode_values(frame, itemsize, np.empty(1000 * itemsize, np.uint8), where="t")


def test_patches_round_trip_and_are_checked() -> None:
    positions = np.array([0, 5, 99], np.int64)
    post = np.arange(6, dtype=np.uint8)
    frame = encode_patch(positions, post)
    got, values = decode_patch(frame, 2, 100, where="t")
    assert got.tolist() == [0, 5, 99]
    assert np.array_equal(values, post)
    with pytest.raises(PartInvalidError, match="ascending"):
        decode_patch(frame, 2, 99, where="t")
    with pytest.raises(PartInvalidError, match="ascending"):
        decode_patch(encode_patch(positions[::-1].copy(), post), 2, 100, where="t")
