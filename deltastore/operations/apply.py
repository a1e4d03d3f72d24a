"""``apply``: add stored deltas to a new base, Θ_out = Θ'_base + Σ αᵢ·Δᵢ."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Any

from deltastore._version import __version__
from deltastore.artifact.reader import ArtifactReader, blaming
from deltastore.checkpoint import (
    TORCH_DTYPES,
    Checkpoint,
    CheckpointWriter,
    ShardPlan,
    check_destination,
    is_model_file,
    is_tokenizer_file,
    open_checkpoint,
    plan_shards,
    quantisation,
)
from deltastore.checkpoint.index import listed
from deltastore.checkpoint.ungathered import refuse_ungathered
from deltastore.errors import QuantisedCheckpointError, StructureMismatchError, UsageError
from deltastore.execution.crew import job_count
from deltastore.execution.progress import Progress, Silent, Staged
from deltastore.lineage.calling import called_as, unwrapped
from deltastore.lineage.similarity import Lineage, judge, measure
from deltastore.manifest.format import DELTA_DTYPES
from deltastore.merging import restoration
from deltastore.merging.architecture import explained
from deltastore.merging.engine import Applier
from deltastore.merging.inputs import Sides, compare_tokens, read_sides, skip_tokens
from deltastore.merging.recipes import Recipe, in_names_of, recipes, tied_as_post
from deltastore.merging.structure import Delta, Place, check_structure, comparable
from deltastore.merging.summary import Chosen, Summary, used_blobs
from deltastore.output import assemble
from deltastore.output.destination import check_output
from deltastore.store import Store
from deltastore.tensor_names.selectors import Renaming, ScaleRule, Scales, checked_scales
from deltastore.tokenizer.matching import Vocabulary

DTYPE_NAMES = {torch: own for torch, own in TORCH_DTYPES.items() if own in DELTA_DTYPES}
"""What ``--dtype`` takes, by the names that torch uses."""

PROVENANCE = "deltastore.json"
_PROVENANCE_BYTES = 1 << 20
"""Room that is kept for it, before it is known."""

_TOOL = f"deltastore {__version__}"


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
    alphas = Scales(checked_scales(refs, scales), scale_rules)
    output_dtype = _dtype(dtype)
    out = check_output(store, out, called="--out", dry_run=dry_run)
    with ExitStack() as stack:
        named: list[str] = []
        stack.enter_context(blaming(named))
        deltas = []
        for ref, scale in zip(refs, alphas.scales, strict=True):
            artifact = store.resolve(ref)
            named.append(artifact.ref)
            reader = stack.enter_context(ArtifactReader(store.blobs, *store.load(artifact.digest)))
            sides = read_sides(store.blobs, reader.manifest, reader.config)
            deltas.append(Chosen(artifact, artifact.ref, scale, reader, sides))
        # They are read much later.
        for layer in used_blobs(deltas):
            store.blobs.open(layer.digest, layer.size).close()
        checkpoint = stack.enter_context(
            open_checkpoint(base, downloads=progress, look_only=dry_run)
        )
        tables = [[entry.name for entry in delta.config.tensors] for delta in deltas]
        called = (renaming or Renaming()).names(tables)
        known = {new for one in called for new in one.values()}
        checkpoint = unwrapped(checkpoint, known, progress)
        called = [
            called_as(names, checkpoint, delta.ref, progress)
            for names, delta in zip(called, deltas, strict=True)
        ]
        _refuse_quantised(checkpoint, deltas)
        matched = _matched(checkpoint, deltas, called, skip=skip_embeddings)
        for one in matched:
            refuse_ungathered(checkpoint, [(one.named(e), e.base) for e in one.config.tensors])
        try:
            report = check_structure(checkpoint, matched, partial=partial, config=checkpoint.config)
        except StructureMismatchError as error:
            raise explained(error, checkpoint, matched) from None
        made = recipes(checkpoint, matched, report, alphas, output_dtype)
        alphas.check_used(made)
        for one in matched:
            if one.vocabulary is not None and one.vocabulary.unlike:
                progress.warn(
                    f"The tokenizer is not that of the base of {one.ref}, and rows go by index: "
                    "no tensor, or more than one, is known to hold the embeddings."
                )
        if report.unsure:
            progress.warn(
                f"{', '.join(sorted(set(report.unsure)))} may have a place for each token, and "
                "goes by index; rows of embeddings and head go by token."
            )
        lineages = [
            measure(
                store.blobs,
                delta.reader.manifest,
                delta.config,
                checkpoint,
                where=delta.ref,
                sources=comparable(places),
            )
            for delta, places in zip(deltas, report.places, strict=True)
        ]
        for delta, figures in zip(deltas, lineages, strict=True):
            if delta.config.restore_only and figures.verdict == "unknown":
                continue  # its base is known by the content digest
            label = checkpoint.label
            judge(delta.ref, label, figures, force=force, progress=progress)
        patches = None
        plain = not (scale_rules or report.skipped or output_dtype or (renaming and renaming.rules))
        may_restore = _may_restore(checkpoint, deltas, lineages, made, plain=plain)
        if not may_restore:
            made = in_names_of(checkpoint, tied_as_post(made))
        # Which patches fit is said by whole tensors, which a dry run does not download.
        if may_restore and (checkpoint.is_local or not dry_run):
            patches = restoration.patched_tensors(
                store, checkpoint, deltas[0].config, deltas[0].ref, job_count(jobs), progress
            )
        files = [
            _live_files(delta, one, places, live=any(alphas(name, index) for name in places))
            for index, (delta, one, places) in enumerate(
                zip(deltas, matched, report.places, strict=True)
            )
        ]
        composed = assemble.compose(checkpoint, files, made, restoring=may_restore)
        for warning in composed.ledger.warnings:
            progress.warn(warning)
        plan = plan_shards(
            checkpoint,
            {name: recipe.output for name, recipe in made.items()},
            max_shard_bytes=max_shard_bytes,
        )
        summary = Summary(checkpoint, deltas, lineages, report, matched, alphas, dtype)
        for whose, names in summary.left_by_model().items():
            progress.warn(
                f"Beside the weights of the {whose} and not in the output: {listed(names)}."
            )
        documents = composed.files | {"README.md": _card(summary, composed)}
        sizes = {name: len(data) for name, data in documents.items()}
        sizes[PROVENANCE] = _PROVENANCE_BYTES
        overflowed, restored = 0, False
        if dry_run:
            check_destination(out, plan, files=sizes)
        else:
            overflowed, restored = _write(
                store,
                summary,
                made,
                composed,
                documents,
                sizes,
                plan,
                patches,
                out,
                fsync,
                jobs,
                progress,
            )
        if overflowed:
            progress.warn(f"{overflowed} elements are too large for the output's dtype.")
        return ApplyResult(
            out=str(out),
            refs=summary.refs,
            base=summary.base,
            lineage=summary.lineage,
            tensors=len(made),
            bytes=sum(recipe.output.nbytes for recipe in made.values()),
            restored=restored,
            overflowed=overflowed,
            left_out=summary.left_out,
            skipped=report.skipped,
            vocabulary=summary.vocabulary,
            files=composed.ledger.report(),
            not_copied=summary.not_copied,
            config_left=composed.ledger.left(),
            dry_run=dry_run,
            seconds=time.monotonic() - started,
        )


def _write(
    store: Store,
    summary: Summary,
    made: Mapping[str, Recipe],
    composed: assemble.Composed,
    documents: Mapping[str, bytes],
    sizes: Mapping[str, int],
    plan: Sequence[ShardPlan],
    patches: frozenset[str] | None,
    out: str | PathLike[str],
    fsync: bool,
    jobs: int | None,
    progress: Progress,
) -> tuple[int, bool]:
    """Write the output; elements that overflowed, and whether it is post bit for bit."""
    checkpoint, deltas = summary.checkpoint, summary.deltas
    files = dict(documents)
    applier = Applier(
        checkpoint,
        [delta.reader for delta in deltas],
        patches=patches or frozenset(),
        hashed=patches is not None,
    )
    checked = used_blobs(deltas)
    total = sum(recipe.output.nbytes for recipe in made.values())
    with CheckpointWriter(out, plan, files=sizes) as writer:
        progress.start("applying", total)
        tally = applier.write(writer, plan, made, store.blobs, checked, job_count(jobs), progress)
        checkpoint.check_unchanged()
        restored = patches is not None and restoration.is_post(
            deltas[0].config, made, tally.digests
        )
        files[PROVENANCE] = assemble.provenance(
            refs=summary.details(),
            base=summary.base,
            dtype=summary.dtype,
            restored=restored,
            scale_for=[asdict(rule) for rule in summary.alphas.rules],
            skipped=summary.report.skipped,
            vocabulary=summary.vocabulary,
            not_copied=summary.not_copied,
            partial={m["name"]: m["problem"] for m in summary.left_out} or None,
            tool=_TOOL,
            composed=composed,
        )
        for name, data in sorted(files.items()):
            writer.write_file(name, data)
        writer.commit(fsync=fsync)
    return tally.overflowed, restored


def _card(summary: Summary, composed: assemble.Composed) -> bytes:
    models = [(summary.label, summary.checkpoint.repo)]
    models += [(delta.artifact.post, delta.config.post.repo) for delta in summary.deltas]
    return assemble.card(composed, models, summary.details(), _TOOL)


def _dtype(name: str | None) -> str | None:
    if name is None:
        return None
    if name in DTYPE_NAMES:
        return DTYPE_NAMES[name]
    if name in DELTA_DTYPES:
        return name
    raise UsageError(
        f"{name!r} is no dtype for an output; expected one of {', '.join(DTYPE_NAMES)}.",
        hint="Give one of these with `--dtype`.",
    )


def _matched(
    checkpoint: Checkpoint,
    deltas: Sequence[Chosen],
    called: Sequence[Mapping[str, str]],
    *,
    skip: bool,
) -> list[Delta]:
    """The deltas with what is to be known before their tensors are matched."""
    result = []
    for delta, names in zip(deltas, called, strict=True):
        if skip:
            vocabulary = skip_tokens(checkpoint, delta.files, ref=delta.ref)
        else:
            vocabulary = compare_tokens(checkpoint, delta.config, delta.files, names, ref=delta.ref)
        result.append(
            Delta(
                delta.ref,
                delta.config,
                names,
                source_config=delta.files.base_config,
                post_config=delta.files.post_config,
                vocabulary=vocabulary,
            )
        )
    return result


def _live_files(delta: Chosen, matched: Delta, places: Mapping[str, Place], *, live: bool) -> Sides:
    """A delta's small files; where α is 0 throughout, without tokenizer and model files."""
    tensors = {matched.named(entry): entry for entry in delta.config.tensors}
    tensors |= {name: place.entry for name, place in places.items()}
    if live:
        words = matched.vocabulary or Vocabulary("not compared")
        return replace(delta.files, words=words, tensors=tensors)

    def own(name: str) -> bool:
        return is_tokenizer_file(name) or is_model_file(name)

    base, post = (
        {name: data for name, data in side.items() if not own(name)}
        for side in (delta.files.base, delta.files.post)
    )
    return Sides(base, post, tensors=tensors)


