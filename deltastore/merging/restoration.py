"""Restoring post from its own base: which patches to use, and whether the output is post."""

from __future__ import annotations

from collections.abc import Mapping

from deltastore.checkpoint import Checkpoint, Weights
from deltastore.errors import RestoreOnlyError
from deltastore.execution.progress import Progress
from deltastore.execution.thread_pool import ThreadPool
from deltastore.lineage import digests
from deltastore.manifest import Config, TensorEntry
from deltastore.merging.recipes import Recipe
from deltastore.store import Store


def patched_tensors(
    store: Store,
    checkpoint: Checkpoint,
    config: Config,
    ref: str,
    jobs: int,
    progress: Progress,
) -> frozenset[str]:
    """The tensors whose restore patch is to be used on a base whose samples are all the source's.

    A patch belongs to the source base's tensor alone, so that tensor's digest decides; only
    tensors that have a patch are read.

    Raises:
        RestoreOnlyError: The artifact is for its source base alone, and this is another.
    """
    known = digests.remembered(store, checkpoint)
    if config.restore_only:
        if known is None:
            known = digests.hash_checkpoint(store, checkpoint, jobs, progress)
        if digests.content_of(checkpoint, known) != config.base.content:
            raise not_the_source(ref, checkpoint)
    return own_tensors(checkpoint, config, known, jobs, progress)


def own_tensors(
    weights: Weights,
    config: Config,
    known: Mapping[str, str] | None,
    jobs: int,
    progress: Progress,
) -> frozenset[str]:
    """Of the tensors that have a restore patch, those that are the source base's own.

    Args:
        weights: The new base.
        config: The delta's.
        known: BLAKE3 hex of all tensors, if known; else those in question are read.
        jobs: Threads.
        progress: Is told when tensors are read.
    """
    patched = [entry for entry in config.tensors if entry.patch is not None]
    used = {entry.name: _added_to(entry, weights) for entry in patched}
    there = [entry for entry in patched if used[entry.name] in weights.tensors]
    names = sorted({used[entry.name] for entry in there})
    digests = known if known is not None else _digests(weights, names, jobs, progress)
    return frozenset(
        entry.name
        for entry in there
        if entry.base is not None and digests[used[entry.name]] == entry.base.blake3
    )


def _added_to(entry: TensorEntry, weights: Weights) -> str:
    """A head measured from embeddings is added to the new base's own head where it has one."""
    return entry.name if entry.name in weights.tensors else entry.source


def is_post(config: Config, made: Mapping[str, Recipe], digests: Mapping[str, str]) -> bool:
    """Whether the output's tensors are post's, by name, dtype, shape and digest.

    Of a codec that is not exact that is never said: that nothing was lost was chance.
    """
    if config.exactness != "exact":
        return False
    posts = {entry.name: entry.post for entry in config.tensors if entry.post is not None}
    if posts.keys() != made.keys():
        return False
    for name, side in posts.items():
        output = made[name].output
        if (output.dtype, output.shape, digests[name]) != (side.dtype, side.shape, side.blake3):
            return False
    return True


def not_the_source(ref: str, checkpoint: Checkpoint) -> RestoreOnlyError:
    """The error for an artifact that would be applied to anything but its source base."""
    return RestoreOnlyError(
        f"{ref} was stored for restoration only, and {checkpoint.path} is not the base it was "
        "extracted from, or it is scaled or combined.",
        hint="Apply it alone, with scale 1, to its own base.",
        refs=[ref],
    )


def _digests(weights: Weights, names: list[str], jobs: int, progress: Progress) -> dict[str, str]:
    found: dict[str, str] = {}
    if names:
        progress.start("recognising the base", 0)

        def work(_number: int, name: str) -> None:
            found[name] = digests.hash_tensor(weights, name)

        ThreadPool(jobs).run(names, work)
    return found
