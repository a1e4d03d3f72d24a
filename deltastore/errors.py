"""Every error a caller can act on, each with its exit code.

One root, one branch per thing a caller can do about it. A message is one sentence that says
what went wrong, where, what was expected and what was found; ``hint`` is a second sentence with
the command that helps. Attributes in ``facts`` carry the same facts for programs.

Exit codes: 0 done; 1 unexpected; 2 usage; 3 standard output; 10-19 store; 20-29 ref;
30-39 incompatible; 40-49 integrity; 50-59 format; 60-69 checkpoint; 70-79 remote; 130 interrupted.
"""

from __future__ import annotations

import reprlib
from typing import Any, ClassVar

from deltastore.text import escaped, sentence

_SHOWN_CHARS = 80
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 2 * _SHOWN_CHARS


def shown(value: object) -> str:
    """``value`` as it may stand in a message: one line, 80 characters, whatever it is."""
    try:
        text = _repr.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a very large {type(value).__name__}"
    text = escaped(text)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."


class DeltastoreError(Exception):
    """Root of all errors raised on purpose.

    Args:
        message: One sentence: what, where, expected, got.
        hint: One sentence with the command or step that helps; may be empty.
        **facts: The same facts for programs (JSON-serialisable values).
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", **facts: Any) -> None:
        # The last net: values in a sentence are bounded where it is made, by ``shown``.
        self.message = sentence(message)
        super().__init__(self.message)
        self.hint = sentence(hint)
        self.facts = facts


class UsageError(DeltastoreError):
    """The arguments do not make sense together."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional dependency is needed and not installed."""


class LimitError(UsageError):
    """The system gives this process too little: memory, threads or open files."""


class StandardOutputError(DeltastoreError):
    """The result cannot be printed; what the command did is done."""

    exit_code = 3


# --- store: 10-19 -------------------------------------------------------------------------


class StoreError(DeltastoreError):
    """The store as a whole cannot do what was asked."""

    exit_code = 10


class StoreNotFoundError(StoreError):
    """There is no store at the given place."""

    exit_code = 11


class NotAStoreError(StoreError):
    """The directory holds something else, or a damaged ``store.json``."""

    exit_code = 12


class StoreTooNewError(StoreError):
    """The store or its catalog was written by a newer deltastore."""

    exit_code = 13


class StoreOutdatedError(StoreError):
    """The catalog's schema is older than this deltastore; migrate first."""

    exit_code = 14


class StoreReadOnlyError(StoreError):
    """The store cannot be written by this user."""

    exit_code = 15


class NoSpaceError(StoreError):
    """The file system has less room than what is to be written."""

    exit_code = 16


MAKE_ROOM = (
    "`deltastore gc --grace 0` frees what no version uses; `deltastore rm REF` and then that frees "
    "a version, and `deltastore du` shows how large each is."
)
"""The hint where the store's file system is full; these commands work there."""


class CatalogError(StoreError):
    """The catalog's database failed."""

    exit_code = 17


# --- ref: 20-29 ---------------------------------------------------------------------------


class RefError(DeltastoreError):
    """A name, version, tag or digest could not be used."""

    exit_code = 20


class RefSyntaxError(RefError):
    """The text is no ref, name or tag."""

    exit_code = 21


class RefNotFoundError(RefError):
    """No artifact has this ref; the hint names the nearest ones."""

    exit_code = 22


class RefAmbiguousError(RefError):
    """A shortened digest fits several artifacts."""

    exit_code = 23


# --- incompatible: 30-39 ------------------------------------------------------------------


class IncompatibleError(DeltastoreError):
    """The delta and the new base do not belong together."""

    exit_code = 30


class StructureMismatchError(IncompatibleError):
    """Tensors are missing or have other shapes, or no ``config.json`` would fit the output's."""

    exit_code = 31


class LineageError(IncompatibleError):
    """The new base does not descend from the source base."""

    exit_code = 32


class RestoreOnlyError(IncompatibleError):
    """The artifact restores its own pair and cannot be applied to another base."""

    exit_code = 33


class DeltaConflictError(IncompatibleError):
    """Two deltas add or replace the same tensor differently."""

    exit_code = 34


# --- integrity: 40-49 ---------------------------------------------------------------------


class IntegrityError(DeltastoreError):
    """Stored bytes are not what they must be."""

    exit_code = 40


class BlobCorruptError(IntegrityError):
    """A blob's bytes do not have the blob's digest."""

    exit_code = 41


class BlobMissingError(IntegrityError):
    """A blob that an artifact names is not in the store."""

    exit_code = 42


class RestoreFailedError(IntegrityError):
    """What was encoded does not decode to the same delta, or a digest did not verify."""

    exit_code = 43


class StoreClosedError(StoreReadOnlyError, IntegrityError):
    """Something in the store is there and closed to this user, who may not read it.

    It may be whole for others; for this user it is as if it were damaged.
    """

    exit_code = StoreReadOnlyError.exit_code


class SourceChangedError(IntegrityError):
    """A checkpoint's file changed while it was being read."""

    exit_code = 44


# --- format: 50-59 ------------------------------------------------------------------------


class FormatError(DeltastoreError):
    """A file does not follow the format's specification."""

    exit_code = 50


class ManifestInvalidError(FormatError):
    """A manifest, config or record breaks the specification."""

    exit_code = 51


class PartInvalidError(FormatError):
    """A tensor part, or a frame within it, breaks the specification."""

    exit_code = 52


class CodecUnknownError(FormatError):
    """What an artifact is encoded by, a codec or a form of it, is not known here."""

    exit_code = 53


# --- checkpoint: 60-69 --------------------------------------------------------------------


class CheckpointError(DeltastoreError):
    """A checkpoint cannot be read or written."""

    exit_code = 60


class CheckpointNotFoundError(CheckpointError):
    """The path does not exist."""

    exit_code = 61


class NoWeightsError(CheckpointError):
    """The directory or file holds no weights that deltastore reads."""

    exit_code = 62


class CheckpointCorruptError(CheckpointError):
    """A header, an index or a shard is malformed, truncated or contradicts the others."""

    exit_code = 63


class UnsupportedDtypeError(CheckpointError):
    """A tensor's dtype is not supported."""

    exit_code = 64


class UnsafePickleError(CheckpointError):
    """A pickle holds more than tensors and is not loaded."""

    exit_code = 65


class QuantisedCheckpointError(CheckpointError):
    """A quantised checkpoint has no meaningful delta."""

    exit_code = 66


class OutputExistsError(CheckpointError):
    """The output path is in the way."""

    exit_code = 67


class TokenizerError(CheckpointError):
    """A tokenizer that is needed to match rows by token cannot be read."""

    exit_code = 68


# --- remote: 70-79 ------------------------------------------------------------------------


class RemoteError(DeltastoreError):
    """A remote could not be reached or refused."""

    exit_code = 70


class HubError(RemoteError):
    """The model hub could not be reached, or has no such repository or revision."""

    exit_code = 71
