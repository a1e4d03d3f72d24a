"""Which blobs the records refer to; an error where that cannot be known for certain.

Records say it, not the catalog: the catalog is an index that may lack what was just published.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

from deltastore.catalog import Record
from deltastore.errors import BlobMissingError, FormatError, IntegrityError
from deltastore.manifest import format as fmt
from deltastore.manifest import parse_manifest
from deltastore.store.parts import Parts

_NOTHING = "Nothing was deleted."


@dataclass(slots=True)
class References:
    """The blobs that must stay, and why.

    Attributes:
        blobs: Every blob of every artifact that has a record.
        removed: Per blob of artifacts that only tombstones name, when the last one was written,
            in seconds on the file server's clock.
    """

    blobs: set[str] = field(default_factory=set)
    removed: dict[str, float] = field(default_factory=dict)
    _seen: set[tuple[str, int]] = field(default_factory=set)
    _manifests: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def update(self, parts: Parts) -> None:
        """Read the records that have come since the last time; all of them at first.

        Records never change but for becoming tombstones, so that nothing is forgotten that a new
        look would find.

        Raises:
            IntegrityError: Something under ``names/`` is missing, damaged or no part of a store; a
                manifest that a record names is missing or damaged.
            StoreError: Something cannot be read.
        """
        names = parts.names
        # What is closed to this user is not damaged: that is said first.
        files = [(name, version) for name in names.all() for version in names.versions(name)]
        if problems := names.irregular():
            first = problems[0]
            more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
            raise IntegrityError(
                f"{first.path.relative_to(parts.layout.root)} is not understood: {first.problem}"
                f"{more}.",
                hint=f"{_NOTHING} {first.way}",
                problems=[f"{thing.path}: {thing.problem}" for thing in problems],
            )
        for key in files:
            if key not in self._seen:
                self._read(parts, *key)
                self._seen.add(key)
        for row in parts.catalog.artifacts():
            if (row.name, row.version) not in self._seen and not os.path.lexists(
                names.path(row.name, row.version)
            ):
                raise BlobMissingError(
                    f"The catalog lists {row.ref}, whose record "
                    f"{names.path(row.name, row.version)} is missing.",
                    hint=f"{_NOTHING} Restore the record from a copy of the store, or give the "
                    f"version up: `deltastore rm {row.ref}`.",
                )

    def _read(self, parts: Parts, name: str, version: int) -> None:
        path = parts.names.path(name, version)
        try:
            record = parts.names.read(name, version)
        except (FormatError, IntegrityError) as error:
            hint = f"{_NOTHING} {error.hint}"
            raise type(error)(error.message, hint=hint, path=str(path)) from error
        if isinstance(record, Record):
            try:
                self.blobs.update(self._blobs_of(parts, record.digest))
            except (FormatError, IntegrityError) as error:
                raise type(error)(
                    f"The manifest of {name}:v{version} cannot be read: {error.message}",
                    hint=f"{_NOTHING} {error.hint} Or give the version up: "
                    f"`deltastore rm {name}:v{version}`.",
                    digest=record.digest,
                ) from error
            return
        # What is left of a removed artifact: its manifest may be gone, or be collected just now.
        with contextlib.suppress(FormatError, IntegrityError, OSError):
            when = path.stat().st_mtime
            for digest in self._blobs_of(parts, record.digest):
                self.removed[digest] = max(when, self.removed.get(digest, when))

    def _blobs_of(self, parts: Parts, digest: str) -> tuple[str, ...]:
        if digest not in self._manifests:
            data = parts.blobs.read(digest, limit=fmt.MAX_MANIFEST_BYTES, what="Manifest")
            manifest = parse_manifest(data, where=f"Manifest {digest}")
            self._manifests[digest] = (digest, *(blob.digest for blob in manifest.blobs))
        return self._manifests[digest]
