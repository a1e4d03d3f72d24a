"""Making a plan: everything is decided, and everything that can be refused is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from deltastore.checkpoint import TORCH_DTYPES, Checkpoint, plan_shards, quantisation
from deltastore.checkpoint.beside import bounded
from deltastore.checkpoint.ungathered import refuse_ungathered
from deltastore.errors import QuantisedCheckpointError, StructureMismatchError, UsageError
from deltastore.execution.progress import Progress
from deltastore.lineage.similarity import judge, measure
from deltastore.manifest.format import DELTA_DTYPES
from deltastore.merging import restoration
from deltastore.merging.inputs import DeltaInput, with_vocabulary
from deltastore.merging.method import LINEAR, MergeMethod
from deltastore.merging.plan import MergePlan, PlannedBase, PlannedDelta
from deltastore.merging.recipes import Recipe, in_names_of, recipes, tied_as_post
from deltastore.store import Store
from deltastore.structure.architecture import explained
from deltastore.structure.checking import check_structure
from deltastore.structure.places import Report, comparable
from deltastore.tensor_names.selectors import Renaming, ScaleRule, Scales, checked_scales

DTYPE_NAMES = {torch: own for torch, own in TORCH_DTYPES.items() if own in DELTA_DTYPES}
"""What ``--dtype`` takes, by the names that torch uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """What a user decides about a merge.

    Attributes:
        scales: α for each delta; 1 for all if empty.
        scale_rules: α of the tensors whose names match a pattern.
        renaming: What the new base calls the deltas' tensors.
        dtype: Output dtype of all floating-point tensors, as it was given; each one's own if None.
        partial: Leave what does not match as it is, and list it, rather than refuse.
        skip_embeddings: Leave embeddings and output head as they are.
        force: Go on where lineage speaks against it.
        method: How deltas change the base.
        max_shard_bytes: Size of the output's shards; the new base's layout if None.
    """

    scales: Sequence[float] = ()
    scale_rules: Sequence[ScaleRule] = ()
    renaming: Renaming = field(default_factory=Renaming)
    dtype: str | None = None
    partial: bool = False
    skip_embeddings: bool = False
    force: bool = False
    method: MergeMethod = LINEAR
    max_shard_bytes: int | None = None

    @property
    def output_dtype(self) -> str | None:
        """``dtype`` as safetensors calls it.

        Raises:
            UsageError: It is none between which a delta has a meaning.
        """
        if self.dtype is None or self.dtype in DELTA_DTYPES:
            return self.dtype
        if self.dtype in DTYPE_NAMES:
            return DTYPE_NAMES[self.dtype]
        raise UsageError(
            f"{self.dtype!r} is no dtype for an output; expected one of {', '.join(DTYPE_NAMES)}.",
            hint="Give one of these with `--dtype`.",
        )

    def scales_of(self, refs: Sequence[str]) -> Scales:
        """α of every tensor and delta.

        Raises:
            UsageError: There are others than these deltas, or one is no finite float32 number.
        """
        return Scales(checked_scales(refs, self.scales), self.scale_rules)


def make_plan(
    store: Store,
    checkpoint: Checkpoint,
    inputs: Sequence[DeltaInput],
    options: MergeOptions,
    *,
    look_only: bool,
    jobs: int,
    progress: Progress,
) -> tuple[MergePlan, list[DeltaInput]]:
    """Decide all about a merge but the output's small files; also the inputs as they are known now.

    Args:
        store: Where the deltas are.
        checkpoint: The new base.
        inputs: The deltas, with the new base's names.
        options: What the user decided.
        look_only: Read little of a new base on the Hub. Which restore patches fit, which whole
            tensors say, is then left open.
        jobs: Threads.
        progress: Is told what is read, and warnings.

    Raises:
        UsageError: Scales or dtype make no sense.
        IncompatibleError: A delta and the base do not belong together.
        IntegrityError: A blob is missing or damaged.
        CheckpointError: The base cannot be read.
        NoWeightsError: The output would have no tensor.
    """
    dtype, scales = options.output_dtype, options.scales_of([one.ref for one in inputs])
    _refuse_quantised(checkpoint, inputs)
    inputs = [with_vocabulary(one, checkpoint, skip=options.skip_embeddings) for one in inputs]
    report, inputs = _matched(checkpoint, inputs, partial=options.partial)
    made = recipes(checkpoint, [one.delta for one in inputs], report, scales, dtype)
    scales.check_used(made)
    _warn_of_rows(inputs, report, progress)
    inputs = _judged(store, checkpoint, inputs, force=options.force, progress=progress)
    plain = dtype is None and not (scales.rules or report.skipped or options.renaming.rules)
    restoring = _may_restore(checkpoint, inputs, made, plain=plain and options.method.restores)
    if not restoring:
        made = in_names_of(checkpoint, tied_as_post(made))
    patches = None
    if restoring and (checkpoint.is_local or not look_only):
        patches = restoration.patched_tensors(
            store, checkpoint, inputs[0].config, inputs[0].ref, jobs, progress
        )
    outputs = {name: recipe.output for name, recipe in made.items()}
    plan = MergePlan(
        base=PlannedBase.of(checkpoint),
        deltas=tuple(map(planned, inputs)),
        tensors=made,
        shards=plan_shards(checkpoint, outputs, max_shard_bytes=options.max_shard_bytes),
        chunk=inputs[0].config.chunk,
        method=options.method,
        prepared=options.method.prepare(made, [one.reader for one in inputs]),
        patches=patches,
        restoring=restoring,
        dtype=options.dtype,
        scale_for=scales.rules,
        left_out=tuple(report.all),
        skipped=tuple(report.skipped),
        not_copied=_not_copied(checkpoint, inputs),
    )
    return plan, inputs


