"""How near a new base is to the source base, measured at the artifact's samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from deltastore.blobs import BlobStore
from deltastore.checkpoint import TensorInfo, Weights
from deltastore.delta.floats import to_floats
from deltastore.errors import LineageError
from deltastore.execution.progress import Progress
from deltastore.manifest import Config, Manifest, TensorEntry, TensorSide
from deltastore.manifest.format import DELTA_DTYPES, DTYPE_BYTES, MAX_SAMPLE_BYTES
from deltastore.text import typed

Verdict = Literal["same", "related", "distant", "unrelated", "unknown"]

RELATED_FROM = 0.9
"""From this cosine on a delta can be expected to do on the new base what it did on its own."""

UNRELATED_BELOW = 0.2
"""Below this cosine a delta is noise. docs/compatibility.md has the experiments behind these."""

UNLIKE_FROM = 1 / 8
"""From this share of unrelated tensors on the whole is: a permuted part is a model's ruin."""

FEWEST_ELEMENTS = 256
"""Of fewer numbers the cosine of unrelated weights is not yet sure to be near zero."""

_FEWEST_OF_TENSOR = 64
"""The same for one tensor."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Lineage:
    """Figures over the sampled matrices (over all sampled tensors where there is no matrix).

    Vectors are left out: norms are close to one in every model, related or not.

    Attributes:
        verdict: ``same``, ``related``, ``distant`` (a lower α may do; test the result),
            ``unrelated`` (the delta is noise), or ``unknown`` if too little could be compared.
        same: Every sampled byte equals the source base's.
        cosine: Mean over the tensors of the cosine between the sampled weights of both bases;
            None if nothing was compared.
        distance: Mean of ``|new - source| / |source|``; None likewise.
        tensors: How many tensors were compared.
        unlike: How many of these are unrelated, each by itself.
        elements: How many of their elements.
    """

    verdict: Verdict
    same: bool
    cosine: float | None
    distance: float | None
    tensors: int
    unlike: int
    elements: int


def measure(
    blobs: BlobStore,
    manifest: Manifest,
    config: Config,
    base: Weights,
    *,
    where: str,
    sources: Mapping[str, TensorInfo] | None = None,
) -> Lineage:
    """Read the new base at the places of the samples: at most 256 short reads.

    Args:
        blobs: Where the samples are.
        manifest: The delta's manifest.
        config: Its config.
        base: The new base.
        where: What to call the delta.
        sources: The new base's tensors to read, by the source base's names; those of the same
            names if None.

    Raises:
        BlobCorruptError: The samples are damaged.
        CheckpointError: The new base cannot be read.
        HubError: It is on the hub and cannot be read there.
    """
    tensors = base.tensors if sources is None else sources
    runs: list[SampledRun] = []
    places: list[tuple[str, int, Bytes]] = []
    for start, entry, theirs in _stored_samples(blobs, manifest, config, where):
        assert entry.base is not None
        info = tensors.get(entry.name)
        if info is None or not _are_comparable(entry.base, info):
            continue
        size = DTYPE_BYTES[info.dtype]
        ours = np.empty(theirs.size // DTYPE_BYTES[entry.base.dtype] * size, np.uint8)
        matrix = len(info.shape) > 1
        runs.append(SampledRun(entry.name, matrix, entry.base.dtype, theirs, info.dtype, ours))
        places.append((info.name, start * size, ours))
    # All at once: of a base on the hub only these bytes are fetched, several runs at a time.
    base.read_samples(places)
    return compared(runs, complete=0 < len(runs) == len(config.samples))


def _stored_samples(
    blobs: BlobStore, manifest: Manifest, config: Config, where: str
) -> Iterator[tuple[int, TensorEntry, Bytes]]:
    """Of each run of the source base: its first element, its tensor and its bytes."""
    layer = manifest.layers[config.samples_layer]
    samples = blobs.read(
        layer.digest, limit=MAX_SAMPLE_BYTES, what=f"the samples of {where}", size=layer.size
    )
    data = np.frombuffer(samples, np.uint8)
    position = 0
    for run in config.samples:
        entry = config.tensors[run.tensor]
        assert entry.base is not None
        size = run.count * DTYPE_BYTES[entry.base.dtype]
        yield run.start, entry, data[position : position + size]
        position += size


def _are_comparable(source: TensorSide, new: TensorInfo) -> bool:
    """Whether numbers of one are at the places of the other's."""
    floats = source.dtype in DELTA_DTYPES and new.dtype in DELTA_DTYPES
    return floats and source.shape == new.shape


@dataclass(frozen=True, slots=True)
class SampledRun:
    """The same elements of two models' tensors of one name: dtype and bytes of either.

    Shapes:
        source, new: ``[elements * itemsize]``, uint8.
    """

    name: str
    matrix: bool
    source_dtype: str
    source: Bytes
    new_dtype: str
    new: Bytes


