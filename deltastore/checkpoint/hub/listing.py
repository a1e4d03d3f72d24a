"""What the hub says a repository holds: every field of it checked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from deltastore.checkpoint.hub import limits
from deltastore.checkpoint.hub.addresses import MisbehavedError
from deltastore.digest import HEX64
from deltastore.errors import shown

COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_BLOB = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})\Z")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository.

    Attributes:
        name: Its path in the repository, safe to be joined to a directory.
        size: In bytes; None if the hub does not say.
        sha256: In hex, only where the hub names it, as for all weights.
        blob: The name (hex) that git has for it, if the hub says.
    """

    name: str
    size: int | None
    sha256: str | None
    blob: str | None = None


def parse_listing(data: bytes) -> tuple[str, dict[str, HubFile]]:
    """The commit and the files by name, of the JSON that the hub answers.

    Raises:
        MisbehavedError: It is none, or a field has another type or a value that none may have.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MisbehavedError("sends a list of files that is no JSON") from error
    if not isinstance(fields, dict):
        raise MisbehavedError(f"sends a list of type {type(fields).__name__}; expected an object")
    commit = fields.get("sha")
    if not isinstance(commit, str) or not COMMIT.match(commit):
        raise MisbehavedError(f"names the commit {shown(commit)}; expected 40 hexadecimal digits")
    siblings = fields.get("siblings")
    if siblings is None:
        siblings = []
    if not isinstance(siblings, list) or len(siblings) > limits.MAX_LISTED_FILES:
        raise MisbehavedError(
            f"lists {shown(siblings)}; expected a list of at most {limits.MAX_LISTED_FILES} files"
        )
    files: dict[str, HubFile] = {}
    for entry in siblings:
        file = _file(entry)
        if file.name in files:
            raise MisbehavedError(f"lists {shown(file.name)} twice")
        files[file.name] = file
    return commit, files


def _file(entry: Any) -> HubFile:
    if not isinstance(entry, dict):
        raise MisbehavedError(f"lists {shown(entry)}; expected an object")
    name = entry.get("rfilename")
    if not isinstance(name, str) or not is_safe_name(name):
        raise MisbehavedError(f"lists a file {shown(name)}; expected a relative path")
    size = _size(entry.get("size"), name)
    blob = entry.get("blobId")
    if blob is not None and not (isinstance(blob, str) and _BLOB.match(blob)):
        raise MisbehavedError(f"gives {shown(name)} the blob {shown(blob)}; expected hex digits")
    lfs = entry.get("lfs")
    if lfs is None:
        return HubFile(name, size, None, blob)
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else None
    if not isinstance(sha256, str) or not HEX64.match(sha256):
        raise MisbehavedError(f"gives {shown(name)} the LFS file {shown(lfs)}; expected a sha256")
    if _size(lfs.get("size"), name) not in (None, size):
        raise MisbehavedError(f"gives {shown(name)} two sizes: {size} and {shown(lfs['size'])}")
    return HubFile(name, size, sha256, blob)


def _size(size: Any, name: str) -> int | None:
    if size is None:
        return None
    # A bool is an int to Python, but no size.
    if type(size) is not int or not 0 <= size <= limits.MAX_FILE_BYTES:
        raise MisbehavedError(f"gives {shown(name)} the size {shown(size)}; expected bytes")
    return size


def is_safe_name(name: str) -> bool:
    """Whether a path joined to a directory stays in it, and can be a path at all."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return False
    parts = encoded.split(b"/")
    return (
        len(encoded) <= limits.MAX_NAME_BYTES
        and b"\0" not in encoded
        and not any(part in (b"", b".", b"..") for part in parts)
        and all(len(part) <= limits.MAX_NAME_PART_BYTES for part in parts)
    )
