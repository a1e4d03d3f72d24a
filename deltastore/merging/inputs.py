"""What is applied: one record for each delta, to which each step adds what it finds out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from deltastore.artifact.reader import ArtifactReader, blaming, open_artifact
from deltastore.artifact.sides import Sides, read_sides
from deltastore.artifact.small_files import own_tokenizer
from deltastore.catalog import Artifact
from deltastore.checkpoint import Checkpoint
from deltastore.execution.progress import Progress
from deltastore.lineage.calling import called_as, unwrapped
from deltastore.lineage.similarity import Lineage
from deltastore.manifest import Config
from deltastore.store import Store
from deltastore.structure.places import Delta, Placement
from deltastore.tensor_names.selectors import Renaming
from deltastore.tokenizer.comparing import compare_tokens, skip_tokens


@dataclass(frozen=True, slots=True)
class DeltaInput:
    """One delta of a merge. Steps add to it by ``replace``.

    Attributes:
        artifact: Its record.
        scale: α of the tensors that no rule is about.
        reader: Its tensors.
        files: Its small files.
        delta: What is known of it when its tensors are matched.
        places: Where they go, by the output's names.
        lineage: How near the new base is to its own; None until that is measured.
    """

    artifact: Artifact
    scale: float
    reader: ArtifactReader
    files: Sides
    delta: Delta
    places: Mapping[str, Placement] = field(default_factory=dict)
    lineage: Lineage | None = None

    @property
    def ref(self) -> str:
        """What to call it."""
        return self.artifact.ref

    @property
    def config(self) -> Config:
        """Its config."""
        return self.reader.config


@contextmanager
def open_inputs(store: Store, chosen: Iterable[tuple[str, float]]) -> Iterator[list[DeltaInput]]:
    """The deltas of a merge by ref and scale, open; errors about their blobs name them.

    Raises:
        RefError: A ref means nothing.
        IntegrityError: A blob is missing or damaged; every part is looked for.
    """
    with ExitStack() as stack:
        named: list[str] = []
        stack.enter_context(blaming(named))
        inputs = []
        for ref, scale in chosen:
            artifact = store.resolve(ref)
            named.append(artifact.ref)
            inputs.append(open_input(store, artifact, scale, stack))
        # They are read much later.
        for part in {part.digest: part for one in inputs for part in one.reader.parts}.values():
            store.blobs.open(part.digest, part.size).close()
        yield inputs


def open_input(store: Store, artifact: Artifact, scale: float, stack: ExitStack) -> DeltaInput:
    """One delta, open until the stack ends.

    Raises:
        IntegrityError: One of its documents or small files is missing or damaged.
    """
    reader = stack.enter_context(open_artifact(store, artifact.digest))
    files = read_sides(store.blobs, reader.manifest, reader.config)
    delta = Delta(
        artifact.ref,
        reader.config,
        source_config=files.base_config,
        post_config=files.post_config,
    )
    return DeltaInput(artifact, scale, reader, files, delta)


def name_inputs(
    checkpoint: Checkpoint, inputs: Iterable[DeltaInput], renaming: Renaming, progress: Progress
) -> tuple[Checkpoint, list[DeltaInput]]:
    """The new base without what wrappers add to its names, and the deltas with its names for them.

    Raises:
        UsageError: A rule changes no name, or two names become one.
    """
    inputs = list(inputs)
    called = renaming.names([[entry.name for entry in one.config.tensors] for one in inputs])
    known = {new for names in called for new in names.values()}
    checkpoint = unwrapped(checkpoint, known, progress)
    named = []
    for one, names in zip(inputs, called, strict=True):
        delta = replace(one.delta, names=called_as(names, checkpoint, one.ref, progress))
        named.append(replace(one, delta=delta))
    return checkpoint, named


def with_vocabulary(one: DeltaInput, base: Checkpoint, *, skip: bool) -> DeltaInput:
    """A delta with how its tokens stand to the new base's.

    Args:
        one: The delta, with the new base's names.
        base: The new base.
        skip: Whether rows of tokens are to be left as they are.

    Raises:
        TokenizerError: A tokenizer that is needed cannot be read.
        MissingExtraError: It needs a library that is not installed.
        CheckpointError: A file of the new base cannot be read.
    """
    own, files = own_tokenizer(base), one.files
    if skip:
        vocabulary = skip_tokens(own, files.post_tokenizer, where=base.label, ref=one.ref)
    else:
        table = {one.delta.named(entry): entry for entry in one.config.tensors}
        vocabulary = compare_tokens(
            own,
            files.base_tokenizer,
            files.post_tokenizer,
            new=base.tensors,
            delta=table,
            where=base.label,
            ref=one.ref,
        )
    return replace(one, delta=replace(one.delta, vocabulary=vocabulary))
