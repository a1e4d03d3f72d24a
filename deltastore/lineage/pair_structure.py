"""Whether two checkpoints have the tensors of one model before and after post-training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from deltastore.checkpoint import Checkpoint, TensorInfo
from deltastore.errors import StructureMismatchError
from deltastore.lineage.pairing import AnyTensor, Pair
from deltastore.manifest.format import DELTA_DTYPES
from deltastore.tensor_names.computed import is_computed
from deltastore.tensor_names.patterns import listed, pattern
from deltastore.tensor_names.token_rows import (
    StoredNames,
    has_token_rows,
    is_embedding,
    is_head,
    may_tie,
    stand_in,
)

_IN_COMMON_FROM = 1 / 2
"""Share of base's tensors that post must have; fewer are two models that share a few names."""

_FEW = 16
"""So many tensors may be a head, however small the model."""

_SEVERAL_TOKENS = ("mtp", "eh_proj", "enorm", "hnorm", "shared_head", "nextn")
"""Parts of blocks that predict several tokens, which libraries leave out as they load."""

_SPARE = (
    *("pooler.", "seq_relationship.", "sop_classifier.", "lm_predictions.", "mask_predictions."),
    "EncDecAttention.relative_attention_bias.",
)
"""What published files hold beside the weights of their class, which saving it again leaves out."""

_ABOUT_PLACES = ("position", "pos_embed", "pos_emb", "relative_", "rel_pos")
"""Tables that grow with the input, in vision models within layers too."""


def check_pair_structure(base: Checkpoint, post: Checkpoint, pairs: Sequence[Pair]) -> None:
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
        f"{post.label} is not {base.label} after post-training: it {', '.join(told)}.",
        hint=hint,
        missing=missing,
        extra=extra,
        mismatched=[(pair.name, _shapes(pair)) for pair in reshaped],
    )


def _missing(base: Checkpoint, post: Checkpoint, pairs: Sequence[Pair]) -> Iterator[str]:
    """Base's tensors that a whole post-trained model would have."""
    moved = {pair.base_name for pair in pairs}
    containers, body = _containers(base.tensors), _body(base.tensors)
    same_class, stored = _same_class(base, post), StoredNames(post.tensors)
    for pair in pairs:
        if pair.kind != "removed" or pair.base is None or pair.name in moved:
            continue
        name, info = pair.name, pair.base
        if _is_computed(name, info, base) or _is_of_several_tokens(name, base) or not info.elements:
            continue
        if any(part in name for part in _SPARE):
            continue
        if _container(name) in containers or (is_embedding(name) and _is_gone(name, stored, post)):
            yield name
        elif is_head(name):
            if same_class and not may_tie(post.config):
                yield name
        elif same_class:
            if stand_in(name, stored, ties=True) is None:
                yield name
        elif _is_last_norm(name) and (body is None or name.split(".")[0] in body):
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


def _is_gone(name: str, stored: StoredNames, post: Checkpoint) -> bool:
    """Whether post has no embeddings of that name, nor keeps them under another of a tied set."""
    other = stand_in(name, stored, ties=True)
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


def _is_computed(name: str, info: AnyTensor, base: Checkpoint) -> bool:
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
