"""What a delta will do to a model in memory, decided before the first weight is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from deltastore.checkpoint import ShardPlan, TensorSpec
from deltastore.checkpoint.quantised import quantised_weights
from deltastore.errors import (
    IncompatibleError,
    QuantisedCheckpointError,
    RestoreOnlyError,
    StructureMismatchError,
    UsageError,
)
from deltastore.execution.progress import Progress
from deltastore.inmemory.weights import ModelWeights
from deltastore.lineage.similarity import judge, measure
from deltastore.manifest import TensorEntry
from deltastore.merging import restoration
from deltastore.merging.inputs import DeltaInput
from deltastore.merging.plan import MergePlan, PlannedBase
from deltastore.merging.planning import planned
from deltastore.merging.recipes import STRUCTURAL, Recipe, recipes
from deltastore.store import Store
from deltastore.structure.checking import check_structure
from deltastore.structure.places import Delta, Mismatch, Report, comparable
from deltastore.tensor_names.recognising import recognised
from deltastore.tensor_names.selectors import Renaming, Scales

if TYPE_CHECKING:
    import torch

_LOST = "transformers does not hold it as a checkpoint has it, and it cannot be followed there"


def plan_patch(
    store: Store,
    model: torch.nn.Module,
    one: DeltaInput,
    rename: Mapping[str, str],
    *,
    partial: bool,
    force: bool,
    jobs: int,
    progress: Progress,
) -> tuple[MergePlan, ModelWeights]:
    """Decide all about a patch; also the model's weights by the delta's names.

    The plan has the tensors that change, in place, tied ones once. It is ``restoring`` where the
    model's weights are those of the delta's own base, as far as samples say.

    Args:
        store: Where the delta is.
        model: Any module.
        one: The delta.
        rename: What the model calls its tensors: regular expressions, and what replaces them.
        partial: Leave what does not match as it is.
        force: Go on where lineage speaks against it.
        jobs: Threads.
        progress: Is told what is read, and warnings.

    Raises:
        UsageError: ``rename`` is no renaming of the delta's tensors.
        IncompatibleError: The delta and the model do not belong together, or the delta changes
            the model's structure.
        QuantisedCheckpointError: The model's weights are quantised.
        IntegrityError: A blob is missing or damaged.
    """
    if one.config.restore_only:
        raise RestoreOnlyError(
            f"{one.ref} was stored for restoration only; a model in memory cannot show "
            "that it is its base.",
            hint="Restore the checkpoint with `store.apply(...)`, and load the result.",
            refs=[one.ref],
        )
    names = _names(rename, one.config.tensors, one.ref)
    weights = ModelWeights(model, one.config.tensors, names)
    _refuse_quantised(weights)
    report = check_structure(weights, [one.delta], partial=True)
    report.extra += [Mismatch(name, _LOST) for name in weights.lost]
    if report.all and not (partial and any(report.places)):
        raise _mismatch_error(model, weights, one.delta, report)
    made = recipes(weights, [one.delta], report, Scales([one.scale]), None)
    changed = _changed(made, one.ref, weights)
    figures = measure(
        store.blobs,
        one.reader.manifest,
        one.config,
        weights,
        where=one.ref,
        sources=comparable(report.places[0]),
    )
    judge(
        one.ref,
        str(weights.path),
        figures,
        force=force,
        progress=progress,
        hint="Load a model that descends from the delta's own base, or give `force=True`.",
    )
    # transformers holds some buffers in another dtype than the checkpoint has them, and the
    # model is its base all the same; digests say which tensors are.
    restoring = one.scale == 1 and (figures.same or figures.distance == 0)
    restoring = restoring and one.config.exactness == "exact"
    patches: frozenset[str] = frozenset()
    if restoring:
        patches = restoration.own_tensors(weights, one.config, None, jobs, progress)
    plan = MergePlan(
        base=PlannedBase(str(weights.path)),
        deltas=(planned(replace(one, lineage=figures)),),
        tensors=changed,
        shards=(ShardPlan("", tuple(recipe.output for recipe in changed.values())),),
        chunk=one.config.chunk,
        patches=patches,
        restoring=restoring,
        left_out=tuple(report.all),
    )
    return plan, weights


def _names(rename: Mapping[str, str], entries: Sequence[TensorEntry], ref: str) -> dict[str, str]:
    """What the model calls the delta's tensors."""
    try:
        return Renaming.of(rename.items()).names([[entry.name for entry in entries]])[0]
    except UsageError as error:
        raise UsageError(
            f"`rename` does not fit {ref}: each key should be a regular expression that is found "
            "in a name of its tensors, and keep names apart.",
            hint=f"See their names in `store.show({ref!r}).tensors`.",
        ) from error