@dataclass(frozen=True, slots=True)
class Sums:
    """Of one tensor's sampled finite elements, in float64: a.b, a.a, b.b, (b-a).(b-a), how many."""

    dot: float = 0.0
    source: float = 0.0
    new: float = 0.0
    moved: float = 0.0
    elements: int = 0

    @property
    def comparable(self) -> bool:
        """Whether a cosine is defined."""
        sums = (self.dot, self.source, self.new, self.moved)
        return all(map(math.isfinite, sums)) and bool(self.source and self.new)

    @property
    def cosine(self) -> float:
        """Of the angle between both."""
        return self.dot / (math.sqrt(self.source) * math.sqrt(self.new))

    def plus(self, run: SampledRun) -> Sums:
        """With one more run."""
        a = to_floats(run.source.copy(), run.source_dtype, wide=True)
        b = to_floats(run.new, run.new_dtype, wide=True)
        finite = np.isfinite(a) & np.isfinite(b)
        a, b = a[finite], b[finite]
        with np.errstate(over="ignore", invalid="ignore"):
            return Sums(
                self.dot + float(a @ b),
                self.source + float(a @ a),
                self.new + float(b @ b),
                self.moved + float((b - a) @ (b - a)),
                self.elements + a.size,
            )


def sums_of(runs: Sequence[SampledRun]) -> dict[str, Sums]:
    """The sums of each tensor of which a cosine is defined: of the matrices, if there are any."""
    sums: dict[str, Sums] = {}
    for run in runs:
        sums[run.name] = sums.get(run.name, Sums()).plus(run)
    matrices = {run.name for run in runs if run.matrix}
    return {
        name: one
        for name, one in sums.items()
        if one.comparable and (name in matrices or not matrices)
    }


def compared(runs: Sequence[SampledRun], *, complete: bool) -> Lineage:
    """The figures of two models, from runs of both.

    Args:
        runs: The runs.
        complete: Whether these are all that there are to be compared.
    """
    same = complete and all(
        run.source_dtype == run.new_dtype and np.array_equal(run.source, run.new) for run in runs
    )
    sums = sums_of(runs)
    if not sums:
        return Lineage("same" if same else "unknown", same, None, None, 0, 0, 0)
    cosine = math.fsum(one.cosine for one in sums.values()) / len(sums)
    elements = sum(one.elements for one in sums.values())
    unlike = sum(
        one.cosine < UNRELATED_BELOW and one.elements >= _FEWEST_OF_TENSOR for one in sums.values()
    )
    distances = (math.sqrt(one.moved) / math.sqrt(one.source) for one in sums.values())
    return Lineage(
        verdict=_verdict(same, cosine, unlike / len(sums), elements),
        same=same,
        cosine=cosine,
        distance=math.fsum(distances) / len(sums),
        tensors=len(sums),
        unlike=unlike,
        elements=elements,
    )


def _verdict(same: bool, cosine: float, unlike: float, elements: int) -> Verdict:
    if same:
        return "same"
    if elements < FEWEST_ELEMENTS:
        return "unknown"
    if cosine < UNRELATED_BELOW or unlike >= UNLIKE_FROM:
        return "unrelated"
    return "related" if cosine >= RELATED_FROM and not unlike else "distant"


def judge(
    ref: str, base: str, figures: Lineage, *, force: bool, progress: Progress, hint: str = ""
) -> None:
    """Refuse a base on which a delta is noise; warn of one on which it may be.

    Args:
        ref: The delta.
        base: What to call the new base.
        figures: What was measured.
        force: Neither refuse nor warn.
        progress: Is told the warning.
        hint: What helps where ``base`` is nothing that a command takes.

    Raises:
        LineageError: The base is unrelated to the delta's own.
    """
    if force or figures.verdict in ("same", "related"):
        return
    measured = "nothing could be compared"
    if figures.cosine is not None and figures.distance is not None:
        measured = (
            f"cosine {figures.cosine:.3f}, distance {figures.distance:.3g} over "
            f"{figures.tensors} sampled tensors, of which {figures.unlike} are unlike"
        )
    if figures.verdict == "unrelated":
        raise LineageError(
            f"{base} is unrelated to the base that {ref} was extracted from: expected a cosine "
            f"of {UNRELATED_BELOW} or more in nearly every tensor, got {measured}; the result "
            "would be noise.",
            hint=hint
            or f"See which deltas fit: `deltastore resolve --base {typed(base)}`; or give "
            "`--force`.",
            ref=ref,
            **asdict(figures),
        )
    standing = "far from" if figures.verdict == "distant" else "not comparable with"
    progress.warn(
        f"The base is {standing} the source base of {ref} ({measured}). Test the result, perhaps "
        "with a lower scale."
    )
