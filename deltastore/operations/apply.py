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
from deltastore.execution.progress import Progress, Silent, Staged
from deltastore.execution.thread_pool import job_count
from deltastore.merging import restoration
from deltastore.merging.engine import Engine
from deltastore.merging.inputs import name_inputs, open_inputs
from deltastore.merging.planning import MergeOptions, make_plan
from deltastore.output import assemble
from deltastore.output.destination import check_output
from deltastore.store import Store


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
    options: MergeOptions | None = None,
    dry_run: bool = False,
    fsync: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> ApplyResult:
    """Write ``base`` plus the scaled deltas as a complete checkpoint.

    Nothing is visible at ``out`` before every tensor is written and every blob that was used has
    been compared with its digest. An empty directory that is there is filled, and keeps its
    owner, mode and mount.

    Args:
        store: Where the deltas are.
        refs: What to apply, added from left to right.
        base: The new base: a local path, or a Hub id.
        out: The output directory; must not exist, or be empty.
        options: What else is decided about the merge.
        dry_run: Check everything and write nothing.
        fsync: Wait until the output survives a power cut.
        jobs: Threads; one for each core if None.
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
    progress, options = Staged(progress or Silent()), options or MergeOptions()
    scales, _ = options.scales_of(refs).scales, options.output_dtype  # refused at once
    out = check_output(store, out, called="--out", dry_run=dry_run)
    with ExitStack() as stack:
        inputs = stack.enter_context(open_inputs(store, zip(refs, scales, strict=True)))
        checkpoint = stack.enter_context(
            open_checkpoint(base, downloads=progress, look_only=dry_run)
        )
        checkpoint, inputs = name_inputs(checkpoint, inputs, options.renaming, progress)
        threads = job_count(jobs)
        plan, inputs = make_plan(
            store, checkpoint, inputs, options, look_only=dry_run, jobs=threads, progress=progress
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
            with CheckpointWriter(out, plan.shards, files=sizes) as writer:
                progress.start("applying", plan.nbytes)
                engine = Engine(plan, checkpoint, [one.reader for one in inputs])
                tally = engine.run(writer, jobs=threads, progress=progress)
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
