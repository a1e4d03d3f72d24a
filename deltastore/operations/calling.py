"""Two checkpoints of one model whose tensors have other names, as one calls them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from deltastore.checkpoint import Checkpoint
from deltastore.errors import UsageError
from deltastore.operations.embeddings import has_token_rows
from deltastore.operations.lineage import Verdict, compared
from deltastore.operations.naming import Renaming
from deltastore.operations.pair_lineage import sampled_runs
from deltastore.operations.pairing import pair_of
from deltastore.operations.progress import Progress
from deltastore.operations.recognising import (
    Rule,
    as_options,
    recognised,
    renamed,
    without_wrappers,
)


def called_alike(
    base: Checkpoint, post: Checkpoint, renaming: Renaming | None, progress: Progress
) -> tuple[Checkpoint, Checkpoint]:
    """Both, their tensors under one name each, as far as that is told or recognised.

    What wrappers add (``module.``, ``_orig_mod.``) is left out of both; post's other names are
    exchanged for base's. Names that agree are never touched.

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
        unwrapped(base, post.tensors, progress),
        unwrapped(post, base.tensors, progress),
    )
    rules = recognised(post.tensors, base.tensors)
    if rules := _without_strangers(base, post, rules):
        names = renamed(post.tensors, rules)
        called = post.renamed(names)
        if _are_the_same(base, called, _moved(base, names)):
            _tell(post, names, progress, f", as `{as_options(rules)}` says")
            post = called
    return base, post


def _without_strangers(base: Checkpoint, post: Checkpoint, rules: Sequence[Rule]) -> list[Rule]:
    """The rules, but for those that take what only ends alike for one tensor.

    A model's pooler and the transform before another's head are both called ``….dense.weight``.
    """
    kept: list[Rule] = []
    before: set[str] = set()
    for rule in rules:
        try:
            names = renamed(post.tensors, [*kept, rule])
        except UsageError:  # without one that was left out
            continue
        moved = set(_moved(base, names))
        if _verdict(base, post.renamed(names), sorted(moved - before)) != "unrelated":
            kept.append(rule)
            before = moved
    return kept


def _moved(base: Checkpoint, names: Mapping[str, str]) -> list[str]:
    """Base's names of the tensors that have them only by a guess."""
    return [name for old, name in names.items() if name != old and name in base.tensors]


def _are_the_same(base: Checkpoint, post: Checkpoint, names: Sequence[str]) -> bool:
    """Whether tensors that have one name only by a guess are the same ones by their weights."""
    verdict = _verdict(base, post, names)
    # Vectors alone prove nothing: a guess must then be about most of the model.
    return verdict in ("related", "distant") or (
        verdict == "unknown" and 2 * len(names) > len(base.tensors)
    )


def _verdict(base: Checkpoint, post: Checkpoint, names: Sequence[str]) -> Verdict:
    pairs = [pair_of(name, base.tensors[name], post.tensors[name]) for name in names]
    if any(pair.kind == "replaced" and pair.base is not None for pair in pairs):
        return "unrelated"
    verdict = compared(sampled_runs(base, post, pairs), complete=False).verdict
    resized = any(pair.kind == "resized" and not has_token_rows(pair.name) for pair in pairs)
    # Another shape speaks against it, unless weights speak for it.
    return "unrelated" if verdict == "unknown" and resized else verdict


def unwrapped(checkpoint: Checkpoint, known: Collection[str], progress: Progress) -> Checkpoint:
    """A checkpoint without what wrappers add to its names, if that gives more of them in common.

    Args:
        checkpoint: The checkpoint.
        known: The names of the other model.
        progress: Is told what was left out.
    """
    names = without_wrappers(checkpoint.tensors, known)
    if names is None:
        return checkpoint
    _tell(checkpoint, names, progress, "")
    return checkpoint.renamed(names)


def _tell(checkpoint: Checkpoint, names: Mapping[str, str], progress: Progress, how: str) -> None:
    changed = [(old, new) for old, new in names.items() if old != new]
    progress.warn(
        f"{len(changed)} of the {len(names)} tensors of {checkpoint.repo or checkpoint.path} go by "
        f"another name{how}: {changed[0][0]} is taken for {changed[0][1]}."
    )
