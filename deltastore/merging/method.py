"""Merge methods: how the deltas of several models change one base. The linear sum is the default.

A method is a frozen value: its name and its parameters say all about it. They are in the plan, in
the output's provenance and on its card.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deltastore.artifact.reader import ArtifactReader
from deltastore.delta import Term, add, add_tokens
from deltastore.errors import UsageError, shown
from deltastore.kernels.palette import Tokens
from deltastore.merging.recipes import Addend, Recipe

Bytes = npt.NDArray[np.uint8]

Prepared = Mapping[str, tuple[float, ...]]
"""Numbers of a method for each output tensor, by its name; a tensor without any is left out."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of elements of one output tensor, and what they are made of.

    Attributes:
        recipe: The tensor's: its addends with their scales, in order, and the dtypes.
        start: The first of the elements, in the order in which they are computed.
        base: The new base's elements, in the dtype of ``recipe.base``.
        out: Where the method writes the merged elements, in the dtype of ``recipe.output``.
        numbers: What ``prepare`` found for this tensor.
        delta: The deltas of an addend: float bits, uint32 if narrow and uint64 if wide (see
            ``deltastore.delta``). They are valid until the thread's next chunk.
        tokens: The same as palette tokens; None where the addend is not stored so.

    Shapes:
        base, out: ``[n * itemsize]``, uint8; what ``delta`` returns: ``[n]``.
    """

    recipe: Recipe
    start: int
    base: Bytes
    out: Bytes
    numbers: tuple[float, ...]
    delta: Callable[[Addend], npt.NDArray[Any]]
    tokens: Callable[[Addend], Tokens | None]


class MergeMethod(Protocol):
    """What every merge method promises."""

    @property
    def name(self) -> str:
        """What ``get_method`` finds it by."""

    @property
    def params(self) -> Mapping[str, Any]:
        """Its parameters, as JSON can hold them."""

    @property
    def formula(self) -> str:
        """What it computes, in one line for provenance."""

    @property
    def restores(self) -> bool:
        """Whether one delta with scale 1 on its own base gives post, up to its restore patches."""

    def prepare(self, recipes: Mapping[str, Recipe], readers: Sequence[ArtifactReader]) -> Prepared:
        """Find out what ``combine`` has to know of whole tensors; may read every delta.

        It is called once, before a byte is written; what it returns is a part of the plan.

        Args:
            recipes: The output's tensors by name.
            readers: The deltas that the addends count by their ``index``.

        Raises:
            IntegrityError: A blob is missing or damaged.
            FormatError: A part breaks the specification.
        """

    def combine(self, chunk: Chunk) -> int:
        """Write the merged elements of a chunk. Thread-safe, and the same in every process.

        An element that every delta keeps is the new base's own.

        Returns:
            How many elements are finite in base and deltas and too large for the output's dtype.
        """


@dataclass(frozen=True, slots=True)
class Linear:
    """base + Σ α·Δ, rounded once.

    Source:
        ParamΔ, arXiv 2504.21023, equation 2 (Θ_out = Θ'_base + α·Δ).
    """

    name = "linear"
    formula = "out = base + sum(scale * delta)"
    restores = True

    @property
    def params(self) -> Mapping[str, Any]:
        """It has none."""
        return {}

    def prepare(self, recipes: Mapping[str, Recipe], readers: Sequence[ArtifactReader]) -> Prepared:
        """See ``MergeMethod.prepare``: nothing is to be known."""
        return {}

    def combine(self, chunk: Chunk) -> int:
        """See ``MergeMethod.combine``."""
        recipe = chunk.recipe
        assert recipe.base is not None
        dtype, out_dtype = recipe.base.dtype, recipe.output.dtype
        # By far the commonest case: decoded, added and rounded in one pass.
        if len(recipe.addends) == 1 and dtype == out_dtype == "BF16":
            addend = recipe.addends[0]
            tokens = chunk.tokens(addend)
            if tokens is not None:
                return add_tokens(chunk.base, tokens, addend.scale, chunk.out)
        terms = [Term(chunk.delta(addend), addend.scale) for addend in recipe.addends]
        return add(chunk.base, dtype, terms, out_dtype, chunk.out)


LINEAR = Linear()

METHODS: dict[str, Callable[..., MergeMethod]] = {LINEAR.name: Linear}
"""What makes a method of its parameters, by its name."""


def get_method(name: str, params: Mapping[str, Any]) -> MergeMethod:
    """The merge method of this name.

    Raises:
        UsageError: There is none, or it has other parameters.
    """
    try:
        return METHODS[name](**params)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{shown(name)} with the parameters {shown(dict(params))} is no merge method; there "
            f"are {', '.join(sorted(METHODS))}.",
        ) from error
