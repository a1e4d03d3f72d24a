"""``resolve``: which stored deltas fit a base, nearest lineage first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from deltastore.checkpoint import Checkpoint, open_checkpoint, quantisation
from deltastore.errors import (
    FormatError,
    IncompatibleError,
    IntegrityError,
    MissingExtraError,
    TokenizerError,
)
from deltastore.operations.lineage import Lineage, comparable, measure
from deltastore.operations.matching import compare_tokens, read_sides
from deltastore.operations.structure import Delta, check_structure
from deltastore.operations.vocabulary import Vocabulary
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


def resolve(store: Store, base: str | PathLike[str]) -> list[Candidate]:
    """All stored deltas: those that fit the base first, then by lineage, newest versions first.

    Of each artifact manifest, config, small files and samples are read; of the base, its headers,
    its small files and the samples' places.

    Raises:
        CheckpointError: The base cannot be read.
        CatalogError: The catalog failed.
    """
    found: list[tuple[tuple[Any, ...], Candidate]] = []
    judged: dict[str, tuple[list[str], bool, Lineage | None]] = {}
    with open_checkpoint(base, look_only=True) as checkpoint:
        quantised = quantisation(checkpoint)
        for artifact in store.artifacts():
            if artifact.digest not in judged:
                judged[artifact.digest] = _judge(
                    store, artifact.digest, artifact.ref, checkpoint, quantised
                )
            reasons, compatible, lineage = judged[artifact.digest]
            figures = None if lineage is None else asdict(lineage)
            candidate = Candidate(artifact.ref, artifact.digest, compatible, reasons, figures)
            nearness = _ORDER.index(lineage.verdict) if lineage is not None else len(_ORDER)
            cosine = lineage.cosine if lineage is not None and lineage.cosine is not None else -2.0
            key = (not compatible, nearness, -cosine, artifact.name, -artifact.version)
            found.append((key, candidate))
    return [candidate for _, candidate in sorted(found, key=lambda item: item[0])]


def _judge(
    store: Store, digest: str, ref: str, checkpoint: Checkpoint, quantised: str | None
) -> tuple[list[str], bool, Lineage | None]:
    """Reasons, whether it fits, and lineage."""
    try:
        manifest, config = store.load(digest)
        sides = read_sides(store.blobs, manifest, config)
        reasons = []
        words = Vocabulary("not compared")
        try:
            words = compare_tokens(checkpoint, config, sides, {}, ref=ref)
        except (TokenizerError, MissingExtraError) as error:
            reasons.append(f"vocabulary: {error.message}")
        delta = Delta(ref, config, source_config=sides.base_config, vocabulary=words)
        report = check_structure(checkpoint, [delta], partial=True, config=checkpoint.config)
        sources = comparable(report.places[0])
        lineage = measure(store.blobs, manifest, config, checkpoint, where=ref, sources=sources)
    except (IntegrityError, FormatError, IncompatibleError) as error:
        return [error.message], False, None
    if report.all:
        reasons.append(f"structure: {report.summary}")
    if config.restore_only and not lineage.same:
        reasons.append("it restores its own pair only")
    elif quantised is not None and not config.restore_only:
        reasons.append(f"the base is quantised: {quantised}")
    if lineage.verdict == "unrelated":
        reasons.append("lineage: the base is unrelated to the delta's own")
    compatible = not reasons
    if words.verdict == "matched":
        reasons.append("vocabulary: other tokens; apply matches their rows by string")
    if lineage.verdict == "distant":
        reasons.append("lineage: the base is far from the delta's own; test the result")
    elif lineage.verdict == "unknown":
        reasons.append("lineage: too little can be compared; test the result")
    return reasons, compatible, lineage
