"""Refs: how a user names an artifact, and which names and tags there can be.

A ref is ``name`` (its newest version), ``name:v2``, ``name:tag``, ``name@sha256:<hex>`` or
``sha256:<hex>``; a digest may be shortened to its first eight digits.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from deltastore.errors import RefSyntaxError

MAX_NAME_CHARS = 128
MAX_VERSION = 999_999_999
"""The last version that a name can have."""

MIN_DIGEST_HEX = 8
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_VERSION = re.compile(r"v([1-9][0-9]{0,8})\Z")
_LIKE_A_VERSION = re.compile(r"[vV][0-9]+\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{8,64}\Z")
_RULE = "letters, digits, '.', '_' and '-', first a letter or digit, at most 128 characters"

# A name is a directory: what Windows keeps for devices cannot be one there, and `sha256:…` would
# be read as a digest.
_RESERVED = frozenset({"sha256", "blake3", "con", "prn", "aux", "nul"})


_ANY = _NAME.pattern.removesuffix(r"\Z") + r"(?<!\.)\Z"
NAME = re.compile(rf"(?!(?i:{'|'.join(sorted(_RESERVED))})(?:\.|\Z)){_ANY}")
"""What ``validate_name`` takes, for thousands of names at once."""

TAG = re.compile(rf"(?!{_LIKE_A_VERSION.pattern}){_ANY}")
"""What ``validate_tag`` takes, likewise."""


@dataclass(frozen=True, slots=True)
class Ref:
    """What a ref says; at most one of ``version``, ``tag`` and ``digest`` is given.

    ``digest`` is ``sha256:`` and 8 to 64 hex digits. Without a ``name`` there is a ``digest``.
    """

    name: str | None = None
    version: int | None = None
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        """The ref as it is typed."""
        if self.version is not None:
            return f"{self.name}:v{self.version}"
        if self.tag is not None:
            return f"{self.name}:{self.tag}"
        if self.digest is not None:
            return f"{self.name}@{self.digest}" if self.name else self.digest
        return self.name or ""


def parse_ref(text: str) -> Ref:
    """Read a ref.

    Raises:
        RefSyntaxError: ``text`` is none of the forms.
    """
    if text.startswith("sha256:"):
        return Ref(digest=_digest(text, text))
    if "@" in text:
        name, _, digest = text.partition("@")
        return Ref(name=validate_name(name), digest=_digest(digest, text))
    name, colon, rest = text.partition(":")
    validate_name(name)
    if not colon:
        return Ref(name=name)
    if version := parse_version(rest):
        return Ref(name=name, version=version)
    return Ref(name=name, tag=validate_tag(rest))


def parse_version(text: str) -> int | None:
    """The number in ``v<number>``, or None where ``text`` is no version."""
    match = _VERSION.match(text)
    return int(match[1]) if match else None


def validate_name(name: str) -> str:
    """``name`` itself.

    Raises:
        RefSyntaxError: It cannot be a name.
    """
    if not _NAME.match(name) or name.endswith("."):
        raise RefSyntaxError(
            f"{name!r} cannot be a name: a name is {_RULE}.",
            hint=f"Use, for example, `{default_name(name)}`.",
            name=name,
        )
    if name.lower().partition(".")[0] in _RESERVED:
        raise RefSyntaxError(
            f"{name!r} cannot be a name: the word is reserved.",
            hint=f"Use, for example, `{default_name(name)}`.",
            name=name,
        )
    return name


def validate_tag(tag: str) -> str:
    """``tag`` itself.

    Raises:
        RefSyntaxError: It cannot be a tag.
    """
    if _LIKE_A_VERSION.match(tag):
        raise RefSyntaxError(
            f"{tag!r} cannot be a tag: it looks like a version.",
            hint="Versions are v1, v2, …, without leading zeros, and are given by the store; "
            "call the tag something else.",
            tag=tag,
        )
    if not _NAME.match(tag) or tag.endswith("."):
        raise RefSyntaxError(
            f"{tag!r} cannot be a tag: a tag is {_RULE}.",
            hint="A ref is `name`, `name:v2`, `name:tag`, `name@sha256:…` or `sha256:…`.",
            tag=tag,
        )
    return tag


def default_name(source: str) -> str:
    """The name of an artifact whose post checkpoint is ``source``: its last part, made a name.

    Args:
        source: A local path or a Hub id, with or without ``@revision``.
    """
    # Not Path.resolve and Path.exists: a text that no file can have as its name makes those fail.
    path = Path(source.replace("\0", ""))
    if path.name in ("", "..") and source:
        path = Path(os.path.realpath(path))
    last = path.name
    if "@" in last and not os.path.exists(path):  # noqa: PTH110
        last = last.partition("@")[0]
    for suffix in (".safetensors", ".bin", ".pt", ".pth"):
        last = last.removesuffix(suffix)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip("._-")[:MAX_NAME_CHARS].rstrip("._-")
    if not name:
        return "delta"
    return f"{name[:120]}-delta" if name.lower().partition(".")[0] in _RESERVED else name


def _digest(digest: str, text: str) -> str:
    if not _DIGEST.match(digest):
        raise RefSyntaxError(
            f"{text!r} is no ref: a digest is `sha256:` and {MIN_DIGEST_HEX} to 64 of the digits "
            "0-9 and a-f.",
            hint="`deltastore list` shows the digests.",
        )
    return digest
