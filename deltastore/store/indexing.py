"""From records and manifests to the catalog's rows."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltastore.blobs import BlobStore
from deltastore.catalog import CatalogWriter, Record, Summary
from deltastore.errors import FormatError, IntegrityError, StoreError
from deltastore.manifest import Config, Manifest, parse_config, parse_manifest
from deltastore.manifest import format as fmt
from deltastore.store.names import Names


def load(blobs: BlobStore, digest: str) -> tuple[Manifest, Config, int]:
    """An artifact's documents, their bytes checked, and the manifest's size in bytes.

    Raises:
        BlobMissingError: One of them is not there.
        BlobCorruptError: One of them is damaged.
        ManifestInvalidError: One of them breaks the format.
    """
    data = blobs.read(digest, limit=fmt.MAX_MANIFEST_BYTES, what="Manifest")
    manifest = parse_manifest(data, where=f"Manifest {digest}")
    config_digest, config_size = manifest.config.digest, manifest.config.size
    config_data = blobs.read(
        config_digest, limit=fmt.MAX_CONFIG_BYTES, what="Config", size=config_size
    )
    config = parse_config(config_data, manifest, where=f"Config {config_digest}")
    return manifest, config, len(data)


def summarise(digest: str, manifest: Manifest, config: Config, manifest_bytes: int) -> Summary:
    """The catalog's row of an artifact."""
    sizes = {blob.digest: blob.size for blob in manifest.blobs}
    return Summary(
        digest=digest,
        base_content=config.base.content,
        post_content=config.post.content,
        base_fingerprint=config.base.fingerprint,
        base_repo=config.base.repo,
        base_revision=config.base.revision,
        post_repo=config.post.repo,
        post_revision=config.post.revision,
        codec=config.codec,
        exactness=config.exactness,
        restore_only=config.restore_only,
        raw_bytes=config.post.nbytes,
        stored_bytes=manifest_bytes + sum(sizes.values()),
        parameters=config.post.parameters,
        tensors=sum(entry.post is not None for entry in config.tensors),
        unchanged=sum(entry.kind == "unchanged" for entry in config.tensors),
        bits_per_weight=config.bits_per_weight(manifest),
    )


def index_name(
    names: Names, blobs: BlobStore, writer: CatalogWriter, name: str, *, remember: bool = False
) -> list[str]:
    """Make the rows of one name agree with its records, within the writer's transaction.

    What cannot be read is not gone: a disk may fail for a moment, and a user may be kept out of
    what others list. Its rows stay as they are.

    Args:
        names: The records and tags.
        blobs: The artifacts.
        writer: The transaction.
        name: The name.
        remember: Whether the row of a version stays that has neither record nor tombstone any
            more: nothing that deltastore does leads to that.

    Returns:
        What could not be read.
    """
    seen = _look(names, name)
    if seen.closed:
        return seen.problems
    known = writer.rows(name)
    # What could not be read then may be there now.
    unreadable = writer.unreadable(name)
    present = {record.version for record in seen.live} | seen.unreadable
    for version in known.keys() - present:
        if version in seen.removed or not remember:
            writer.remove_version(name, version)
    for record in seen.live:
        if known.get(record.version) != record or record.version in unreadable:
            there = writer.has_readable(record.digest)
            writer.put_version(record, None if there else _summary(blobs, record, seen.problems))
    listed = {record.version for record in seen.live} | (known.keys() & seen.unreadable)
    kept = {
        tag: version
        for tag, version in writer.tags(name).items()
        if (seen.closed_tags or tag in seen.unreadable_tags) and version in listed
    }
    writer.replace_tags(name, kept | {t: v for t, v in seen.tags.items() if v in listed})
    return seen.problems


@dataclass(slots=True)
class _Seen:
    """What is there of one name.

    ``closed``: its directory cannot be read at all; ``closed_tags``: that of its tags.
    """

    live: list[Record] = field(default_factory=list)
    removed: set[int] = field(default_factory=set)
    tags: dict[str, int] = field(default_factory=dict)
    unreadable: set[int] = field(default_factory=set)
    unreadable_tags: set[str] = field(default_factory=set)
    closed: bool = False
    closed_tags: bool = False
    problems: list[str] = field(default_factory=list)


def _look(names: Names, name: str) -> _Seen:
    seen = _Seen()
    try:
        versions = names.versions(name)
    except StoreError as error:
        # A directory that another user made, and closed to this one.
        seen.problems.append(error.message)
        seen.closed = True
        return seen
    try:
        tags = names.tags(name)
    except StoreError as error:
        seen.problems.append(error.message)
        seen.closed_tags, tags = True, []
    for version in versions:
        try:
            record = names.read(name, version)
        except (FormatError, IntegrityError) as error:
            seen.problems.append(error.message)
            seen.unreadable.add(version)
        else:
            if isinstance(record, Record):
                seen.live.append(record)
            else:
                seen.removed.add(version)
    for tag in tags:
        try:
            # A tag whose version was removed while the tag was being set means nothing.
            seen.tags[tag] = names.read_tag(name, tag).version
        except (FormatError, IntegrityError) as error:
            seen.problems.append(error.message)
            seen.unreadable_tags.add(tag)
    return seen


def _summary(blobs: BlobStore, record: Record, problems: list[str]) -> Summary:
    try:
        manifest, config, size = load(blobs, record.digest)
    except (FormatError, IntegrityError) as error:
        problems.append(f"{record.name}:v{record.version}: {error.message}")
        return Summary(digest=record.digest)
    return summarise(record.digest, manifest, config, size)
