"""``resolve``: which stored deltas fit a base, nearest lineage first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from deltastore.artifact.small_files import own_tokenizer, stored_digests, tokenizer_of
from deltastore.checkpoint import Checkpoint, open_checkpoint, quantisation
from deltastore.digest import sha256_digest
from deltastore.errors import FormatError, IntegrityError, MissingExtraError, TokenizerError
from deltastore.execution.progress import Progress, Silent, Staged
from deltastore.lineage import digests
from deltastore.lineage.calling import called_as, unwrapped
from deltastore.lineage.similarity import Lineage, measure
from deltastore.manifest import Config, Manifest
from deltastore.merging.structure import Delta, check_structure, comparable
from deltastore.store import Store
from deltastore.tensor_names.token_rows import has_token_rows
from deltastore.tokenizer.comparing import comparable_tokens, defining
from deltastore.tokenizer.reading import read_vocabulary

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
    judged: dict[str, tuple[list[str], bool, Lineage | None]] = {}
    watcher = Staged(progress or Silent())
    with open_checkpoint(base, downloads=watcher, look_only=True) as checkpoint:
        quantised, tokens = quantisation(checkpoint), _Tokens(checkpoint)
        for artifact in store.artifacts():
            if artifact.digest not in judged:
                judged[artifact.digest] = _judge(
                    store, artifact.digest, artifact.ref, checkpoint, quantised, tokens
                )
            reasons, compatible, lineage = judged[artifact.digest]
            figures = None if lineage is None else asdict(lineage)
            candidate = Candidate(artifact.ref, artifact.digest, compatible, reasons, figures)
            nearness = _ORDER.index(lineage.verdict) if lineage is not None else len(_ORDER)
            cosine = lineage.cosine if lineage is not None and lineage.cosine is not None else -2.0
            key = (not compatible, nearness, -cosine, artifact.name, -artifact.version)
            found.append((key, candidate))
    return [candidate for _, candidate in sorted(found, key=lambda item: item[0])]


class _Tokens:
    """The new base's tokenizer, to be told from those of artifacts by digests alone."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._where = checkpoint.label
        self._files = own_tokenizer(checkpoint)
        self._digests = {name: sha256_digest(data) for name, data in self._files.items()}
        self._problem: str | None = None
        self._read = False

    def differ(self, manifest: Manifest, config: Config) -> bool:
        """Whether both have a tokenizer, and not the same files of tokens."""
        stored = stored_digests(manifest, config)
        base, post = (
            tokenizer_of({path: digest for (of, path), digest in stored.items() if of == side})
            for side in ("base", "post")
        )
        theirs = base or post
        if not comparable_tokens(self._digests, theirs):
            return False
        return bool(self._digests and theirs) and defining(self._digests) != defining(theirs)

    @property
    def problem(self) -> str | None:
        """Why its rows cannot be matched by string; None if they can."""
        if not self._read:
            self._read = True
            try:
                if read_vocabulary(self._files, where=self._where) is None:
                    self._problem = f"{self._where} has no file that gives tokens their ids"
            except (TokenizerError, MissingExtraError) as error:
                self._problem = error.message
        return self._problem


def _judge(
    store: Store,
    digest: str,
    ref: str,
    checkpoint: Checkpoint,
    quantised: str | None,
    tokens: _Tokens,
) -> tuple[list[str], bool, Lineage | None]:
    """Reasons, whether it fits, and lineage."""
    try:
        manifest, config = store.load(digest)
        own = {entry.name: entry.name for entry in config.tensors}
        checkpoint = unwrapped(checkpoint, own, Silent())
        names = called_as(own, checkpoint, ref, Silent())
        # What the delta's base says of its head is in a small file, and taken on trust here.
        delta = Delta(ref, config, names, source_config={})
        report = check_structure(checkpoint, [delta], partial=True, config=checkpoint.config)
        by_token = tokens.differ(manifest, config)
        sources = {
            name: info
            for name, info in comparable(report.places[0]).items()
            if not (by_token and has_token_rows(info.name))
        }
        lineage = measure(store.blobs, manifest, config, checkpoint, where=ref, sources=sources)
    except (IntegrityError, FormatError) as error:
        return [error.message], False, None
    reasons = []
    if any(not (by_token and has_token_rows(item.name)) for item in report.all):
        reasons.append(f"structure: {report.summary}")
    if by_token and tokens.problem is not None:
        reasons.append(f"vocabulary: {tokens.problem}")
    if config.restore_only and not (lineage.same or _is_known(store, checkpoint, config, lineage)):
        unknown = ", and samples do not say whether this is its base"
        reasons.append(
            f"it restores its own pair only{unknown if lineage.verdict == 'unknown' else ''}"
        )
    elif quantised is not None and not config.restore_only:
        reasons.append(f"the base is quantised: {quantised}")
    if lineage.verdict == "unrelated":
        reasons.append("lineage: the base is unrelated to the delta's own")
    compatible = not reasons
    if by_token and tokens.problem is None:
        reasons.append("vocabulary: another tokenizer; apply matches rows by token")
    if lineage.verdict == "distant":
        reasons.append("lineage: the base is far from the delta's own; test the result")
    elif lineage.verdict == "unknown" and not config.restore_only:
        reasons.append("lineage: too little can be compared; test the result")
    return reasons, compatible, lineage


def _is_known(store: Store, checkpoint: Checkpoint, config: Config, lineage: Lineage) -> bool:
    """Whether a base of which samples tell nothing is remembered to be the delta's own."""
    if lineage.verdict != "unknown":
        return False
    known = digests.remembered(store, checkpoint, trust_cache=True)
    return known is not None and digests.content_of(checkpoint, known) == config.base.content
