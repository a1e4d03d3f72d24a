"""``patch`` and ``unpatch``: a delta in a model in memory, in place, and out of it again.

The sum is that of ``apply``, bit for bit, whatever device the model is on: chunks travel to the
processor and back. Rounding loses bits of the old weights, so what subtracting the delta again
does not give back is kept beside the model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deltastore.artifact.reader import ArtifactReader, open_artifact
from deltastore.checkpoint import OutputTensor, ShardPlan
from deltastore.checkpoint.quantised import quantised_weights
from deltastore.codecs.values import decode_patch, encode_patch
from deltastore.delta import Term, add
from deltastore.errors import (
    IncompatibleError,
    QuantisedCheckpointError,
    RestoreOnlyError,
    StructureMismatchError,
    UsageError,
)
from deltastore.execution.crew import Crew, job_count
from deltastore.execution.progress import Progress, Silent
from deltastore.inmemory.weights import ModelWeights
from deltastore.kernels.buffers import scratch
from deltastore.lineage import digests
from deltastore.lineage.similarity import Lineage, judge, measure
from deltastore.manifest import TensorEntry
from deltastore.manifest.format import DTYPE_BYTES
from deltastore.merging import restoration
from deltastore.merging.engine import Engine
from deltastore.merging.inputs import read_sides
from deltastore.merging.plan import MergePlan, PlannedBase
from deltastore.merging.recipes import Recipe, recipes
from deltastore.merging.structure import Delta, Mismatch, Report, check_structure, comparable
from deltastore.store import Store
from deltastore.tensor_names.recognising import recognised
from deltastore.tensor_names.selectors import Renaming, Scales, checked_scales

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]

_STRUCTURAL = ("resized", "replaced", "added", "removed")

_LOST = "transformers does not hold it as a checkpoint has it, and it cannot be followed there"


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A delta that is in a model, and what it takes to get it out again.

    Attributes:
        ref: The delta's ref.
        digest: Its artifact.
        scale: α.
        tensors: How many tensors were changed; tied ones count once.
        bytes_kept: Memory that is kept for ``unpatch``.
        lineage: How near the model is to the delta's own base.
        restored: Every weight that the delta changes is post's now, by its digest.
        left_out: Tensors of the model or the delta that were left as they are, with the reason.
    """

    ref: str
    digest: str
    scale: float
    tensors: int
    bytes_kept: int
    lineage: Lineage
    restored: bool
    left_out: list[dict[str, str]]
    _undo: dict[str, _Undo] = field(repr=False)
    _names: Mapping[str, str] = field(repr=False)


@dataclass(slots=True)
class _Undo:
    """Of one tensor: what subtracting does not give back, and what the patch left there.

    ``frames`` by the chunk's first element; ``pending``: chunks that hold the delta, by first
    element, with their sizes; ``after``: BLAKE3 hex of the whole.
    """

    entry: TensorEntry
    elements: int
    frames: dict[int, bytes] = field(default_factory=dict)
    pending: dict[int, int] = field(default_factory=dict)
    after: str = ""


