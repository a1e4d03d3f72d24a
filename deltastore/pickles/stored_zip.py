"""Where the members of a zip file lie that stores them as they are, as ``torch.save`` does.

The standard library's zipfile takes longer to import than a whole file takes to be read, and does
not say where a member's bytes begin.
"""

from __future__ import annotations

from collections.abc import Callable

from deltastore.pickles.values import RefusedError, corrupt

Read = Callable[[int, int], bytes]
"""Bytes from a position, as many as are asked for.

Raises:
    RefusedError: The file ends before.
"""

MAX_DIRECTORY_BYTES = 1 << 26
"""Some 500,000 members."""

_END = b"PK\x05\x06"
_END_BYTES = 22
_END64 = b"PK\x06\x06"
_END64_BYTES = 56
_LOCATOR = b"PK\x06\x07"
_LOCATOR_BYTES = 20
_ENTRY = b"PK\x01\x02"
_ENTRY_BYTES = 46
_LOCAL = b"PK\x03\x04"
_LOCAL_BYTES = 30
_IN_EXTRA = 0xFFFFFFFF


class StoredZip:
    """The directory of a zip file."""

    def __init__(self, read: Read, size: int) -> None:
        """Read the directory.

        Raises:
            RefusedError: It is malformed, or a member is compressed or encrypted.
        """
        self._read = read
        begin, length, count = _directory(read, size)
        self._end = begin
        self.members: dict[bytes, tuple[int, int]] = {}
        data, at = read(begin, length), 0
        for _ in range(count):
            name, header, nbytes, at = _entry(data, at)
            if name in self.members:
                raise corrupt(f"is a zip file that holds {_named(name)} twice")
            self.members[name] = header, nbytes
        if at != length:
            raise corrupt("is a zip file whose directory has another length than it says")

    def find(self, name: bytes) -> tuple[int, int]:
        """Position and length of a member's bytes.

        Raises:
            RefusedError: There is no such member, or it leaves the file.
        """
        if name not in self.members:
            raise corrupt(f"is a zip file without {_named(name)}")
        header, nbytes = self.members[name]
        if header + _LOCAL_BYTES > self._end:
            raise corrupt(f"is a zip file in which {_named(name)} is beyond the end")
        local = self._read(header, _LOCAL_BYTES)
        if local[:4] != _LOCAL:
            raise corrupt(f"is a zip file in which {_named(name)} is not where it should be")
        begin = header + _LOCAL_BYTES + _int(local, 26, 2) + _int(local, 28, 2)
        if begin + nbytes > self._end:
            raise corrupt(f"is a zip file in which {_named(name)} is beyond the end")
        return begin, nbytes


def _directory(read: Read, size: int) -> tuple[int, int, int]:
    """Position, bytes and entries of the directory."""
    if size < _END_BYTES:
        raise corrupt("is a zip file that is cut off")
    reach = min(size, _END_BYTES + 0xFFFF)
    tail = read(size - reach, reach)
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise corrupt("is a zip file without an end: it is cut off")
    if at + _END_BYTES + _int(tail, at + 20, 2) != len(tail):
        raise corrupt("is a zip file with something behind its end")
    count, length, begin = _int(tail, at + 10, 2), _int(tail, at + 12, 4), _int(tail, at + 16, 4)
    limit = size - reach + at
    if at >= _LOCATOR_BYTES and tail[at - _LOCATOR_BYTES : at][:4] == _LOCATOR:
        position = _int(tail, at - _LOCATOR_BYTES + 8, 8)
        limit -= _LOCATOR_BYTES
        if position + _END64_BYTES > limit:
            raise corrupt("is a zip file whose second end is not where it should be")
        record = read(position, _END64_BYTES)
        if record[:4] != _END64:
            raise corrupt("is a zip file whose second end is not where it should be")
        count, length, begin = _int(record, 32, 8), _int(record, 40, 8), _int(record, 48, 8)
        limit = position
    if begin + length > limit:
        raise corrupt("is a zip file whose directory is beyond its end")
    if length > MAX_DIRECTORY_BYTES or count > length // _ENTRY_BYTES:
        raise corrupt(
            f"is a zip file with a directory of {length} bytes for {count} members; "
            f"expected at most {MAX_DIRECTORY_BYTES}"
        )
    return begin, length, count


def _entry(data: bytes, at: int) -> tuple[bytes, int, int, int]:
    """Name, position of the local header, bytes, and where the next entry is."""
    if data[at : at + 4] != _ENTRY or at + _ENTRY_BYTES > len(data):
        raise corrupt("is a zip file with a damaged directory")
    packed, nbytes, header = _int(data, at + 20, 4), _int(data, at + 24, 4), _int(data, at + 42, 4)
    start = at + _ENTRY_BYTES
    middle = start + _int(data, at + 28, 2)
    stop = middle + _int(data, at + 30, 2)
    end = stop + _int(data, at + 32, 2)
    if end > len(data):
        raise corrupt("is a zip file with a damaged directory")
    if _int(data, at + 8, 2) & 1:
        raise corrupt("is a zip file with encrypted members")
    if _int(data, at + 10, 2):
        raise RefusedError(
            "corrupt", "is a zip file with compressed members; torch.save stores them as they are"
        )
    if _IN_EXTRA in (packed, nbytes, header):
        nbytes, packed, header = _wide(data[middle:stop], [nbytes, packed, header])
    if packed != nbytes:
        raise corrupt("is a zip file with a stored member of two sizes")
    return data[start:middle], header, nbytes, end


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """The values of which those that do not fit into four bytes are in the extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = _int(extra, at, 2), _int(extra, at + 2, 2)
        at += 4
        if kind == 1:
            field = extra[at : at + length]
            for index, value in enumerate(values):
                if value == _IN_EXTRA:
                    if len(field) < 8:
                        break
                    values[index], field = _int(field, 0, 8), field[8:]
            return values
        at += length
    raise corrupt("is a zip file with a damaged directory")


def _int(data: bytes, at: int, count: int) -> int:
    return int.from_bytes(data[at : at + count], "little")


def _named(name: bytes) -> str:
    return ascii(name[:100].decode("utf-8", "replace"))
