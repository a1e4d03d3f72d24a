"""Figures of pairs of deltas: their angle, norms and signs, by layer and kind of module.

The cosine between two deltas a and b is a·b / (|a| |b|) over the elements that both have. For the
deltas of independent fine-tunes it is near zero: adding them disturbs neither much, which is what
makes task arithmetic work (arXiv 2212.04089, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from deltastore.comparison.cosines import Overlap
from deltastore.delta import Products
from deltastore.tensor_names.modules import ModulePlace

ORTHOGONAL = 0.1
"""Below this magnitude a cosine counts as none: each delta is 99 % beside the other."""
PARALLEL = 0.95
"""From this magnitude on two deltas count as one direction."""

Verdict = Literal["same", "aligned", "orthogonal", "opposed", "opposite", "undefined"]


@dataclass(frozen=True, slots=True)
class Group:
    """Figures of two deltas over some of the tensors that they share.

    Attributes:
        layer: The layer; None for all layers together, and for tensors outside of the layers.
        kind: The kind of module; None for all kinds together.
        tensors: Tensors compared.
        elements: Their elements, less those that are not finite.
        cosine: From -1 to 1; None where one of the deltas is zero, which has no direction.
        norms: Euclidean norms of the two deltas.
        ratio: The second norm over the first; None where the first is zero.
        both_changed: Elements where neither delta is zero.
        same_sign: The share of these where both deltas have the same sign: one half for deltas
            that have nothing to do with each other. None where there are no such elements.
        not_finite: Elements left out of all figures, as one of the deltas is NaN, infinite or
            beyond 1e140 there.
    """

    layer: int | None
    kind: str | None
    tensors: int
    elements: int
    cosine: float | None
    norms: tuple[float, float]
    ratio: float | None
    both_changed: int
    same_sign: float | None
    not_finite: int

    @property
    def verdict(self) -> Verdict:
        """The cosine in one word."""
        if self.cosine is None:
            return "undefined"
        if abs(self.cosine) < ORTHOGONAL:
            return "orthogonal"
        if self.cosine > 0:
            return "same" if self.cosine >= PARALLEL else "aligned"
        return "opposite" if self.cosine <= -PARALLEL else "opposed"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One tensor that is not compared."""

    name: str
    problem: str


@dataclass(frozen=True, slots=True)
class PairFigures:
    """Two deltas.

    Attributes:
        refs: Which.
        verdict: ``same`` (cosine from 0.95 on), ``aligned``, ``orthogonal`` (magnitude below 0.1),
            ``opposed``, ``opposite`` (down from -0.95), or ``undefined`` where one is zero.
        overall: All tensors that both have.
        kinds: By kind of module, over all layers.
        layers: By layer, over all kinds; the tensors outside of the layers last.
        cells: By layer and kind.
        left_out: Tensors that cannot be compared, and why.
    """

    refs: tuple[str, str]
    verdict: Verdict
    overall: Group
    kinds: list[Group]
    layers: list[Group]
    cells: list[Group]
    left_out: list[LeftOut]


@dataclass(frozen=True, slots=True)
class Compared:
    """One of the deltas."""

    ref: str
    digest: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All deltas, and every two of them in the order of the refs."""

    refs: list[Compared]
    pairs: list[PairFigures]
    seconds: float

    @property
    def matrix(self) -> list[list[float | None]]:
        """The overall cosine of each delta with each; None where it is not defined."""
        size = len(self.refs)
        cosines: list[list[float | None]] = [[None] * size for _ in range(size)]
        indices = [(i, j) for i in range(size) for j in range(i + 1, size)]
        for (i, j), pair in zip(indices, self.pairs, strict=True):
            cosines[i][j] = cosines[j][i] = pair.overall.cosine
            for index, norm in zip((i, j), pair.overall.norms, strict=True):
                if norm:
                    cosines[index][index] = 1.0
        return cosines


@dataclass(slots=True)
class _Sums:
    """What the figures of a group are made of."""

    tensors: int
    elements: int
    products: Products

    def add(self, other: _Sums) -> None:
        self.tensors += other.tensors
        self.elements += other.elements
        self.products.add(other.products)


def figures(
    refs: tuple[str, str], overlap: Overlap, known: Mapping[str, ModulePlace]
) -> PairFigures:
    """Sums as figures.

    Args:
        refs: The two deltas.
        overlap: What they share, summed up.
        known: The place in the model of each tensor.
    """
    cells: dict[ModulePlace, _Sums] = {}
    for name, elements in overlap.elements.items():
        sums = _Sums(1, elements, overlap.sums.get(name, Products()))
        cells.setdefault(known[name], _Sums(0, 0, Products())).add(sums)
    ordered = {place: cells[place] for place in sorted(cells, key=_order)}
    (overall,) = _groups(ordered, lambda _: (None, None))
    return PairFigures(
        refs=refs,
        verdict=overall.verdict,
        overall=overall,
        kinds=sorted(_groups(ordered, lambda place: (None, place.kind)), key=_kind_order(ordered)),
        layers=_groups(ordered, lambda place: (place.layer, None)),
        cells=_groups(ordered, lambda place: (place.layer, place.kind)),
        left_out=[LeftOut(name, problem) for name, problem in overlap.problems.items()],
    )


def _order(place: ModulePlace) -> tuple[bool, int, str]:
    """By layer and kind, tensors outside of the layers last."""
    return (place.layer is None, place.layer or 0, place.kind)


def _kind_order(cells: Iterable[ModulePlace]) -> Callable[[Group], tuple[bool, str]]:
    """Kinds by name, those outside of the layers last."""
    inside = {place.kind for place in cells if place.layer is not None}
    return lambda group: (group.kind not in inside, group.kind or "")


def _groups(
    cells: Mapping[ModulePlace, _Sums], key: Callable[[ModulePlace], tuple[int | None, str | None]]
) -> list[Group]:
    """The figures of cells that have the same key, in the order in which they come."""
    sums: dict[tuple[int | None, str | None], _Sums] = {}
    for place, cell in cells.items():
        sums.setdefault(key(place), _Sums(0, 0, Products())).add(cell)
    return [_group(*where, found) for where, found in sums.items()]


def _group(layer: int | None, kind: str | None, sums: _Sums) -> Group:
    found = sums.products
    norms = (math.sqrt(found.squares_a), math.sqrt(found.squares_b))
    return Group(
        layer=layer,
        kind=kind,
        tensors=sums.tensors,
        elements=sums.elements - found.left_out,
        cosine=_cosine(found),
        norms=norms,
        ratio=norms[1] / norms[0] if norms[0] else None,
        both_changed=found.both,
        same_sign=found.agree / found.both if found.both else None,
        not_finite=found.left_out,
    )


def _cosine(sums: Products) -> float | None:
    """a·b / (|a| |b|): just 1 and -1 for equal and opposite deltas, whatever their size."""
    small, large = sorted((sums.squares_a, sums.squares_b))
    if not small:
        return None
    # Nothing overflows here as the product of the squares would.
    cosine = sums.dot / large / (math.sqrt(small) / math.sqrt(large))
    return max(-1.0, min(1.0, cosine))