def planned(one: DeltaInput) -> PlannedDelta:
    """A delta as a plan tells of it."""
    assert one.lineage is not None
    vocabulary = one.delta.vocabulary
    return PlannedDelta(
        ref=one.ref,
        digest=one.artifact.digest,
        scale=one.scale,
        base=one.artifact.base,
        post=one.artifact.post,
        post_repo=one.config.post.repo,
        source_base=one.config.base.content,
        source_post=one.config.post.content,
        lineage=one.lineage,
        vocabulary=None if vocabulary is None else vocabulary.report(),
    )


def _matched(
    checkpoint: Checkpoint, inputs: Sequence[DeltaInput], *, partial: bool
) -> tuple[Report, list[DeltaInput]]:
    """What matches and what does not, and the deltas with the places of their tensors."""
    deltas = [one.delta for one in inputs]
    for delta in deltas:
        refuse_ungathered(checkpoint, [(delta.named(e), e.base) for e in delta.config.tensors])
    try:
        report = check_structure(checkpoint, deltas, partial=partial, config=checkpoint.config)
    except StructureMismatchError as error:
        raise explained(error, checkpoint, deltas) from None
    pairs = zip(inputs, report.places, strict=True)
    return report, [replace(one, places=places) for one, places in pairs]


def _warn_of_rows(inputs: Sequence[DeltaInput], report: Report, progress: Progress) -> None:
    """Say where rows of tokens go by index, and may be those of other tokens."""
    for one in inputs:
        if one.delta.vocabulary is not None and one.delta.vocabulary.unlike:
            progress.warn(
                f"The tokenizer is not that of the base of {one.ref}, and rows go by index: "
                "no tensor, or more than one, is known to hold the embeddings."
            )
    if report.unsure:
        progress.warn(
            f"{', '.join(sorted(set(report.unsure)))} may have a place for each token, and "
            "goes by index; rows of embeddings and head go by token."
        )


def _judged(
    store: Store,
    checkpoint: Checkpoint,
    inputs: Sequence[DeltaInput],
    *,
    force: bool,
    progress: Progress,
) -> list[DeltaInput]:
    """The deltas with the new base's lineage.

    Raises:
        LineageError: The new base is unrelated to a delta's own, and it is not forced.
    """
    measured = [
        replace(
            one,
            lineage=measure(
                store.blobs,
                one.reader.manifest,
                one.config,
                checkpoint,
                where=one.ref,
                sources=comparable(one.places),
            ),
        )
        for one in inputs
    ]
    for one in measured:
        assert one.lineage is not None
        # What is restored only has its base known by the content digest where samples say nothing.
        if not (one.config.restore_only and one.lineage.verdict == "unknown"):
            judge(one.ref, checkpoint.label, one.lineage, force=force, progress=progress)
    return measured


def _refuse_quantised(checkpoint: Checkpoint, inputs: Sequence[DeltaInput]) -> None:
    reason = quantisation(checkpoint)
    if reason is not None and not all(one.config.restore_only for one in inputs):
        raise QuantisedCheckpointError(
            f"{checkpoint.path} is quantised ({reason}); a delta is added to floating point.",
            hint="Give the model that it was quantised from, or dequantise it first (in "
            "transformers: `model.dequantize()`, then `model.save_pretrained(...)`).",
            path=str(checkpoint.path),
        )


def _may_restore(
    checkpoint: Checkpoint,
    inputs: Sequence[DeltaInput],
    made: Mapping[str, Recipe],
    *,
    plain: bool,
) -> bool:
    """Whether the new base may be the one delta's source base, so that the output may be post.

    Raises:
        RestoreOnlyError: It cannot be, and an artifact is for its source base alone.
    """
    first = inputs[0]
    assert first.lineage is not None
    alone = len(inputs) == 1 and first.scale == 1 and plain
    alone = alone and not any(recipe.order is not None for recipe in made.values())
    # Where samples tell nothing, as where all is integers, the content digest decides later.
    unknown = alone and first.config.restore_only and first.lineage.verdict == "unknown"
    if alone and (first.lineage.same or unknown):
        return True
    for one in inputs:
        if one.config.restore_only:
            raise restoration.not_the_source(one.ref, checkpoint)
    return False


def _not_copied(
    checkpoint: Checkpoint, inputs: Sequence[DeltaInput]
) -> tuple[Mapping[str, str], ...]:
    """What lies beside the weights of new base and posts and is not in the output."""
    sides = {"new base": bounded(checkpoint.left or {})}
    sides |= {f"post of {one.ref}": one.files.left for one in inputs}
    return tuple(
        {"of": whose, "name": name, "why": why}
        for whose, left in sides.items()
        for name, why in left.items()
    )
