"""What the output of an application is made of, tensor by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deltastore.checkpoint import TensorInfo, TensorSpec, Weights
from deltastore.errors import DeltaConflictError, StructureMismatchError, UsageError
from deltastore.manifest import TensorEntry, TensorKind
from deltastore.manifest.format import DELTA_DTYPES
from deltastore.structure.places import Delta, Placement, Report
from deltastore.tensor_names.selectors import Scales
from deltastore.tensor_names.token_rows import embedding_of, has_token_rows, is_embedding, is_head
from deltastore.tokenizer.rows import Places, Rows, first_rows, source_order

STRUCTURAL: frozenset[TensorKind] = frozenset({"resized", "replaced", "added", "removed"})
_NUMERIC: frozenset[TensorKind] = frozenset({"delta", "resized"})


@dataclass(frozen=True, slots=True)
class Addend:
    """α·Δ of one delta.

    Attributes:
        index: Which delta.
        entry: Its tensor.
        scale: α.
        rows: Which row goes where, in the recipe's order; None where all stay in theirs.
    """

    index: int
    entry: TensorEntry
    scale: float
    rows: Rows | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one output tensor comes about.

    Attributes:
        output: Name, dtype and shape.
        base: The new base's tensor, if it contributes.
        addends: What is added to it, in order.
        values: Index and entry of the delta whose values make up the rest (or all) of it, unless
            rows say where they go.
        order: The order in which the output's rows are computed; None for their own. All addends
            have rows then, which follow it.
    """

    output: TensorSpec
    base: TensorInfo | None
    addends: tuple[Addend, ...] = ()
    values: tuple[int, TensorEntry] | None = None
    order: Places | None = None

    @property
    def common_elements(self) -> int:
        """Elements that are computed; those after them are values."""
        if self.base is None:
            return 0
        if self.order is not None:
            return self.output.elements
        return min(self.base.elements, self.output.elements)


def recipes(
    base: Weights, deltas: Sequence[Delta], report: Report, scales: Scales, dtype: str | None
) -> dict[str, Recipe]:
    """How every tensor of the output comes about.

    Args:
        base: The new base.
        deltas: What to apply, in order.
        report: Where their tensors go; what has no place is the new base's own.
        scales: α of every tensor and delta.
        dtype: Output dtype of all floating-point tensors; None keeps each one's own.

    Raises:
        UsageError: Scales leave rows of added tokens out of some tensors only.
        StructureMismatchError: Nothing of a delta has a place: the output would be the new base.
        DeltaConflictError: Two deltas change the structure of the same tensor differently.
    """
    for delta, places in zip(deltas, report.places, strict=True):
        if delta.config.tensors and not places:
            raise StructureMismatchError(
                f"Not one of the {len(delta.config.tensors)} tensors of {delta.ref} fits "
                f"{base.path}; the output would be a copy of it.",
                hint="Choose another base: `deltastore resolve --base CKPT` says what fits.",
                ref=delta.ref,
            )
    _require_whole_tokens(deltas, report, scales)
    left_out = {item.name for item in (*report.missing, *report.mismatched)}
    result = {}
    for name in sorted(set(base.tensors).union(*report.places)):
        found: list[tuple[Addend, Placement]] = []
        one = _tied_to(name, base, report)
        for index, places in enumerate(report.places):
            # To a delta that has no such name it is the tensor that it is in the new base.
            place = places.get(name) or (places.get(one) if one is not None else None)
            if place is None or name in left_out:
                continue
            scale = scales(name, index)
            # What has no number to scale follows the delta whatever α is, unless α = 0.
            own = name in base.tensors and place.entry.kind not in STRUCTURAL
            if scale != 0 or own:
                found.append((Addend(index, place.entry, scale, place.rows), place))
        source = base.tensors.get(name) or next((p.base for _, p in found if p.base), None)
        recipe = _recipe(name, source, [addend for addend, _ in found], deltas, dtype)
        if recipe is not None:
            result[name] = recipe
    return result


def _tied_to(name: str, base: Weights, report: Report) -> str | None:
    """The new base's tensor that some delta adds a second name for."""
    if name in base.tensors:
        return None
    found = (places[name].base for places in report.places if name in places)
    return next((info.name for info in found if info is not None), None)


