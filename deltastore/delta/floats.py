"""Bytes of a tensor to floats and back, with exactly one rounding.

Source: IEEE 754-2019 round to nearest, ties to even; round to odd before the second conversion
(Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008) makes
float64 -> float32 -> 16 bits or fewer equal to one direct rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deltastore.kernels.jit import (
    bits_from_float32,
    float32_from_bits,
    float64_from_bits,
    kernel,
)

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]

E4M3_MAX = np.float32(448)
E4M3_OVERFLOWS = 464
"""Beyond this a number would round to the next one after ``E4M3_MAX``, if there were one."""

_U32 = np.uint32  # Numba widens integer operations to 64 bits; each is cast back for wide vectors
_TWO_TO_112 = np.float32(2.0**112)
_HALF_BITS = np.uint32(0x3F000000)
_U16_7FFF = np.uint32(0x7FFF)
_ONE = np.uint32(1)
_SIXTEEN = np.uint32(16)
_ABS = np.uint32(0x7FFFFFFF)
_INF = np.uint32(0x7F800000)
QUIET_NAN = np.uint32(0x7FC0)
"""The NaN that applying gives, as a bfloat16."""


def to_floats(raw: Bytes, dtype: str, *, wide: bool) -> Floats:
    """Tensor bytes as float32, or as float64 if ``wide``; both conversions are exact.

    Shapes:
        raw: ``[n * itemsize]``, uint8; result: ``[n]``. May share memory with ``raw``.
    """
    values: Any
    if dtype == "BF16":
        values = (raw.view(np.uint16).astype(np.uint32) << _SIXTEEN).view(np.float32)
    elif dtype == "F16":
        singles = np.empty(raw.size // 2, np.uint32)
        _widen_float16(raw.view(np.uint16), singles)
        values = singles.view(np.float32)
    elif dtype == "F32":
        values = raw.view(np.float32)
    elif dtype == "F64":
        values = raw.view(np.float64)
    else:
        values = raw.view(_small_float(dtype)).astype(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        result: Floats = values.astype(np.float64 if wide else np.float32, copy=False)
    return result


def from_floats(values: Floats, dtype: str) -> Bytes:
    """Floats as a tensor's bytes, rounded once to nearest even.

    What overflows becomes what the dtype's own conversion gives: an infinity, or the largest
    number in ``F8_E4M3``, which has no infinity (torch does the same).

    Shapes:
        values: ``[n]``, float32 or float64; result: ``[n * itemsize]``, uint8.
    """
    result: Any
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "F64":
            result = values.astype(np.float64, copy=False)
        elif dtype == "F32":
            result = values.astype(np.float32, copy=False)
        else:
            if values.dtype == np.float64:
                single = np.empty(values.size, np.uint32)
                _round_to_odd(values.view(np.uint64), single)
                values = single.view(np.float32)
            if dtype == "BF16":
                result = np.empty(values.size, np.uint16)
                _all_to_bfloat16(values.view(np.uint32), result)
            elif dtype == "F16":
                result = np.empty(values.size, np.uint16)
                _round_to_float16(values.view(np.uint32), result)
            else:
                if dtype == "F8_E4M3":
                    values = np.clip(values, -E4M3_MAX, E4M3_MAX, dtype=np.float32)
                result = values.astype(_small_float(dtype))
    return result.view(np.uint8)  # type: ignore[no-any-return]


def _small_float(dtype: str) -> Any:
    import ml_dtypes  # costs a tenth of a second, and 8-bit floats are rare

    return {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}[dtype]


@kernel
def round_to_bfloat16(bits: np.uint32) -> np.uint32:
    """The upper half of float32 bits, rounded to nearest, ties to even; not for NaN.

    Adding 0x7FFF carries into the upper half just where the lower one is over 0x8000. A tie, 0x8000
    itself, needs one more, which the last bit of the upper half is where that is odd.
    """
    odd = _U32(_U32(bits >> _SIXTEEN) & _ONE)
    return _U32(_U32(bits + _U32(_U16_7FFF + odd)) >> _SIXTEEN)


@kernel
def bfloat16_bits(value: np.float32) -> np.uint32:
    """A float32 as a bfloat16, in the low 16 bits; every NaN as the one quiet NaN."""
    bits = bits_from_float32(value)
    return QUIET_NAN if _U32(bits & _ABS) > _INF else round_to_bfloat16(bits)


@kernel
def _all_to_bfloat16(bits: npt.NDArray[np.uint32], out: npt.NDArray[np.uint16]) -> None:
    for i in range(bits.size):
        out[i] = np.uint16(bfloat16_bits(float32_from_bits(bits[i])))


@kernel
def _widen_float16(halves: npt.NDArray[np.uint16], out: npt.NDArray[np.uint32]) -> None:
    """Float16 to float32 bits: exponents move by a multiplication, which subnormals survive."""
    for i in range(halves.size):
        half = _U32(halves[i])
        shifted = _U32(_U32(half & _U32(0x7FFF)) << _U32(13))
        scaled = bits_from_float32(float32_from_bits(shifted) * _TWO_TO_112)
        special = _U32(half & _U32(0x7C00)) == _U32(0x7C00)
        magnitude = _U32(shifted | _INF) if special else scaled
        out[i] = _U32(magnitude | _U32(_U32(half & _U32(0x8000)) << _SIXTEEN))


@kernel
def _round_to_float16(bits: npt.NDArray[np.uint32], out: npt.NDArray[np.uint16]) -> None:
    """Float32 to float16 bits; adding 0.5, whose last bit is theirs, rounds subnormals."""
    for i in range(bits.size):
        magnitude = _U32(bits[i] & _ABS)
        carry = _U32(_U32(0xFFF) + _U32(_U32(magnitude >> _U32(13)) & _ONE))
        normal = _U32(_U32(_U32(magnitude + carry) - _U32(112 << 23)) >> _U32(13))
        tiny = _U32(bits_from_float32(float32_from_bits(magnitude) + np.float32(0.5)) - _HALF_BITS)
        result = normal if magnitude >= _U32(0x38800000) else tiny
        result = _U32(0x7C00) if magnitude >= _U32(0x47800000) else result
        result = _U32(0x7E00) if magnitude > _INF else result
        out[i] = np.uint16(result | _U32(_U32(bits[i] & _U32(0x80000000)) >> _SIXTEEN))


@kernel
def _round_to_odd(wide: npt.NDArray[np.uint64], out: npt.NDArray[np.uint32]) -> None:
    """Float64 to float32 bits: truncated, the last bit set where anything was lost."""
    for i in range(wide.size):
        value = float64_from_bits(wide[i])
        single = np.float32(value)
        bits = bits_from_float32(single)
        back = np.float64(single)
        if back != value and value == value:  # the second: not NaN
            away = abs(back) > abs(value)
            bits = (bits - _ONE if away else bits) | _ONE
        out[i] = bits


@kernel
def fold(values: npt.NDArray[Any], size: int) -> float:
    """Sum of ``values[:size]``, a power of two, by halving: vector code in a fixed order.

    Shapes:
        values: at least ``[size]``, float32 or float64; overwritten.
    """
    while size > 8:
        size //= 2
        for i in range(size):
            values[i] += values[i + size]
    total = 0.0
    for i in range(size):
        total += np.float64(values[i])
    return total


@kernel
def sum_of_squares(values: npt.NDArray[Any]) -> float:
    """Sum of the squares of the finite values, in float64, in a fixed order.

    Shapes:
        values: ``[n]``, float32 or float64.
    """
    lanes = np.zeros(8, np.float64)
    whole = values.size // 8 * 8
    for i in range(0, whole, 8):
        for j in range(8):
            x = np.float64(values[i + j])
            lanes[j] += x * x if abs(x) < np.inf else 0.0
    for i in range(whole, values.size):
        x = np.float64(values[i])
        lanes[0] += x * x if abs(x) < np.inf else 0.0
    total = 0.0
    for j in range(8):
        total += lanes[j]
    return min(total, 1e300)
