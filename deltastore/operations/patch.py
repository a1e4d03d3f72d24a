"""``patch`` and ``unpatch``: a delta in a model in memory, in place, and out of it again.

The sum is that of ``apply``, bit for bit, whatever device the model is on: chunks travel to the
processor and back. Rounding loses bits of the old weights, so what subtracting the delta again
does not give back is kept beside the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from deltastore.artifact.reader import open_artifact
from deltastore.delta import Term
from deltastore.errors import UsageError
from deltastore.execution.progress import Progress, Silent
from deltastore.execution.thread_pool import ThreadPool, job_count
from deltastore.inmemory.patch import Patch, Patching, Run, pending, take_out
from deltastore.inmemory.planning import plan_patch
from deltastore.inmemory.weights import ModelWeights
from deltastore.lineage import digests
from deltastore.manifest.format import DTYPE_BYTES
from deltastore.merging.engine import Engine
from deltastore.merging.inputs import open_input
from deltastore.store import Store
from deltastore.tensor_names.selectors import checked_scales

if TYPE_CHECKING:
    import torch


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
    with ExitStack() as stack:
        one = open_input(store, artifact, scale, stack)
        plan, weights = plan_patch(
            store,
            model,
            one,
            rename or {},
            partial=partial,
            force=force,
            jobs=job_count(jobs),
            progress=progress,
        )
        one.reader.check()
        target = Patching(weights, one.reader, plan)
        progress.start("patching", plan.nbytes)
        engine = Engine(plan, weights, [one.reader])
        try:
            tally = engine.run(target, jobs=job_count(jobs), progress=progress, check=False)
        except BaseException:
            # Stopped half way: a model that is neither would be taken for one of the two.
            target.take_back()
            raise
    target.settle(tally.digests)
    return Patch(
        ref=one.ref,
        digest=artifact.digest,
        scale=scale,
        tensors=len(plan.tensors),
        bytes_kept=target.bytes_kept,
        lineage=plan.deltas[0].lineage,
        restored=plan.restoring and not plan.left_out and target.is_post(),
        left_out=[asdict(item) for item in plan.left_out],
        _undo=target.undo,
        _names=weights.names,
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

        def restore(_number: int, run: Run) -> None:
            take_out(weights, reader, undo[run.name], run, patched.scale)
            progress.advance(run.count * DTYPE_BYTES[weights.tensors[run.name].dtype])

        total = sum(weights.tensors[name].nbytes for name in undo if name in weights.tensors)
        progress.start("checking", total)
        ThreadPool(job_count(jobs)).run(list(undo), check)
        progress.start("unpatching", total)
        ThreadPool(job_count(jobs)).run(list(pending(undo)), restore)


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
