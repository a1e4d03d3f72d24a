"""Two checkpoints of one model whose tensors have other names, as one calls them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from deltastore.checkpoint import Checkpoint
from deltastore.operations.lineage import compared
from deltastore.operations.naming import Renaming
from deltastore.operations.pair_lineage import sampled_runs
from deltastore.operations.pairing import pair_of
from deltastore.operations.progress import Progress
from deltastore.operations.recognising import as_options, recognised, renamed, without_wrappers


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
    if rules:
        names = renamed(post.tensors, rules)
        called = post.renamed(names)
        moved = [name for old, name in names.items() if name != old and name in base.tensors]
        if _are_the_same(base, called, moved):
            _tell(post, names, progress, f", as `{as_options(rules)}` says")
            post = called
    return base, post


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
