"""What every place for blobs says of bytes that are not what they should be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from deltastore.blobs.protocol import BlobReader
from deltastore.digest import sha256_digest
from deltastore.errors import BlobCorruptError, BlobMissingError, ManifestInvalidError

BLOCK_BYTES = 1 << 20
FETCH_AGAIN = (
    "Run `deltastore verify` to see what else is damaged; `deltastore extract --rehash` of the "
    "same pair writes it anew."
)


def require_digest(found: str, stated: str | None) -> None:
    """Refuse to put bytes that are not those that they are said to be.

    Raises:
        BlobCorruptError: They are others.
    """
    if stated not in (None, found):
        raise BlobCorruptError(
            f"The bytes to be stored as {stated} have the digest {found}.",
            hint="What they were read from is damaged or changed meanwhile.",
            digest=stated,
        )


def require_size(digest: str, found: int, stated: int | None) -> None:
    """Refuse a blob that has another size than its manifest says.

    Raises:
        BlobCorruptError: It has.
    """
    if stated not in (None, found):
        raise BlobCorruptError(
            f"Blob {digest} has {found} bytes; its manifest says {stated}.",
            hint=FETCH_AGAIN,
            digest=digest,
        )


def read_checked(reader: BlobReader, digest: str, *, limit: int, what: str) -> bytes:
    """An open blob's bytes; see ``BlobStore.read``.

    Raises:
        BlobCorruptError: It has another digest, or cannot be read.
        ManifestInvalidError: It has more than ``limit`` bytes.
    """
    if reader.size > limit:
        raise ManifestInvalidError(
            f"{what} ({digest}) has {reader.size} bytes; the format allows {limit}.",
            hint=FETCH_AGAIN,
            digest=digest,
        )
    data = reader.read(0, reader.size)
    require_bytes(digest, sha256_digest(data), what=what)
    return data


def check_bytes(
    reader: BlobReader, digest: str, *, advance: Callable[[int], None] | None = None
) -> None:
    """Compare what is open with a digest.

    Raises:
        BlobCorruptError: It has another one, or cannot be read.
    """
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(min(BLOCK_BYTES, max(1, reader.size))))
    for offset in range(0, reader.size, len(buffer)):
        block = buffer[: min(len(buffer), reader.size - offset)]
        reader.read_into(offset, block)
        hasher.update(block)
        if advance is not None:
            advance(len(block))
    require_bytes(digest, f"sha256:{hasher.hexdigest()}")


def require_bytes(digest: str, found: str, *, what: str = "Blob") -> None:
    """Refuse a blob whose bytes have another digest.

    Raises:
        BlobCorruptError: They have.
    """
    if found != digest:
        raise BlobCorruptError(
            f"{what} {digest} is damaged: its bytes have another digest.",
            hint=FETCH_AGAIN,
            digest=digest,
        )


def missing(digest: str) -> BlobMissingError:
    """The error of a blob that is not there."""
    return BlobMissingError(f"Blob {digest} is not in the store.", hint=FETCH_AGAIN, digest=digest)


def ends_early(digest: str, left: int, offset: int) -> BlobCorruptError:
    """The error of a blob that ends ``left`` bytes before what is read of it, at ``offset``."""
    return BlobCorruptError(
        f"Blob {digest} ends {left} bytes early, at byte {offset}.",
        hint=FETCH_AGAIN,
        digest=digest,
    )
