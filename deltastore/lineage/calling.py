"""Two checkpoints of one model whose tensors have other names, as one calls them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from deltastore.checkpoint import Checkpoint
from deltastore.errors import UsageError
from deltastore.execution.progress import Progress
from deltastore.lineage.pair_similarity import sampled_runs
from deltastore.lineage.pairing import pair_of
from deltastore.lineage.similarity import compared
from deltastore.tensor_names.recognising import (
    Rule,
    as_options,
    recognised,
    renamed,
    with_newer_names,
    without_wrappers,
)
from deltastore.tensor_names.selectors import Renaming


def called_alike(
    base: Checkpoint, post: Checkpoint, renaming: Renaming | None, progress: Progress
) -> tuple[Checkpoint, Checkpoint]:
    """Both, their tensors under one name each, as far as that is told or recognised.

    What wrappers add (``module.``, ``_orig_mod.``) is left out of both, of a model of transformers
    also where they have it alike: the library would find none of its tensors. Post's other names
    are exchanged for base's. Names that agree are never touched otherwise.

    Args:
        base: The model before post-training.
        post: The model after it.
        renaming: What base calls post's tensors; nothing is guessed then.
        progress: Is told what was recognised.

    Raises:
        UsageError: The renaming changes no name, or makes two names one.
    """
    if renaming is not None and renaming.rules:
        return base, post.renamed(renaming.names([post.tensors])[0])
    base, post = (
        unwrapped(base, post.tensors, progress, even_alike=True),
        unwrapped(post, base.tensors, progress, even_alike=True),
    )
    rules = recognised(post.tensors, base.tensors)
    newer = base.renamed(with_newer_names(base.tensors))
    if (
        newer.tensors.keys() != base.tensors.keys()
        and not base.tensors.keys() <= post.tensors.keys()
    ):
        also = post.renamed(with_newer_names(post.tensors))
        others = recognised(also.tensors, newer.tensors)
        if _in_common(newer, also, others) > _in_common(base, post, rules):
            base, post, rules = newer, also, others
    rules = _borne_out(base, post, rules)
    if rules:
        names = renamed(post.tensors, rules)
        _tell(post, names, progress, f", as `{as_options(rules)}` says")
        post = post.renamed(names)
    return base, post


def _in_common(base: Checkpoint, post: Checkpoint, rules: Sequence[Rule]) -> int:
    names = renamed(post.tensors, rules) if rules else {}
    return len(base.tensors.keys() & {names.get(name, name) for name in post.tensors})


def _borne_out(base: Checkpoint, post: Checkpoint, rules: Sequence[Rule]) -> list[Rule]:
    """Those rules by which tensors get one name that are the same ones by their weights.

    Each has to prove itself: two parts of a model may end alike, as a pooler and a head's layer.
    """
    kept: list[Rule] = []
    now = {name: name for name in post.tensors}
    for rule in rules:
        try:
            names = renamed(post.tensors, [*kept, rule])
        except UsageError:
            continue  # it follows on one that was left out
        moved = [name for own, name in names.items() if name != now[own] and name in base.tensors]
        if not moved or _are_the_same(base, post.renamed(names), moved):
            kept.append(rule)
            now = names
    known = base.tensors.keys()
    return kept if len(known & set(now.values())) > len(known & post.tensors.keys()) else []


def _are_the_same(base: Checkpoint, post: Checkpoint, names: Sequence[str]) -> bool:
    """Whether tensors that have one name only by a guess are the same ones by their weights."""
    pairs = [pair_of(name, base.tensors[name], post.tensors[name]) for name in names]
    if any(pair.kind == "replaced" and pair.base is not None for pair in pairs):
        return False
    verdict = compared(sampled_runs(base, post, pairs), complete=False).verdict
    # Vectors alone prove nothing: a guess must then be about most of the model.
    return verdict in ("related", "distant") or (
        verdict == "unknown" and 2 * len(names) > len(base.tensors)
    )


def unwrapped(
    checkpoint: Checkpoint, known: Collection[str], progress: Progress, *, even_alike: bool = False
) -> Checkpoint:
    """A checkpoint without what wrappers add to its names, if that gives more of them in common.

    Of a model of transformers they go in any case: its output would have names that none of its
    classes loads.

    Args:
        checkpoint: The checkpoint.
        known: The names of the other model.
        progress: Is told what was left out.
        even_alike: Whether that holds where both models have such names, too.
    """
    always = _is_of_transformers(checkpoint) and (
        even_alike or set(known).isdisjoint(checkpoint.tensors)
    )
    names = without_wrappers(checkpoint.tensors, known, always=always)
    if names is None:
        return checkpoint
    _tell(checkpoint, names, progress, "")
    return checkpoint.renamed(names)


def called_as(
    names: Mapping[str, str], base: Checkpoint, ref: str, progress: Progress
) -> dict[str, str]:
    """What the new base calls a delta's tensors, where one of the two has older names.

    Args:
        names: What they are called as far as was told, by the delta's own names.
        base: The new base.
        ref: What to call the delta.
        progress: Is told what was recognised.
    """
    found = without_wrappers(names.values(), base.tensors) or {}
    changed = [(old, new) for old, new in found.items() if old != new]
    if changed:
        progress.warn(
            f"{len(changed)} of the {len(names)} tensors of {ref} go by another name in "
            f"{base.repo or base.path}: {changed[0][0]} is taken for {changed[0][1]}."
        )
    return {own: found.get(name, name) for own, name in names.items()}


def _is_of_transformers(checkpoint: Checkpoint) -> bool:
    """Whether a class of transformers loads it, none of which has wrappers' names of its own."""
    config = checkpoint.config or {}
    return isinstance(config.get("model_type"), str) and not config.get("auto_map")


def _tell(checkpoint: Checkpoint, names: Mapping[str, str], progress: Progress, how: str) -> None:
    changed = [(old, new) for old, new in names.items() if old != new]
    progress.warn(
        f"{len(changed)} of the {len(names)} tensors of {checkpoint.repo or checkpoint.path} go by "
        f"another name{how}: {changed[0][0]} is taken for {changed[0][1]}."
    )
