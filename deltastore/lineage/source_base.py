"""Where the base is that a stored artifact was extracted from, and whether a checkpoint is it."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from deltastore.checkpoint import Checkpoint, open_checkpoint
from deltastore.errors import CheckpointError, CheckpointNotFoundError, IncompatibleError
from deltastore.execution.progress import Silent, Staged
from deltastore.lineage import digests
from deltastore.lineage.calling import unwrapped
from deltastore.lineage.similarity import measure
from deltastore.manifest import Config, Manifest
from deltastore.store import Artifact, Store


def open_source_base(
    store: Store,
    artifact: Artifact,
    config: Config,
    given: str | PathLike[str] | None,
    progress: Staged,
    *,
    otherwise: str,
) -> Checkpoint:
    """Open the base that an artifact was extracted from, or what is said to be it.

    Its tensors have the artifact's names, without what wrappers add.

    Args:
        store: Which remembers files by their tensors.
        artifact: The artifact.
        config: Its config.
        given: Where the base is; None to look for it: in files that the store remembers and that
            have not changed, then on the hub, at the commit that the artifact names.
        progress: Who is told of downloads.
        otherwise: What else can be done where it is not known, for the hint.

    Raises:
        CheckpointNotFoundError: It was not given, and is not known.
        CheckpointError: It cannot be read.
        HubError: It is on the hub and cannot be had.
    """
    names = {entry.name for entry in config.tensors}
    if given is not None:
        return unwrapped(open_checkpoint(given, downloads=progress), names, progress)
    found = _remembered(store, config)
    if found is not None:
        return found
    if config.base.repo is not None and config.base.revision is not None:
        opened = open_checkpoint(f"{config.base.repo}@{config.base.revision}", downloads=progress)
        return unwrapped(opened, names, progress)
    raise CheckpointNotFoundError(
        f"The base of {artifact.ref}, {artifact.base} with content {config.base.content}, is "
        "nowhere to be found: the store remembers no unchanged file of it, and the artifact names "
        "no commit on the hub.",
        hint=f"Say where it is with `--base CKPT`; {otherwise}.",
        content=config.base.content,
    )


def require_source_base(
    store: Store,
    artifact: Artifact,
    manifest: Manifest,
    config: Config,
    checkpoint: Checkpoint,
) -> None:
    """Refuse what is not an artifact's own base, as far as a few short reads tell.

    Raises:
        IncompatibleError: It is not.
        BlobCorruptError: The artifact's samples are damaged.
        CheckpointError: The checkpoint cannot be read.
        HubError: Likewise.
    """
    sides = {entry.name: entry.own_base for entry in config.tensors if entry.own_base is not None}
    for name in sorted(sides.keys() | checkpoint.tensors.keys()):
        side, info = sides.get(name), checkpoint.tensors.get(name)
        wanted = "no such tensor" if side is None else f"{side.dtype} {list(side.shape)}"
        got = "no such tensor" if info is None else f"{info.dtype} {list(info.shape)}"
        if wanted != got:
            raise not_source_base(artifact, checkpoint, f"{wanted} as {name}", got)
    known = digests.remembered(store, checkpoint)
    if known is not None:
        require_content(artifact, config, checkpoint, digests.content_of(checkpoint, known))
    figures = measure(store.blobs, manifest, config, checkpoint, where=artifact.ref)
    if figures.distance:
        raise not_source_base(
            artifact,
            checkpoint,
            "the weights that are stored as samples",
            f"others, at a distance of {figures.distance:.3g}",
        )


def require_content(
    artifact: Artifact, config: Config, checkpoint: Checkpoint, content: str
) -> None:
    """Refuse a checkpoint whose content digest is not that of an artifact's base.

    Raises:
        IncompatibleError: It is not.
    """
    if content != config.base.content:
        raise not_source_base(artifact, checkpoint, f"content {config.base.content}", content)


def not_source_base(
    artifact: Artifact, checkpoint: Checkpoint, expected: str, got: str
) -> IncompatibleError:
    """The error for a checkpoint that is not the base of an artifact."""
    label = checkpoint.label
    return IncompatibleError(
        f"{label} is not the base that {artifact.ref} was extracted from, {artifact.base}: "
        f"expected {expected}, got {got}.",
        hint="Give that very base with `--base`; to have deltas on another one, give their refs "
        "to `deltastore apply`.",
        ref=artifact.ref,
    )


def _remembered(store: Store, config: Config) -> Checkpoint | None:
    """The base, if files that were read before are it and have not changed since."""
    wanted = {entry.name: entry.own_base for entry in config.tensors if entry.own_base is not None}
    if not wanted:
        return None
    largest = max(wanted.values(), key=lambda side: side.nbytes)
    for place in _places(store, largest.blake3):
        try:
            checkpoint = unwrapped(open_checkpoint(place, look_only=True), wanted, Silent())
        except CheckpointError:
            continue  # moved, or no checkpoint by itself
        known = digests.remembered(store, checkpoint)
        if known and digests.content_of(checkpoint, known) == config.base.content:
            return checkpoint
        checkpoint.close()
    return None


def _places(store: Store, blake3: str) -> Iterator[Path]:
    """Directories and files that may be a checkpoint with a tensor of this digest."""
    seen = set()
    # What is known by its sha256 alone has no path.
    paths = [Path(path) for path in store.files_with(blake3) if Path(path).is_absolute()]
    for place in (place for path in paths for place in (path.parent, path)):
        if place not in seen:
            seen.add(place)
            yield place
