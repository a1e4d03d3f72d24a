"""The two checkpoints of an extraction, opened: refused, or called alike and planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltastore.artifact.small_files import Collected, collect
from deltastore.artifact.small_files import digests as digests_of
from deltastore.catalog import FileIdentity
from deltastore.checkpoint import Checkpoint, quantisation
from deltastore.checkpoint.ungathered import refuse_ungathered
from deltastore.errors import QuantisedCheckpointError
from deltastore.execution.progress import Progress
from deltastore.execution.thread_pool import ThreadPool
from deltastore.extraction.plan import ExtractPlan, LeftFile, PlannedSide, make_plan
from deltastore.extraction.result import Made
from deltastore.extraction.reuse import Wanted
from deltastore.extraction.storing import encode_pair
from deltastore.lineage import digests
from deltastore.lineage.calling import called_alike
from deltastore.lineage.kinship import refuse_adapter, refuse_same
from deltastore.lineage.pair_similarity import PairLineage
from deltastore.lineage.pairing import Pair
from deltastore.store import Store
from deltastore.tensor_names.selectors import Renaming


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an extraction reads.

    Attributes:
        base: The model before post-training.
        post: The model after it, its tensors called as base's.
        identities: Of the files of either, taken before they are read.
        small: What lies beside the weights.
        restore_only: Whether the artifact only restores this pair.
    """

    base: Checkpoint
    post: Checkpoint
    identities: tuple[Sequence[FileIdentity | None], Sequence[FileIdentity | None]]
    small: Collected
    restore_only: bool

    @property
    def left(self) -> tuple[LeftFile, ...]:
        """What does not travel."""
        return tuple(
            LeftFile(side, name, why)
            for side, left in self.small.left.items()
            for name, why in (left or {}).items()
        )

    def wanted(self, *, thorough: bool) -> Wanted:
        """What a stored artifact must have to be this pair's; see ``Wanted``."""
        return Wanted(
            digests_of(self.small.files), self.small.not_stored, self.restore_only, thorough
        )

    def plan(
        self, pairs: Sequence[Pair], *, codec: str, kinship: PairLineage, pool: ThreadPool
    ) -> ExtractPlan:
        """Decide everything; see ``make_plan``."""
        return make_plan(
            self.base,
            self.post,
            pairs,
            codec=codec,
            sides=(PlannedSide.of(self.base), PlannedSide.of(self.post)),
            files=self.small.files,
            left=self.left,
            not_stored=self.small.not_stored or (),
            kinship=kinship,
            restore_only=self.restore_only,
            pool=pool,
        )

    def encode(self, store: Store, plan: ExtractPlan, pool: ThreadPool, progress: Progress) -> Made:
        """Carry out a plan of this pair, and remember the digests of what was read.

        Raises:
            SourceChangedError: A file changed meanwhile.
            NoSpaceError: The artifact will not fit.
        """
        made = encode_pair(
            store,
            plan,
            self.base,
            self.post,
            self.small.files,
            doing="extracting",
            pool=pool,
            progress=progress,
        )
        known = (digests.digests(made.config, "base"), digests.digests(made.config, "post"))
        sides = (self.base, self.post)
        for checkpoint, identities, own in zip(sides, self.identities, known, strict=True):
            checkpoint.check_unchanged()
            digests.remember(store, checkpoint, identities, own)
        return made


def made_ready(
    base: Checkpoint,
    post: Checkpoint,
    *,
    restore_only: bool,
    renaming: Renaming | None,
    force: bool,
    progress: Progress,
) -> Inputs:
    """Both, their tensors under one name each, and the small files beside them.

    Args:
        base: The model before post-training.
        post: The model after it.
        restore_only: Accept quantised weights.
        renaming: What base calls post's tensors, where that is something else.
        force: Accept one checkpoint as both.
        progress: Is told what was recognised.

    Raises:
        CheckpointError: A small file cannot be read.
        IncompatibleError: One is an adapter, or they are the same files.
        QuantisedCheckpointError: One is quantised, and ``restore_only`` is false.
        UsageError: The renaming fits no tensor.
        CheckpointCorruptError: Tensors of one are empty that have elements in the other.
    """
    for checkpoint, role in ((base, "base"), (post, "post")):
        refuse_adapter(checkpoint, role)
        if not restore_only:
            _refuse_quantised(checkpoint)
    before, after = called_alike(base, post, renaming, progress)
    if [shard.path for shard in before.shards] == [shard.path for shard in after.shards]:
        refuse_same(before, after, force=force)  # at once; what was copied shows at the end
    refuse_ungathered(before, after.tensors.items(), may_grow=True)
    refuse_ungathered(after, before.tensors.items())
    identities = (digests.identities(before), digests.identities(after))
    return Inputs(before, after, identities, collect(before, after), restore_only)


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    reason = quantisation(checkpoint)
    if reason is not None:
        raise QuantisedCheckpointError(
            f"{checkpoint.path} is quantised ({reason}); a delta needs weights in floating point.",
            hint="Dequantise it first, or give `--restore-only` to keep it for this base alone.",
            path=str(checkpoint.path),
        )
