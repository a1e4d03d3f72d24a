"""What a merge will do: every decision as one frozen value, made before a byte is written.

``planning`` makes one, ``engine`` executes it or any ranges of its chunks, ``plan_document`` writes
it as JSON and reads it again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

from deltastore.checkpoint import Checkpoint, ShardPlan
from deltastore.checkpoint.beside import ANOTHER_FORM
from deltastore.digest import sha256_digest
from deltastore.lineage.similarity import Lineage
from deltastore.manifest.format import CHUNK_ELEMENTS
from deltastore.merging.method import LINEAR, MergeMethod, Prepared
from deltastore.merging.recipes import Recipe
from deltastore.structure.places import Mismatch
from deltastore.tensor_names.selectors import ScaleRule


@dataclass(frozen=True, slots=True)
class PlannedBase:
    """The new base.

    Attributes:
        label: What to call it.
        repo: Its Hub id, if it has one.
        revision: Its commit there.
        names: Where its tensors are stored under other names than the plan's: stored name, plan's.
    """

    label: str
    repo: str | None = None
    revision: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> PlannedBase:
        """An open checkpoint as the new base."""
        names = checkpoint.stored_names()
        return cls(checkpoint.title, checkpoint.repo, checkpoint.revision, names)

    def report(self) -> dict[str, Any]:
        """What result and provenance say of it."""
        return {"label": self.label, "repo": self.repo, "revision": self.revision}


@dataclass(frozen=True, slots=True)
class PlannedDelta:
    """A delta that is applied.

    Attributes:
        ref: What the user called it.
        digest: Its artifact.
        scale: α of the tensors that no rule is about.
        base: What its own base is called.
        post: What its post is called.
        post_repo: The Hub id of its post, if it has one.
        source_base: The content digest of its own base.
        source_post: That of its post.
        lineage: How near the new base is to its own.
        vocabulary: How its tokens stand to the new base's, as ``Vocabulary.report`` says it; None
            if that was not looked at.
    """

    ref: str
    digest: str
    scale: float
    base: str
    post: str
    post_repo: str | None
    source_base: str
    source_post: str
    lineage: Lineage
    vocabulary: Mapping[str, Any] | None = None

    def details(self) -> dict[str, Any]:
        """The delta as provenance and card tell of it."""
        names = ("ref", "digest", "scale", "base", "post", "source_base", "source_post")
        return {name: getattr(self, name) for name in names} | {"lineage": asdict(self.lineage)}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MergePlan:
    """Base plus deltas, decided.

    Attributes:
        base: The new base.
        deltas: What is applied, in order; an ``Addend`` counts them from 0.
        tensors: What each tensor of the output is made of, by name.
        shards: The files of the output and their tensors, in file order.
        chunk: Elements that are computed at once, as the deltas' frames have them.
        method: How deltas change the base.
        prepared: What the method found out of whole tensors.
        patches: The deltas' tensors whose restore patch is used where the output is of post's
            dtype; every output tensor's digest is taken then. None where neither is done.
        restoring: The output may be post, bit for bit.
        dtype: The output dtype that was asked for.
        scale_for: Rules for α, in the order given.
        left_out: Tensors that could not be matched and stay as they are.
        skipped: Embeddings and heads that stay as they are, as was asked.
        not_copied: What lies beside the weights of the new base or of a post and is not in the
            output: ``of`` (``new base``, ``post of REF``), ``name`` and ``why``.
        files: The output's small files: ``name``, ``from`` and perhaps ``note``.
        contents: The digests of those files that are known beforehand, by name.
        config_left: Fields of config.json that post changed and that stay the new base's.
    """

    base: PlannedBase
    deltas: tuple[PlannedDelta, ...] = ()
    tensors: Mapping[str, Recipe]
    shards: tuple[ShardPlan, ...] = ()
    chunk: int = CHUNK_ELEMENTS
    method: MergeMethod = LINEAR
    prepared: Prepared = field(default_factory=dict)
    patches: frozenset[str] | None = None
    restoring: bool = False
    dtype: str | None = None
    scale_for: tuple[ScaleRule, ...] = ()
    left_out: tuple[Mismatch, ...] = ()
    skipped: tuple[str, ...] = ()
    not_copied: tuple[Mapping[str, str], ...] = ()
    files: tuple[Mapping[str, str], ...] = ()
    contents: Mapping[str, str] = field(default_factory=dict)
    config_left: tuple[Mapping[str, str], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the output's tensors."""
        return sum(recipe.output.nbytes for recipe in self.tensors.values())

    def with_files(
        self,
        files: Mapping[str, bytes],
        report: Sequence[Mapping[str, str]],
        left: Sequence[Mapping[str, str]],
    ) -> MergePlan:
        """The same with the output's small files decided.

        Args:
            files: Those that are known beforehand.
            report: Whose each file is, and what there is to say of it.
            left: Fields of config.json that did not follow post.
        """
        contents = {name: sha256_digest(data) for name, data in sorted(files.items())}
        return replace(self, files=tuple(report), contents=contents, config_left=tuple(left))

    def left_by_model(self) -> dict[str, list[str]]:
        """The names in ``not_copied`` that somebody may miss, by model."""
        found: dict[str, list[str]] = {}
        for row in self.not_copied:
            if row["why"] != ANOTHER_FORM:
                found.setdefault(row["of"], []).append(row["name"])
        return found

    def report(self) -> dict[str, Any]:
        """What a result says of the plan."""
        return {
            "refs": [{"ref": d.ref, "digest": d.digest, "scale": d.scale} for d in self.deltas],
            "base": self.base.report(),
            "lineage": [{"ref": d.ref, **asdict(d.lineage)} for d in self.deltas],
            "tensors": len(self.tensors),
            "bytes": self.nbytes,
            "left_out": [asdict(item) for item in self.left_out],
            "skipped": list(self.skipped),
            "vocabulary": self.vocabulary(),
            "files": list(self.files),
            "not_copied": list(self.not_copied),
            "config_left": list(self.config_left),
        }

    def vocabulary(self) -> list[dict[str, Any]]:
        """How each delta's tokens stand to the new base's, where that was looked at."""
        known = (d for d in self.deltas if d.vocabulary is not None)
        return [{"ref": delta.ref, **(delta.vocabulary or {})} for delta in known]

    def chunks_of(self, recipe: Recipe) -> int:
        """How many chunks an output tensor has: those of what is computed, and those of values.

        One without elements counts as one, so that each tensor begins in one range.
        """
        common, total = recipe.common_elements, recipe.output.elements
        return max(1, -(-common // self.chunk) - (common - total) // self.chunk)

    def divided(self, pieces: int) -> list[range]:
        """All chunks in so many ranges of about equal length, some of which may be empty.

        Chunks are numbered in file order. Where digests are taken no tensor is cut: that is done
        in one go, from a tensor's first byte to its last.
        """
        order = (self.tensors[item.name] for shard in self.shards for item in shard.tensors)
        starts = [0, *accumulate(map(self.chunks_of, order))]
        cuts = [starts[-1] * number // pieces for number in range(pieces + 1)]
        if self.patches is not None:
            cuts = [starts[bisect_left(starts, cut)] for cut in cuts]
        return [range(first, last) for first, last in pairwise(cuts)]
