"""From a ref to the artifact it means, or to an error that names the nearest ones."""

from __future__ import annotations

import os
from typing import NoReturn

from deltastore.catalog import Artifact
from deltastore.errors import (
    RefAmbiguousError,
    RefNotFoundError,
    StoreClosedError,
)
from deltastore.refs import Ref, parse_ref
from deltastore.store import layout
from deltastore.store.parts import Parts
from deltastore.store.records import Tombstone
from deltastore.store.refreshing import refresh_name
from deltastore.suggesting import nearest
from deltastore.system.permission import is_readable

_EXTRACT = "The store is empty: run `deltastore extract --base CKPT --post CKPT` first."


def resolve(parts: Parts, text: str) -> Artifact:
    """See ``Store.resolve``."""
    # One artifact under several names or versions: the one last published.
    found = _candidates(parts, text)
    return max(found, key=lambda artifact: (artifact.created, artifact.name, artifact.version))


def resolve_version(parts: Parts, text: str) -> Artifact:
    """Like ``resolve``, but a digest that has several names or versions is ambiguous.

    Raises:
        RefAmbiguousError: The ref means more than one version.
        RefError: As ``resolve``.
    """
    found = _candidates(parts, text)
    if len(found) > 1:
        raise RefAmbiguousError(
            f"{text} is {len(found)} versions.",
            hint="Say which: " + ", ".join(f"`{artifact.ref}`" for artifact in found[:5]) + ".",
            refs=[artifact.ref for artifact in found],
        )
    return found[0]


def _candidates(parts: Parts, text: str) -> list[Artifact]:
    """Every version that a ref may mean, at least one, all of the same artifact."""
    ref = parse_ref(text)
    if ref.name is not None:
        # What has come since the store was opened.
        refresh_name(parts.sources, parts.catalog, ref.name)
    found = _find(parts, ref)
    if not found:
        _not_found(parts, ref)
    digests = sorted({artifact.digest for artifact in found})
    if len(digests) > 1:
        raise RefAmbiguousError(
            f"{ref} fits {len(digests)} artifacts.",
            hint="Give more digits: " + ", ".join(digests[:5]) + ".",
            refs=[artifact.ref for artifact in found],
        )
    return found


def _find(parts: Parts, ref: Ref) -> list[Artifact]:
    if ref.version is None and ref.tag is None and ref.digest is None:
        assert ref.name is not None
        newest = parts.catalog.newest(ref.name)
        _require_newest(parts, ref.name, 0 if newest is None else newest.version)
        return [newest] if newest is not None else []
    return parts.catalog.artifacts(
        name=ref.name, version=ref.version, tag=ref.tag, digest_prefix=ref.digest
    )


def _require_newest(parts: Parts, name: str, version: int) -> None:
    """Refuse to take a version for the newest where a newer one cannot be read.

    Raises:
        StoreClosedError: One is closed to this user.
        FormatError: The record of one is damaged.
        BlobMissingError: It cannot be read for another reason.
    """
    path = parts.layout.names / name
    try:
        for newer in reversed(parts.names.versions(name)):
            if newer <= version:
                return
            path = parts.names.path(name, newer)
            parts.names.read(name, newer)
    except StoreClosedError as error:
        raise layout.closed(parts.layout, path, name) from error


def _require_open(parts: Parts, ref: Ref) -> None:
    """Refuse to say that there is none of what is closed to this user.

    Raises:
        StoreClosedError: It is.
    """
    if ref.name is None:
        return
    paths = [parts.layout.names / ref.name]
    if ref.version is not None:
        paths.append(parts.names.path(ref.name, ref.version))
    if ref.tag is not None:
        tag = parts.names.tag_path(ref.name, ref.tag)
        paths += [tag.parent, tag]
    for path in paths:
        if not is_readable(path):
            raise layout.closed(parts.layout, path, ref.name)


def _not_found(parts: Parts, ref: Ref) -> NoReturn:
    _require_open(parts, ref)
    names = parts.catalog.names()
    message = f"There is no {ref} in the store at {parts.layout.root}."
    hint = "`deltastore list` shows what there is."
    if ref.version is not None and (when := _removed(parts, ref)):
        message = f"{ref} was removed from the store at {parts.layout.root} on {when}."
    if not names:
        hint = _EXTRACT
    elif ref.name is not None and ref.name not in names:
        hint = _nearest(ref.name, names)
    elif ref.name is not None:
        hint = _what_there_is(parts, ref.name, ref.tag)
    raise RefNotFoundError(message, hint=hint, ref=str(ref))


def _nearest(name: str, names: list[str]) -> str:
    folded = {known.casefold(): known for known in names}
    near = nearest(name.casefold(), folded, most=3)
    near += [key for key in folded if name.casefold() in key and key not in near][: 3 - len(near)]
    if not near:
        return "`deltastore list` shows what there is."
    return "Did you mean " + " or ".join(f"`{folded[key]}`" for key in near) + "?"


def _what_there_is(parts: Parts, name: str, tag: str | None) -> str:
    found = parts.catalog.artifacts(name=name)
    versions = [f"v{artifact.version}" for artifact in found]
    tags = [known for artifact in found for known in artifact.tags]
    hint = f"{name} has {_listed('version', versions)}"
    if tags:
        hint += f" and {_listed('tag', sorted(tags))}"
    hint += "."
    if tag is not None and tags and (near := nearest(tag, tags, most=1)):
        hint += f" Did you mean `{name}:{near[0]}`?"
    return hint


def _listed(what: str, items: list[str]) -> str:
    shown = ", ".join(items if len(items) <= 10 else [*items[:3], "…", *items[-6:]])
    return f"the {what}{'' if len(items) == 1 else 's'} {shown}"


def _removed(parts: Parts, ref: Ref) -> str | None:
    """The day on which a version was removed.

    Raises:
        IntegrityError: There is a record, which cannot be read.
        FormatError: It breaks the format.
    """
    assert ref.name is not None
    assert ref.version is not None
    if not os.path.lexists(parts.names.path(ref.name, ref.version)):
        return None
    # A record that cannot be read is not the same as none: its error says what is wrong.
    record = parts.names.read(ref.name, ref.version)
    return record.removed[:10] if isinstance(record, Tombstone) else None
