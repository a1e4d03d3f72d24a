"""Which files of a directory are the checkpoint."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from deltastore.checkpoint.files import file_error
from deltastore.checkpoint.foreign import PICKLES, SAFETENSORS, no_weights, unreadable_file
from deltastore.checkpoint.index import Index, listed, read_index
from deltastore.errors import CheckpointCorruptError, CheckpointError

NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,9})-of-(?P<count>\d{1,9})(?P<suffix>\.\w+)\Z")

_TRAINER_STATE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state)\b.*", re.ASCII)
_BESIDES = re.compile(r"(adapter|consolidated).*")
_MODEL = re.compile(r"(pytorch_)?model\b.*")


@dataclass(frozen=True, slots=True)
class Layout:
    """The weight files to read; ``ignored`` are weight files beside them that are not read."""

    directory: Path
    filenames: tuple[str, ...]
    is_safetensors: bool
    index: Index | None = None
    ignored: tuple[str, ...] = ()


def find_layout(path: Path, names: list[str] | None = None) -> Layout:
    """Find the weight files of an existing file or directory.

    Args:
        path: The file or directory.
        names: The names that count as the directory's, sorted, where not all of its files are
            there yet; its index must be.

    Raises:
        NoWeightsError: There are none.
        CheckpointCorruptError: Files are missing, or contradict each other or their index.
        CheckpointError: Several checkpoints lie in the directory, or it cannot be read.
    """
    if names is not None or path.is_dir():
        return _directory(path, _listing(path) if names is None else names)
    if path.name.endswith(".index.json"):
        names = _listing(path.parent)
        return _indexed(path.parent, path.name, names)
    return _single(path)


def _single(path: Path) -> Layout:
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        return Layout(path.parent, (path.name,), is_safetensors=False)
    if suffix in SAFETENSORS or _first_bytes(path)[8:9] == b"{":
        return Layout(path.parent, (path.name,), is_safetensors=True)
    # A blob of the Hub's cache has no suffix; what torch.save writes today is a zip file.
    if _first_bytes(path)[:4] == b"PK\x03\x04" and not suffix:
        return Layout(path.parent, (path.name,), is_safetensors=False)
    raise unreadable_file(path)


def _directory(directory: Path, names: list[str]) -> Layout:
    has_model = any(_MODEL.match(name) and _is_weights(name) for name in names)
    usable = [
        name
        for name in names
        if not _TRAINER_STATE.match(name) and not (has_model and _BESIDES.match(name))
    ]
    for suffixes, main in ((SAFETENSORS, "model"), (PICKLES, "pytorch_model")):
        layout = _of_kind(directory, usable, suffixes, main)
        if layout is not None:
            ignored = {name for name in names if _is_weights(name)} - set(layout.filenames)
            return Layout(
                directory,
                layout.filenames,
                layout.is_safetensors,
                layout.index,
                tuple(sorted(ignored)),
            )
    raise no_weights(directory, names)


def _of_kind(
    directory: Path, names: list[str], suffixes: tuple[str, ...], main: str
) -> Layout | None:
    indices = [n for n in names if n.endswith(tuple(f"{s}.index.json" for s in suffixes))]
    standard = f"{main}{suffixes[0]}.index.json"
    if len(indices) > 1 and standard not in indices:
        raise CheckpointError(
            f"{directory} holds several indices ({listed(indices)}); expected one.",
            hint=f"Give the path of the one to read, e.g. {directory / indices[0]}.",
            path=str(directory),
        )
    if indices:
        return _indexed(directory, standard if standard in indices else indices[0], names)
    files = [name for name in names if name.endswith(suffixes)]
    if not files:
        return None
    safe = suffixes == SAFETENSORS
    families = _families(files)
    single = main + suffixes[0]
    if single in files:
        if main in families:
            raise _contradiction(directory, single, families[main])
        return Layout(directory, (single,), safe)
    if main in families:
        families, files = {main: families[main]}, families[main]
    for family in families.values():
        _check_complete(directory, family)
    return Layout(directory, tuple(files), safe)


def _indexed(directory: Path, index_name: str, names: list[str]) -> Layout:
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
    families = _families(named)
    family_of_directory = _families([name for name in names if _is_weights(name)])
    strangers = sorted(
        {name for stem in families for name in family_of_directory.get(stem, ())} - set(named)
    )
    suffix = Path(named[0]).suffix
    single = index_name.removesuffix(f"{suffix}.index.json") + suffix
    if single in names and single not in named:
        strangers.append(single)
    # A suffix of its own is a checkpoint of its own: .bin shards beside .safetensors are no error.
    strangers = [name for name in strangers if Path(name).suffix == suffix]
    if strangers:
        raise CheckpointCorruptError(
            f"{directory} holds shards that {index_name} does not name: {listed(strangers)}.",
            hint="They are left from another saving: move them away, or fetch the index again.",
            path=str(index.path),
            unnamed=strangers,
        )
    safe = all(name.endswith(SAFETENSORS) for name in named)
    if not safe and not all(name.endswith(PICKLES) for name in named):
        raise CheckpointCorruptError(
            f"{index.path} names {listed(list(named))}; expected weight files of one kind.",
            hint="Fetch the index again from the checkpoint's source.",
            path=str(index.path),
        )
    return Layout(directory, named, safe, index)


def _families(names: list[str] | tuple[str, ...]) -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for name in names:
        match = NUMBERED.match(name)
        if match:
            families.setdefault(match["stem"], []).append(name)
    return families


def _check_complete(directory: Path, family: list[str]) -> None:
    parts = [match for name in family if (match := NUMBERED.match(name))]
    counts = {int(part["count"]) for part in parts}
    if len(counts) > 1:
        raise CheckpointCorruptError(
            f"{directory} holds shards of several savings, without an index: {listed(family)}.",
            hint="Move the files of all but one saving away.",
            path=str(directory),
        )
    count = counts.pop()
    present = {int(part["number"]) for part in parts}
    # Never a set of all numbers: a file name may claim a thousand million of them.
    if len(parts) == len(present) == count and (min(present), max(present)) == (1, count):
        return
    absent = [number for number in range(1, min(count, 10_000) + 1) if number not in present]
    raise CheckpointCorruptError(
        f"{directory} holds {len(parts)} of {count} shards ({listed(family)}) and no index; "
        f"missing are the numbers {listed([str(number) for number in absent])}.",
        hint="Fetch the missing files, e.g. `hf download org/name`.",
        path=str(directory),
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


def _first_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise file_error(error, path, "read") from error