def patch(
    store: Store,
    model: torch.nn.Module,
    ref: str,
    *,
    scale: float = 1.0,
    rename: Mapping[str, str] | None = None,
    partial: bool = False,
    force: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Patch:
    """Add a delta to a model's weights in place: Θ += α·Δ, rounded once to each weight's dtype.

    Everything is checked before the first weight is changed. What fails or is interrupted after
    that is taken back.

    Args:
        store: Where the delta is.
        model: Any module that names its weights as the delta's checkpoint does, but for wrappers
            and for what transformers renames and fuses when it loads that.
        ref: The delta.
        scale: α.
        rename: What the model calls the delta's tensors: regular expressions, and what replaces
            them wherever they are found in a name.
        partial: Leave what does not match as it is.
        force: Go on where lineage speaks against it.
        jobs: Threads; one for each core if None.
        progress: Is told how far the work is.

    Raises:
        UsageError: ``rename`` is no renaming of the delta's tensors.
        RefError: The ref means nothing.
        IncompatibleError: The delta and the model do not belong together, or the delta changes
            the model's structure.
        QuantisedCheckpointError: The model's weights are quantised.
        IntegrityError: A blob is missing or damaged.
    """
    progress = progress or Silent()
    checked_scales([ref], [scale])
    artifact = store.resolve(ref)
    with open_artifact(store, artifact.digest) as reader:
        if reader.config.restore_only:
            raise RestoreOnlyError(
                f"{artifact.ref} was stored for restoration only; a model in memory cannot show "
                "that it is its base.",
                hint="Restore the checkpoint with `store.apply(...)`, and load the result.",
                refs=[artifact.ref],
            )
        sides = read_sides(store.blobs, reader.manifest, reader.config)
        delta = Delta(artifact.ref, reader.config, source_config=sides.base_config)
        names = _names(rename or {}, reader.config.tensors, artifact.ref)
        weights = ModelWeights(model, reader.config.tensors, names)
        _refuse_quantised(weights)
        report = check_structure(weights, [delta], partial=True)
        report.extra += [Mismatch(name, _LOST) for name in weights.lost]
        if report.all and not (partial and any(report.places)):
            raise _mismatch_error(model, weights, delta, report)
        made = recipes(weights, [delta], report, Scales([scale]), None)
        changed = _changed(made, artifact.ref, weights)
        figures = measure(
            store.blobs,
            reader.manifest,
            reader.config,
            weights,
            where=artifact.ref,
            sources=comparable(report.places[0]),
        )
        judge(
            artifact.ref,
            str(weights.path),
            figures,
            force=force,
            progress=progress,
            hint="Load a model that descends from the delta's own base, or give `force=True`.",
        )
        own: frozenset[str] = frozenset()
        # transformers holds some buffers in another dtype than the checkpoint has them, and the
        # model is its base all the same; digests say which tensors are.
        restoring = scale == 1 and (figures.same or figures.distance == 0)
        if restoring:
            own = restoration.own_tensors(weights, reader.config, None, job_count(jobs), progress)
        reader.check()
        target = _Target(weights, reader, scale, changed)
        plan = MergePlan(
            base=PlannedBase(str(weights.path)),
            tensors=changed,
            shards=(ShardPlan("", tuple(recipe.output for recipe in changed.values())),),
            chunk=reader.config.chunk,
            patches=own,
        )
        progress.start("patching", plan.nbytes)
        engine = Engine(plan, weights, [reader])
        try:
            tally = engine.run(target, jobs=job_count(jobs), progress=progress, check=False)
        except BaseException:
            # Stopped half way: a model that is neither would be taken for one of the two.
            for task in list(_pending(target.undo)):
                _take_out(weights, reader, target.undo[task.name], task, scale)
            raise
    for name, undo in target.undo.items():
        undo.after = tally.digests[name]
    whole = restoring and not report.all
    return Patch(
        ref=artifact.ref,
        digest=artifact.digest,
        scale=scale,
        tensors=len(changed),
        bytes_kept=sum(len(f) for undo in target.undo.values() for f in undo.frames.values()),
        lineage=figures,
        restored=whole and _is_post(weights, target.undo),
        left_out=[{"name": item.name, "problem": item.problem} for item in report.all],
        _undo=target.undo,
        _names=names,
    )


def unpatch(
    store: Store,
    model: torch.nn.Module,
    patched: Patch,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Give a model the bits back that it had before a patch, the last one that is in it.

    One that is stopped is finished by the next.

    Raises:
        UsageError: A weight is not what the patch left: it was trained, or patched again. Nothing
            is changed.
        IntegrityError: The delta is no longer in the store, or damaged.
    """
    progress = progress or Silent()
    with open_artifact(store, patched.digest) as reader:
        undo = patched._undo
        weights = ModelWeights(model, reader.config.tensors, patched._names)
        reader.check()

        def check(_number: int, name: str) -> None:
            item = undo[name]
            if sum(item.pending.values()) < item.elements:
                return  # an unpatch that was stopped has begun here: this one goes on
            known = name in weights.tensors
            if not known or digests.hash_tensor(weights, name, progress) != item.after:
                raise UsageError(
                    f"{name} is not what {patched.ref} left there; it was changed since.",
                    hint="Undo the patches in reverse order, or load the model again.",
                )

        def restore(_number: int, task: _Chunk) -> None:
            _take_out(weights, reader, undo[task.name], task, patched.scale)
            progress.advance(task.count * DTYPE_BYTES[weights.tensors[task.name].dtype])

        total = sum(weights.tensors[name].nbytes for name in undo if name in weights.tensors)
        progress.start("checking", total)
        Crew(job_count(jobs)).run(list(undo), check)
        progress.start("unpatching", total)
        Crew(job_count(jobs)).run(list(_pending(undo)), restore)


def delta_tensors(store: Store, ref: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The delta of each tensor that has one, one after the other, as float32 or float64.

    Elements that were equal in base and post are zero.

    Shapes:
        post's, but for grown and shrunk tensors, of which the common elements come, flat.

    Raises:
        RefError: The ref means nothing.
        IntegrityError: A blob is missing or damaged.
    """
    import torch

    artifact = store.resolve(ref)
    with open_artifact(store, artifact.digest) as reader:
        reader.check()
        for entry in reader.config.tensors:
            if entry.delta is None:
                continue
            bits = np.empty(entry.common_elements, np.uint64 if entry.wide else np.uint32)
            reader.delta(entry, 0, bits)
            term = Term(bits, 1.0)
            values = term.values
            values[term.kept] = 0
            tensor = torch.from_numpy(values)
            if entry.post is not None and entry.post.elements == tensor.numel():
                tensor = tensor.reshape(entry.post.shape)
            yield entry.name, tensor


class _Target:
    """Writes what ``Applier`` computes into the model, and notes what undoing it will lack."""

    def __init__(
        self,
        weights: ModelWeights,
        reader: ArtifactReader,
        scale: float,
        changed: Mapping[str, Recipe],
    ) -> None:
        self._weights = weights
        self._reader = reader
        self._scale = scale
        self.undo = {
            name: _Undo(recipe.addends[0].entry, recipe.output.elements)
            for name, recipe in changed.items()
        }
        self._lock = threading.Lock()

    def write(self, name: str, start_byte: int, data: Bytes) -> None:
        """See ``Target.write``."""
        dtype = self._weights.tensors[name].dtype
        size = DTYPE_BYTES[dtype]
        undo, task = self.undo[name], _Chunk(name, start_byte // size, data.size // size)
        before = scratch("before", data.size, np.uint8)
        self._weights.read_into(name, start_byte, before)
        back = _subtracted(data, dtype, self._reader, undo, task, self._scale)
        old, got = before.view(f"u{size}"), back.view(f"u{size}")
        lost = np.flatnonzero(old != got)
        frame = encode_patch(lost, old[lost].view(np.uint8)) if lost.size else b""
        self._weights.write(name, task.start, data)
        with self._lock:
            if frame:
                undo.frames[task.start] = frame
            undo.pending[task.start] = task.count


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A run of elements of one tensor."""

    name: str
    start: int
    count: int


def _pending(undo: Mapping[str, _Undo]) -> Iterator[_Chunk]:
    """The chunks that hold the delta."""
    for name, item in undo.items():
        for start, count in item.pending.items():
            yield _Chunk(name, start, count)


def _take_out(
    weights: ModelWeights, reader: ArtifactReader, undo: _Undo, task: _Chunk, scale: float
) -> None:
    """Give one chunk its old bits back."""
    dtype = weights.tensors[task.name].dtype
    size = DTYPE_BYTES[dtype]
    raw = scratch("after", task.count * size, np.uint8)
    weights.read_into(task.name, task.start * size, raw)
    out = _subtracted(raw, dtype, reader, undo, task, scale)
    frame = undo.frames.get(task.start)
    if frame is not None:
        positions, values = decode_patch(frame, size, task.count, where=task.name)
        out.view(f"u{size}")[positions] = values.view(f"u{size}")
    weights.write(task.name, task.start, out)
    del undo.pending[task.start]


def _subtracted(
    raw: Bytes, dtype: str, reader: ArtifactReader, undo: _Undo, task: _Chunk, scale: float
) -> Bytes:
    """Θ - α·Δ of one chunk."""
    out = scratch("back", raw.size, np.uint8)
    bits = scratch("undo", task.count, np.uint64 if undo.entry.wide else np.uint32)
    reader.delta(undo.entry, task.start, bits)
    add(raw, dtype, [Term(bits, -scale)], dtype, out)
    return out


def _names(rename: Mapping[str, str], entries: Sequence[TensorEntry], ref: str) -> dict[str, str]:
    """What the model calls the delta's tensors."""
    try:
        return Renaming.of(rename.items()).names([[entry.name for entry in entries]])[0]
    except UsageError as error:
        raise UsageError(
            f"`rename` does not fit {ref}: each key should be a regular expression that is found "
            "in a name of its tensors, and keep names apart.",
            hint=f"See their names in `store.show({ref!r}).tensors`.",
        ) from error


def _mismatch_error(
    model: torch.nn.Module, weights: ModelWeights, delta: Delta, report: Report
) -> StructureMismatchError:
    places = [place for table in report.places for place in table.values()]
    renaming = _renaming(model, weights, delta) if report.missing and report.extra else None
    hint = "Load a model of the delta's own architecture"
    if renaming is not None:
        hint = f"The names differ by what they begin with: give `rename={renaming!r}`"
    elif places and not any(place.entry.kind in _STRUCTURAL for place in places):
        hint = "Give `partial=True` to patch what fits, and see `left_out` of the result"
    return StructureMismatchError(
        f"{weights.path} does not have the structure that {delta.ref} was extracted from: "
        f"{report.summary}.",
        hint=f"{hint}; or apply the delta to a checkpoint with `store.apply(...)`, and load the "
        "result.",
        missing=[(item.name, item.problem) for item in report.missing],
        extra=[(item.name, item.problem) for item in report.extra],
        mismatched=[(item.name, item.problem) for item in report.mismatched],
    )


def _renaming(model: torch.nn.Module, weights: ModelWeights, delta: Delta) -> dict[str, str] | None:
    """A renaming under which the delta fits, if one is recognised."""
    entries = delta.config.tensors
    rules = dict(recognised([entry.name for entry in entries], weights.tensors))
    if not rules:
        return None
    renamed = ModelWeights(model, entries, _names(rules, entries, delta.ref))
    fits = not check_structure(renamed, [delta], partial=True).all and not renamed.lost
    return rules if fits else None


def _refuse_quantised(weights: ModelWeights) -> None:
    reason = quantised_weights(weights.tensors, {})
    if reason is not None:
        raise QuantisedCheckpointError(
            f"{weights.path} is quantised ({reason}); a delta is added to floating point.",
            hint="Load the model without quantisation, patch it, and quantise it then.",
        )


def _changed(made: Mapping[str, Recipe], ref: str, weights: ModelWeights) -> dict[str, Recipe]:
    """The recipes that change something, in place; tied weights once."""
    structural = [
        name
        for name, recipe in made.items()
        if recipe.base is None
        or recipe.base.name != name
        or recipe.values is not None
        or recipe.output.shape != recipe.base.shape
    ]
    gone = [name for name in weights.tensors if name not in made]
    if structural or gone:
        raise IncompatibleError(
            f"{ref} adds, removes or resizes {len(structural) + len(gone)} tensors, of which the "
            f"first is {sorted([*structural, *gone])[0]}; a model in memory keeps its structure.",
            hint="Apply it to a checkpoint with `store.apply(...)`, and load the result.",
            tensors=sorted([*structural, *gone]),
        )
    found = {}
    for name, recipe in made.items():
        assert recipe.base is not None
        addends = tuple(addend for addend in recipe.addends if addend.entry.delta is not None)
        if addends and name not in weights.tied and recipe.base.elements:
            output = OutputTensor(name, recipe.base.dtype, recipe.base.shape)
            found[name] = Recipe(output, recipe.base, addends)
    return found


def _is_post(weights: ModelWeights, undo: Mapping[str, _Undo]) -> bool:
    posts = ((item.entry.post, weights.tensors[name].dtype, item) for name, item in undo.items())
    return all(
        post is not None and (post.dtype, post.blake3) == (dtype, item.after)
        for post, dtype, item in posts
    )


__all__ = ["ModelWeights", "Patch", "delta_tensors", "patch", "unpatch"]
