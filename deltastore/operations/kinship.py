"""Whether two checkpoints are one model before and after post-training, found out before encoding.

``extract`` pairs what has equal names, and a pair that is none would give an artifact like any
other: post's own bytes as "added" tensors, or the difference of two strangers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deltastore.checkpoint import Checkpoint, TensorInfo
from deltastore.errors import IncompatibleError, LineageError, StructureMismatchError, shown
from deltastore.manifest import Config
from deltastore.manifest.format import DELTA_DTYPES
from deltastore.operations.computed import is_computed
from deltastore.operations.embeddings import (
    has_token_rows,
    is_embedding,
    is_head,
    may_tie,
    stand_in,
)
from deltastore.operations.lineage import UNRELATED_BELOW
from deltastore.operations.pair_lineage import PairLineage, measure_pair
from deltastore.operations.pairing import Pair
from deltastore.operations.patterns import listed, pattern
from deltastore.operations.progress import Progress

Documents = Mapping[str, Any]

LARGEST_CHANGE = 1.0
"""Post-training changes weights by a few per cent; as much as they are is another model."""

_IN_COMMON_FROM = 1 / 2
"""Share of base's tensors that post must have; fewer are two models that share a few names."""

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

_SEVERAL_TOKENS = ("mtp", "eh_proj", "enorm", "hnorm", "shared_head", "nextn")
"""Parts of blocks that predict several tokens, which libraries leave out as they load."""

_SPARE = (
    *("pooler.", "seq_relationship.", "sop_classifier.", "lm_predictions.", "mask_predictions."),
    "EncDecAttention.relative_attention_bias.",
)
"""What published files hold beside the weights of their class, which saving it again leaves out."""

