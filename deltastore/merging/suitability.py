"""Whether a stored delta suits a new base, found out without reading either as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deltastore.artifact.small_files import own_tokenizer, stored_digests, tokenizer_of
from deltastore.checkpoint import Checkpoint, quantisation
from deltastore.digest import sha256_digest
from deltastore.errors import FormatError, IntegrityError, MissingExtraError, TokenizerError
from deltastore.execution.progress import Silent
from deltastore.lineage import digests
from deltastore.lineage.calling import called_as, unwrapped
from deltastore.lineage.similarity import Lineage, measure
from deltastore.manifest import Config, Manifest
from deltastore.store import Store
from deltastore.structure.checking import check_structure
from deltastore.structure.places import Delta, comparable
from deltastore.tensor_names.token_rows import has_token_rows
from deltastore.tokenizer.comparing import comparable_tokens, defining
from deltastore.tokenizer.reading import read_vocabulary


@dataclass(frozen=True, slots=True)
class Suitability:
    """How a stored delta stands to a new base.

    Attributes:
        reasons: Why ``apply`` does not take it as it is, or what speaks for caution.
        compatible: Whether it does.
        lineage: How near the base is to the delta's own; None if that cannot be measured.
    """

    reasons: list[str]
    compatible: bool
    lineage: Lineage | None


class NewBase:
    """A new base, by which stored deltas are judged.

    Args:
        store: Where the deltas are.
        checkpoint: The base.
    """

    def __init__(self, store: Store, checkpoint: Checkpoint) -> None:
        self._store = store
        self._checkpoint = checkpoint
        self._quantised = quantisation(checkpoint)
        self._tokens = _Tokens(checkpoint)

    def judge(self, digest: str, ref: str) -> Suitability:
        """Look at an artifact's manifest, config and samples, and at the base at their places.

        Args:
            digest: The artifact.
            ref: What to call it.

        Raises:
            CheckpointError: The base cannot be read.
        """
        try:
            manifest, config = self._store.load(digest)
            names = {entry.name: entry.name for entry in config.tensors}
            base = unwrapped(self._checkpoint, names, Silent())
            by_token = self._tokens.differ(manifest, config)
            delta = Delta(
                ref,
                config,
                called_as(names, base, ref, Silent()),
                # What its base says of its head is in a small file, and taken on trust here.
                source_config={},
            )
            misfit, lineage = self._compare(manifest, delta, base, by_token=by_token)
        except (IntegrityError, FormatError) as error:
            return Suitability([error.message], False, None)
        problems = [f"structure: {misfit}"] if misfit else []
        if by_token and self._tokens.problem is not None:
            problems.append(f"vocabulary: {self._tokens.problem}")
        problems += self._objections(base, config, lineage)
        cautions = []
        if by_token and self._tokens.problem is None:
            cautions.append("vocabulary: another tokenizer; apply matches rows by token")
        if lineage.verdict == "distant":
            cautions.append("lineage: the base is far from the delta's own; test the result")
        elif lineage.verdict == "unknown" and not config.restore_only:
            cautions.append("lineage: too little can be compared; test the result")
        return Suitability(problems + cautions, not problems, lineage)

    def _compare(
        self, manifest: Manifest, delta: Delta, base: Checkpoint, *, by_token: bool
    ) -> tuple[str, Lineage]:
        """What does not fit of the tensors, or nothing, and the lineage."""
        report = check_structure(base, [delta], partial=True, config=base.config)
        sources = {
            name: info
            for name, info in comparable(report.places[0]).items()
            if not (by_token and has_token_rows(info.name))
        }
        blobs, config = self._store.blobs, delta.config
        lineage = measure(blobs, manifest, config, base, where=delta.ref, sources=sources)
        fits = all(by_token and has_token_rows(item.name) for item in report.all)
        return "" if fits else report.summary, lineage

    def _objections(self, base: Checkpoint, config: Config, lineage: Lineage) -> Iterator[str]:
        """What of quantisation and lineage keeps ``apply`` from taking the delta."""
        if config.restore_only and not (lineage.same or self._is_known(base, config, lineage)):
            unknown = ", and samples do not say whether this is its base"
            yield f"it restores its own pair only{unknown if lineage.verdict == 'unknown' else ''}"
        elif self._quantised is not None and not config.restore_only:
            yield f"the base is quantised: {self._quantised}"
        if lineage.verdict == "unrelated":
            yield "lineage: the base is unrelated to the delta's own"

    def _is_known(self, base: Checkpoint, config: Config, lineage: Lineage) -> bool:
        """Whether a base of which samples tell nothing is remembered to be the delta's own."""
        if lineage.verdict != "unknown":
            return False
        known = digests.remembered(self._store, base, trust_cache=True)
        return known is not None and digests.content_of(base, known) == config.base.content


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
