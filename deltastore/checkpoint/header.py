"""The header of a safetensors file: read with every rule of the format checked, and written.

The format: 8 bytes of little-endian length, that many bytes of JSON that start with ``{`` and
may end in spaces, then the tensors' bytes, without a hole or an overlap, to the end of the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from deltastore.checkpoint.files import read_at, strict_json
from deltastore.errors import CheckpointCorruptError, CheckpointError, UnsupportedDtypeError, shown
from deltastore.manifest import format as fmt
from deltastore.manifest.tensor_rules import METADATA, name_problem, shape_problem

_MAX_OFFSET = (1 << 63) - 1
MAX_HEADER_BYTES = 100_000_000
"""The limit in the safetensors format, which all its readers keep."""

_LFS_POINTER = b"version https://git-lfs"
_FETCH = "The file is damaged or was not fetched whole; fetch the checkpoint again."


class HeaderTensor(Protocol):
    """What a header says of a tensor."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def nbytes(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a header; ``begin`` is the absolute position in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


def read_header(descriptor: int, path: Path) -> tuple[list[Entry], dict[str, str]]:
    """Read and check a file's header.

    Returns:
        The tensors in file order, and the header's metadata.

    Raises:
        CheckpointCorruptError: A rule of the format is broken.
        UnsupportedDtypeError: A dtype is unknown, or smaller than a byte.
    """
    return parse_header(
        lambda position, view: read_at(descriptor, position, view, path),
        os.fstat(descriptor).st_size,
        path,
    )


def parse_header(
    read: Callable[[int, memoryview], None], size: int, path: Path
) -> tuple[list[Entry], dict[str, str]]:
    """Ditto, wherever the file is.

    Args:
        read: Fills a view with the file's bytes from a position.
        size: The file's size.
        path: What to call the file.
    """
    data = _header_bytes(read, path, size)
    # Each tensor is an object: so many are told before they are parsed. Names may have some braces.
    if data.count(b"{") > 2 * fmt.MAX_TENSORS + 16:
        _corrupt(path, f"holds more tensors than {fmt.MAX_TENSORS}")
    fields = strict_json(data, f"The header of {path}")
    metadata = _metadata(fields.pop(METADATA, {}), path)
    if len(fields) > fmt.MAX_TENSORS:
        _corrupt(path, f"holds {len(fields)} tensors; expected at most {fmt.MAX_TENSORS}")
    start = 8 + len(data)
    entries = [_entry(name, value, start, path) for name, value in fields.items()]
    # Empty tensors share their position with the next one and must come before it.
    entries.sort(key=lambda entry: (entry.begin, entry.nbytes, entry.name))
    position = start
    for entry in entries:
        if entry.begin != position:
            what = "overlaps the tensor before it" if entry.begin < position else "follows a hole"
            _corrupt(
                path,
                f"has {shown(entry.name)} at byte {entry.begin - start}, which {what}; "
                f"expected byte {position - start}",
            )
        position += entry.nbytes
    if position > size:
        _corrupt(path, f"has {size} bytes; its header describes {position}: it is truncated")
    if position < size:
        _corrupt(path, f"has {size} bytes; its header describes {position}: bytes trail behind")
    return entries, metadata


def check_name(name: str, path: Path) -> None:
    """Refuse a tensor name that could not be shown, recorded or written.

    Raises:
        CheckpointCorruptError: It is empty, too long, not printable, or the format's own.
    """
    problem = name_problem(name)
    if problem is not None:
        _corrupt(path, f"holds {problem}")


def check_shape(shape: tuple[int, ...], name: str, path: Path) -> None:
    """Refuse a shape beyond the limits of the format.

    Raises:
        CheckpointCorruptError: It has too many dimensions or elements.
    """
    problem = shape_problem(shape)
    if problem is not None:
        _corrupt(path, f"gives {shown(name)} {problem}")


def unsupported_dtype(dtype: str, name: str, path: Path) -> UnsupportedDtypeError:
    """The error for a dtype that deltastore does not store."""
    return UnsupportedDtypeError(
        f"{path} stores {shown(name)} as {shown(dtype[:40])}; expected one of "
        f"{', '.join(sorted(fmt.DTYPE_BYTES))}.",
        hint="Convert the checkpoint to bfloat16 first; packed weights have no delta.",
        path=str(path),
        tensor=name,
        dtype=dtype[:40],
    )


