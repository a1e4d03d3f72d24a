"""Looking at all records without changing anything: what is unreadable, what disagrees."""

from __future__ import annotations

from dataclasses import dataclass

from deltastore.errors import FormatError, IntegrityError
from deltastore.store.records import Record
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
    """The digest of every version that has a record; unreadable ones go to ``findings``."""
    names = store.parts.names
    found = {}
    for name in names.all():
        for version in names.versions(name):
            try:
                record = names.read(name, version)
            except (FormatError, IntegrityError) as error:
                where = names.path(name, version).relative_to(store.path)
                findings.append(Finding(str(where), None, error.message, (f"{name}:v{version}",)))
            else:
                if isinstance(record, Record):
                    found[name, version] = record.digest
    return found


def compare_with_catalog(store: Store, records: dict[tuple[str, int], str]) -> list[Finding]:
    """Where the catalog and the files under ``names/`` disagree."""
    rows = store.artifacts()
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
    for name, tag in sorted(tags.keys() | tagged.keys()):
        in_file, in_row = tags.get((name, tag)), tagged.get((name, tag))
        if in_file != in_row:
            problem = (
                f"The tag {name}:{tag} means {_shown(in_row)} in the catalog and "
                f"{_shown(in_file)} in its file; {_REINDEX}."
            )
            findings.append(Finding("catalog.db", None, problem, (f"{name}:{tag}",)))
    return findings


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
        for tag in names.tags(name):
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
