"""``export``: an artifact as a directory that OCI tools read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltastore.remotes.oci_layout import write_layout
from deltastore.store import Store


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written. ``linked`` blobs share their bytes with the store."""

    ref: str
    digest: str
    directory: str
    blobs: int
    bytes: int
    linked: int


def export(store: Store, ref: str, directory: str | Path) -> ExportReport:
    """Write the artifact that ``ref`` means to ``directory`` as an OCI image layout.

    Raises:
        RefError: ``ref`` means none, or several.
        OutputExistsError: The directory is there and not empty.
        IntegrityError: A blob is missing or damaged.
        StoreError: The directory cannot be written.
    """
    artifact = store.resolve(ref)
    done = write_layout(store, artifact, Path(directory))
    return ExportReport(
        ref=artifact.ref,
        digest=artifact.digest,
        directory=str(done.directory),
        blobs=done.blobs,
        bytes=done.bytes,
        linked=done.linked,
    )
