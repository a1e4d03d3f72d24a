"""One configuration in the spelling of another, where two fields say the same.

Base, post and new base are saved by different versions of transformers: one writes ``rope_theta``
and ``rope_scaling``, the next ``rope_parameters``; what one leaves to be derived the next writes
down. Only what every version reads alike counts as the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltastore.checkpoint.documents import same

Document = dict[str, Any]

_NEW_ROPE = "rope_parameters"
_SCALING = "rope_scaling"
_THETAS = ("rope_theta", "rotary_emb_base", "global_rope_theta")
_LOCAL_THETAS = ("rope_local_base_freq", "local_rope_theta")
_PARTS = ("partial_rotary_factor", "rotary_pct")
_ROPE_FIELDS = frozenset({*_THETAS, *_LOCAL_THETAS, *_PARTS, _SCALING, _NEW_ROPE})
_FULL, _SLIDING = "full_attention", "sliding_attention"

_STRETCHED = frozenset({"llama3", "yarn", "longrope"})
"""Kinds of rope that know the length before; it is the model's where none is given."""

_SYNONYMS = (
    ("n_embd", "hidden_size", "d_model"),
    ("n_head", "n_heads", "num_heads", "num_attention_heads"),
    ("n_layer", "n_layers", "num_layers", "num_hidden_layers"),
    ("n_positions", "max_position_embeddings"),
    ("num_local_experts", "n_routed_experts", "num_experts"),
)
"""Names of one number, of which a model has one and is asked for by any."""

_INDEX, _ID = "_token_index", "_token_id"
_MOST = 10_000
"""More layers or labels than are written down here for comparison."""


def spelled_alike(
    own: Document, before: Document | None, after: Document | None
) -> tuple[Document | None, Document | None]:
    """Two sides of a pair with what they say in another spelling than ``own`` in that one's.

    One level of a configuration; nested ones stay as they are. What means the same is spelled to
    the letter alike.
    """
    if before is not None:
        before = _spelled_like(own, before)
    if after is not None:
        after = _spelled_like(own, after)
    if before is not None and after is not None and _same_rope(before, after):
        before = _without_rope(before) | _rope_fields(after)
    return before, after


def _spelled_like(own: Document, side: Document) -> Document:
    output = dict(side)
    if own.get("model_type") == side.get("model_type"):
        _rename(output, own)
    output = _spell_rope(output, own)
    _spell_labels(output)
    _spell_window(output, own)
    _spell_derived(output, own)
    return output


def _rename(output: Document, own: Document) -> None:
    """Fields by the name that ``own`` has for them, where each side has just one."""
    groups = [*_SYNONYMS]
    groups += [(name, name.removesuffix(_INDEX) + _ID) for name in own if name.endswith(_INDEX)]
    groups += [(name, name.removesuffix(_ID) + _INDEX) for name in own if name.endswith(_ID)]
    for group in groups:
        ours, theirs = ([name for name in group if name in part] for part in (own, output))
        if len(ours) == len(theirs) == 1 and ours != theirs:
            output[ours[0]] = output.pop(theirs[0])


def _spell_rope(side: Document, own: Document) -> Document:
    if _same_rope(side, own):
        return _without_rope(side) | _rope_fields(own)
    rope = _rope(side)
    new = isinstance(own.get(_NEW_ROPE), dict)
    if rope is None or _rope(own) is None or new is isinstance(side.get(_NEW_ROPE), dict):
        return side
    moved = {_NEW_ROPE: rope} if new else _in_old_fields(rope, own)
    return side if moved is None else _without_rope(side) | moved


def _same_rope(one: Document, other: Document) -> bool:
    ropes = [_rope(one), _rope(other)]
    if ropes[0] is None or ropes[1] is None:
        return False
    return same(_comparable(ropes[0], one), _comparable(ropes[1], other))


def _rope_fields(document: Document) -> Document:
    return {name: value for name, value in document.items() if name in _ROPE_FIELDS}


def _without_rope(document: Document) -> Document:
    return {name: value for name, value in document.items() if name not in _ROPE_FIELDS}


def _rope(document: Document) -> Document | None:
    """What a configuration says of rope, as transformers 5 writes it.

    None if it says nothing, or two things, of which each version would read another.
    """
    scaling, new = document.get(_SCALING), document.get(_NEW_ROPE)
    theta, local, part = (_first(document, names) for names in (_THETAS, _LOCAL_THETAS, _PARTS))
    more = {"rope_theta": theta, "partial_rotary_factor": part}
    if isinstance(new, dict) and not scaling:
        if theta is not None and new.get("rope_theta", theta) != theta:
            return None
        if _is_nested(new):
            kinds = {kind: value for kind, value in new.items() if isinstance(value, dict)}
            return {kind: _one_rope(value, more) for kind, value in kinds.items()}
        return _one_rope(new, more)
    if not isinstance(scaling, dict) and theta is None:
        return None
    whole = _one_rope(scaling if isinstance(scaling, dict) else {}, more)
    if local is None:
        return whole
    return {_FULL: whole, _SLIDING: _one_rope({}, {"rope_theta": local})}


