"""Looking at all records without changing anything: what is unreadable, what disagrees."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass

from deltastore.catalog import Artifact, Record
from deltastore.errors import (
    CatalogError,
    DeltastoreError,
    FormatError,
    IntegrityError,
    StoreClosedError,
    StoreError,
)
from deltastore.manifest import Config, Manifest
from deltastore.store.indexing import summarise
from deltastore.store.records import Tombstone
from deltastore.store.store import Store

_REINDEX = "run `deltastore reindex`"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a record, a tag or the catalog; ``where`` is a path in the store."""

    where: str
    digest: str | None
    problem: str
    refs: tuple[str, ...]


def live_records(store: Store, findings: list[Finding]) -> dict[tuple[str, int], str]:
    """The digest of every version that has a record; what is no record goes to ``findings``."""
    names = store.parts.names
    found: dict[tuple[str, int], str] = {}
    try:
        irregular = names.irregular()
    except StoreError as error:
        findings.append(Finding("names", None, error.message, ()))
        return found
    for thing in irregular:
        where = str(thing.path.relative_to(store.path))
        problem = f"{thing.path}: {thing.problem}. {thing.way}"
        findings.append(Finding(where, None, problem, ()))
    for name in names.all():
        try:
            versions = names.versions(name)
        except StoreClosedError:
            continue  # said already
        for version in versions:
            try:
                record = names.read(name, version)
            except (FormatError, IntegrityError) as error:
                where = str(names.path(name, version).relative_to(store.path))
                findings.append(Finding(where, None, _said(error), (f"{name}:v{version}",)))
            else:
                if isinstance(record, Record):
                    found[name, version] = record.digest
    return found


def _said(error: DeltastoreError) -> str:
    return f"{error.message} {error.hint}"


def is_removed(store: Store, name: str, version: int) -> bool:
    """Whether a version has a tombstone."""
    try:
        return isinstance(store.parts.names.read(name, version), Tombstone)
    except (FormatError, IntegrityError, StoreError):
        return False


def check_tags(store: Store) -> list[Finding]:
    """Tags that cannot be read, or whose version there never was."""
    names = store.parts.names
    findings = []
    for name in names.all():
        try:
            versions = names.versions(name)
        except StoreClosedError:
            continue  # said already
        try:
            tags = names.tags(name)
        except StoreClosedError as error:
            directory = names.tag_path(name, "any").parent.relative_to(store.path)
            findings.append(Finding(str(directory), None, _said(error), ()))
            continue
        if (thing := names.no_tags(name)) is not None:
            where = str(thing.path.relative_to(store.path))
            problem = f"{thing.path}: {thing.problem}. {thing.way}"
            findings.append(Finding(where, None, problem, ()))
        for tag in tags:
            path = names.tag_path(name, tag)
            where, ref = str(path.relative_to(store.path)), (f"{name}:{tag}",)
            try:
                version = names.read_tag(name, tag).version
            except (FormatError, IntegrityError) as error:
                # Removed since the tags were listed.
                if os.path.lexists(path):
                    findings.append(Finding(where, None, _said(error), ref))
            else:
                if version not in versions:
                    problem = (
                        f"{path} means {name}:v{version}, which there never was. Remove it: "
                        f"`deltastore untag {name} {tag}`."
                    )
                    findings.append(Finding(where, None, problem, ref))
    return findings


def compare_with_catalog(store: Store, records: dict[tuple[str, int], str]) -> list[Finding]:
    """Where the catalog and the files under ``names/`` disagree, or the catalog is damaged."""
    try:
        store.parts.catalog.check()
        rows = store.artifacts()
    except CatalogError as error:
        return [Finding("catalog.db", None, _said(error), ())]
    listed = {(row.name, row.version): row.digest for row in rows}
    tagged = {(row.name, tag): row.version for row in rows for tag in row.tags}
    tags = _tags(store, records)
    findings = []
    for key in sorted(records.keys() | listed.keys()):
        if records.get(key) != listed.get(key):
            ref = f"{key[0]}:v{key[1]}"
            findings.append(
                Finding("catalog.db", records.get(key), _disagreement(key, records, listed), (ref,))
            )
    findings.extend(
        Finding("catalog.db", row.digest, problem, (row.ref,))
        for row in rows
        if listed.get((row.name, row.version)) == records.get((row.name, row.version))
        and (problem := _other_fields(store, row))
    )
    for name, tag in sorted(tags.keys() | tagged.keys()):
        in_file, in_row = tags.get((name, tag)), tagged.get((name, tag))
        if in_file != in_row:
            problem = (
                f"The tag {name}:{tag} means {_shown(in_row)} in the catalog and "
                f"{_shown(in_file)} in its file; {_REINDEX}."
            )
            findings.append(Finding("catalog.db", None, problem, (f"{name}:{tag}",)))
    return findings


def compare_summary(
    store: Store, documents: Mapping[str, tuple[Manifest, Config]]
) -> list[Finding]:
    """Where the catalog's rows of artifacts say something else than these manifests and configs."""
    findings: list[Finding] = []
    try:
        rows = store.artifacts()
    except CatalogError:
        # Said already.
        return findings
    for row in rows:
        if row.digest not in documents:
            continue
        manifest, config = documents[row.digest]
        size = store.blobs.size(row.digest) or 0
        wanted = dataclasses.asdict(summarise(row.digest, manifest, config, size))
        wrong = [key for key, value in wanted.items() if getattr(row, key) != value]
        if wrong:
            problem = (
                f"The catalog has another {', '.join(wrong)} for {row.ref} than its manifest; "
                f"{_REINDEX}."
            )
            findings.append(Finding("catalog.db", row.digest, problem, (row.ref,)))
    return findings


def _other_fields(store: Store, row: Artifact) -> str:
    """What a row says otherwise than its record, as a sentence; empty if nothing."""
    try:
        record = store.parts.names.read(row.name, row.version)
    except (FormatError, IntegrityError):
        return ""
    if not isinstance(record, Record):
        return ""
    wanted = {
        key.removesuffix("_label"): value for key, value in dataclasses.asdict(record).items()
    }
    wrong = [key for key, value in wanted.items() if getattr(row, key) != value]
    if not wrong:
        return ""
    path = store.parts.names.path(row.name, row.version)
    return f"The catalog and {path} disagree on {', '.join(wrong)} of {row.ref}; {_REINDEX}."


def _disagreement(
    key: tuple[str, int], records: dict[tuple[str, int], str], listed: dict[tuple[str, int], str]
) -> str:
    ref = f"{key[0]}:v{key[1]}"
    if key not in listed:
        return f"The catalog lacks {ref}, which has a record; {_REINDEX}."
    if key not in records:
        return f"The catalog lists {ref}, which has no record; {_REINDEX}."
    return f"The catalog has another digest for {ref} than its record; {_REINDEX}."


def _tags(store: Store, records: dict[tuple[str, int], str]) -> dict[tuple[str, str], int]:
    names = store.parts.names
    found = {}
    for name in {name for name, _ in records}:
        try:
            files = names.tags(name)
        except StoreClosedError:
            continue  # said already
        for tag in files:
            try:
                version = names.read_tag(name, tag).version
            except (FormatError, IntegrityError):
                continue
            # The file of a tag whose version was removed while it was being set means nothing.
            if (name, version) in records:
                found[name, tag] = version
    return found


def _shown(version: int | None) -> str:
    return "nothing" if version is None else f"v{version}"
