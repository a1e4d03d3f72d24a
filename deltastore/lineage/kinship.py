"""Whether two checkpoints are one model before and after post-training, found out before encoding.

``extract`` pairs what has equal names, and a pair that is none would give an artifact like any
other: post's own bytes as "added" tensors, or the difference of two strangers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from deltastore.checkpoint import Checkpoint
from deltastore.errors import IncompatibleError, LineageError, StructureMismatchError, shown
from deltastore.execution.progress import Progress
from deltastore.lineage.pair_similarity import PairLineage, measure_pair
from deltastore.lineage.pair_structure import check_pair_structure
from deltastore.lineage.pairing import Pair
from deltastore.lineage.similarity import UNRELATED_BELOW
from deltastore.manifest import Config
from deltastore.tensor_names.computed import is_computed
from deltastore.tensor_names.patterns import listed

Documents = Mapping[str, Any]

LARGEST_CHANGE = 1.0
"""Post-training changes weights by a few per cent; as much as they are is another model."""

_FEWEST_FAR = 4
"""Of fewer tensors that changed by so much nothing is said: a toy may learn all anew."""

_ADAPTERS = (
    "lora_",
    "ia3_l",
    "hada_w",
    "lokr_w",
    "oft_R",
    "oft_r",
    "boft_",
    "vera_lambda",
    "prompt_embeddings",
    "prompt_encoder.embedding",
    "trainable_tokens_",
    "ln_tuning_",
    "adaption_prompt",
    "adaption_gate",
    "fourierft_",
    "vblora_",
    "randlora_",
    "poly_lora_",
    "shira_",
    "c3a_kernel",
    "bone_block",
    "miss_block",
    "road_theta",
    "road_alpha",
    "internal_xlora_classifier",
)
"""What the parts of a name begin with that only an adapter of PEFT has."""


def refuse_adapter(checkpoint: Checkpoint, role: str) -> None:
    """Refuse weights that hold an adapter, which says nothing without its own rule.

    Raises:
        IncompatibleError: They do.
    """
    found = [name for name in checkpoint.tensors if _is_adapter(name)]
    if not found:
        return
    label = checkpoint.repo or checkpoint.path
    if len(found) == len(checkpoint.tensors):
        said = f"{label}, given as {role}, is an adapter ({listed(found)}); expected a whole model."
        hint = "Merge it into its base (in PEFT: `model.merge_and_unload()`, then "
    else:
        said = (
            f"{label}, given as {role}, holds an adapter that is not merged: "
            f"{listed(found)}; expected the model's own weights alone."
        )
        hint = "Merge it (in PEFT: `model = model.merge_and_unload()`, then "
    raise IncompatibleError(
        said, hint=f"{hint}`model.save_pretrained(...)`), and extract that.", tensors=found
    )


def check_kinship(
    base: Checkpoint,
    post: Checkpoint,
    pairs: Sequence[Pair],
    *,
    force: bool,
    progress: Progress,
) -> PairLineage:
    """Refuse a pair that is none: by structure, by configuration, and by weights at their samples.

    Args:
        base: The model before.
        post: The model after, its tensors called as base's.
        pairs: Their tensors.
        force: Warn where it would refuse.
        progress: Is told warnings.

    Raises:
        StructureMismatchError: They are two models, or post is saved in part; ``facts`` has names.
        LineageError: Their weights are unrelated.
    """
    overruled: list[str] = []
    try:
        _check_configs(base, post)
        check_pair_structure(base, post, pairs)
    except StructureMismatchError as error:
        if not force:
            raise
        overruled.append(error.message)
        progress.warn(error.message)
    figures = measure_pair(base, post, pairs)
    far = figures.change is not None and figures.change > LARGEST_CHANGE
    enough = figures.verdict != "unknown" and figures.tensors >= _FEWEST_FAR
    if figures.verdict == "unrelated" or (far and enough):
        refusal = LineageError(
            f"{post.label} is unrelated to {base.label} by its weights: expected a cosine of "
            f"{UNRELATED_BELOW} or more in nearly every tensor and a relative change below "
            f"{LARGEST_CHANGE:.0%}, got {figures.told}.",
            hint="Give the very checkpoint that post was trained from as `--base` (a model card "
            "may name another); or store it all the same with `--force`.",
            cosine=figures.cosine,
            relative_change=figures.change,
        )
        if not force:
            raise refusal
        overruled.append(refusal.message)
        progress.warn(refusal.message)
    elif figures.verdict == "distant" and not force:
        progress.warn(
            f"{post.label} is far from {base.label} for a post-trained model "
            f"({figures.told}). Make sure that it was trained from this base."
        )
    return replace(figures, overruled=tuple(overruled))


def has_same_weights(config: Config) -> bool:
    """Whether post is base, perhaps saved with other names of its tied sets."""
    sides = [
        (e.own_base, e.post)
        for e in config.tensors
        if not any(side and is_computed(e.name, side.shape, None) for side in (e.base, e.post))
    ]
    if any(base is not None and post is not None and base != post for base, post in sides):
        return False
    return {base for base, _ in sides if base} == {post for _, post in sides if post}


def refuse_same(
    base: Checkpoint, post: Checkpoint, *, force: bool, progress: Progress | None = None
) -> None:
    """Say that all weights are equal: base was given twice, or copied, if the files are the same.

    What was saved anew, in other files, may be meant: it is told.

    Args:
        base: The model before.
        post: The model after.
        force: Take it.
        progress: Is told of equal weights in other files.

    Raises:
        IncompatibleError: The files are the same, and ``force`` is false.
    """
    files = [[(shard.filename, shard.tensors) for shard in side.shards] for side in (base, post)]
    if force:
        return
    if files[0] != files[1]:
        if progress is not None:
            progress.warn(
                f"{post.label} has the very weights of {base.label}, in other files: the delta "
                "changes nothing."
            )
        return
    raise IncompatibleError(
        f"{post.label} has the very weights of {base.label}: expected a post-trained "
        "model, got every tensor equal.",
        hint="Give the model after post-training as `--post`; or store that nothing changed "
        "with `--force`.",
    )


def _check_configs(base: Checkpoint, post: Checkpoint) -> None:
    """Refuse two architectures.

    Raises:
        StructureMismatchError: ``config.json`` says so.
    """
    kinds = [_model_types(side.config or {}) for side in (base, post)]
    if all(kinds) and not set(kinds[0]) & set(kinds[1]):
        raise StructureMismatchError(
            f"{post.label} is another architecture than {base.label}: expected model_type "
            f"{shown(kinds[0][0])}, got {shown(kinds[1][0])}.",
            hint="Give the model that post was trained from as `--base`; or `--force`, if only "
            "the name differs.",
            model_types=[kind[0] for kind in kinds],
        )


def _model_types(config: Documents) -> list[str]:
    """What a model calls itself, and what its text model does; versions differ in ``_text``."""
    text = config.get("text_config")
    parts = [config, text if isinstance(text, Mapping) else {}]
    found = [part.get("model_type") for part in parts]
    return [kind.removesuffix("_text") for kind in found if isinstance(kind, str) and kind]


def _is_adapter(name: str) -> bool:
    return any(part.startswith(_ADAPTERS) for part in name.split("."))


__all__ = [
    "LARGEST_CHANGE",
    "check_kinship",
    "has_same_weights",
    "refuse_adapter",
    "refuse_same",
]
