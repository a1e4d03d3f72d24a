"""The exact arithmetic against a plain torch expression that shares no code with it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltastore.delta import Term, add, subtract
from deltastore.delta.floats import from_floats, to_floats
from deltastore.delta.subtract import is_wide
from deltastore.manifest.format import KEEP, KEEP_WIDE

TORCH = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1}
SMALL = ("BF16", "F16", "F8_E4M3", "F8_E5M2")


def tensor(raw: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw.tobytes()), dtype=torch.uint8).view(TORCH[dtype])


def raw_bytes(values: torch.Tensor) -> np.ndarray:
    return values.contiguous().view(torch.uint8).numpy().copy()


def random_bits(seed: int, n: int, dtype: str) -> np.ndarray:
    """Half ordinary weights, half arbitrary bit patterns: NaN, infinities, subnormals, -0.0."""
    rng = np.random.default_rng(seed)
    ordinary = torch.from_numpy(rng.normal(0, 0.02, n)).to(torch.float32).to(TORCH[dtype])
    raw = raw_bytes(ordinary).reshape(n, SIZES[dtype])
    wild = rng.integers(0, 256, (n, SIZES[dtype]), dtype=np.uint8)
    pick = rng.random(n) < 0.5
    raw[pick] = wild[pick]
    return raw.reshape(-1)


def near(raw: np.ndarray, dtype: str, seed: int) -> np.ndarray:
    """A fine-tuned neighbour, with some elements equal and some wild."""
    rng = np.random.default_rng(seed + 1)
    base = tensor(raw, dtype)
    real = torch.float64 if dtype == "F64" else torch.float32
    moved = (base.to(real) + torch.from_numpy(rng.laplace(0, 3e-4, base.numel())).to(real)).to(
        TORCH[dtype]
    )
    out = raw_bytes(moved).reshape(base.numel(), -1)
    same = rng.random(base.numel()) < 0.3
    out[same] = raw.reshape(base.numel(), -1)[same]
    wild = random_bits(seed + 2, base.numel(), dtype).reshape(base.numel(), -1)
    some = rng.random(base.numel()) < 0.1
    out[some] = wild[some]
    return out.reshape(-1)


def delta_of(base: np.ndarray, bd: str, post: np.ndarray, pd: str) -> tuple[np.ndarray, np.ndarray]:
    n = base.size // SIZES[bd]
    delta = np.empty(n, np.uint64 if is_wide(bd, pd) else np.uint32)
    found = subtract(base, bd, post, pd, delta)
    return delta, found.lost


def oracle(
    new: np.ndarray, nd: str, base: np.ndarray, post: np.ndarray, dtype: str, alpha: float
) -> torch.Tensor:
    """Θ'_base + α·(Θ_post - Θ_base) with one conversion, in torch."""
    real = torch.float64 if dtype in ("F32", "F64") or nd in ("F32", "F64") else torch.float32
    difference = tensor(post, dtype).to(real) - tensor(base, dtype).to(real)
    return tensor(new, nd).to(real) + torch.tensor(alpha, dtype=real) * difference


def finite_equal(got: np.ndarray, want: torch.Tensor, dtype: str) -> None:
    got_values = tensor(got, dtype)
    wide_got, wide_want = got_values.to(torch.float64), want.to(torch.float64)
    finite = torch.isfinite(wide_want)
    size = SIZES[dtype]
    a = got.reshape(-1, size)[finite.numpy()]
    b = raw_bytes(want).reshape(-1, size)[finite.numpy()]
    assert np.array_equal(a, b)
    assert torch.equal(torch.isfinite(wide_got), finite)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E4M3", "F8_E5M2", "F32", "F64"])
