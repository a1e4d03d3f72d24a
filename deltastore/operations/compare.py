"""``compare``: whether deltas point the same way, cancel, or are orthogonal, before adding them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

from deltastore.artifact.reader import ArtifactReader, blaming, open_artifact
from deltastore.catalog import Artifact
from deltastore.comparison.cosines import Comparer, Overlap, overlaps
from deltastore.comparison.figures import Compared, Comparison, figures
from deltastore.errors import IncompatibleError, RestoreOnlyError, UsageError
from deltastore.execution.progress import Progress, Silent
from deltastore.execution.thread_pool import job_count
from deltastore.store import Store
from deltastore.tensor_names.modules import places


def compare(
    store: Store,
    refs: Sequence[str],
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """The cosines between every two of some deltas, by layer and kind of module.

    Sums are in float64 and the same whatever the number of threads. What is read is compared with
    its digest before anything is returned.

    Args:
        store: Where the deltas are.
        refs: Two or more.
        jobs: Threads; one for each core if None.
        progress: Is told how far the work is.

    Raises:
        UsageError: There are fewer than two refs.
        RefError: A ref means nothing.
        RestoreOnlyError: An artifact is for restoration only.
        IncompatibleError: Two deltas have no tensor in common.
        IntegrityError: A blob is missing or damaged.
    """
    started = time.monotonic()
    if len(refs) < 2:
        raise UsageError(
            f"Comparing takes two deltas or more, and {len(refs) or 'none'} was given.",
            hint="Give more refs; `deltastore list` shows what there is.",
        )
    with ExitStack() as stack:
        named: list[str] = []
        stack.enter_context(blaming(named))
        artifacts, readers = [], []
        for ref in refs:
            artifact = store.resolve(ref)
            if artifact.ref not in named:
                named.append(artifact.ref)
            reader = stack.enter_context(open_artifact(store, artifact.digest))
            _refuse_restore_only(artifact, reader)
            artifacts.append(artifact)
            readers.append(reader)
        names = [artifact.ref for artifact in artifacts]
        found = overlaps(names, [reader.config.tensors for reader in readers])
        for (i, j), overlap in found.items():
            _refuse_strangers(names[i], names[j], overlap)
        Comparer(readers, found).run(store.blobs, job_count(jobs), progress or Silent())
    known = places(entry.name for reader in readers for entry in reader.config.tensors)
    return Comparison(
        refs=[Compared(artifact.ref, artifact.digest) for artifact in artifacts],
        pairs=[figures((names[i], names[j]), overlap, known) for (i, j), overlap in found.items()],
        seconds=time.monotonic() - started,
    )


def _refuse_restore_only(artifact: Artifact, reader: ArtifactReader) -> None:
    if reader.config.restore_only:
        raise RestoreOnlyError(
            f"{artifact.ref} was stored for restoration only: its deltas are differences of "
            "quantised numbers, and their angles mean nothing.",
            hint="Compare deltas of checkpoints that are not quantised.",
            refs=[artifact.ref],
        )


def _refuse_strangers(ref: str, other: str, overlap: Overlap) -> None:
    if not overlap.elements:
        count = len(overlap.problems)
        first = next(iter(overlap.problems.items()), None)
        said = f"; of {count} tensors the first is {first[0]}: {first[1]}" if first else ""
        raise IncompatibleError(
            f"{ref} and {other} have no tensor in common that both have a delta of{said}.",
            hint=f"See their tensors: `deltastore show {ref}` and `deltastore show {other}`.",
            refs=[ref, other],
            left_out=[list(item) for item in overlap.problems.items()],
        )
