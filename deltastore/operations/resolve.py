"""``resolve``: which stored deltas fit a base, nearest lineage first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from deltastore.checkpoint import Checkpoint, open_checkpoint, quantisation
from deltastore.errors import FormatError, IntegrityError
from deltastore.manifest import Config
from deltastore.operations.embeddings import has_token_rows
from deltastore.operations.lineage import Lineage, measure
from deltastore.operations.small_files import is_tokenizer_file
from deltastore.operations.structure import Delta, Mismatch, check_structure
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

    Of each artifact only manifest, config and samples are read; of the base, its headers and the
    samples' places.

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


def _match_by_token(problems: Sequence[Mismatch], config: Config, checkpoint: Checkpoint) -> bool:
    """Whether all that differs is the number of tokens, and both have a tokenizer."""
    tokenizers = (
        any(is_tokenizer_file(entry.path) for entry in config.files),
        any(is_tokenizer_file(name) for name in checkpoint.files),
    )
    return all(tokenizers) and all(has_token_rows(problem.name) for problem in problems)


def _judge(
    store: Store, digest: str, ref: str, checkpoint: Checkpoint, quantised: str | None
) -> tuple[list[str], bool, Lineage | None]:
    """Reasons, whether it fits, and lineage."""
    try:
        manifest, config = store.load(digest)
        lineage = measure(store.blobs, manifest, config, checkpoint, where=ref)
    except (IntegrityError, FormatError) as error:
        return [error.message], False, None
    reasons = []
    # Small files are not read here: what the delta's base says of its head is taken on trust.
    delta = Delta(ref, config, source_config={})
    report = check_structure(checkpoint, [delta], partial=True, config=checkpoint.config)
    by_token = bool(report.all) and _match_by_token(report.all, config, checkpoint)
    if report.all and not by_token:
        reasons.append(f"structure: {report.summary}")
    if config.restore_only and not lineage.same:
        reasons.append("it restores its own pair only")
    elif quantised is not None and not config.restore_only:
        reasons.append(f"the base is quantised: {quantised}")
    if lineage.verdict == "unrelated":
        reasons.append("lineage: the base is unrelated to the delta's own")
    compatible = not reasons
    if by_token:
        reasons.append("vocabulary: another number of rows; apply matches them by token")
    if lineage.verdict == "distant":
        reasons.append("lineage: the base is far from the delta's own; test the result")
    elif lineage.verdict == "unknown":
        reasons.append("lineage: too little can be compared; test the result")
    return reasons, compatible, lineage
