"""``patch`` and ``unpatch``: a delta in a model in memory, in place, and out of it again.

The sum is that of ``apply``, bit for bit, whatever device the model is on: chunks travel to the
processor and back. Rounding loses bits of the old weights, so what subtracting the delta again
does not give back is kept beside the model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deltastore.checkpoint import OutputTensor, ShardPlan, TensorInfo
from deltastore.codecs.values import decode_patch, encode_patch
from deltastore.delta import Term, add
from deltastore.errors import IncompatibleError, StructureMismatchError, UsageError
from deltastore.manifest import TensorEntry
from deltastore.manifest.format import DTYPE_BYTES
from deltastore.operations import hashing, restoration
from deltastore.operations.applying import Applier
from deltastore.operations.decoding import ArtifactReader
from deltastore.operations.lineage import Lineage, judge, measure
from deltastore.operations.pipeline import Crew, job_count
from deltastore.operations.progress import Progress, Silent
from deltastore.operations.structure import Recipe, Scaled, check_structure, recipes
from deltastore.scratch import scratch
from deltastore.store import Store

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]

_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}


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
    """

    ref: str
    digest: str
    scale: float
    tensors: int
    bytes_kept: int
    lineage: Lineage
    restored: bool
    _undo: dict[str, _Undo] = field(repr=False)


@dataclass(slots=True)
class _Undo:
    """Of one tensor: frames of what subtracting does not give back, by start; what came out."""

    entry: TensorEntry
    frames: dict[int, bytes] = field(default_factory=dict)
    after: str = ""