def in_names_of(base: Weights, made: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """The same tensors, those of tied sets under the new base's names for them.

    Of a set that base and post store under different names, post's is what restores post; on
    another base the output is stored as that base is.
    """
    used = Counter(recipe.base.name for recipe in made.values() if recipe.base is not None)
    result = {}
    for name, recipe in made.items():
        source = recipe.base.name if recipe.base is not None else name
        moved = source != name and name not in base.tensors and used[source] == 1
        if moved and source not in made:
            result[source] = replace(recipe, output=replace(recipe.output, name=source))
        else:
            result[name] = recipe
    return dict(sorted(result.items()))


def tied_as_post(made: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """The same tensors; those that post ties to its embeddings are made as these are.

    Where base had several tensors and post has one under all their names, their deltas would give
    several on another base; post-training made them one.
    """
    result = dict(made)
    embedding = embedding_of(made)
    if embedding is None or not made[embedding].addends:
        return result
    one = made[embedding].addends[-1].entry
    for name, recipe in made.items():
        if name == embedding or not recipe.addends or not (is_head(name) or is_embedding(name)):
            continue
        if not recipe.addends[-1].scale:
            continue  # what post did is left out
        other = recipe.addends[-1].entry
        if other.post is not None and other.post == one.post and other.base != one.base:
            output = replace(made[embedding].output, name=name)
            result[name] = replace(made[embedding], output=output)
    return result


def _require_whole_tokens(deltas: Sequence[Delta], report: Report, scales: Scales) -> None:
    """Refuse α = 0 for some of the rows of tokens that post added: the tokenizer has them or not.

    Raises:
        UsageError: A delta adds tokens to one tensor and, by its scale, not to another.
    """
    for index, (delta, places) in enumerate(zip(deltas, report.places, strict=True)):
        grown = [name for name, place in places.items() if has_token_rows(name) and place.grows]
        zero = [name for name in grown if scales(name, index) == 0]
        if zero and any(scales(name, index) for name in places):
            raise UsageError(
                f"{delta.ref} adds tokens, and α = 0 leaves their rows out of {zero[0]}.",
                hint="Leave embeddings and head as they are: `--skip-embeddings`.",
            )


def _recipe(
    name: str,
    info: TensorInfo | None,
    found: Sequence[Addend],
    deltas: Sequence[Delta],
    dtype: str | None,
) -> Recipe | None:
    by_rows = [addend for addend in found if addend.rows is not None]
    structural = [
        addend for addend in found if addend.entry.kind in STRUCTURAL and addend.rows is None
    ]
    numeric = tuple(addend for addend in found if addend.entry.kind in _NUMERIC)
    if by_rows:
        return _by_rows(name, info, by_rows, structural, numeric, deltas, dtype)
    if structural:
        _refuse_conflict(name, found, structural, deltas)
        first = structural[0]
        entry = first.entry
        if entry.kind == "removed":
            return None
        assert entry.post is not None
        if entry.kind == "resized":
            assert info is not None
            kept = _float_dtype(_output_dtype(info, numeric), dtype)
            output = TensorSpec(name, kept, entry.post.shape)
            further = (first.index, entry) if entry.values is not None else None
            return Recipe(output, info, numeric, further)
        output = TensorSpec(name, _float_dtype(entry.post.dtype, dtype), entry.post.shape)
        return Recipe(output, None, (), (first.index, entry))
    if info is None:
        return None
    output_dtype = _float_dtype(_output_dtype(info, numeric), dtype)
    return Recipe(TensorSpec(name, output_dtype, info.shape), info, numeric)


def _by_rows(
    name: str,
    info: TensorInfo | None,
    by_rows: Sequence[Addend],
    structural: Sequence[Addend],
    numeric: tuple[Addend, ...],
    deltas: Sequence[Delta],
    dtype: str | None,
) -> Recipe:
    """A tensor with a row for each token: the new base's rows, and what post added after them."""
    assert info is not None
    giving = [a for a in by_rows if a.rows is not None and (a.rows.values >= 0).any()]
    if structural or len(giving) > 1:
        raise _conflict(name, [*structural, *giving], deltas)
    rows = max(addend.rows.count for addend in by_rows if addend.rows is not None)
    output_dtype = _float_dtype(_output_dtype(info, numeric), dtype)
    output = TensorSpec(name, output_dtype, (rows, *info.shape[1:]))
    first = by_rows[0].rows
    assert first is not None
    order = source_order(first, rows)
    addends = []
    for addend in numeric:
        assert addend.entry.base is not None
        own = addend.rows or first_rows(addend.entry.base.shape[0])
        addends.append(replace(addend, rows=own.in_order(order)))
    return Recipe(output, info, tuple(addends), order=order)


def _output_dtype(info: TensorInfo, numeric: Sequence[Addend]) -> str:
    """The new base's dtype; post's where post's differed from its base's."""
    dtype = info.dtype
    for addend in numeric:
        assert addend.entry.base is not None
        assert addend.entry.post is not None
        if addend.entry.post.dtype != addend.entry.base.dtype:
            dtype = addend.entry.post.dtype
    return dtype


def _float_dtype(own: str, override: str | None) -> str:
    return override if override is not None and own in DELTA_DTYPES else own


def _refuse_conflict(
    name: str, found: Sequence[Addend], structural: Sequence[Addend], deltas: Sequence[Delta]
) -> None:
    """Two deltas agree only if they make the very same tensor, or one leaves it as it is."""
    moving = [addend for addend in found if addend.entry.kind != "unchanged"]
    first = structural[0].entry
    same = all(a.entry.kind == first.kind and a.entry.post == first.post for a in moving)
    # Two equal resizings still are two deltas on the common rows, of which one sum is meant.
    if same and (len(moving) == 1 or first.kind != "resized"):
        return
    raise _conflict(name, moving, deltas)


def _conflict(name: str, moving: Sequence[Addend], deltas: Sequence[Delta]) -> DeltaConflictError:
    refs = " and ".join(f"{deltas[a.index].ref} ({a.entry.kind})" for a in moving)
    return DeltaConflictError(
        f"Tensor {name} is changed in different ways by {refs}.",
        hint="Apply one of them, or one after the other with an output between them.",
        tensor=name,
        refs=[deltas[a.index].ref for a in moving],
    )
