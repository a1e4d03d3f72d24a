"""What the results must be, and the floor of their size, computed with plain numpy.

Nothing here uses the package: the arithmetic is the float32 expression itself, the entropy is
counted on the same files.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from benchmark.shards import Bits, read_tensors

BLOCK = 1 << 20  # elements
Number = TypeVar("Number", int, float)


def wrong_elements(out: Path, new_base: Path, base: Path, post: Path) -> int:
    """Count the elements of `out` that are not bf16(float32(new base) + float32(post - base)).

    Raises:
        ValueError: the tensors are not those of the new base.
    """
    models = [read_tensors(folder) for folder in (out, new_base, base, post)]
    if _layout(models[0]) != _layout(models[1]):
        raise ValueError(f"{out.name} does not have the tensors of {new_base.name}")

    def wrong(name: str) -> int:
        return sum(
            int(np.count_nonzero(got != _expected(onto, before, after)))
            for got, onto, before, after in _blocks([model[name] for model in models])
        )

    return sum(_parallel(wrong, models[0]))


def same_bits(one: Path, other: Path) -> bool:
    """Whether two checkpoints have the same tensors, bit for bit, however they are sharded."""
    left, right = read_tensors(one), read_tensors(other)
    return _layout(left) == _layout(right) and all(
        np.array_equal(a, b) for name in left for a, b in _blocks([left[name], right[name]])
    )


def joint_entropy(base: Path, post: Path) -> float:
    """Order-0 entropy of the delta rounded to bf16, each tensor by its own distribution.

    Returns:
        Bits per weight over all tensors; those that are equal count with zero bits.
    """
    befores, afters = read_tensors(base), read_tensors(post)

    def bits(name: str) -> float:
        counts = np.zeros(1 << 16, np.int64)
        for before, after in _blocks([befores[name], afters[name]]):
            delta = (_float32(after) - _float32(before)).astype(ml_dtypes.bfloat16)
            counts += np.bincount(delta.view(np.uint16), minlength=1 << 16)
        seen = counts[counts > 0]
        return float(np.sum(seen * np.log2(seen.sum() / seen)))

    return sum(_parallel(bits, befores)) / sum(tensor.size for tensor in befores.values())


def _expected(onto: Bits, before: Bits, after: Bits) -> Bits:
    """The contract, element by element; what did not change leaves the new base alone."""
    delta = _float32(after) - _float32(before)
    moved = (_float32(onto) + np.float32(1) * delta).astype(ml_dtypes.bfloat16)
    return np.where(before == after, onto, moved.view(np.uint16))


def _float32(bits: Bits) -> NDArray[np.float32]:
    values: NDArray[np.float32] = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    return values


def _blocks(tensors: list[Bits]) -> Iterator[list[Bits]]:
    for start in range(0, tensors[0].size, BLOCK):
        yield [tensor[start : start + BLOCK] for tensor in tensors]


def _layout(model: dict[str, Bits]) -> dict[str, int]:
    return {name: tensor.size for name, tensor in model.items()}


def _parallel(work: Callable[[str], Number], names: Iterable[str]) -> list[Number]:
    """Apply `work` to every name; numpy releases the interpreter for most of it."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, names))
