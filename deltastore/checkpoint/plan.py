"""Into which files an output checkpoint goes, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltastore.checkpoint.index import is_shard_name
from deltastore.checkpoint.model import TensorSpec
from deltastore.checkpoint.pieces import NUMBERED
from deltastore.checkpoint.reader import Checkpoint
from deltastore.errors import NoWeightsError
from deltastore.manifest.format import DTYPE_BYTES

SINGLE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One file of the output, its tensors in file order."""

    filename: str
    tensors: tuple[TensorSpec, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def plan_shards(
    base: Checkpoint, outputs: Mapping[str, TensorSpec], *, max_shard_bytes: int | None = None
) -> tuple[ShardPlan, ...]:
    """Lay ``outputs`` out like the new base: its files, their names, their order.

    Tensors that the base does not have go to the end of the last file. A single file is called
    ``model.safetensors``, the only name under which other programs look for one. A shard that
    would be left empty is dropped and the others are numbered anew.

    Args:
        base: The new base.
        outputs: What will be written, by name.
        max_shard_bytes: Group anew into files of at most this many bytes of tensors, as the Hub's
            library does; a tensor that is larger gets a file of its own.

    Raises:
        NoWeightsError: ``outputs`` is empty.
    """
    groups = [
        (shard.filename, [outputs[name] for name in shard.tensors if name in outputs])
        for shard in base.shards
    ]
    added = [outputs[name] for name in sorted(outputs.keys() - base.tensors.keys())]
    kept = [group for group in groups if group[1]]
    if not kept and not added:
        raise NoWeightsError(
            "There is no tensor to write: the output would be an empty checkpoint.",
            hint="Check which tensors the base and the delta share.",
        )
    if not kept:
        kept = [(groups[-1][0], [])]
    kept[-1][1].extend(added)
    if max_shard_bytes is not None:
        pieces = _regrouped([tensor for _, group in kept for tensor in group], max_shard_bytes)
        names = _numbered("model", len(pieces))
    else:
        pieces = [group for _, group in kept]
        names = _renamed([name for name, _ in kept], base, dropped=len(kept) < len(groups))
    return tuple(
        ShardPlan(name, _aligned(piece)) for name, piece in zip(names, pieces, strict=True)
    )


def _regrouped(tensors: Sequence[TensorSpec], max_bytes: int) -> list[list[TensorSpec]]:
    # The order in which the Hub's library closes its groups, an oversized tensor at once.
    closed: list[list[TensorSpec]] = []
    current: list[TensorSpec] = []
    size = 0
    for tensor in tensors:
        if tensor.nbytes > max_bytes:
            closed.append([tensor])
            continue
        if current and size + tensor.nbytes > max_bytes:
            closed.append(current)
            current, size = [], 0
        current.append(tensor)
        size += tensor.nbytes
    return [*closed, current] if current else closed


def _renamed(names: list[str], base: Checkpoint, *, dropped: bool) -> list[str]:
    if len(names) == 1:
        return [SINGLE]
    apart = len({name.casefold() for name in names}) == len(names)
    if not apart or not all(map(is_shard_name, names)):
        # A reader would refuse the index, or a file system take two of them for one.
        return _numbered("model", len(names))
    if base.is_safetensors and not dropped:
        return names
    matches = [NUMBERED.match(name) for name in names]
    stems = {match["stem"] if match else None for match in matches}
    stem = stems.pop() if len(stems) == 1 else None
    if not base.is_safetensors:
        return _numbered("model", len(names))
    return names if stem is None else _numbered(stem, len(names))


def _numbered(stem: str, count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _aligned(tensors: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    # Readers map tensors in place and refuse one whose position is no multiple of its element.
    # That can only happen where dtypes of several widths share a file; the wide ones then go first.
    position = 0
    for tensor in tensors:
        if position % DTYPE_BYTES[tensor.dtype]:
            return tuple(sorted(tensors, key=lambda item: -DTYPE_BYTES[item.dtype]))
        position += tensor.nbytes
    return tuple(tensors)
