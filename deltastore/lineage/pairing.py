"""Which tensor of base belongs to which of post, and what is to be read of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from deltastore.checkpoint import TensorInfo, TensorSpec, Weights
from deltastore.lineage.copies import Copies
from deltastore.manifest import TensorKind
from deltastore.manifest.format import DELTA_DTYPES
from deltastore.tensor_names.token_rows import StoredNames, stand_in

AnyTensor = TensorInfo | TensorSpec


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of the tensor table before it is known whether anything changed.

    ``kind`` is ``delta`` for floating-point tensors of equal shape until reading them shows that
    they are ``unchanged``; tensors without a meaningful difference are compared beforehand.
    """

    name: str
    kind: TensorKind
    base: TensorSpec | None
    post: TensorSpec | None

    @property
    def base_name(self) -> str | None:
        """What the base calls its tensor, if that is another one's own too: see ``pair_up``."""
        if self.base is None or self.base.name == self.name:
            return None
        return self.base.name

    @property
    def own_base(self) -> TensorSpec | None:
        """``base``, unless that is another row's tensor too."""
        return self.base if self.base_name is None else None

    @property
    def common_elements(self) -> int:
        """Elements that get a delta."""
        if self.base is None or self.post is None or self.kind not in ("delta", "resized"):
            return 0
        return min(self.base.elements, self.post.elements)


Role = Literal["delta", "values", "skim"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Elements ``start .. start + count`` of a tensor, and what to make of them.

    ``delta`` reads both sides; ``values`` reads post; ``skim`` reads base or post only to hash it.
    ``index`` is the frame's number in its stream.
    """

    role: Role
    index: int
    start: int
    count: int
    base: bool
    post: bool

    def skimmed(self) -> Chunk:
        """The same elements, only to be hashed."""
        return replace(self, role="skim")


def pair_up(base: Weights, post: Weights, *, may_tie: bool) -> list[Pair]:
    """Every tensor of either side, by name.

    A tensor that base does not store because it is another one under a second name (a head that is
    its embeddings, an encoder's embeddings that are the decoder's) is paired with that one: its
    delta then means the same on a new base, whichever of the names that stores.

    Args:
        base: The weights before post-training.
        post: The weights after it.
        may_tie: Whether the base uses its embeddings as a head if it has none.
    """
    sources = dict(base.tensors)
    stored, copies = StoredNames(base.tensors), Copies(post).among(base.tensors)
    for name in post.tensors.keys() - base.tensors.keys():
        # What post stores twice, with the same bytes, and base once is one tensor, whatever it is.
        other = stand_in(name, stored, ties=may_tie) or copies.find(name)
        if other is not None:
            pair = pair_of(name, base.tensors[other], post.tensors[name])
            if pair.kind in ("delta", "resized"):
                sources[name] = base.tensors[other]
    names = sorted(base.tensors.keys() | post.tensors.keys())
    return [pair_of(name, sources.get(name), post.tensors.get(name)) for name in names]


def pair_of(name: str, base: AnyTensor | None, post: AnyTensor | None) -> Pair:
    """The row of one tensor, as far as dtypes and shapes say what it is."""
    kind: TensorKind
    if base is None:
        kind = "added"
    elif post is None:
        kind = "removed"
    elif base.dtype not in DELTA_DTYPES or post.dtype not in DELTA_DTYPES:
        kind = "replaced"
    elif base.shape == post.shape:
        kind = "delta"
    elif base.shape and post.shape and base.shape[1:] == post.shape[1:]:
        kind = "resized"
    else:
        kind = "replaced"
    return Pair(name, kind, _paired(base), _paired(post))


def _paired(info: AnyTensor | None) -> TensorSpec | None:
    return None if info is None else TensorSpec(info.name, info.dtype, info.shape)


def chunk_count(pair: Pair, chunk: int) -> int:
    """How many chunks one pair has."""
    common = pair.common_elements
    ends = [side.elements for side in (pair.base, pair.post) if side is not None]
    return -(-common // chunk) + sum(-(-(end - common) // chunk) for end in ends)


def chunks_of(pair: Pair, chunk: int) -> Iterator[Chunk]:
    """The chunks of one pair, in the order in which each side's bytes are hashed."""
    common = pair.common_elements
    for index, start, count in _ranges(0, common, chunk):
        yield Chunk("delta", index, start, count, base=True, post=True)
    base_elements = pair.base.elements if pair.base is not None else 0
    post_elements = pair.post.elements if pair.post is not None else 0
    for index, start, count in _ranges(common, base_elements, chunk):
        yield Chunk("skim", index, start, count, base=True, post=False)
    for index, start, count in _ranges(common, post_elements, chunk):
        role: Role = "skim" if pair.kind == "unchanged" else "values"
        yield Chunk(role, index, start, count, base=False, post=True)


def _ranges(begin: int, end: int, chunk: int) -> Iterator[tuple[int, int, int]]:
    for index, start in enumerate(range(begin, end, chunk)):
        yield index, start, min(chunk, end - start)
