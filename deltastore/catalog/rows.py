"""What the catalog takes and gives: frozen records without a trace of SQL."""

from __future__ import annotations

import re
from dataclasses import dataclass

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z", re.ASCII)
"""A time as records and rows have it."""

UNREADABLE = "unreadable"
"""The codec of an artifact whose manifest or config could not be read when it was indexed."""


@dataclass(frozen=True, slots=True)
class Summary:
    """An artifact in numbers, as its manifest and config say.

    ``raw_bytes`` counts post's tensors, ``stored_bytes`` the manifest and all blobs, each once.
    """

    digest: str
    base_content: str
    post_content: str
    base_fingerprint: str
    base_repo: str | None
    base_revision: str | None
    post_repo: str | None
    post_revision: str | None
    codec: str
    exactness: str
    restore_only: bool
    raw_bytes: int
    stored_bytes: int
    parameters: int
    tensors: int
    unchanged: int
    bits_per_weight: float

    @classmethod
    def unreadable(cls, digest: str) -> Summary:
        """What stands for an artifact that is damaged, so that it can be listed and removed."""
        return cls(
            digest=digest,
            base_content="",
            post_content="",
            base_fingerprint="",
            base_repo=None,
            base_revision=None,
            post_repo=None,
            post_revision=None,
            codec=UNREADABLE,
            exactness=UNREADABLE,
            restore_only=False,
            raw_bytes=0,
            stored_bytes=0,
            parameters=0,
            tensors=0,
            unchanged=0,
            bits_per_weight=0.0,
        )


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A name's version, as its record says. ``created`` is ISO 8601 in UTC."""

    name: str
    version: int
    digest: str
    created: str
    created_by: str
    tool: str
    base_label: str
    post_label: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """A version of a name with its tags and its artifact's numbers.

    ``base`` and ``post`` are the labels under which the sources were extracted: a Hub id or the
    last part of a path.
    """

    name: str
    version: int
    digest: str
    created: str
    created_by: str
    tool: str
    base: str
    post: str
    base_content: str
    post_content: str
    base_fingerprint: str
    base_repo: str | None
    base_revision: str | None
    post_repo: str | None
    post_revision: str | None
    codec: str
    exactness: str
    restore_only: bool
    raw_bytes: int
    stored_bytes: int
    parameters: int
    tensors: int
    unchanged: int
    bits_per_weight: float
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