@pytest.mark.parametrize("alpha", [1.0, 0.5, -1.0, 0.3, 0.0, 1e30])
def test_formula_on_any_base(dtype: str, alpha: float) -> None:
    n = 20_011
    base = random_bits(1, n, dtype)
    post = near(base, dtype, 2)
    new = random_bits(3, n, dtype)
    delta, _ = delta_of(base, dtype, post, dtype)
    out = np.empty_like(new)
    add(new, dtype, [Term(delta, alpha)], dtype, out)
    equal = (base.reshape(n, -1) == post.reshape(n, -1)).all(axis=1)
    untouched = out.reshape(n, -1)[equal]
    assert np.array_equal(untouched, new.reshape(n, -1)[equal])
    want = oracle(new, dtype, base, post, dtype, alpha).to(TORCH[dtype])
    keep = ~equal
    finite_equal(
        out.reshape(n, -1)[keep].reshape(-1), want[torch.from_numpy(keep)].contiguous(), dtype
    )


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E4M3", "F8_E5M2", "F32", "F64"])
def test_restores_post_but_for_what_it_lists(dtype: str) -> None:
    n = 20_011
    base = random_bits(4, n, dtype)
    post = near(base, dtype, 5)
    delta, lost = delta_of(base, dtype, post, dtype)
    out = np.empty_like(post)
    add(base, dtype, [Term(delta, 1.0)], dtype, out)
    differs = (out.reshape(n, -1) != post.reshape(n, -1)).any(axis=1)
    assert np.array_equal(np.flatnonzero(differs), lost)
    # Ordinary weights are restored without a patch, but for exponents far apart.
    plain = np.isfinite(to_floats(base, dtype, wide=True)) & np.isfinite(
        to_floats(post, dtype, wide=True)
    )
    big = np.abs(to_floats(base, dtype, wide=True)) < 1
    assert differs[plain & big].mean() < 0.2


@pytest.mark.parametrize(
    ("base_dtype", "post_dtype", "new_dtype", "out_dtype"),
    [
        ("F32", "BF16", "F32", "BF16"),
        ("BF16", "F32", "BF16", "F32"),
        ("BF16", "BF16", "F32", "F32"),
        ("BF16", "BF16", "F16", "F16"),
        ("F16", "F16", "BF16", "F32"),
        ("F64", "F32", "F64", "F32"),
        ("F8_E4M3", "BF16", "F8_E4M3", "BF16"),
    ],
)
def test_mixed_dtypes(base_dtype: str, post_dtype: str, new_dtype: str, out_dtype: str) -> None:
    n = 9_001
    rng = np.random.default_rng(6)
    floats = torch.from_numpy(rng.normal(0, 0.5, n)).float()
    base = raw_bytes(floats.to(TORCH[base_dtype]))
    post = raw_bytes(
        (floats + torch.from_numpy(rng.normal(0, 0.01, n)).float()).to(TORCH[post_dtype])
    )
    new = raw_bytes((floats * 1.1).to(TORCH[new_dtype]))
    delta, _ = delta_of(base, base_dtype, post, post_dtype)
    out = np.empty(n * SIZES[out_dtype], np.uint8)
    add(new, new_dtype, [Term(delta, 1.0)], out_dtype, out)
    wide = {"F32", "F64"} & {base_dtype, post_dtype, new_dtype}
    real = torch.float64 if wide else torch.float32
    difference = tensor(post, post_dtype).to(
        torch.float64 if {"F32", "F64"} & {base_dtype, post_dtype} else torch.float32
    )
    difference = difference - tensor(base, base_dtype).to(difference.dtype)
    total = tensor(new, new_dtype).to(real) + difference.to(real)
    if out_dtype in SMALL and real == torch.float64:
        want = nearest(total.numpy(), out_dtype)
        assert np.array_equal(out, want)
    else:
        touched = torch.from_numpy(delta != (KEEP_WIDE if delta.dtype == np.uint64 else KEEP))
        got = tensor(out, out_dtype)[touched]
        assert torch.equal(got, total.to(TORCH[out_dtype])[touched])


