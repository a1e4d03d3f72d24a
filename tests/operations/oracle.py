"""What applying must give, as plain torch arithmetic that shares nothing with the package.

Θ_out = Θ'_base + Σ αᵢ·Δᵢ in float32, or in float64 as soon as a float32 or float64 tensor takes
part; one rounding to nearest even at the end; what base and post have in common stays untouched.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from checkpoints import bits

WIDE = (torch.float32, torch.float64)
_SIXTEEN_BITS_OR_FEWER = (
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


@dataclass(frozen=True)
class Step:
    """One delta: its two sources and its scale."""

    base: torch.Tensor
    post: torch.Tensor
    scale: float = 1.0

    @property
    def real(self) -> torch.dtype:
        wide = self.base.dtype in WIDE or self.post.dtype in WIDE
        return torch.float64 if wide else torch.float32

    @property
    def delta(self) -> torch.Tensor:
        return self.post.to(self.real) - self.base.to(self.real)

    @property
    def moved(self) -> torch.Tensor:
        if self.base.dtype != self.post.dtype:
            return torch.ones(self.base.shape, dtype=torch.bool)
        return bits(self.base) != bits(self.post)


def applied(
    base: torch.Tensor, steps: Sequence[Step], out: torch.dtype | None = None
) -> torch.Tensor:
    """The output tensor. Shapes: all the same; result: ``out``, or the base's dtype."""
    out = out or base.dtype
    result = rounded(summed(base, steps), out)
    if out != base.dtype:
        return result
    touched = torch.zeros(base.shape, dtype=torch.bool)
    for step in steps:
        touched |= step.moved
    # Through integers: a choice between floats may change the payload of a NaN.
    return torch.where(touched, bits(result), bits(base)).view(out)


def summed(base: torch.Tensor, steps: Sequence[Step]) -> torch.Tensor:
    """The sum before it is rounded, in float32 or float64."""
    wide = base.dtype in WIDE or any(step.real == torch.float64 for step in steps)
    real = torch.float64 if wide else torch.float32
    total = base.to(real)
    for step in steps:
        scale = torch.tensor(step.scale, dtype=torch.float64).to(real)
        total = torch.where(step.moved, total + scale * step.delta.to(real), total)
    return total


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One rounding to nearest even.

    Torch converts float64 to 16 bits or fewer by way of float32, hence with two roundings: there
    the nearest number is looked up among all that the dtype has. So it is for ``float8_e4m3fn``,
    which has no infinity: what is too large becomes its largest number, but NaN in older torch.
    """
    small = dtype in _SIXTEEN_BITS_OR_FEWER
    if (small and values.dtype == torch.float64) or dtype == torch.float8_e4m3fn:
        return nearest(values.to(torch.float64), dtype)
    return values.to(dtype)


def nearest(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The nearest number of a small dtype, ties to the even one, by search in a table.

    Everything here is exact in float64: the numbers of the dtype, and the middle of two of them.
    """
    integer = torch.uint8 if dtype.itemsize == 1 else torch.int16
    points = _points(dtype)
    size = values.abs()
    upper = torch.searchsorted(points, size.contiguous(), right=True).clamp(1, len(points) - 1)
    middle = (points[upper - 1] + points[upper]) / 2
    even = (upper - 1) % 2 == 0
    up = (size > middle) | ((size == middle) & ~even)
    chosen = torch.where(up, upper, upper - 1)
    if dtype == torch.float8_e4m3fn:
        chosen = chosen.clamp(max=len(points) - 2)
    sign = torch.signbit(values).to(torch.int32) << (8 * dtype.itemsize - 1)
    result = (chosen.to(torch.int32) | sign).to(integer).view(dtype)
    nan = torch.full_like(values, torch.nan).to(dtype)
    return torch.where(torch.isnan(values), bits(nan), bits(result)).view(dtype)


@functools.cache
def _points(dtype: torch.dtype) -> torch.Tensor:
    """The finite numbers from 0 on, by their bits, and the one that would follow the largest."""
    patterns = torch.arange(1 << (8 * dtype.itemsize - 1), dtype=torch.int32)
    integer = torch.uint8 if dtype.itemsize == 1 else torch.int16
    table = patterns.to(integer).view(dtype).to(torch.float64)
    finite = table[torch.isfinite(table)]
    beyond = finite[-1] + (finite[-1] - finite[-2])
    return torch.cat([finite, beyond.reshape(1)])


def check(got: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
    """Equal bits wherever the expected element is a number or an infinity; NaN where it is NaN."""
    assert got.dtype == expected.dtype, what
    assert got.shape == expected.shape, what
    nan = torch.isnan(expected.to(torch.float64))
    assert torch.equal(torch.isnan(got.to(torch.float64)), nan), what
    wrong = (bits(got) != bits(expected)) & ~nan
    assert not wrong.any(), (
        f"{what}: {int(wrong.sum())} elements, the first: got {got[wrong].flatten()[0].item()}, "
        f"expected {expected[wrong].flatten()[0].item()}"
    )


def overflowed(base: torch.Tensor, steps: Sequence[Step], out: torch.dtype | None = None) -> int:
    """Elements that are finite in the base and in every delta and too large for the output."""
    out = out or base.dtype
    finite = torch.isfinite(base.to(torch.float64))
    for step in steps:
        finite &= torch.isfinite(step.delta.to(torch.float64)) | ~step.moved
    if out == torch.float8_e4m3fn:
        lost = summed(base, steps).abs() > 464  # the middle between its largest number and 480
    else:
        lost = ~torch.isfinite(applied(base, steps, out).to(torch.float64))
    return int((finite & lost).sum())
