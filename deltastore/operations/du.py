"""``du``: what takes the space in a store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from deltastore.errors import FormatError, IntegrityError
from deltastore.store import Store


@dataclass(frozen=True, slots=True)
class VersionUsage:
    """A version's bytes: of its manifest and all blobs, and of those that no other artifact has.

    ``own_bytes`` is what removing every version of the artifact would free. Both are None where
    the manifest cannot be read.
    """

    name: str
    version: int
    digest: str
    stored_bytes: int | None
    own_bytes: int | None


@dataclass(frozen=True, slots=True)
class Usage:
    """A store's bytes.

    ``names`` counts each blob once per name; ``shared_bytes`` are those that several artifacts
    have, ``unreferenced_bytes`` those that none has. ``unreadable`` lists artifacts whose manifest
    cannot be read: what only they have counts as unreferenced.
    """

    total_bytes: int
    referenced_bytes: int
    shared_bytes: int
    unreferenced_bytes: int
    unreferenced: int
    names: dict[str, int]
    versions: tuple[VersionUsage, ...]
    unreadable: tuple[str, ...]


def du(store: Store) -> Usage:
    """Measure the store.

    Raises:
        CatalogError: The catalog failed.
    """
    sizes = {digest: store.blobs.size(digest) or 0 for digest in store.blobs.digests()}
    artifacts = store.artifacts()
    blobs: dict[str, frozenset[str] | None] = {}
    for digest in {artifact.digest for artifact in artifacts}:
        try:
            manifest, _ = store.load(digest)
        except (FormatError, IntegrityError):
            blobs[digest] = None
        else:
            blobs[digest] = frozenset({digest, *(blob.digest for blob in manifest.blobs)})
    users = Counter(blob for found in blobs.values() if found for blob in found)

    def total(found: set[str] | frozenset[str]) -> int:
        return sum(sizes.get(digest, 0) for digest in found)

    of_names: dict[str, set[str]] = {}
    versions = []
    for artifact in artifacts:
        found = blobs[artifact.digest]
        of_names.setdefault(artifact.name, set()).update(found or ())
        versions.append(
            VersionUsage(
                name=artifact.name,
                version=artifact.version,
                digest=artifact.digest,
                stored_bytes=None if found is None else total(found),
                own_bytes=None if found is None else total({b for b in found if users[b] == 1}),
            )
        )
    unreferenced = sizes.keys() - users.keys()
    return Usage(
        total_bytes=total(set(sizes)),
        referenced_bytes=total(set(users)),
        shared_bytes=total({digest for digest, count in users.items() if count > 1}),
        unreferenced_bytes=total(unreferenced),
        unreferenced=len(unreferenced),
        names={name: total(found) for name, found in of_names.items()},
        versions=tuple(versions),
        unreadable=tuple(sorted(digest for digest, found in blobs.items() if found is None)),
    )