def nearest(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float64 to a small dtype once, by exact rational comparison of the neighbours."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    table = tensor(patterns.view(np.uint8), dtype).to(torch.float64).numpy()
    usable = np.flatnonzero(np.isfinite(table) & ~((table == 0) & (patterns == 0x8000)))
    order = usable[np.argsort(table[usable], kind="stable")]
    grid = table[order]
    result = np.empty(values.size, np.uint16)
    for i, value in enumerate(values):
        at = np.searchsorted(grid, value)
        candidates = [k for k in (at - 1, at) if 0 <= k < grid.size]
        best = min(
            candidates,
            key=lambda k: (abs(Fraction(float(grid[k])) - Fraction(float(value))), order[k] & 1),
        )
        result[i] = order[best]
        if grid[best] == 0:
            result[i] = 0x8000 if np.signbit(value) else 0
    return result.view(np.uint8)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_one_rounding_from_float64(dtype: str) -> None:
    """Values just beside a tie, where rounding to float32 first would go the wrong way."""
    rng = np.random.default_rng(7)
    ties = rng.normal(0, 1, 500).astype(np.float32)
    half = 1 << 15 if dtype == "BF16" else 1 << 12
    bits = (ties.view(np.uint32) & ~np.uint32(2 * half - 1)) | np.uint32(half)
    values = bits.view(np.float32).astype(np.float64)
    values = np.concatenate([values * (1 + 1e-14), values * (1 - 1e-14), values])
    assert np.array_equal(from_floats(values, dtype), nearest(values, dtype))
    twice = values.astype(np.float32)
    wrong = raw_bytes(torch.from_numpy(twice).to(TORCH[dtype]))
    assert not np.array_equal(wrong, nearest(values, dtype)), "the values do not test anything"


def test_several_deltas_add_from_left_to_right() -> None:
    n = 5_003
    base = random_bits(8, n, "BF16")
    posts = [near(base, "BF16", 9), near(base, "BF16", 20)]
    new = random_bits(11, n, "BF16")
    deltas = [delta_of(base, "BF16", post, "BF16")[0] for post in posts]
    out = np.empty_like(new)
    add(new, "BF16", [Term(deltas[0], 0.7), Term(deltas[1], -0.2)], "BF16", out)
    total = tensor(new, "BF16").float()
    for post, alpha in zip(posts, (0.7, -0.2), strict=True):
        product = torch.tensor(alpha) * (
            tensor(post, "BF16").float() - tensor(base, "BF16").float()
        )
        equal = torch.from_numpy(post.view(np.uint16) == base.view(np.uint16))
        total = torch.where(equal, total, total + product)
    moved = np.logical_or(*[d != KEEP for d in deltas])
    finite_equal(
        out.view(np.uint16)[moved].view(np.uint8),
        total.to(torch.bfloat16)[torch.from_numpy(moved)].contiguous(),
        "BF16",
    )
    assert np.array_equal(out.view(np.uint16)[~moved], new.view(np.uint16)[~moved])


def test_overflow_is_counted_and_becomes_an_infinity() -> None:
    big = raw_bytes(torch.tensor([3.3e38, 1.0, -3.3e38, float("inf")], dtype=torch.bfloat16))
    zero = raw_bytes(torch.tensor([0.0, 0.0, 0.0, 0.0], dtype=torch.bfloat16))
    delta, _ = delta_of(zero, "BF16", big, "BF16")
    out = np.empty_like(big)
    assert add(big, "BF16", [Term(delta, 1.0)], "BF16", out) == 2
    assert tensor(out, "BF16").tolist() == [float("inf"), 2.0, float("-inf"), float("inf")]
    half = np.empty(8, np.uint8)
    assert add(big, "BF16", [Term(delta, 1.0)], "F16", half) == 2


def test_zero_deltas_differ_from_untouched() -> None:
    """+0.0 to -0.0 is a change, though its delta is a zero; with α < 0 it acts as one."""
    plus, minus = (raw_bytes(torch.tensor([z], dtype=torch.bfloat16)) for z in (0.0, -0.0))
    moved, _ = delta_of(plus, "BF16", minus, "BF16")
    kept, _ = delta_of(minus, "BF16", minus, "BF16")
    out = np.empty_like(minus)
    add(minus, "BF16", [Term(moved, -1.0)], "BF16", out)
    assert out.view(np.uint16)[0] == 0  # -0.0 + (-1 * -0.0) = +0.0
    add(minus, "BF16", [Term(kept, -1.0)], "BF16", out)
    assert out.view(np.uint16)[0] == 0x8000


def test_sums_of_squares_survive_extreme_values() -> None:
    base = np.zeros(5000, np.float32)
    post = base.copy()
    post[17] = 1e30
    post[4999] = np.inf
    raw = [
        np.ascontiguousarray(x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        for x in (base, post)
    ]
    found = subtract(raw[0], "BF16", raw[1], "BF16", np.empty(5000, np.uint32))
    exact = float(tensor(raw[1], "BF16").double()[17]) ** 2
    assert found.squares == pytest.approx(exact, rel=1e-12)
    assert found.changed == 2


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
        min_size=1,
        max_size=64,
    ),
    st.sampled_from([1.0, -1.0, 0.5, 3.25]),
)
def test_bfloat16_kernels_equal_the_general_route(
    bits: list[tuple[int, int, int]], alpha: float
) -> None:
    """The fast kernels and the step-by-step route give the same bits on every pattern."""
    from deltastore.delta.add import _add_any
    from deltastore.delta.subtract import _subtract_any

    base, post, new = (
        np.array(column, np.uint16).view(np.uint8) for column in zip(*bits, strict=True)
    )
    fast = np.empty(len(bits), np.uint32)
    slow = np.empty(len(bits), np.uint32)
    found = subtract(base, "BF16", post, "BF16", fast)
    changed, squares, base_squares = _subtract_any(base, "BF16", post, "BF16", slow)
    assert np.array_equal(fast, slow)
    assert found.changed == changed
    assert found.squares == pytest.approx(squares, rel=1e-5)
    assert found.base_squares == pytest.approx(base_squares, rel=1e-5)
    a, b = np.empty_like(new), np.empty_like(new)
    assert add(new, "BF16", [Term(fast, alpha)], "BF16", a) == _add_any(
        new, "BF16", [Term(slow, alpha)], "BF16", b
    )
    assert np.array_equal(a, b) or nan_alike(a, b)


