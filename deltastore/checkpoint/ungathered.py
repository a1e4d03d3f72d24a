"""Tensors that were saved empty: what ZeRO-3 leaves where weights were not gathered."""

from __future__ import annotations

from collections.abc import Iterable

from deltastore.checkpoint import Checkpoint, TensorInfo
from deltastore.errors import CheckpointCorruptError
from deltastore.manifest import TensorSide


def refuse_ungathered(
    checkpoint: Checkpoint, other: Iterable[tuple[str, object]], *, may_grow: bool = False
) -> None:
    """Refuse a checkpoint with tensors of size 0 that have elements elsewhere.

    Tensors that are empty on both sides are as good as any, unless most weights are.

    Args:
        checkpoint: What is looked at.
        other: The tensors of the other side of a pair, by the checkpoint's names: ``TensorInfo``
            or ``TensorSide``; what is neither is not compared.
        may_grow: A matrix without rows may have rows there, of the same width.

    Raises:
        CheckpointCorruptError: There are such tensors.
    """
    tensors = checkpoint.tensors
    empty = [name for name, tensor in tensors.items() if not tensor.elements]
    if not empty:
        return
    wanted = {
        name: side
        for name, side in other
        if isinstance(side, TensorInfo | TensorSide) and side.elements
    }
    lacking = [
        name
        for name in empty
        if name in wanted and not (may_grow and _grows(tensors[name].shape, wanted[name].shape))
    ]
    names = lacking or _most_weights(checkpoint)
    if not names:
        return
    first = names[0]
    got = f"{tensors[first].dtype} {list(tensors[first].shape)}"
    expected = "elements"
    if first in wanted:
        expected = f"{wanted[first].dtype} {list(wanted[first].shape)}"
    raise CheckpointCorruptError(
        f"{checkpoint.path} has nothing in {len(names)} of its {len(tensors)} tensors, as ZeRO-3 "
        f"leaves them where weights are saved and not gathered: for {first} expected {expected}, "
        f"got {got}.",
        hint="Save it with `stage3_gather_16bit_weights_on_model_save` set in DeepSpeed's "
        "configuration, or run `python zero_to_fp32.py . OUTPUT` in the training's checkpoint.",
        path=str(checkpoint.path),
        empty=names,
    )


def _grows(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    return len(before) > 1 and before[1:] == after[1:]


def _most_weights(checkpoint: Checkpoint) -> list[str]:
    """The weights that are empty, if that is most of them."""
    weights = [name for name in checkpoint.tensors if name.rpartition(".")[2] == "weight"]
    empty = [name for name in weights if not checkpoint.tensors[name].elements]
    return empty if len(empty) * 2 > len(weights) else []
