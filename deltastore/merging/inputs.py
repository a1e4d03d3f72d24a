"""What is applied: one record for each delta, to which each step adds what it finds out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, get_args

from deltastore.artifact.model_files import fitting
from deltastore.artifact.reader import ArtifactReader, blaming, open_artifact
from deltastore.artifact.small_files import Side, own_tokenizer, read_stored, tokenizer_of
from deltastore.blobs import BlobStore
from deltastore.catalog import Artifact
from deltastore.checkpoint import Checkpoint, Left, is_model_file, is_tokenizer_file
from deltastore.checkpoint.documents import read_object
from deltastore.errors import MissingExtraError, TokenizerError
from deltastore.execution.progress import Progress
from deltastore.lineage.calling import called_as, unwrapped
from deltastore.lineage.similarity import Lineage
from deltastore.manifest import Config, Manifest, TensorEntry
from deltastore.merging.structure import Delta, Place
from deltastore.store import Store
from deltastore.tensor_names.selectors import Renaming
from deltastore.tensor_names.token_rows import has_token_rows, stored_embedding_of
from deltastore.tokenizer.listed_tokens import listed_tokens
from deltastore.tokenizer.matching import Vocabulary, match_tokens
from deltastore.tokenizer.reading import read_vocabulary
from deltastore.tokenizer.rows import NONE

Files = dict[str, bytes]
T = TypeVar("T")

_NO_TOKENS = ("tokenizer_config.json", "special_tokens_map.json", "merges.txt")


@dataclass(frozen=True, slots=True)
class Sides:
    """The small files of a delta: of its base what post changed there, and all of post's.

    ``words`` says how its tokens stand to those of a new base, as far as that was looked at;
    ``left`` what lay beside post, or is in the artifact, and does not get into an output;
    ``tensors`` are its tensors by the names that the output has for them.
    """

    base: Mapping[str, bytes]
    post: Mapping[str, bytes]
    words: Vocabulary = field(default_factory=lambda: Vocabulary("not compared"))
    left: Left = field(default_factory=dict)
    tensors: Mapping[str, TensorEntry] = field(default_factory=dict)

    @property
    def base_config(self) -> dict[str, Any] | None:
        """The source base's ``config.json``; None if it has none."""
        return read_object(self.base.get("config.json", b""))

    @property
    def post_config(self) -> dict[str, Any] | None:
        """Post's, likewise."""
        return read_object(self.post.get("config.json", b""))

    @property
    def base_tokenizer(self) -> Files:
        """The source base's; it is stored only where post's differs."""
        return tokenizer_of(self.base) or tokenizer_of(self.post)

    @property
    def post_tokenizer(self) -> Files:
        """Post's; its base's if it has none."""
        return tokenizer_of(self.post) or tokenizer_of(self.base)


def read_sides(blobs: BlobStore, manifest: Manifest, config: Config) -> Sides:
    """The small files of an artifact, without those that no checkpoint of a model has.

    Raises:
        IntegrityError: One of them is missing or damaged.
    """
    base, post = (read_stored(blobs, manifest, config, side) for side in get_args(Side))
    kept, left = fitting(post, storing=False)
    names = dict.fromkeys(config.not_stored, "not in the artifact")
    return Sides(base, kept, left=names | left)


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
    places: Mapping[str, Place] = field(default_factory=dict)
    lineage: Lineage | None = None

    @property
    def ref(self) -> str:
        """What to call it."""
        return self.artifact.ref

    @property
    def config(self) -> Config:
        """Its config."""
        return self.reader.config

    def small_files(self, *, live: bool) -> Sides:
        """Its small files as the output's are made of them.

        Args:
            live: Whether anything of it is in the output's tensors. Where α is 0 throughout, its
                tokenizer and its model files are left out.
        """
        tensors = {self.delta.named(entry): entry for entry in self.config.tensors}
        tensors |= {name: place.entry for name, place in self.places.items()}
        if live:
            words = self.delta.vocabulary or Vocabulary("not compared")
            return replace(self.files, words=words, tensors=tensors)
        base, post = (
            {n: data for n, data in side.items() if not (is_tokenizer_file(n) or is_model_file(n))}
            for side in (self.files.base, self.files.post)
        )
        return Sides(base, post, tensors=tensors)


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
    if skip:
        vocabulary = skip_tokens(base, one.files, ref=one.ref)
    else:
        vocabulary = compare_tokens(base, one.config, one.files, one.delta.names, ref=one.ref)
    return replace(one, delta=replace(one.delta, vocabulary=vocabulary))


