"""``resolve``: which stored deltas fit a base, nearest lineage first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from deltastore.checkpoint import open_checkpoint
from deltastore.execution.progress import Progress, Silent, Staged
from deltastore.lineage.similarity import Lineage
from deltastore.merging.suitability import NewBase, Suitability
from deltastore.store import Store

_ORDER = ("same", "related", "distant", "unknown", "unrelated")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One stored delta and how it stands to the base.

    Attributes:
        ref: The ref of just this version.
        digest: The manifest's digest.
        compatible: ``apply`` takes it as it is, without ``--partial`` or ``--force``.
        reasons: Why not, or what speaks for caution; empty if nothing does.
        lineage: How near the base is to the delta's own; None if that cannot be measured.
    """

    ref: str
    digest: str
    compatible: bool
    reasons: list[str]
    lineage: dict[str, Any] | None


def resolve(
    store: Store, base: str | PathLike[str], *, progress: Progress | None = None
) -> list[Candidate]:
    """All stored deltas: those that fit the base first, then by lineage, newest versions first.

    Of each artifact only manifest, config and samples are read; of the base, its headers, its
    small files and the samples' places. What only an artifact's small files say, as the number of
    heads, ``apply`` finds out.

    Args:
        store: Where the deltas are.
        base: The base: a local path, or a Hub id.
        progress: Who is warned.

    Raises:
        CheckpointError: The base cannot be read.
        CatalogError: The catalog failed.
    """
    found: list[tuple[tuple[Any, ...], Candidate]] = []
    judged: dict[str, Suitability] = {}
    watcher = Staged(progress or Silent())
    with open_checkpoint(base, downloads=watcher, look_only=True) as checkpoint:
        new_base = NewBase(store, checkpoint)
        for artifact in store.artifacts():
            if artifact.digest not in judged:
                judged[artifact.digest] = new_base.judge(artifact.digest, artifact.ref)
            suits = judged[artifact.digest]
            candidate = Candidate(
                artifact.ref,
                artifact.digest,
                suits.compatible,
                suits.reasons,
                None if suits.lineage is None else asdict(suits.lineage),
            )
            key = (not suits.compatible, *_nearness(suits.lineage), artifact.name)
            found.append(((*key, -artifact.version), candidate))
    return [candidate for _, candidate in sorted(found, key=lambda item: item[0])]


def _nearness(lineage: Lineage | None) -> tuple[int, float]:
    """What candidates are sorted by, the nearest first."""
    if lineage is None:
        return len(_ORDER), 2.0
    return _ORDER.index(lineage.verdict), 2.0 if lineage.cosine is None else -lineage.cosine