def build_header(tensors: Sequence[HeaderTensor], metadata: Mapping[str, str], what: str) -> bytes:
    """The first bytes of a file that holds ``tensors`` in this order: length and padded JSON.

    Held to the rules by which such a file is read.

    Args:
        tensors: What the file will hold.
        metadata: Strings about the file as a whole.
        what: What to call the file in an error.

    Raises:
        CheckpointError: A reader would refuse the file: for names, shapes, number or length.
    """
    if len(tensors) > fmt.MAX_TENSORS:
        raise _unreadable(what, f"{len(tensors)} tensors; expected at most {fmt.MAX_TENSORS}")
    names: set[str] = set()
    end = 0
    for tensor in tensors:
        problem = name_problem(tensor.name) or shape_problem(tensor.shape)
        if problem is None and tensor.name in names:
            problem = f"two tensors called {shown(tensor.name)}"
        names.add(tensor.name)
        end += tensor.nbytes
        if problem is None and end > _MAX_OFFSET:
            problem = f"more than {_MAX_OFFSET} bytes"
        if problem is not None:
            raise _unreadable(what, problem)
    header = header_bytes(tensors, metadata)
    if len(header) - 8 > MAX_HEADER_BYTES:
        raise _unreadable(
            what, f"a header of {len(header) - 8} bytes; safetensors allows {MAX_HEADER_BYTES}"
        )
    return header


def header_bytes(tensors: Iterable[HeaderTensor], metadata: Mapping[str, str]) -> bytes:
    """Length and padded JSON of a header; nothing is checked."""
    fields: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    position = 0
    for tensor in tensors:
        end = position + tensor.nbytes
        fields[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _unreadable(what: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{what} would have {problem}: nothing could read it.",
        hint="Write smaller files, as with `--max-shard-size 5GB`, or leave tensors out.",
    )


def _corrupt(path: Path, problem: str) -> NoReturn:
    raise CheckpointCorruptError(f"{path} {problem}.", hint=_FETCH, path=str(path))


def _header_bytes(read: Callable[[int, memoryview], None], path: Path, size: int) -> bytes:
    start = bytearray(min(size, len(_LFS_POINTER)))
    read(0, memoryview(start))
    if start == _LFS_POINTER:
        raise CheckpointCorruptError(
            f"{path} is a Git LFS pointer; expected the weights themselves.",
            hint="Fetch them: `git lfs pull` in the checkpoint's directory.",
            path=str(path),
        )
    if size < 8:
        _corrupt(path, f"has {size} bytes; a safetensors file has at least 8")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        _corrupt(path, f"claims a header of {length} bytes; expected at most {MAX_HEADER_BYTES}")
    if 8 + length > size:
        _corrupt(path, f"claims a header of {length} bytes; only {size - 8} follow")
    data = bytearray(length)
    read(8, memoryview(data))
    if not data.startswith(b"{"):
        _corrupt(path, f"has a header that starts with {bytes(data[:1])!r}; expected '{{'")
    return bytes(data)


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        _corrupt(path, "has a __metadata__ that is no object of strings")
    return value


def _entry(name: str, value: Any, start: int, path: Path) -> Entry:
    check_name(name, path)
    if not isinstance(value, dict):
        _corrupt(path, f"describes {shown(name)} by a {type(value).__name__}; expected an object")
    dtype = value.get("dtype")
    if not isinstance(dtype, str):
        _corrupt(path, f"gives {shown(name)} the dtype {shown(dtype)}; expected a string")
    if dtype not in fmt.DTYPE_BYTES:
        raise unsupported_dtype(dtype, name, path)
    shape = _naturals(value.get("shape"), "shape", name, path)
    check_shape(shape, name, path)
    offsets = _naturals(value.get("data_offsets"), "data_offsets", name, path)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        _corrupt(
            path, f"gives {shown(name)} the data_offsets {list(offsets)[:4]}; expected begin, end"
        )
    nbytes = math.prod(shape) * fmt.DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        _corrupt(
            path,
            f"gives {shown(name)} {offsets[1] - offsets[0]} bytes; "
            f"expected {nbytes} for {dtype} {list(shape)}",
        )
    return Entry(name, dtype, shape, start + offsets[0], nbytes)


def _naturals(value: Any, field: str, name: str, path: Path) -> tuple[int, ...]:
    # type() rather than isinstance(): true and false are integers to Python, not to the format.
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        _corrupt(path, f"gives {shown(name)} a {field} that is no list of integers")
    if any(item < 0 or item >= 1 << 63 for item in value):
        _corrupt(path, f"gives {shown(name)} a {field} with a number outside 0 to 2^63 - 1")
    return tuple(value)