def _mismatch_error(
    model: torch.nn.Module, weights: ModelWeights, delta: Delta, report: Report
) -> StructureMismatchError:
    places = [place for table in report.places for place in table.values()]
    renaming = _renaming(model, weights, delta) if report.missing and report.extra else None
    hint = "Load a model of the delta's own architecture"
    if renaming is not None:
        hint = f"The names differ by what they begin with: give `rename={renaming!r}`"
    elif places and not any(place.entry.kind in STRUCTURAL for place in places):
        hint = "Give `partial=True` to patch what fits, and see `left_out` of the result"
    return StructureMismatchError(
        f"{weights.path} does not have the structure that {delta.ref} was extracted from: "
        f"{report.summary}.",
        hint=f"{hint}; or apply the delta to a checkpoint with `store.apply(...)`, and load the "
        "result.",
        missing=[(item.name, item.problem) for item in report.missing],
        extra=[(item.name, item.problem) for item in report.extra],
        mismatched=[(item.name, item.problem) for item in report.mismatched],
    )


def _renaming(model: torch.nn.Module, weights: ModelWeights, delta: Delta) -> dict[str, str] | None:
    """A renaming under which the delta fits, if one is recognised."""
    entries = delta.config.tensors
    rules = dict(recognised([entry.name for entry in entries], weights.tensors))
    if not rules:
        return None
    renamed = ModelWeights(model, entries, _names(rules, entries, delta.ref))
    fits = not check_structure(renamed, [delta], partial=True).all and not renamed.lost
    return rules if fits else None


def _refuse_quantised(weights: ModelWeights) -> None:
    reason = quantised_weights(weights.tensors, {})
    if reason is not None:
        raise QuantisedCheckpointError(
            f"{weights.path} is quantised ({reason}); a delta is added to floating point.",
            hint="Load the model without quantisation, patch it, and quantise it then.",
        )


def _changed(made: Mapping[str, Recipe], ref: str, weights: ModelWeights) -> dict[str, Recipe]:
    """The recipes that change something, in place; tied weights once."""
    structural = [
        name
        for name, recipe in made.items()
        if recipe.base is None
        or recipe.base.name != name
        or recipe.values is not None
        or recipe.output.shape != recipe.base.shape
    ]
    gone = [name for name in weights.tensors if name not in made]
    if structural or gone:
        raise IncompatibleError(
            f"{ref} adds, removes or resizes {len(structural) + len(gone)} tensors, of which the "
            f"first is {sorted([*structural, *gone])[0]}; a model in memory keeps its structure.",
            hint="Apply it to a checkpoint with `store.apply(...)`, and load the result.",
            tensors=sorted([*structural, *gone]),
        )
    found = {}
    for name, recipe in made.items():
        assert recipe.base is not None
        addends = tuple(addend for addend in recipe.addends if addend.entry.delta is not None)
        if addends and name not in weights.tied and recipe.base.elements:
            output = TensorSpec(name, recipe.base.dtype, recipe.base.shape)
            found[name] = Recipe(output, recipe.base, addends)
    return found
