"""From the value of ``--store`` to the directory of the store."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from deltastore.errors import StoreError, UsageError
from deltastore.system import places


def locate_store(value: str | None) -> Path:
    """The directory that ``--store`` means.

    A value with a path separator, or that is an existing directory, is a path. Any other word is
    looked up among the stores of the config file, and is a path where the file does not have it.

    Args:
        value: What the user gave; None or empty for the default store.

    Raises:
        StoreError: The config file has the store by URLs, which need an engine that is not here.
        UsageError: The config file cannot be read or is malformed, or there is no such place.
    """
    if not value:
        from deltastore.store import default_store_path

        return default_store_path()
    called = "DELTASTORE_STORE" if value == os.environ.get("DELTASTORE_STORE") else "--store"
    if not _is_path(value):
        configured = configured_stores()
        if value in configured:
            return _configured_path(value, configured[value])
    return places.given(value, called=called)


def configured_index(value: str | None) -> str | None:
    """Where the index of the store that ``--store`` means is to be, as the config file says it.

    Args:
        value: As for ``locate_store``.

    Returns:
        The key ``index`` of the store's table, a relative directory made absolute; None where
        there is no such key, or ``DELTASTORE_INDEX`` says something, which goes first.

    Raises:
        UsageError: The config file cannot be read or is malformed.
    """
    if not value or os.environ.get("DELTASTORE_INDEX") or _is_path(value):
        return None
    entry = configured_stores().get(value)
    if not isinstance(entry, dict) or "index" not in entry:
        return None
    index = entry["index"]
    if not isinstance(index, str) or not index:
        raise UsageError(
            f"The index of the store {value!r} in {config_path()} should be 'store', 'local' or a "
            f"directory, got {index!r}.",
            hint=f'Write  index = "local"  under [stores.{value}], or remove the key.',
            store=value,
        )
    if os.sep in index:
        called = f"index of [stores.{value}] in {config_path()}"
        return str(config_path().parent / places.given(index, called=called))
    return index


def _is_path(value: str) -> bool:
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return (
        value.startswith("~")
        or any(separator in value for separator in separators)
        # Not Path.is_dir, which fails for names that are too long.
        or (places.exists(value) and os.path.isdir(value))  # noqa: PTH112
    )


def config_path() -> Path:
    """The config file: ``DELTASTORE_CONFIG``, or the one in the user's config directory.

    Raises:
        UsageError: There is no such place.
    """
    if named := os.environ.get("DELTASTORE_CONFIG"):
        return places.given(named, called="DELTASTORE_CONFIG")
    directory = places.user_directory("config", instead="name a file in DELTASTORE_CONFIG")
    return directory / "config.toml"


def configured_stores() -> dict[str, Any]:
    """The config file's ``[stores.NAME]`` tables by name; empty without a file.

    Raises:
        UsageError: The file cannot be read, is no TOML, or its ``stores`` are no tables.
    """
    try:
        path = config_path()
    except UsageError:
        if os.environ.get("DELTASTORE_CONFIG"):
            raise
        return {}  # where there is no place for the file there is none
    hint = f"Correct {path}, or name another file in DELTASTORE_CONFIG."
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not os.environ.get("DELTASTORE_CONFIG"):
            return {}
        raise UsageError(
            f"DELTASTORE_CONFIG names {path}, which does not exist.",
            hint="Create the file, or unset DELTASTORE_CONFIG.",
            path=str(path),
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"The config file {path} cannot be read: {error}.", hint=hint, path=str(path)
        ) from error
    stores = config.get("stores", {})
    if not isinstance(stores, dict):
        raise UsageError(
            f"In the config file {path}, 'stores' is not a table.", hint=hint, path=str(path)
        )
    return stores


def _configured_path(name: str, entry: Any) -> Path:
    """The directory of one ``[stores.NAME]`` table; relative ones start at the config file."""
    source = config_path()
    path = entry.get("path") if isinstance(entry, dict) else None
    if isinstance(path, str) and path:
        called = f"path of [stores.{name}] in {source}"
        return source.parent / places.given(path, called=called)
    if isinstance(entry, dict) and {"catalog", "blobs"} & entry.keys():
        raise StoreError(
            f"The store {name!r} in {source} is given by catalog and blobs URLs, "
            "and this version opens only stores in directories.",
            hint=f"Give [stores.{name}] a 'path' instead.",
            store=name,
        )
    raise UsageError(
        f"The store {name!r} in {source} has no 'path'.",
        hint=f'Write  path = "/where/it/is"  under [stores.{name}].',
        store=name,
    )
