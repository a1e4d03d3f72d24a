"""``export``: an artifact as a directory that OCI tools read."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

from deltastore.output.destination import check_output
from deltastore.remotes.oci_layout import write_layout
from deltastore.store import Store


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written.

    Attributes:
        ref: The version.
        digest: The manifest's.
        directory: Where the layout is.
        blobs: How many it has.
        bytes: Theirs.
        linked: Blobs that are the store's own files, by hard links.
        cloned: Blobs that are copies, and take no room until one of the two is changed.
    """

    ref: str
    digest: str
    directory: str
    blobs: int
    bytes: int
    linked: int
    cloned: int


def export(
    store: Store, ref: str, directory: str | PathLike[str], *, link: bool = False
) -> ExportReport:
    """Write the artifact that ``ref`` means to ``directory`` as an OCI image layout.

    Args:
        store: Where it is.
        ref: The version.
        directory: A new directory, or an empty one, which is filled.
        link: Make hard links of blobs, as far as that is safe, in place of copies: what is done to
            them in the export is done to the store.

    Raises:
        RefError: ``ref`` means none, or several.
        UsageError: The directory is in the store.
        OutputExistsError: The directory is there and not empty.
        IntegrityError: A blob is missing or damaged.
        NoSpaceError: It does not fit.
        CheckpointError: The directory cannot be written.
    """
    place = check_output(store, directory, called="the directory")
    artifact = store.resolve(ref)
    done = write_layout(store, artifact, place, link=link)
    return ExportReport(
        ref=artifact.ref,
        digest=artifact.digest,
        directory=str(done.directory),
        blobs=done.blobs,
        bytes=done.bytes,
        linked=done.linked,
        cloned=done.cloned,
    )
