"""Whether deltas fit a new base, tensor by tensor, and what the output is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from deltastore.checkpoint import OutputTensor, TensorInfo, Weights
from deltastore.errors import DeltaConflictError, StructureMismatchError
from deltastore.manifest import Config, TensorEntry, TensorKind
from deltastore.manifest.format import DELTA_DTYPES


@dataclass(frozen=True, slots=True)
class Scaled:
    """One delta of an application: its config, its scale α, what to call it."""

    ref: str
    config: Config
    scale: float


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One tensor that cannot be matched."""

    name: str
    problem: str


@dataclass(slots=True)
class Report:
    """Every tensor that cannot be matched, over all deltas.

    ``missing``: a delta has it, the new base does not. ``extra``: the new base has it, a delta
    knows nothing of it. ``mismatched``: shape or kind of dtype differ.
    """

    missing: list[Mismatch] = field(default_factory=list)
    extra: list[Mismatch] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)

    @property
    def all(self) -> list[Mismatch]:
        """All of them."""
        return [*self.missing, *self.extra, *self.mismatched]

    @property
    def summary(self) -> str:
        """How many of each, and the first of all; empty if everything matches."""
        counts = {
            "missing in the new base": self.missing,
            "unknown to the delta": self.extra,
            "of another shape or dtype": self.mismatched,
        }
        if not self.all:
            return ""
        said = ", ".join(f"{len(items)} {what}" for what, items in counts.items() if items)
        return f"{said}; the first is {self.all[0].name}: {self.all[0].problem}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one output tensor comes about.

    Attributes:
        output: Name, dtype and shape.
        base: The new base's tensor, if it contributes.
        terms: Indices of the deltas to add, and their entries, in order.
        values: Index and entry of the delta whose values make up the rest (or all) of it.
    """

    output: OutputTensor
    base: TensorInfo | None
    terms: tuple[tuple[int, TensorEntry], ...] = ()
    values: tuple[int, TensorEntry] | None = None

    @property
    def common_elements(self) -> int:
        """Elements that come from the new base; those after them are values."""
        if self.base is None:
            return 0
        return min(self.base.elements, self.output.elements)


_STRUCTURAL: frozenset[TensorKind] = frozenset({"resized", "replaced", "added", "removed"})


def check_structure(base: Weights, deltas: Sequence[Scaled], *, partial: bool) -> Report:
    """Match every tensor of every delta with the new base.

    Raises:
        StructureMismatchError: Something cannot be matched and ``partial`` is false; ``facts``
            lists all of it.
    """
    report = Report()
    for delta in deltas:
        entries = {entry.name: entry for entry in delta.config.tensors}
        for entry in delta.config.tensors:
            _match(base.tensors.get(entry.name), entry, delta, report)
        for name in base.tensors:
            if name not in entries:
                report.extra.append(Mismatch(name, f"{delta.ref} knows nothing of it"))
    if report.all and not partial:
        raise _mismatch_error(base, deltas, report)
    return report


def recipes(
    base: Weights, deltas: Sequence[Scaled], report: Report, dtype: str | None
) -> dict[str, Recipe]:
    """How every tensor of the output comes about.

    Args:
        base: The new base.
        deltas: What to apply, in order.
        report: What was left out; these tensors are the new base's own.
        dtype: Output dtype of all floating-point tensors; None keeps each one's own.

    Raises:
        DeltaConflictError: Two deltas change the structure of the same tensor differently.
    """
    left_out = {item.name for item in (*report.missing, *report.mismatched)}
    tables = [{entry.name: entry for entry in delta.config.tensors} for delta in deltas]
    names = sorted(set(base.tensors).union(*tables))
    result = {}
    for name in names:
        info = base.tensors.get(name)
        found = []
        if name not in left_out:
            for index, (delta, table) in enumerate(zip(deltas, tables, strict=True)):
                entry = table.get(name)
                # What has no number to scale follows the delta whatever α is, unless α = 0.
                if entry is not None and (delta.scale != 0 or entry.kind not in _STRUCTURAL):
                    found.append((index, entry))
        recipe = _recipe(name, info, found, deltas, dtype)
        if recipe is not None:
            result[name] = recipe
    return result


def _match(info: TensorInfo | None, entry: TensorEntry, delta: Scaled, report: Report) -> None:
    if entry.base is None:
        if info is not None:
            problem = f"{delta.ref} adds it, and the new base has it already"
            report.mismatched.append(Mismatch(entry.name, problem))
        return
    wanted = f"{entry.base.dtype} {list(entry.base.shape)}"
    if info is None:
        report.missing.append(Mismatch(entry.name, f"{delta.ref} has it as {wanted}"))
        return
    got = f"{info.dtype} {list(info.shape)}"
    floating = info.dtype in DELTA_DTYPES
    if info.shape != entry.base.shape or floating != (entry.base.dtype in DELTA_DTYPES):
        problem = f"expected {wanted} as in {delta.ref}, got {got}"
        report.mismatched.append(Mismatch(entry.name, problem))


def _recipe(
    name: str,
    info: TensorInfo | None,
    found: Sequence[tuple[int, TensorEntry]],
    deltas: Sequence[Scaled],
    dtype: str | None,
) -> Recipe | None:
    structural = [item for item in found if item[1].kind in _STRUCTURAL]
    numeric = tuple(item for item in found if item[1].kind in ("delta", "resized"))
    if structural:
        _refuse_conflict(name, found, structural, deltas)
        index, entry = structural[0]
        if entry.kind == "removed":
            return None
        assert entry.post is not None
        if entry.kind == "resized":
            assert info is not None
            kept = _float_dtype(_output_dtype(info, numeric), dtype)
            output = OutputTensor(name, kept, entry.post.shape)
            further = structural[0] if entry.values is not None else None
            return Recipe(output, info, numeric, further)
        output = OutputTensor(name, _float_dtype(entry.post.dtype, dtype), entry.post.shape)
        return Recipe(output, None, (), (index, entry))
    if info is None:
        return None
    output_dtype = _float_dtype(_output_dtype(info, numeric), dtype)
    return Recipe(OutputTensor(name, output_dtype, info.shape), info, numeric)


def _output_dtype(info: TensorInfo, numeric: Sequence[tuple[int, TensorEntry]]) -> str:
    """The new base's dtype; post's where post's differed from its base's."""
    dtype = info.dtype
    for _, entry in numeric:
        assert entry.base is not None
        assert entry.post is not None
        if entry.post.dtype != entry.base.dtype:
            dtype = entry.post.dtype
    return dtype


def _float_dtype(own: str, override: str | None) -> str:
    return override if override is not None and own in DELTA_DTYPES else own


def _refuse_conflict(
    name: str,
    found: Sequence[tuple[int, TensorEntry]],
    structural: Sequence[tuple[int, TensorEntry]],
    deltas: Sequence[Scaled],
) -> None:
    """Two deltas agree only if they make the very same tensor, or one leaves it as it is."""
    moving = [(i, entry) for i, entry in found if entry.kind != "unchanged"]
    first = structural[0][1]
    same = all(entry.kind == first.kind and entry.post == first.post for _, entry in moving)
    # Two equal resizings still are two deltas on the common rows, of which one sum is meant.
    if same and (len(moving) == 1 or first.kind != "resized"):
        return
    refs = " and ".join(f"{deltas[i].ref} ({entry.kind})" for i, entry in moving)
    raise DeltaConflictError(
        f"Tensor {name} is changed in different ways by {refs}.",
        hint="Apply one of them, or one after the other with an output between them.",
        tensor=name,
        refs=[deltas[i].ref for i, _ in moving],
    )


def _mismatch_error(
    base: Weights, deltas: Sequence[Scaled], report: Report
) -> StructureMismatchError:
    refs = ", ".join(delta.ref for delta in deltas)
    return StructureMismatchError(
        f"{base.path} does not have the structure that {refs} was extracted from: "
        f"{report.summary}.",
        hint="Choose another base, or give `--partial` to apply what fits and list the rest.",
        missing=[(m.name, m.problem) for m in report.missing],
        extra=[(m.name, m.problem) for m in report.extra],
        mismatched=[(m.name, m.problem) for m in report.mismatched],
    )
