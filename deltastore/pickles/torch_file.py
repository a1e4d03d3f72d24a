"""The two formats of ``torch.save``: a zip file, and (before 1.6) pickles in a row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from deltastore.pickles.machine import EndedError, Machine
from deltastore.pickles.stored_zip import Read, StoredZip
from deltastore.pickles.values import (
    DTYPES,
    Other,
    Pairs,
    RefusedError,
    Storage,
    Tensor,
    called,
    corrupt,
    natural,
    storage_type,
)

MAX_PICKLE_BYTES = 1 << 26
"""Some 300,000 tensors."""

MAX_NAME_CHARS = 1024
MAX_KEY_CHARS = 256

_ZIP = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
# The pickles of the old format are followed by the tensors: how far to look for their ends.
_WINDOWS = (1 << 20, MAX_PICKLE_BYTES)


class TensorPlace:
    """A tensor, and where its elements lie.

    ``dtype`` is torch's name, ``begin`` the position of the first element in the file, ``stride``
    in elements. ``conjugate`` and ``negative`` say what is to be done to the elements, ``swapped``
    that their bytes are in the other order.
    """

    __slots__ = ("begin", "conjugate", "dtype", "name", "negative", "shape", "stride", "swapped")

    # No dataclass: importing them takes as long as starting Python does.
    def __init__(
        self,
        name: str,
        dtype: str,
        begin: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        marks: tuple[bool, bool, bool],
    ) -> None:
        self.name = name
        self.dtype = dtype
        self.begin = begin
        self.shape = shape
        self.stride = stride
        self.conjugate, self.negative, self.swapped = marks


def places(read: Read, size: int) -> Iterator[TensorPlace]:
    """The tensors of a file, in its order.

    Args:
        read: Bytes of the file from a position.
        size: The file's size.

    Raises:
        RefusedError: The file is damaged or holds something else than named tensors.
    """
    start = read(0, min(size, 4))
    if start == _ZIP:
        content, swapped = _read_zip(read, size)
    elif start[:1] == b"\x80":
        content, swapped = _read_row(read, size), False
    else:
        raise corrupt(f"starts with {start!r}; expected a file written by torch.save")
    for name, value in _named(content):
        yield _place(name, value, swapped)


def _place(name: str, value: object, swapped: bool) -> TensorPlace:
    if isinstance(value, Other) and value.tensor:
        raise RefusedError("unsupported", value.tensor, name)
    if not isinstance(value, Tensor):
        raise RefusedError(
            "other",
            f"holds a {called(value)} under {name[:100]!a}; expected names with tensors only",
        )
    position = value.storage.position
    if 0 in value.shape:
        position = 0
    elif position < 0:
        raise corrupt(f"holds no bytes for {name[:100]!a}")
    else:
        position += value.offset * DTYPES[value.dtype]
    marks = value.conjugate, value.negative, swapped
    return TensorPlace(name, value.dtype, position, value.shape, value.stride, marks)


def _named(content: object) -> Iterator[tuple[str, object]]:
    if isinstance(content, Pairs):
        for key, value in _in_turn(content):
            if key == "state_dict" and isinstance(value, Pairs):
                content = value
                break
    if not isinstance(content, Pairs):
        raise RefusedError(
            "other", f"holds a {called(content)}; expected a mapping of names to tensors"
        )
    names: set[str] = set()
    for name, value in _in_turn(content):
        if not isinstance(name, str):
            raise RefusedError(
                "other", f"has a key that is a {called(name)}; expected names with tensors only"
            )
        if len(name) > MAX_NAME_CHARS:
            raise corrupt(f"has a name of {len(name)} characters; expected 1 to {MAX_NAME_CHARS}")
        if name in names:
            raise corrupt(f"holds {name[:100]!a} twice")
        names.add(name)
        yield name, value


def _in_turn(pairs: Pairs) -> Iterator[tuple[object, object]]:
    return zip(pairs.items[::2], pairs.items[1::2], strict=True)


# --- zip files ------------------------------------------------------------------------------------


def _read_zip(read: Read, size: int) -> tuple[object, bool]:
    """What the pickle makes, and whether the bytes of elements are to be turned round."""
    archive = StoredZip(read, size)
    prefix = next(iter(archive.members), b"").partition(b"/")[0] + b"/"
    if prefix + b"constants.pkl" in archive.members:
        raise RefusedError("unsafe", "it is a TorchScript archive, which is a program")
    begin, length = archive.find(prefix + b"data.pkl")
    if length > MAX_PICKLE_BYTES:
        raise corrupt(f"has a pickle of {length} bytes; expected at most {MAX_PICKLE_BYTES}")
    storages: dict[str, Storage] = {}
    machine = Machine(read(begin, length), persistent=lambda id_: _storage(id_, storages, 5))
    content = machine.load()
    extents = [(begin, length)]
    for key, storage in storages.items():
        if not storage.nbytes:
            continue
        name = prefix + b"data/" + key.encode("utf-8", "surrogatepass")
        storage.begin, found = archive.find(name)
        if found < storage.nbytes:
            raise corrupt(
                f"holds {found} bytes for the storage {key[:100]!a}; expected {storage.nbytes}"
            )
        extents.append((storage.begin, found))
    extents.sort()
    for (first, length), (second, _) in itertools.pairwise(extents):
        if first + length > second:
            raise corrupt("is a zip file with members that overlap")
    return content, _is_swapped(read, archive, prefix)


def _is_swapped(read: Read, archive: StoredZip, prefix: bytes) -> bool:
    if prefix + b"byteorder" not in archive.members:
        return False
    begin, length = archive.find(prefix + b"byteorder")
    order = read(begin, min(length, 16))
    if order not in (b"little", b"big"):
        raise corrupt(f"has the byte order {order!a}; expected little or big")
    return order == b"big"


def _storage(id_: object, storages: dict[str, Storage], length: int) -> Storage:
    """The storage that a persistent id names."""
    if not isinstance(id_, tuple) or not id_ or id_[0] != "storage":
        raise RefusedError("unsafe", f"its pickle refers to a {_kind_of(id_)}")
    if len(id_) != length:
        raise corrupt(f"describes a storage by {len(id_)} values; expected {length}")
    dtype, key, elements = storage_type(id_[1]), id_[2], natural(id_[4])
    if dtype is None or not isinstance(key, str) or len(key) > MAX_KEY_CHARS or elements is None:
        raise corrupt("describes a storage by something else than type, key, place and size")
    known = storages.setdefault(key, Storage(key, dtype, elements))
    # torch takes the first of two descriptions, where it has elements.
    if known.elements and (known.dtype, known.elements) != (dtype, elements):
        raise corrupt(f"describes the storage {key[:100]!a} in two ways")
    return known if known.dtype == dtype else Storage(key, dtype, elements)


def _kind_of(id_: object) -> str:
    if isinstance(id_, tuple) and id_ and isinstance(id_[0], str):
        return ascii(id_[0][:40])
    return called(id_)


# --- pickles in a row -----------------------------------------------------------------------------


def _read_row(read: Read, size: int) -> object:
    for window in _WINDOWS:
        data = read(0, min(size, window))
        try:
            content, storages, keys, end = _pickles(data)
        except EndedError:
            if len(data) == size:
                raise
        else:
            _lay_out(read, size, end, storages, keys)
            return content
    raise corrupt(f"has pickles of more than {MAX_PICKLE_BYTES} bytes")


def _pickles(data: bytes) -> tuple[object, dict[str, Storage], object, int]:
    """What the pickle of the state makes, its storages, their keys in order, where it ends."""
    storages: dict[str, Storage] = {}
    machine = Machine(data)
    if machine.load() != _MAGIC:
        raise corrupt("has another magic number than files of torch.save")
    machine = machine.next()
    if machine.load() != _VERSION:
        raise corrupt(f"has another version than {_VERSION}")
    machine = machine.next()
    machine.load()
    machine = machine.next(lambda id_: _rooted(id_, storages))
    content = machine.load()
    machine = machine.next()
    keys = machine.load()
    return content, storages, keys, machine.at


def _rooted(id_: object, storages: dict[str, Storage]) -> Storage:
    """A storage, or the part of one (before torch 0.4) that the sixth value tells of."""
    root = _storage(id_, storages, 6)
    view = id_[5] if isinstance(id_, tuple) else None
    if view is None:
        return root
    if not isinstance(view, tuple) or len(view) != 3:
        raise corrupt("describes a part of a storage by something else than three values")
    start, count = natural(view[1]), natural(view[2])
    if start is None or count is None or start + count > root.elements:
        raise corrupt(f"describes a part beyond the storage {root.key[:100]!a}")
    return Storage(root.key, root.dtype, count, root, start * DTYPES[root.dtype])


def _lay_out(read: Read, size: int, at: int, storages: dict[str, Storage], keys: object) -> None:
    """Find the storages, which follow one another, each after its number of elements."""
    if not isinstance(keys, list) or len(keys) != len(storages):
        raise corrupt(f"does not list its {len(storages)} storages")
    for key in keys:
        storage = storages.pop(key, None) if isinstance(key, str) else None
        if storage is None:
            raise corrupt("lists a storage that it does not describe, or one twice")
        elements = int.from_bytes(read(at, 8), "little")
        if elements != storage.elements:
            raise corrupt(
                f"holds {elements} elements for the storage {storage.key[:100]!a}; "
                f"expected {storage.elements}"
            )
        storage.begin = at + 8
        at = storage.begin + storage.nbytes
        if at > size:
            raise corrupt(f"has {size} bytes; its tensors end at {at}: it is truncated")
