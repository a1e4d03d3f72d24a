"""Deltas as palette tokens, in one pass with the arithmetic: the same as in two, bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from delta.test_arithmetic import near, random_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from deltastore.codecs import PaletteDecoder, PaletteEncoder, get_codec
from deltastore.delta import Term, add, add_tokens, are_differences, subtract, subtract_to_tokens
from deltastore.kernels.palette import BLOCK, TOKEN_ESCAPE, Tokens, escapes_in
from deltastore.manifest.format import KEEP

SIZES = [1, 7, 8, 9, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5]


def table_of(palette: np.ndarray) -> np.ndarray:
    """The token of each upper half."""
    table = np.full(1 << 16, TOKEN_ESCAPE, np.uint8)
    table[palette] = np.arange(palette.size)
    return table


def tokens_of(delta: np.ndarray, palette: np.ndarray) -> Tokens:
    """A chunk's tokens, one element after the other."""
    known = {int(high): token for token, high in enumerate(palette)}
    symbols, escapes = [], []
    for bits in delta.tolist():
        token = known.get(bits >> 16, TOKEN_ESCAPE) if bits & 0xFFFF == 0 else TOKEN_ESCAPE
        symbols.append(token)
        if token == TOKEN_ESCAPE:
            escapes.append(bits)
    table = np.zeros(256, np.uint32)
    table[: palette.size] = palette.astype(np.uint32) << 16
    planes = np.array(escapes, "<u4").view(np.uint8).reshape(-1, 4).T
    return Tokens(np.array(symbols, np.uint8), table, np.ascontiguousarray(planes).reshape(-1))


def pair(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Base, post and delta, with all the special values."""
    base = random_bits(seed, n, "BF16")
    post = near(base, "BF16", seed)
    delta = np.empty(n, np.uint32)
    subtract(base, "BF16", post, "BF16", delta)
    return base, post, delta


def palette_of(delta: np.ndarray, size: int) -> np.ndarray:
    high = delta[delta & 0xFFFF == 0] >> 16
    return np.unique(high)[:size].astype(np.uint16)


@settings(max_examples=100, deadline=None)
@given(
    n=st.sampled_from(SIZES),
    seed=st.integers(0, 1 << 30),
    palette_size=st.integers(0, 255),
)
def test_subtracting_to_tokens_is_subtracting(n: int, seed: int, palette_size: int) -> None:
    base, post, delta = pair(seed, n)
    palette = palette_of(delta, palette_size)
    want = tokens_of(delta, palette)
    tokens, escapes = np.empty(n, np.uint8), np.empty(n + 1, np.uint32)
    count, found = subtract_to_tokens(base, post, table_of(palette), tokens, escapes)
    plain = subtract(base, "BF16", post, "BF16", np.empty(n, np.uint32))
    assert tokens.tolist() == want.tokens.tolist()
    planes = escapes[:count].view(np.uint8).reshape(-1, 4).T.reshape(-1)
    assert planes.tolist() == want.escapes.tolist()
    assert found.lost.tolist() == plain.lost.tolist()
    assert (found.changed, found.squares, found.base_squares) == (
        plain.changed,
        plain.squares,
        plain.base_squares,
    )


@settings(max_examples=100, deadline=None)
@given(
    n=st.sampled_from(SIZES),
    seed=st.integers(0, 1 << 30),
    palette_size=st.integers(0, 255),
    scale=st.sampled_from([1.0, -0.5, 0.3, 0.0, 1e30]),
)
def test_adding_tokens_is_adding(n: int, seed: int, palette_size: int, scale: float) -> None:
    _, _, delta = pair(seed, n)
    new = random_bits(seed + 7, n, "BF16")
    want, got = np.empty_like(new), np.empty_like(new)
    tokens = tokens_of(delta, palette_of(delta, palette_size))
    overflowed = add(new, "BF16", [Term(delta, scale)], "BF16", want)
    assert add_tokens(new, tokens, scale, got) == overflowed
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize("n", [1, 8, BLOCK + 3])
def test_one_bit_is_seen_wherever_it_is_wrong(n: int) -> None:
    base, post, delta = pair(11, n)
    tokens = tokens_of(delta, palette_of(delta, 100))
    assert are_differences(base, post, tokens)
    for i in {0, n // 2, n - 1}:
        for bit in range(16):
            other = post.copy()
            other.view(np.uint16)[i] ^= np.uint16(1 << bit)
            changed = np.empty(n, np.uint32)
            subtract(base, "BF16", other, "BF16", changed)
            same = bool((changed == delta).all())  # NaN to another NaN
            assert are_differences(base, other, tokens) == same
    kept = np.flatnonzero(delta == KEEP)
    assert are_differences(base[:0], post[:0], tokens_of(delta[:0], palette_of(delta, 3)))
    assert n < 8 or kept.size, "the pair should have elements that are kept"


def test_escapes_are_counted_and_strange_tokens_seen() -> None:
    tokens = np.zeros(1000, np.uint8)
    assert escapes_in(tokens, 1) == 0
    tokens[[0, 127, 128, 129, 999]] = TOKEN_ESCAPE
    assert escapes_in(tokens, 1) == 5
    tokens[:] = TOKEN_ESCAPE
    assert escapes_in(tokens, 0) == 1000
    tokens[999] = 254
    assert escapes_in(tokens, 255) == 999
    assert escapes_in(tokens, 254) == -1


def test_escapes_that_are_missing_are_not_read_from_elsewhere() -> None:
    """A decoder refuses such a frame; should one get through, memory is not read past its end."""
    _, _, delta = pair(5, 64)
    tokens = dataclasses.replace(
        tokens_of(delta, palette_of(delta, 0)), escapes=np.empty(0, np.uint8)
    )
    out = np.empty(128, np.uint8)
    add_tokens(np.zeros(128, np.uint8), tokens, 1.0, out)
    assert out.tolist() == [0] * 128


@pytest.mark.parametrize("sparse", [False, True])
def test_the_exact_codec_makes_the_same_frame_of_tokens(sparse: bool) -> None:
    rng = np.random.default_rng(3)
    base = random_bits(1, 20_000, "BF16").view(np.uint16) & np.uint16(0xBFFF)
    post = base.copy()
    touched = rng.random(base.size) < (0.05 if sparse else 0.9)
    post[touched] ^= rng.integers(1, 4, touched.sum()).astype(np.uint16)
    delta = np.empty(base.size, np.uint32)
    subtract(base.view(np.uint8), "BF16", post.view(np.uint8), "BF16", delta)
    codec = get_codec("exact")
    encoder = codec.encoder(delta, delta.size)
    decoder = codec.decoder(encoder.params, encoder.arrays, where="x")
    frame = encoder.encode(delta)
    assert isinstance(encoder, PaletteEncoder) == isinstance(decoder, PaletteDecoder)
    if not isinstance(encoder, PaletteEncoder):
        assert encoder.params["sparse"] or encoder.params["form"] != "palette"
        return
    assert not sparse
    decoded = decoder.tokens(frame, delta.size)
    assert are_differences(base.view(np.uint8), post.view(np.uint8), decoded)
    tokens, escapes = np.empty(base.size, np.uint8), np.empty(base.size + 1, np.uint32)
    count, _ = subtract_to_tokens(
        base.view(np.uint8), post.view(np.uint8), encoder.token_table, tokens, escapes
    )
    assert encoder.encode_tokens(tokens, escapes[:count]) == frame