def _one_rope(rope: Document, more: Document) -> Document:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    found = {name: value for name, value in rope.items() if name != "type"}
    added = {name: value for name, value in more.items() if value is not None}
    return added | found | {"rope_type": kind}


def _is_nested(rope: Document) -> bool:
    """Whether there is one for each kind of layer."""
    return any(name.endswith("_attention") and isinstance(v, dict) for name, v in rope.items())


def _comparable(rope: Document, document: Document) -> Document:
    """The same with what a reader would fill in."""
    if _is_nested(rope):
        return {kind: _comparable(value, document) for kind, value in rope.items()}
    output = dict(rope)
    if output.get("rope_type") in _STRETCHED:
        name = "original_max_position_embeddings"
        output.setdefault(name, document.get(name, document.get("max_position_embeddings")))
    if output.get("partial_rotary_factor") == 1:
        del output["partial_rotary_factor"]
    return output


def _in_old_fields(rope: Document, own: Document) -> Document | None:
    """Rope in the fields that ``own`` has for it; None if it cannot be said there."""
    output: Document = {}
    if _is_nested(rope):
        local = rope.get(_SLIDING)
        plain = {"rope_type", "rope_theta", "partial_rotary_factor"}
        name = next((name for name in _LOCAL_THETAS if name in own), None)
        full = rope.get(_FULL)
        if rope.keys() != {_FULL, _SLIDING} or name is None or not (full and local):
            return None
        if local.keys() - plain or local["rope_type"] != "default":
            return None
        output[name] = local.get("rope_theta")
        rope = full
    further = dict(rope)
    for names, field in ((_THETAS, "rope_theta"), (_PARTS, "partial_rotary_factor")):
        value = further.pop(field, None)
        if value is not None:
            output[next((name for name in names if name in own), field)] = value
    scaling = own.get(_SCALING)
    scaled = _one_rope(scaling, {}) if isinstance(scaling, dict) else {}
    if scaled and same(_comparable(scaled, own), _comparable(further, own)):
        output[_SCALING] = scaling
    elif further != {"rope_type": "default"}:
        output[_SCALING] = further
    elif _SCALING in own:
        output[_SCALING] = None
    return output


def _first(document: Document, names: tuple[str, ...]) -> Any:
    return next((document[name] for name in names if document.get(name) is not None), None)


def _spell_labels(output: Document) -> None:
    """Labels without names of their own as those that a reader gives; two are the default."""
    count, names = output.get("num_labels"), output.get("id2label")
    if names is None and isinstance(count, int) and 0 < count <= _MOST:
        output.pop("num_labels")
        names = output["id2label"] = {str(i): f"LABEL_{i}" for i in range(count)}
        output["label2id"] = {f"LABEL_{i}": i for i in range(count)}
    elif isinstance(names, dict) and count == len(names):
        output.pop("num_labels", None)
    if names == {"0": "LABEL_0", "1": "LABEL_1"}:
        output.pop("id2label")
        output.pop("label2id", None)


def _spell_window(output: Document, own: Document) -> None:
    """A window that is not used is none, however long."""
    name = "sliding_window"
    if output.get("use_sliding_window") is False and name in output:
        unused = own.get("use_sliding_window") is False
        output[name] = own.get(name) if unused else None


def _spell_derived(output: Document, own: Document) -> None:
    """What follows from other fields, written down where ``own`` does so and nowhere else."""
    pattern = "sliding_window_pattern"
    for name, derive in _DERIVED.items():
        value, written = derive(output), own.get(name) is not None
        if written and output.get(name) is None and value is not None:
            output[name] = value
        elif not written and name in output and same(output[name], derive(own)):
            del output[name]
        if name == "layer_types" and written and pattern not in own and output.get(name) == value:
            output.pop(pattern, None)


def _head_dim(document: Mapping[str, Any]) -> int | None:
    width, heads = _count(document, "hidden_size"), _count(document, "num_attention_heads")
    return width // heads if width and heads else None


def _key_value_heads(document: Mapping[str, Any]) -> int | None:
    return _count(document, "num_attention_heads") or None


def _layer_types(document: Mapping[str, Any]) -> list[str] | None:
    layers, pattern = (
        _count(document, name) for name in ("num_hidden_layers", "sliding_window_pattern")
    )
    if not 0 < layers <= _MOST:
        return None
    first = document.get("max_window_layers")
    if not document.get("sliding_window") or document.get("use_sliding_window") is False:
        return [_FULL] * layers
    if pattern:
        return [_SLIDING if (i + 1) % pattern else _FULL for i in range(layers)]
    if document.get("use_sliding_window") is True and isinstance(first, int):
        return [_SLIDING if i >= first else _FULL for i in range(layers)]
    return None


def _count(document: Mapping[str, Any], name: str) -> int:
    """A number of things; 0 if the document has none there."""
    value = document.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


_DERIVED = {
    "head_dim": _head_dim,
    "num_key_value_heads": _key_value_heads,
    "layer_types": _layer_types,
}


__all__ = ["spelled_alike"]
