"""Frozen records of what a manifest and its config blob say."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from deltastore.manifest.format import DTYPE_BYTES, FORMAT_VERSION, NARROW_DTYPES

TensorKind = Literal["unchanged", "delta", "resized", "replaced", "added", "removed"]
"""What post-training did to a tensor.

``delta``: same shape, floating point. ``resized``: the first dimension differs, the others agree;
the common rows carry a delta, further rows of post are values. ``replaced``/``added``: values.
"""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One blob as the OCI image specification describes it. ``size`` is in bytes."""

    media_type: str
    digest: str
    size: int
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """An OCI image manifest of artifact type ``ARTIFACT_TYPE``."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Every blob that the manifest names, config first."""
        return (self.config, *self.layers)


@dataclass(frozen=True, slots=True)
class TensorSide:
    """One tensor of a source checkpoint: dtype, shape and BLAKE3 hex of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    blake3: str

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Segment:
    """Frames ``first .. first + frames`` of a stream, which lie in part number ``part``."""

    part: int
    first: int
    frames: int


@dataclass(frozen=True, slots=True)
class Stream:
    """A sequence of frames, one per chunk of elements, spread over one or more parts.

    ``stored_bytes`` counts compressed frames, offsets and the codec's static arrays.
    """

    codec: str
    params: dict[str, Any]
    segments: tuple[Segment, ...]
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class DeltaError:
    """How far the deltas that are decoded are from those that were encoded, over the finite ones.

    ``l2``: Euclidean norm of the differences; ``max``: the largest of them, absolute.
    """

    l2: float
    max: float


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One row of the tensor table.

    ``changed`` counts elements with a delta; ``l2`` is the Euclidean norm of the finite deltas and
    ``base_l2`` that of the base's finite elements at the common rows. ``error`` was measured where
    the codec is not exact; None says nothing of it.
    """

    name: str
    kind: TensorKind
    base: TensorSide | None
    post: TensorSide | None
    delta: Stream | None = None
    values: Stream | None = None
    patch: Stream | None = None
    changed: int = 0
    l2: float = 0.0
    base_l2: float = 0.0
    base_name: str | None = None
    error: DeltaError | None = None

    @property
    def source(self) -> str:
        """What the base calls the tensor that ``base`` is."""
        return self.name if self.base_name is None else self.base_name

    @property
    def own_base(self) -> TensorSide | None:
        """``base``, unless that is another entry's tensor too."""
        return self.base if self.base_name is None else None

    @property
    def wide(self) -> bool:
        """Whether the delta is a float64 difference (one side is float32 or float64)."""
        assert self.base is not None
        assert self.post is not None
        return not (self.base.dtype in NARROW_DTYPES and self.post.dtype in NARROW_DTYPES)

    @property
    def common_elements(self) -> int:
        """Elements that carry a delta: those of the rows that base and post share."""
        if self.base is None or self.post is None:
            return 0
        return min(self.base.elements, self.post.elements)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all streams of this tensor."""
        return sum(s.stored_bytes for s in (self.delta, self.values, self.patch) if s is not None)

    @property
    def relative_change(self) -> float | None:
        """``l2 / base_l2``; None where there is no delta or the base is all zeros."""
        return self.l2 / self.base_l2 if self.delta is not None and self.base_l2 else None


@dataclass(frozen=True, slots=True)
class SourceModel:
    """One of the two source checkpoints, named by content and, if it has one, by Hub id.

    ``nbytes`` is the size of its tensors; ``content`` is None never: extraction reads both sides.
    """

    content: str
    fingerprint: str
    nbytes: int
    parameters: int
    repo: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class SampleRun:
    """``count`` elements of tensor number ``tensor`` of the table, from element ``start`` on."""

    tensor: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A small file of base or post: ``side/path`` is its title, ``layer`` its layer's index."""

    side: Literal["base", "post"]
    path: str
    layer: int


@dataclass(frozen=True, slots=True)
class Config:
    """The config blob: everything about an artifact but the encoded values.

    ``parts`` is the number of tensor parts; they are the manifest's first layers. The samples'
    layer follows, then the small files. ``not_stored`` names what lay beside post's weights and is
    not in the artifact.
    """

    codec: str
    exactness: Literal["exact", "bounded", "lossy"]
    chunk: int
    base: SourceModel
    post: SourceModel
    tensors: tuple[TensorEntry, ...]
    parts: int
    samples: tuple[SampleRun, ...]
    files: tuple[FileEntry, ...] = ()
    restore_only: bool = False
    not_stored: tuple[str, ...] = ()
    format: int = field(default=FORMAT_VERSION)

    @property
    def samples_layer(self) -> int:
        """Index of the layer that holds the samples' bytes."""
        return self.parts

    def part_bytes(self, manifest: Manifest) -> int:
        """Bytes of all tensor parts, containers and indices included."""
        return sum(layer.size for layer in manifest.layers[: self.parts])

    def bits_per_weight(self, manifest: Manifest) -> float:
        """8 x the bytes of the tensor parts over the elements of all post tensors."""
        return 8 * self.part_bytes(manifest) / max(1, self.post.parameters)