_ABOUT_PLACES = ("position", "pos_embed", "pos_emb", "relative_", "rel_pos")
"""Tables that grow with the input, in vision models within layers too."""


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
    try:
        _check_configs(base, post)
        _check_structure(base, post, pairs)
    except StructureMismatchError as error:
        if not force:
            raise
        progress.warn(error.message)
    figures = measure_pair(base, post, pairs)
    far = figures.change is not None and figures.change > LARGEST_CHANGE
    if figures.verdict == "unrelated" or (far and figures.verdict != "unknown"):
        refusal = LineageError(
            f"{_label(post)} is unrelated to {_label(base)} by its weights: expected a cosine of "
            f"{UNRELATED_BELOW} or more in nearly every tensor and a relative change below "
            f"{LARGEST_CHANGE:.0%}, got {figures.told}.",
            hint="Give the very checkpoint that post was trained from as `--base` (a model card "
            "may name another); or store it all the same with `--force`.",
            cosine=figures.cosine,
            relative_change=figures.change,
        )
        if not force:
            raise refusal
        progress.warn(refusal.message)
    elif figures.verdict == "distant" and not force:
        progress.warn(
            f"{_label(post)} is far from {_label(base)} for a post-trained model "
            f"({figures.told}). Make sure that it was trained from this base."
        )
    return figures


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
                f"{_label(post)} has the very weights of {_label(base)}, in other files: the delta "
                "changes nothing."
            )
        return
    raise IncompatibleError(
        f"{_label(post)} has the very weights of {_label(base)}: expected a post-trained "
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
            f"{_label(post)} is another architecture than {_label(base)}: expected model_type "
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


def _check_structure(base: Checkpoint, post: Checkpoint, pairs: Sequence[Pair]) -> None:
    """Refuse tensors on one side alone, beyond what post-training adds and removes.

    Raises:
        StructureMismatchError: There are some.
    """
    missing = list(_missing(base, post, pairs))
    extra = list(_extra(base, pairs))
    reshaped = [pair for pair in pairs if _is_reshaped(pair)]
    kept = sum(pair.base is not None and pair.post is not None for pair in pairs)
    if kept < _IN_COMMON_FROM * len(base.tensors):
        missing = [p.name for p in pairs if p.kind == "removed"]
        extra = [p.name for p in pairs if p.kind == "added"]
    if not (missing or extra or reshaped):
        return
    told = []
    if missing:
        told.append(f"lacks {len(missing)} of its {len(base.tensors)} tensors ({listed(missing)})")
    if extra:
        told.append(f"has {len(extra)} that it lacks ({listed(extra)})")
    if reshaped:
        told.append(
            f"has {len(reshaped)} of another shape ({listed(pair.name for pair in reshaped)})"
        )
    fused = _fused([*missing, *extra])
    if fused:
        hint = (
            f"One of them keeps as one tensor what the other keeps as several ({fused}): load and "
            "save both with one version of one library, and extract these."
        )
    else:
        hint = (
            "Give the whole model that was trained from this base, with the names that it was "
            "loaded with: `--map 'OLD=NEW'` gives post's tensors base's names; or `--force`."
        )
    raise StructureMismatchError(
        f"{_label(post)} is not {_label(base)} after post-training: it {', '.join(told)}.",
        hint=hint,
        missing=missing,
        extra=extra,
        mismatched=[(pair.name, _shapes(pair)) for pair in reshaped],
    )


def _missing(base: Checkpoint, post: Checkpoint, pairs: Sequence[Pair]) -> Iterator[str]:
    """Base's tensors that a whole post-trained model would have."""
    moved = {pair.base_name for pair in pairs}
    containers, body = _containers(base.tensors), _body(base.tensors)
    same_class = _same_class(base, post)
    for pair in pairs:
        if pair.kind != "removed" or pair.base is None or pair.name in moved:
            continue
        name, info = pair.name, pair.base
        if _is_computed(name, info, base) or _is_of_several_tokens(name, base) or not info.elements:
            continue
        if any(part in name for part in _SPARE):
            continue
        if _container(name) in containers or (is_embedding(name) and _is_gone(name, post)):
            yield name
        elif is_head(name):
            if same_class and not may_tie(post.config):
                yield name
        elif same_class or (_is_last_norm(name) and (body is None or name.split(".")[0] in body)):
            yield name


def _extra(base: Checkpoint, pairs: Sequence[Pair]) -> Iterator[str]:
    """Post's tensors that post-training does not add: more parts in layers, or another model's."""
    containers = _containers(base.tensors)
    added = [
        pair
        for pair in pairs
        if pair.kind == "added"
        and pair.post is not None
        and not _is_computed(pair.name, pair.post, base)
        and not has_token_rows(pair.name)
        and not _is_of_several_tokens(pair.name, None)
    ]
    inside = [pair.name for pair in added if _container(pair.name) in containers]
    yield from inside
    if not inside and len(added) > max(len(base.tensors), _FEW):
        yield from (pair.name for pair in added)


_FEW = 16
"""So many tensors may be a head, however small the model."""


def _is_reshaped(pair: Pair) -> bool:
    """Whether a floating-point tensor of a layer, or its width, has another shape in post."""
    if pair.base is None or pair.post is None or pair.base.shape == pair.post.shape:
        return False
    if pair.base.dtype not in DELTA_DTYPES or pair.post.dtype not in DELTA_DTYPES:
        return False
    if not pair.base.elements or not pair.post.elements:
        return False  # another error says what is wrong there
    if any(part in pair.name for part in _ABOUT_PLACES):
        return False
    if is_embedding(pair.name) or is_head(pair.name):
        return pair.kind != "resized"
    return _container(pair.name) is not None


def _is_gone(name: str, post: Checkpoint) -> bool:
    """Whether post has no embeddings of that name, nor keeps them under another of a tied set."""
    other = stand_in(name, post.tensors, ties=True)
    if other is None:
        return True
    return is_head(other) and post.config is not None and not may_tie(post.config)


def _container(name: str) -> str | None:
    """What a numbered part of a name stands in: of ``model.layers.3.mlp.w``, ``model.layers``."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if number is None else ".".join(parts[:number])


def _containers(tensors: Mapping[str, TensorInfo]) -> set[str | None]:
    return {_container(name) for name in tensors} - {None}


def _body(tensors: Mapping[str, TensorInfo]) -> set[str] | None:
    """What the names of layers begin with, where those of the embeddings do so, too.

    A name that begins otherwise is of a head, which another class of model does without. None where
    the model's own parts have no beginning in common.
    """
    stacks = {name.split(".")[0] for name in tensors if "." in (_container(name) or "")}
    embeddings = {name.split(".")[0] for name in tensors if is_embedding(name)}
    return stacks if embeddings and embeddings <= stacks else None


def _is_computed(name: str, info: TensorInfo, base: Checkpoint) -> bool:
    return info.dtype not in DELTA_DTYPES or is_computed(name, info.shape, base.config)


def _is_of_several_tokens(name: str, base: Checkpoint | None) -> bool:
    """Whether a tensor is of a block that predicts several tokens."""
    parts = name.split(".")
    if any(part in _SEVERAL_TOKENS or part.startswith("mtp_") for part in parts):
        return True
    if base is None:
        return False
    # Such a block has the parts of a layer, too: the whole of a layer beyond the last counts.
    layers = (base.config or {}).get("num_hidden_layers")
    numbers = [int(part) for part in parts if part.isdigit() and len(part) < 9]
    return isinstance(layers, int) and bool(numbers) and numbers[0] >= layers > 0


def _same_class(base: Checkpoint, post: Checkpoint) -> bool:
    """Whether both say to be of one class, with one head."""
    classes = [(side.config or {}).get("architectures") for side in (base, post)]
    return classes[0] is not None and classes[0] == classes[1]


def _is_last_norm(name: str) -> bool:
    """Whether a tensor is of a norm of the whole model, and not of a head that may go."""
    parts = name.lower().split(".")
    of_a_head = {"cls", "pooler", "classifier", "score", "predictions", "lm_head"} & set(parts)
    return not of_a_head and any("norm" in part or part.startswith("ln_") for part in parts)


def _is_adapter(name: str) -> bool:
    return any(part.startswith(_ADAPTERS) for part in name.split("."))


_FUSED = (
    ("qkv", ("q_proj", "k_proj", "v_proj", "query", "q_lin", "wq")),
    ("c_attn", ("q_proj", "query", "wq")),
    ("query_key_value", ("q_proj", "query", "wq")),
    ("gate_up_proj", ("gate_proj", "up_proj", "w1", "w3")),
    ("w13", ("w1", "w3", "gate_proj")),
    ("w12", ("w1", "w2", "gate_proj")),
)
"""Names of fused tensors, and of what they are fused from."""


def _fused(names: Sequence[str]) -> str:
    """Which parts are one tensor on one side and several on the other; empty if none are known."""
    parts = {part for name in names for part in name.split(".")}
    for whole, pieces in _FUSED:
        have_whole = any(whole in part for part in parts)
        piece = next((piece for piece in pieces if piece in parts), None)
        if have_whole and piece is not None:
            return f"{whole} and {piece}"
    shapes = {pattern(name) for name in names if ".experts." in name}
    one_by_one = any(".experts.N." in shape for shape in shapes)
    together = any(".experts.N." not in shape for shape in shapes)
    return "experts one by one and together" if one_by_one and together else ""


def _shapes(pair: Pair) -> str:
    assert pair.base is not None
    assert pair.post is not None
    return (
        f"expected {pair.base.dtype} {list(pair.base.shape)} as in base, got "
        f"{pair.post.dtype} {list(pair.post.shape)}"
    )


def _label(checkpoint: Checkpoint) -> str:
    return checkpoint.repo or str(checkpoint.path)


__all__ = [
    "LARGEST_CHANGE",
    "check_kinship",
    "has_same_weights",
    "refuse_adapter",
    "refuse_same",
]
