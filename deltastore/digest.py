"""Digests: of blobs (sha256), of tensors and checkpoints (BLAKE3), of structures.

* A *digest* names a blob: ``sha256:<64 hex>``, as in the OCI image specification.
* A *content digest* names a checkpoint's values independently of its sharding:
  ``blake3:<64 hex>`` over the canonical JSON of the sorted list of
  ``[name, dtype, shape, BLAKE3 of the tensor's bytes]``.
* A *fingerprint* names a checkpoint's structure (names and shapes): ``sha256:<64 hex>``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from blake3 import blake3

HEX64 = re.compile(r"[0-9a-f]{64}\Z")
DIGEST_PATTERN = re.compile(r"sha256:[0-9a-f]{64}\Z")
CONTENT_PATTERN = re.compile(r"blake3:[0-9a-f]{64}\Z")

TensorHasher = blake3
"""BLAKE3 over one tensor's bytes, fed in order; ``hexdigest()`` is what tables record."""


def is_digest(text: object) -> bool:
    """Whether ``text`` is a whole ``sha256:<64 hex>`` digest."""
    return isinstance(text, str) and DIGEST_PATTERN.match(text) is not None


def is_content_digest(text: object) -> bool:
    """Whether ``text`` is a whole ``blake3:<64 hex>`` content digest."""
    return isinstance(text, str) and CONTENT_PATTERN.match(text) is not None


def sha256_digest(*pieces: bytes | bytearray | memoryview) -> str:
    """The digest of the concatenation of ``pieces``."""
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return f"sha256:{hasher.hexdigest()}"


def canonical_json(value: Any) -> bytes:
    """One byte string per JSON value: sorted keys, no white space, UTF-8, no NaN.

    Raises:
        ValueError: ``value`` holds a NaN or an infinity.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def content_digest(tensors: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """The content digest of a checkpoint.

    Args:
        tensors: ``(name, dtype, shape, BLAKE3 hex of the tensor's bytes)``, in any order.
    """
    rows = sorted([name, dtype, list(shape), digest] for name, dtype, shape, digest in tensors)
    return f"blake3:{blake3(canonical_json(rows)).hexdigest()}"


def fingerprint(tensors: Iterable[tuple[str, Sequence[int]]]) -> str:
    """The fingerprint of a structure: ``(name, shape)`` pairs, in any order."""
    return sha256_digest(canonical_json(sorted([name, list(shape)] for name, shape in tensors)))
