"""Which files of a directory are the checkpoint."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from deltastore.checkpoint.files import file_error, open_regular
from deltastore.checkpoint.filling import is_half_filled
from deltastore.checkpoint.foreign import PICKLES, SAFETENSORS, no_weights, unreadable_file
from deltastore.checkpoint.index import Index, listed, read_index
from deltastore.checkpoint.pieces import (
    families,
    require_complete,
    require_one_rank,
    require_whole,
    unnamed_siblings,
)
from deltastore.errors import CheckpointCorruptError, CheckpointError

_TRAINER_STATE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state)\b.*", re.ASCII)
_BESIDES = re.compile(r"(adapter|consolidated).*")
_MODEL = re.compile(r"(pytorch_)?model\b.*")


@dataclass(frozen=True, slots=True)
class Layout:
    """The weight files to read.

    ``ignored`` are weight files beside them that are not read, and ``warning`` says so of those
    that look like another saving of the same model.
    """

    directory: Path
    filenames: tuple[str, ...]
    is_safetensors: bool
    index: Index | None = None
    ignored: tuple[str, ...] = ()
    warning: str = ""


def find_layout(path: Path, names: list[str] | None = None) -> Layout:
    """Find the weight files of an existing file or directory.

    A file or an index that is given itself is what is meant, whatever lies beside it. In a
    directory an index says what is meant, unless a whole model lies beside its shards.

    Args:
        path: The file or directory.
        names: The names that count as the directory's, sorted, where not all of its files are
            there yet; its index must be.

    Raises:
        NoWeightsError: There are none.
        CheckpointCorruptError: Files are missing, or contradict each other or their index.
        CheckpointError: Several checkpoints lie in the directory, or it cannot be read.
    """
    if names is None and is_half_filled(path if path.is_dir() else path.parent):
        raise _half_filled(path)
    if names is not None or path.is_dir():
        return _directory(path, _listing(path) if names is None else names)
    if path.name.endswith(".index.json"):
        names = _listing(path.parent)
        return _with_ignored(_indexed(path.parent, path.name, names, given=True), names)
    return _single(path)


def _half_filled(path: Path) -> CheckpointCorruptError:
    return CheckpointCorruptError(
        f"{path} is not there as a whole: a deltastore has begun to fill its directory and has not "
        "ended.",
        hint="Wait for it; if it was stopped, the same `deltastore apply` again begins anew.",
        path=str(path),
    )


def suffixes_of(names: list[str]) -> tuple[str, ...]:
    """The suffixes of those weight files that are read where files of these names are together.

    A value head as .safetensors beside a model as .bin is not the model.
    """
    both: tuple[tuple[str, ...], ...] = (SAFETENSORS, PICKLES)
    kinds = [kind for kind in both if _of(names, kind) or _indices(names, kind)]
    models = [
        kind
        for kind in kinds
        if any(_MODEL.match(name) for name in (*_of(names, kind), *_indices(names, kind)))
    ]
    return next(iter(models or kinds), ())


def _single(path: Path) -> Layout:
    suffix = path.suffix.lower()
    # A blob of the Hub's cache has no suffix; what torch.save writes today is a zip file.
    pickled = suffix in PICKLES or (not suffix and _first_bytes(path)[:4] == b"PK\x03\x04")
    if not pickled and suffix not in SAFETENSORS and _first_bytes(path)[8:9] != b"{":
        raise unreadable_file(path)
    names = _neighbours(path)
    require_whole(path, names)
    shards = [name for name in families(names).get(path.stem, ()) if name.endswith(suffix)]
    warning = f"{path} is read alone, without {listed(shards)} beside it." if shards else ""
    return Layout(path.parent, (path.name,), is_safetensors=not pickled, warning=warning)


def _directory(directory: Path, names: list[str]) -> Layout:
    has_model = any(_MODEL.match(name) and _is_weights(name) for name in names)
    usable = [
        name
        for name in names
        if not _TRAINER_STATE.match(name) and not (has_model and _BESIDES.match(name))
    ]
    suffixes = suffixes_of(usable)
    if not suffixes:
        raise no_weights(directory, names)
    return _with_ignored(_of_kind(directory, usable, suffixes), names)


def _with_ignored(layout: Layout, names: list[str]) -> Layout:
    ignored = {name for name in names if _is_weights(name)} - set(layout.filenames)
    return replace(layout, ignored=tuple(sorted(ignored)))


def _of(names: list[str], suffixes: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.endswith(suffixes)]


def _indices(names: list[str], suffixes: tuple[str, ...]) -> list[str]:
    return _of(names, tuple(f"{suffix}.index.json" for suffix in suffixes))


def _of_kind(directory: Path, names: list[str], suffixes: tuple[str, ...]) -> Layout:
    safe = suffixes == SAFETENSORS
    main = "model" if safe else "pytorch_model"
    indices = _indices(names, suffixes)
    standard = f"{main}{suffixes[0]}.index.json"
    if len(indices) > 1 and standard not in indices:
        raise CheckpointError(
            f"{directory} holds several indices ({listed(indices)}); expected one.",
            hint=f"Give the path of the one to read, e.g. {directory / indices[0]}.",
            path=str(directory),
        )
    if indices:
        return _indexed(directory, standard if standard in indices else indices[0], names)
    files = _of(names, suffixes)
    numbered = families(files)
    single = main + suffixes[0]
    if single in files:
        if main in numbered:
            raise _contradiction(directory, single, numbered[main])
        return Layout(directory, (single,), safe)
    if main in numbered:
        numbered, files = {main: numbered[main]}, numbered[main]
    for family in numbered.values():
        require_complete(directory, family)
    require_one_rank(directory, files, names)
    return Layout(directory, tuple(files), safe)


def _indexed(directory: Path, index_name: str, names: list[str], *, given: bool = False) -> Layout:
    index = read_index(directory / index_name)
    named = index.filenames
    missing = sorted(set(named) - set(names))
    if missing:
        raise CheckpointCorruptError(
            f"{index.path} names {len(named)} shards, of which {len(missing)} are missing: "
            f"{listed(missing)}.",
            hint="Fetch the missing files, e.g. `hf download org/name`.",
            path=str(index.path),
            missing=missing,
        )
    suffix = Path(named[0]).suffix
    single = index_name.removesuffix(f"{suffix}.index.json") + suffix
    whole = [single] if single in names and single not in named else []
    siblings = unnamed_siblings(named, names)
    if (whole or siblings) and not given:
        raise _more_than_named(directory, index.path, whole, siblings)
    # A suffix of its own is a checkpoint of its own: .bin shards beside .safetensors mean nothing.
    beside = families(_of(names, (suffix,)))
    others = {name for stem in families(named) for name in beside.get(stem, ())} - set(named)
    leftovers = sorted(others | {*whole, *siblings})
    warning = (
        f"{directory} also holds {listed(leftovers)}, which {index_name} does not name; "
        f"{'it is' if len(leftovers) == 1 else 'they are'} not read."
        if leftovers
        else ""
    )
    safe = all(name.endswith(SAFETENSORS) for name in named)
    if not safe and not all(name.endswith(PICKLES) for name in named):
        raise CheckpointCorruptError(
            f"{index.path} names {listed(list(named))}; expected weight files of one kind.",
            hint="Fetch the index again from the checkpoint's source.",
            path=str(index.path),
        )
    return Layout(directory, named, safe, index, warning=warning)


def _more_than_named(
    directory: Path, index: Path, whole: list[str], siblings: list[str]
) -> CheckpointCorruptError:
    """The error for an index beside which there is another model, or more of its own saving."""
    if whole:
        found = f"both {whole[0]} and the shards that {index.name} names"
        hint = f"Give the path of the one to read, {directory / whole[0]} or {index}."
    else:
        found = f"shards of the same saving that {index.name} does not name: {listed(siblings)}"
        hint = f"Fetch the index again; or give its path, {index}, to read what it names."
    return CheckpointCorruptError(
        f"{directory} holds {found}.", hint=hint, path=str(directory), unnamed=whole + siblings
    )


def _contradiction(directory: Path, single: str, family: list[str]) -> CheckpointCorruptError:
    return CheckpointCorruptError(
        f"{directory} holds both {single} and shards without an index ({listed(family)}).",
        hint=f"Give the path of the file to read, e.g. {directory / single}, or move one away.",
        path=str(directory),
    )


def _is_weights(name: str) -> bool:
    if _TRAINER_STATE.match(name):
        return False
    return name.endswith(SAFETENSORS + PICKLES)


def _listing(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir())
    except OSError as error:
        raise file_error(error, directory, "list") from error


def _neighbours(path: Path) -> list[str]:
    try:
        return _listing(path.parent)
    except CheckpointError:
        return [path.name]  # a file may be read where its directory may not be listed


def _first_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            return b""
        with open(open_regular(path), "rb") as file:
            return file.read(16)
    except OSError as error:
        raise file_error(error, path, "read") from error
