"""What is applied to what, as result, provenance and card all say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deltastore.artifact.reader import ArtifactReader
from deltastore.catalog import Artifact
from deltastore.checkpoint import Checkpoint, Left
from deltastore.checkpoint.beside import ANOTHER_FORM, bounded
from deltastore.lineage.similarity import Lineage
from deltastore.manifest import Config, Descriptor
from deltastore.merging.inputs import Sides
from deltastore.merging.structure import Delta, Report
from deltastore.tensor_names.selectors import Scales


@dataclass(frozen=True, slots=True)
class Chosen:
    """A delta that is applied: its record, what it is scaled by, and what is read of it."""

    artifact: Artifact
    ref: str
    scale: float
    reader: ArtifactReader
    files: Sides

    @property
    def config(self) -> Config:
        """Its config."""
        return self.reader.config


@dataclass(frozen=True, slots=True)
class Summary:
    """What result, provenance and card all say."""

    checkpoint: Checkpoint
    deltas: Sequence[Chosen]
    lineages: Sequence[Lineage]
    report: Report
    matched: Sequence[Delta]
    alphas: Scales
    dtype: str | None

    @property
    def label(self) -> str:
        """What to call the new base."""
        return self.checkpoint.repo or self.checkpoint.path.resolve().name

    @property
    def base(self) -> dict[str, Any]:
        """The new base: label, repo, revision."""
        return {
            "label": self.label,
            "repo": self.checkpoint.repo,
            "revision": self.checkpoint.revision,
        }

    @property
    def refs(self) -> list[dict[str, Any]]:
        """ref, digest and scale of each delta."""
        return [{"ref": d.ref, "digest": d.artifact.digest, "scale": d.scale} for d in self.deltas]

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The figures of each delta."""
        pairs = zip(self.deltas, self.lineages, strict=True)
        return [{"ref": delta.ref, **asdict(figures)} for delta, figures in pairs]

    @property
    def left_out(self) -> list[dict[str, str]]:
        """What could not be matched, with the reason."""
        return [{"name": item.name, "problem": item.problem} for item in self.report.all]

    @property
    def vocabulary(self) -> list[dict[str, Any]]:
        """How each delta's tokens stand to the new base's."""
        return [
            {"ref": delta.ref, **delta.vocabulary.report()}
            for delta in self.matched
            if delta.vocabulary is not None
        ]

    @property
    def not_copied(self) -> list[dict[str, str]]:
        """What lies beside the weights of new base and posts and is not in the output."""
        return [
            {"of": whose, "name": name, "why": why}
            for whose, left in self._left().items()
            for name, why in left.items()
        ]

    def left_by_model(self) -> dict[str, list[str]]:
        """The names of that, by model, as far as there are any."""
        named = {
            whose: [name for name, why in left.items() if why != ANOTHER_FORM]
            for whose, left in self._left().items()
        }
        return {whose: names for whose, names in named.items() if names}

    def _left(self) -> dict[str, Left]:
        sides = {"new base": bounded(self.checkpoint.left or {})}
        return sides | {f"post of {delta.ref}": delta.files.left for delta in self.deltas}

    def details(self) -> list[dict[str, Any]]:
        """The deltas as provenance and card tell of them."""
        return [
            {
                **ref,
                "base": d.artifact.base,
                "post": d.artifact.post,
                "source_base": d.config.base.content,
                "source_post": d.config.post.content,
                "lineage": asdict(figures),
            }
            for ref, d, figures in zip(self.refs, self.deltas, self.lineages, strict=True)
        ]


def used_blobs(deltas: Sequence[Chosen]) -> list[Descriptor]:
    """The parts of all deltas, each once; what else is read is checked as it is read."""
    seen: dict[str, Descriptor] = {}
    for delta in deltas:
        for layer in delta.reader.parts:
            seen.setdefault(layer.digest, layer)
    return list(seen.values())