def nan_alike(a: np.ndarray, b: np.ndarray) -> bool:
    x, y = tensor(a, "BF16"), tensor(b, "BF16")
    return bool(((x == y) | (x.isnan() & y.isnan())).all())


def test_every_float16_widens_and_rounds_back() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    wide = to_floats(patterns.view(np.uint8), "F16", wide=False)
    want = tensor(patterns.view(np.uint8), "F16").float()
    assert torch.equal(torch.from_numpy(wide.copy()).isnan(), want.isnan())
    number = ~np.isnan(wide)
    assert np.array_equal(wide[number].view(np.uint32), want.numpy()[number].view(np.uint32))
    back = from_floats(wide, "F16").view(np.uint16)
    assert np.array_equal(back[number], patterns[number])


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_rounding_of_float32_equals_torch(dtype: str) -> None:
    """A sweep over all exponents and signs, with ties and their neighbours."""
    bits = np.arange(0, 1 << 32, 6_007, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(1 << 16, dtype=np.uint32) << 16) | 0x8000
    half_ties = (np.arange(1 << 19, dtype=np.uint32) << 13) | 0x1000
    bits = np.concatenate([bits, ties, ties + 1, ties - 1, half_ties, half_ties + 1, half_ties - 1])
    values = bits.view(np.float32)
    values = values[~np.isnan(values)].copy()
    got = from_floats(values, dtype)
    assert np.array_equal(got, raw_bytes(torch.from_numpy(values).to(TORCH[dtype])))


@pytest.mark.parametrize("base_bits", [0x3C00, 0x7FC1, 0x7F81, 0x7F80, 0xFF80])
@pytest.mark.parametrize("post_bits", [0xFFC0, 0x7FC1, 0x7F81, 0xFFFF, 0x7FFF, 0x7FFE, 0x7FC0])
def test_a_lone_nan_is_listed_as_lost(base_bits: int, post_bits: int) -> None:
    """Nothing else in the chunk is lost, so only the kernel's own count can notice."""
    base = np.full(3, 0x3C00, np.uint16)
    post = base.copy()
    base[1], post[1] = base_bits, post_bits
    delta, lost = delta_of(base.view(np.uint8), "BF16", post.view(np.uint8), "BF16")
    out = np.empty(6, np.uint8)
    add(base.view(np.uint8), "BF16", [Term(delta, 1.0)], "BF16", out)
    assert np.array_equal(np.flatnonzero(out.view(np.uint16) != post), lost)