def compare_tokens(
    base: Checkpoint, config: Config, sides: Sides, names: Mapping[str, str], *, ref: str
) -> Vocabulary:
    """How the tokens of a delta stand to those of a new base.

    Tokenizers are read only where their files or the tensors' shapes differ.

    Args:
        base: The new base.
        config: The delta's config.
        sides: Its small files.
        names: What the new base calls its tensors.
        ref: What to call the delta in an error.

    Raises:
        TokenizerError: A tokenizer that is needed cannot be read.
        MissingExtraError: It needs a library that is not installed.
        CheckpointError: A file of the new base cannot be read.
    """
    table = {names.get(entry.name, entry.name): entry for entry in config.tensors}
    own = own_tokenizer(base)
    source, post = sides.base_tokenizer, sides.post_tokenizer
    embedding, ours = stored_embedding_of(table), stored_embedding_of(base.tensors)
    if not own or not source or not comparable_tokens(own, source):
        return Vocabulary("not compared")
    if embedding is None or ours is None:
        return Vocabulary("not compared", unlike=_unlike(own, source))
    entry = table[embedding]
    if entry.base is None or entry.post is None:
        return Vocabulary("not compared")
    if not all(side.shape for side in (entry.base, entry.post, base.tensors[ours])):
        return Vocabulary("not compared")
    alike = _same_rows(base, table)
    if alike and _defining(own) == _defining(source):
        return Vocabulary("same")
    where = base.label
    new_rows, post_rows = base.tensors[ours].shape[0], entry.post.shape[0]
    new = read_vocabulary(own, where=where, rows=new_rows)
    before = read_vocabulary(source, where=f"the base of {ref}", rows=entry.base.shape[0])
    after = read_vocabulary(post, where=f"the post of {ref}", rows=post_rows)
    if new is None or before is None or after is None:
        return Vocabulary("not compared")
    if alike and new == before:
        return Vocabulary("same", tokens=len(new))
    return match_tokens(
        before,
        after,
        new,
        common=min(entry.base.shape[0], entry.post.shape[0]),
        post_rows=post_rows,
        new_rows=new_rows,
    )


def skip_tokens(base: Checkpoint, sides: Sides, *, ref: str) -> Vocabulary:
    """What is known of tokens where their rows are left as they are: ids of equal strings.

    Raises:
        CheckpointError: A file of the new base cannot be read.
    """
    own = own_tokenizer(base)
    try:
        new = read_vocabulary(own, where=base.label)
        post = read_vocabulary(sides.post_tokenizer, where=f"the post of {ref}")
    except (TokenizerError, MissingExtraError):
        # To get by without tokenizers is what skipping is for.
        new = post = None
    if new is None or post is None:
        # Also where neither has one, as where rows go by index.
        return Vocabulary("skipped", alike=_defining(own) == _defining(sides.post_tokenizer))
    found = {number: new.get(token, NONE) for token, number in post.items()}
    return Vocabulary("skipped", tokens=len(new), ids=found)


def _same_rows(base: Checkpoint, table: Mapping[str, TensorEntry]) -> bool:
    """Whether every tensor with a row for each token has as many rows as in the source base."""
    for name, entry in table.items():
        info = base.tensors.get(name)
        if info is None or entry.base is None or not has_token_rows(name):
            continue
        if info.shape != entry.base.shape:
            return False
    return True


def _unlike(first: Mapping[str, bytes], second: Mapping[str, bytes]) -> bool:
    """Whether two tokenizers number tokens otherwise, as far as can be read."""
    if defining(first) != defining(second):
        return True
    if _defining(first) == _defining(second):
        return False
    try:
        return read_vocabulary(first, where="") != read_vocabulary(second, where="")
    except (TokenizerError, MissingExtraError):
        return True


def _defining(tokenizer: Mapping[str, bytes]) -> list[object]:
    """What gives tokens their ids, to be compared."""
    if "tokenizer.json" in tokenizer:
        return [defining(tokenizer), listed_tokens(tokenizer)]
    config = read_object(tokenizer.get("tokenizer_config.json", b"")) or {}
    return [defining(tokenizer), config.get("added_tokens_decoder")]


def comparable_tokens(first: Mapping[str, T], second: Mapping[str, T]) -> bool:
    """Whether both tokenizers, or neither, have a file that gives tokens their ids.

    An artifact of an older version lacks the files of some families.
    """
    return bool(defining(first)) == bool(defining(second))


def defining(tokenizer: Mapping[str, T]) -> dict[str, T]:
    """The files of a tokenizer, or their digests, that give tokens their ids.

    But for what other files list beside a ``tokenizer.json``.
    """
    if "tokenizer.json" in tokenizer:
        return {"tokenizer.json": tokenizer["tokenizer.json"]}
    return {name: file for name, file in tokenizer.items() if name not in _NO_TOKENS}
