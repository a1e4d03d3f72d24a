"""The process that reads a file of ``torch.save``, and says where its tensors lie.

It is given a descriptor, opens nothing, and writes lines of ASCII: one for each tensor, then
``end``; or one with the reason why it stopped. Text is in hexadecimal digits of its UTF-8, as
nothing that a stranger wrote may pass for a line.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

from deltastore.pickles.torch_file import TensorPlace, places
from deltastore.pickles.values import RefusedError, corrupt

MAX_MEMORY_BYTES = 1 << 30
MAX_SECONDS = 60
"""Of processor time."""


def main(descriptor: int) -> None:
    """Read a file, and write the lines."""
    _limit()
    # Nothing is freed before the end; looking for what could be would be most of the work.
    gc.disable()
    out = sys.stdout
    try:
        for line in lines(descriptor):
            out.write(line)
        out.flush()
    finally:
        # Without taking apart what a stranger nested.
        os._exit(0)


def lines(descriptor: int) -> Iterator[str]:
    """The lines about a file."""
    try:
        for place in places(lambda at, count: _read(descriptor, at, count), _size(descriptor)):
            yield _line(place)
    except RefusedError as refused:
        yield f"{refused.kind} {_hex(refused.text)} {_hex(refused.tensor)}\n"
    except MemoryError:
        yield f"memory {MAX_MEMORY_BYTES}\n"
    except OSError as error:
        yield f"failed {error.errno}\n"
    else:
        yield "end\n"


def _line(place: TensorPlace) -> str:
    flags = f"{place.conjugate:d}{place.negative:d}{place.swapped:d}"
    shape, stride = (",".join(map(str, sizes)) or "-" for sizes in (place.shape, place.stride))
    return f"tensor {_hex(place.name)} {place.dtype} {place.begin} {shape} {stride} {flags}\n"


def _hex(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").hex() or "-"


def _size(descriptor: int) -> int:
    return os.fstat(descriptor).st_size


def _read(descriptor: int, at: int, count: int) -> bytes:
    data = os.pread(descriptor, count, at)
    while len(data) < count:
        more = os.pread(descriptor, count - len(data), at + len(data))
        if not more:
            raise corrupt(f"ends at byte {at + len(data)}; expected {count - len(data)} bytes more")
        data += more
    return data


def _limit() -> None:
    """Take no more than is needed, where the system has such limits."""
    try:
        import resource
    except ImportError:
        return
    for limit, most in (
        (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
        (resource.RLIMIT_CPU, MAX_SECONDS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(limit, (value, value))
        except (ValueError, OSError):
            # Some systems have limits that they do not let one set.
            continue
