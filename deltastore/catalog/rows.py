"""What the catalog takes and gives: frozen records without a trace of SQL."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z", re.ASCII)
"""A time as records and rows have it."""

MAX_TEXT_CHARS = 1024
"""Of a label, or of who or what made a version."""

UNREADABLE = "unreadable"
"""The codec of an artifact whose manifest or config could not be read when it was indexed."""


@dataclass(frozen=True, slots=True)
class Record:
    """What gives a name's version its artifact: a file below ``names/``, and a row of ``versions``.

    Labels are what the user called the sources; ``created`` is ISO 8601 in UTC.
    """

    name: str
    version: int
    digest: str
    created: str
    created_by: str
    tool: str
    base_label: str
    post_label: str


@dataclass(frozen=True)
class _Told:
    """What manifest and config tell of an artifact; by default, of one that is unreadable.

    ``raw_bytes`` counts post's tensors, ``stored_bytes`` the manifest and all blobs, each once.
    """

    __slots__ = ()  # those who inherit have them

    base_content: str = ""
    post_content: str = ""
    base_fingerprint: str = ""
    base_repo: str | None = None
    base_revision: str | None = None
    post_repo: str | None = None
    post_revision: str | None = None
    codec: str = UNREADABLE
    exactness: str = UNREADABLE
    restore_only: bool = False
    raw_bytes: int = 0
    stored_bytes: int = 0
    parameters: int = 0
    tensors: int = 0
    unchanged: int = 0
    bits_per_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class Summary(_Told):
    """An artifact in numbers, as its manifest and config say: a row of ``artifacts``.

    With its digest alone it stands for one that is damaged, so that it can be listed and removed.
    """

    digest: str = field(kw_only=True)


@dataclass(frozen=True)
class _Named:
    __slots__ = ()

    name: str
    version: int
    digest: str
    created: str
    created_by: str
    tool: str
    base: str
    post: str


@dataclass(frozen=True, slots=True)
class Artifact(_Told, _Named):
    """A version of a name with its tags and its artifact's numbers.

    ``base`` and ``post`` are the labels under which the sources were extracted: a Hub id or the
    last part of a path.
    """

    tags: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """The ref that means just this version."""
        return f"{self.name}:v{self.version}"


@dataclass(frozen=True, slots=True)
class Listing:
    """A version as one line of a list: the part of ``Artifact`` that thousands are read of."""

    name: str
    version: int
    digest: str
    base: str
    post: str
    codec: str
    raw_bytes: int
    stored_bytes: int
    created: str
    tags: tuple[str, ...] = ()

    @classmethod
    def of(cls, artifact: Artifact) -> Listing:
        """The line of an artifact that was read whole."""
        return cls(*(getattr(artifact, field.name) for field in dataclasses.fields(cls)))


def columns(kind: type[Record | Summary | Artifact | Listing]) -> list[str]:
    """The columns that the fields of ``kind`` come from, in their order; tags have no column."""
    names = [field.name for field in dataclasses.fields(kind) if field.name != "tags"]
    if kind in (Artifact, Listing):
        return [f"{name}_label" if name in ("base", "post") else name for name in names]
    return names