def _refuse_quantised(checkpoint: Checkpoint, deltas: Sequence[Chosen]) -> None:
    reason = quantisation(checkpoint)
    if reason is not None and not all(delta.config.restore_only for delta in deltas):
        raise QuantisedCheckpointError(
            f"{checkpoint.path} is quantised ({reason}); a delta is added to floating point.",
            hint="Give the model that it was quantised from, or dequantise it first (in "
            "transformers: `model.dequantize()`, then `model.save_pretrained(...)`).",
            path=str(checkpoint.path),
        )


def _may_restore(
    checkpoint: Checkpoint,
    deltas: Sequence[Chosen],
    lineages: Sequence[Lineage],
    made: Mapping[str, Recipe],
    *,
    plain: bool,
) -> bool:
    """Whether the new base may be the one delta's source base, so that the output may be post.

    Raises:
        RestoreOnlyError: It cannot be, and an artifact is for its source base alone.
    """
    alone = len(deltas) == 1 and deltas[0].scale == 1 and plain
    alone = alone and not any(recipe.order is not None for recipe in made.values())
    # Where samples tell nothing, as where all is integers, the content digest decides later.
    unknown = alone and deltas[0].config.restore_only and lineages[0].verdict == "unknown"
    if alone and (lineages[0].same or unknown):
        return True
    for delta in deltas:
        if delta.config.restore_only:
            raise restoration.not_the_source(delta.ref, checkpoint)
    return False


__all__ = ["DTYPE_NAMES", "ApplyResult", "apply"]
