"""``apply``: add stored deltas to a new base, Θ_out = Θ'_base + Σ αᵢ·Δᵢ."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from typing import Any

from deltastore.checkpoint import CheckpointWriter, check_destination, open_checkpoint
from deltastore.checkpoint.index import listed
from deltastore.execution.crew import job_count
from deltastore.execution.progress import Progress, Silent, Staged
from deltastore.merging import restoration
from deltastore.merging.engine import Engine
from deltastore.merging.inputs import name_inputs, open_inputs
from deltastore.merging.method import LINEAR, MergeMethod
from deltastore.merging.planning import MergeOptions, make_plan
from deltastore.output import assemble
from deltastore.output.destination import check_output
from deltastore.store import Store
from deltastore.tensor_names.selectors import Renaming, ScaleRule, Scales, checked_scales


@dataclass(frozen=True, slots=True)
class ApplyResult:
    """What ``apply`` did, or would do if it is a dry run.

    Attributes:
        out: The output directory.
        refs: ref, digest and scale of each delta.
        base: What the new base is: label, repo, revision.
        lineage: For each delta, how near the new base is to its source base.
        tensors: Tensors of the output.
        bytes: Bytes of the output's tensors.
        restored: The output is post, bit for bit, by its content digest.
        overflowed: Finite elements that the output's dtype could not hold.
        left_out: Tensors that could not be matched and were left as they are, with the reason.
        skipped: Embeddings and heads that were left as they are because that was asked for.
        vocabulary: For each delta, how its tokens stand to the new base's.
        files: The output's small files: name, ``from`` (new base, post, both or written), and a
            note where there is something to say.
        not_copied: What lies beside the weights of the new base or of a post and is not in the
            output: ``of`` (``new base``, ``post of REF``), ``name`` and ``why``.
        config_left: Fields of config.json that post changed and that stay the new base's: field,
            what post says, what the output does.
        dry_run: Nothing was written.
        seconds: Wall time.
    """

    out: str
    refs: list[dict[str, Any]]
    base: dict[str, Any]
    lineage: list[dict[str, Any]]
    tensors: int
    bytes: int
    restored: bool
    overflowed: int
    left_out: list[dict[str, str]]
    skipped: list[str]
    vocabulary: list[dict[str, Any]]
    files: list[dict[str, Any]]
    not_copied: list[dict[str, str]]
    config_left: list[dict[str, str]]
    dry_run: bool
    seconds: float


def apply(
    store: Store,
    refs: Sequence[str],
    *,
    base: str | PathLike[str],
    out: str | PathLike[str],
    scales: Sequence[float] = (),
    scale_rules: Sequence[ScaleRule] = (),
    renaming: Renaming | None = None,
    dtype: str | None = None,
    partial: bool = False,
    skip_embeddings: bool = False,
    force: bool = False,
    dry_run: bool = False,
    fsync: bool = False,
    jobs: int | None = None,
    max_shard_bytes: int | None = None,
    method: MergeMethod = LINEAR,
    progress: Progress | None = None,
) -> ApplyResult:
    """Write ``base`` plus the scaled deltas as a complete checkpoint.

    Nothing is visible at ``out`` before every tensor is written and every blob that was used has
    been compared with its digest.

    An empty directory that is there is filled, and keeps its owner, mode and mount.

    Args:
        store: Where the deltas are.
        refs: What to apply, added from left to right.
        base: The new base: a local path, or a Hub id.
        out: The output directory; must not exist, or be empty.
        scales: α for each ref; 1 for all if empty.
        scale_rules: α of the tensors whose names match a pattern.
        renaming: What the new base calls the deltas' tensors.
        dtype: Output dtype of all floating-point tensors; each one's own if None.
        partial: Leave what does not match as it is, and list it, rather than refuse.
        skip_embeddings: Leave embeddings and output head as they are.
        force: Go on where lineage speaks against it.
        dry_run: Check everything and write nothing.
        fsync: Wait until the output survives a power cut.
        jobs: Threads; one for each core if None.
        max_shard_bytes: Size of the output's shards; the new base's layout if None.
        method: How deltas change the base.
        progress: Who is told how far the work is.

    Raises:
        UsageError: Scales or dtype make no sense, or the output would be in the store.
        RefError: A ref means nothing.
        IncompatibleError: A delta and the base do not belong together.
        IntegrityError: A blob is missing or damaged.
        CheckpointError: The base cannot be read, or the output not written.
        NoSpaceError: The output does not fit.
    """
    started = time.monotonic()
    progress = Staged(progress or Silent())
    options = MergeOptions(
        Scales(checked_scales(refs, scales), scale_rules),
        renaming or Renaming(),
        dtype=dtype,
        partial=partial,
        skip_embeddings=skip_embeddings,
        force=force,
        method=method,
        max_shard_bytes=max_shard_bytes,
    )
    out = check_output(store, out, called="--out", dry_run=dry_run)
    with ExitStack() as stack:
        inputs = stack.enter_context(
            open_inputs(store, zip(refs, options.scales.scales, strict=True))
        )
        checkpoint = stack.enter_context(
            open_checkpoint(base, downloads=progress, look_only=dry_run)
        )
        checkpoint, inputs = name_inputs(checkpoint, inputs, options.renaming, progress)
        plan, inputs = make_plan(
            store,
            checkpoint,
            inputs,
            options,
            look_only=dry_run,
            jobs=job_count(jobs),
            progress=progress,
        )
        plan, files = assemble.small_files(plan, checkpoint, inputs, progress)
        for whose, names in plan.left_by_model().items():
            progress.warn(
                f"Beside the weights of the {whose} and not in the output: {listed(names)}."
            )
        sizes = {name: len(data) for name, data in files.items()}
        sizes[assemble.PROVENANCE] = assemble.PROVENANCE_BYTES
        overflowed, restored = 0, False
        if dry_run:
            check_destination(out, plan.shards, files=sizes)
        else:
            engine = Engine(plan, checkpoint, [one.reader for one in inputs])
            with CheckpointWriter(out, plan.shards, files=sizes) as writer:
                progress.start("applying", plan.nbytes)
                tally = engine.run(writer, jobs=job_count(jobs), progress=progress)
                checkpoint.check_unchanged()
                overflowed = tally.overflowed
                restored = plan.patches is not None and restoration.is_post(
                    inputs[0].config, plan.tensors, tally.digests
                )
                files[assemble.PROVENANCE] = assemble.provenance(plan, restored=restored)
                for name, data in sorted(files.items()):
                    writer.write_file(name, data)
                writer.commit(fsync=fsync)
        if overflowed:
            progress.warn(f"{overflowed} elements are too large for the output's dtype.")
        return ApplyResult(
            out=str(out),
            **plan.report(),
            restored=restored,
            overflowed=overflowed,
            dry_run=dry_run,
            seconds=time.monotonic() - started,
        )


__all__ = ["ApplyResult", "apply"]