def patch(
    store: Store,
    model: torch.nn.Module,
    ref: str,
    *,
    scale: float = 1.0,
    partial: bool = False,
    force: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Patch:
    """Add a delta to a model's weights in place: Θ += α·Δ, rounded once to each weight's dtype.

    Everything is checked before the first weight is changed.

    Args:
        store: Where the delta is.
        model: Any module whose ``state_dict`` names its weights as the delta's checkpoint does.
        ref: The delta.
        scale: α.
        partial: Leave what does not match as it is.
        force: Go on where lineage speaks against it.
        jobs: Threads; one for each core if None.
        progress: Is told how far the work is.

    Raises:
        RefError: The ref means nothing.
        IncompatibleError: The delta and the model do not belong together, or the delta changes
            the model's structure.
        IntegrityError: A blob is missing or damaged.
    """
    progress = progress or Silent()
    artifact = store.resolve(ref)
    reader = ArtifactReader(store.blobs, *store.load(artifact.digest))
    try:
        scaled = Scaled(artifact.ref, reader.config, scale)
        weights = ModelWeights(model, reader.config.tensors)
        report = check_structure(weights, [scaled], partial=partial)
        made = recipes(weights, [scaled], report, None)
        changed = _changed(made, artifact.ref, weights)
        figures = measure(store.blobs, reader.manifest, reader.config, weights, where=artifact.ref)
        judge(artifact.ref, str(weights.path), figures, force=force, progress=progress)
        own: frozenset[str] = frozenset()
        if scale == 1 and figures.same:
            own = restoration.own_tensors(weights, reader.config, None, job_count(jobs), progress)
        layers = reader.manifest.layers[: reader.config.parts]
        for layer in layers:
            store.blobs.check(layer.digest, layer.size)
        target = _Target(weights, reader, scale, changed)
        plan = [ShardPlan("", tuple(recipe.output for recipe in changed.values()))]
        progress.start("patching", sum(recipe.output.nbytes for recipe in changed.values()))
        applier = Applier(weights, [reader], [scale], patches=own, hashed=True)
        tally = applier.write(target, plan, changed, store.blobs, [], job_count(jobs), progress)
    finally:
        reader.close()
    for name, undo in target.undo.items():
        undo.after = tally.digests[name]
    whole = figures.same and scale == 1 and not report.all
    return Patch(
        ref=artifact.ref,
        digest=artifact.digest,
        scale=scale,
        tensors=len(changed),
        bytes_kept=sum(len(f) for undo in target.undo.values() for f in undo.frames.values()),
        lineage=figures,
        restored=whole and _is_post(target.undo),
        _undo=target.undo,
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

    Raises:
        UsageError: A weight is not what the patch left: it was trained, or patched again. Nothing
            is changed.
        IntegrityError: The delta is no longer in the store, or damaged.
    """
    progress = progress or Silent()
    reader = ArtifactReader(store.blobs, *store.load(patched.digest))
    try:
        entries = [undo.entry for undo in patched._undo.values()]
        weights = ModelWeights(model, entries)
        for layer in reader.manifest.layers[: reader.config.parts]:
            store.blobs.check(layer.digest, layer.size)

        def check(_number: int, name: str) -> None:
            found = (
                hashing.hash_tensor(weights, name, progress) if name in weights.tensors else None
            )
            if found != patched._undo[name].after:
                raise UsageError(
                    f"{name} is not what {patched.ref} left there; it was changed since.",
                    hint="Undo the patches in reverse order, or load the model again.",
                )

        crew_size = job_count(jobs)
        progress.start("checking", sum(weights.tensors[n].nbytes for n in weights.tensors))
        Crew(crew_size).run(list(patched._undo), check)

        def restore(_number: int, task: tuple[str, int, int]) -> None:
            name, start, count = task
            undo, dtype = patched._undo[name], weights.tensors[name].dtype
            weights.write(name, start, _subtracted(weights, reader, undo, task, patched.scale))
            progress.advance(count * DTYPE_BYTES[dtype])

        progress.start("unpatching", sum(weights.tensors[n].nbytes for n in weights.tensors))
        Crew(crew_size).run(_chunks(weights, patched._undo, reader.config.chunk), restore)
    finally:
        reader.close()


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
    reader = ArtifactReader(store.blobs, *store.load(artifact.digest))
    try:
        for layer in reader.manifest.layers[: reader.config.parts]:
            store.blobs.check(layer.digest, layer.size)
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
    finally:
        reader.close()


class ModelWeights:
    """A module's weights as a checkpoint is read, and written in place.

    Tied weights have several names for one memory. Names that the delta knows are used, the
    first of them for each memory; a name that it does not know, of memory that it does, is left
    out.

    Raises:
        IncompatibleError: A weight is on the meta device, sparse or quantised.
        StructureMismatchError: The delta changes tied weights in different ways.
    """

    def __init__(self, model: torch.nn.Module, entries: Sequence[TensorEntry]) -> None:
        self.path = Path(type(model).__name__)
        known = {entry.name: entry for entry in entries}
        self.tensors: dict[str, TensorInfo] = {}
        self._values: dict[str, torch.Tensor] = {}
        self.tied: dict[str, str] = {}
        memory: dict[Any, str] = {}
        state = model.state_dict(keep_vars=True)
        for name in sorted(state, key=lambda name: (name not in known, name)):
            value = state[name]
            if not hasattr(value, "dtype"):
                continue  # a module's extra state
            info = _info(name, value, self.path)
            place = (value.device, value.data_ptr(), tuple(value.shape), value.stride())
            first = memory.setdefault(place, name) if value.numel() else name
            self.tensors[name] = info
            self._values[name] = value.detach()
            if first == name:
                continue
            if name in known and first in known:
                _refuse_different(known[first], known[name])
                self.tied[name] = first
            else:
                del self.tensors[name]

    def read_into(self, name: str, start_byte: int, buffer: Any) -> None:
        """Copy bytes of a weight, in row-major order, from its device."""
        target = np.frombuffer(buffer, np.uint8)
        size = DTYPE_BYTES[self.tensors[name].dtype]
        piece = self._flat(name)[start_byte // size : (start_byte + target.size) // size]
        np.copyto(target, _bytes(piece.cpu()))

    def read_samples(self, places: Sequence[tuple[str, int, Any]]) -> None:
        """Fill each buffer from its place."""
        for name, start_byte, buffer in places:
            self.read_into(name, start_byte, buffer)

    def write(self, name: str, start: int, data: Bytes) -> None:
        """Overwrite elements from ``start`` on with their bytes."""
        import torch

        value = self._values[name]
        size = DTYPE_BYTES[self.tensors[name].dtype]
        count = data.size // size
        source = torch.from_numpy(data).view(value.dtype)
        with torch.no_grad():
            if value.is_contiguous():
                value.view(-1)[start : start + count].copy_(source)
            else:
                # Rows of a transposed or sliced weight: positions in row-major order.
                index = np.unravel_index(np.arange(start, start + count), tuple(value.shape))
                places = tuple(torch.from_numpy(i).to(value.device) for i in index)
                value[places] = source.to(value.device)

    def _flat(self, name: str) -> torch.Tensor:
        value = self._values[name]
        return value.view(-1) if value.is_contiguous() else value.reshape(-1)


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
        self.undo = {name: _Undo(recipe.terms[0][1]) for name, recipe in changed.items()}
        self._lock = threading.Lock()

    def write(self, name: str, start_byte: int, data: Bytes) -> None:
        """See ``Target.write``."""
        size = DTYPE_BYTES[self._weights.tensors[name].dtype]
        start = start_byte // size
        before = scratch("before", data.size, np.uint8)
        self._weights.read_into(name, start_byte, before)
        undo = self.undo[name]
        self._weights.write(name, start, data)
        task = (name, start, data.size // size)
        back = _subtracted(self._weights, self._reader, undo, task, self._scale)
        old, got = before.view(f"u{size}"), back.view(f"u{size}")
        lost = np.flatnonzero(old != got)
        if lost.size:
            frame = encode_patch(lost, old[lost].view(np.uint8))
            with self._lock:
                undo.frames[start] = frame


def _subtracted(
    weights: ModelWeights,
    reader: ArtifactReader,
    undo: _Undo,
    task: tuple[str, int, int],
    scale: float,
) -> Bytes:
    """Θ - α·Δ of one chunk, with what the undo frames say in place."""
    name, start, count = task
    dtype = weights.tensors[name].dtype
    size = DTYPE_BYTES[dtype]
    raw = scratch("after", count * size, np.uint8)
    weights.read_into(name, start * size, raw)
    out = scratch("back", count * size, np.uint8)
    bits = scratch("undo", count, np.uint64 if undo.entry.wide else np.uint32)
    reader.delta(undo.entry, start, bits)
    add(raw, dtype, [Term(bits, -scale)], dtype, out)
    frame = undo.frames.get(start)
    if frame is not None:
        positions, values = decode_patch(frame, size, count, where=name)
        out.view(f"u{size}")[positions] = values.view(f"u{size}")
    return out


def _changed(made: Mapping[str, Recipe], ref: str, weights: ModelWeights) -> dict[str, Recipe]:
    """The recipes that change something, in place; tied weights once."""
    structural = [
        name
        for name, recipe in made.items()
        if recipe.base is None
        or recipe.values is not None
        or recipe.output.shape != recipe.base.shape
    ]
    gone = [name for name in weights.tensors if name not in made]
    if structural or gone:
        raise IncompatibleError(
            f"{ref} adds, removes or resizes {len(structural) + len(gone)} tensors, of which the "
            f"first is {sorted([*structural, *gone])[0]}; a model in memory keeps its structure.",
            hint="Apply it to a checkpoint with `deltastore apply`, and load the result.",
            tensors=sorted([*structural, *gone]),
        )
    found = {}
    for name, recipe in made.items():
        assert recipe.base is not None
        terms = tuple(term for term in recipe.terms if term[1].delta is not None)
        if terms and name not in weights.tied and recipe.base.elements:
            output = OutputTensor(name, recipe.base.dtype, recipe.base.shape)
            found[name] = Recipe(output, recipe.base, terms)
    return found


def _resizes(recipe: Recipe) -> bool:
    return recipe.base is not None and recipe.output.shape != recipe.base.shape


def _chunks(
    weights: ModelWeights, undo: Mapping[str, _Undo], step: int
) -> Iterator[tuple[str, int, int]]:
    for name in undo:
        elements = weights.tensors[name].elements
        for start in range(0, elements, step):
            yield name, start, min(step, elements - start)


def _is_post(undo: Mapping[str, _Undo]) -> bool:
    posts = ((item.entry.post, item.after) for item in undo.values())
    return all(post is not None and post.blake3 == after for post, after in posts)


def _refuse_different(one: TensorEntry, other: TensorEntry) -> None:
    if (one.base, one.post) != (other.base, other.post):
        raise StructureMismatchError(
            f"{one.name} and {other.name} are one tensor in the model, and the delta changes them "
            "in different ways.",
            hint="Untie them, or apply the delta to a checkpoint where they are two.",
        )


def _info(name: str, value: torch.Tensor, where: Path) -> TensorInfo:
    kind = str(value.dtype).removeprefix("torch.")
    dtype = _DTYPES.get(kind)
    if dtype is None or value.is_meta or value.is_sparse or value.is_quantized:
        raise IncompatibleError(
            f"{name} of {where} is {kind} on {value.device}; expected a dense tensor of numbers.",
            hint="Load the weights first, without quantisation.",
            tensor=name,
        )
    shape = tuple(value.shape)
    return TensorInfo(name, dtype, shape, 0, 0, value.numel() * DTYPE_BYTES[dtype])


def _bytes(value: torch.Tensor) -> Bytes:
    import torch

    found: Bytes = value.contiguous().view(torch.uint8).numpy()
    return found


__all__ = ["ModelWeights", "Patch", "delta_tensors", "patch", "unpatch"]
