"""Asks a child process where the tensors of a ``torch.save`` file lie.

What the child answers is read as if a stranger wrote it: line by line, each of one form, no more
of them than there is room for, until a deadline. See :mod:`deltastore.pickles`.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import closing
from multiprocessing import spawn
from pathlib import Path

from deltastore.checkpoint.files import file_error
from deltastore.errors import (
    CheckpointCorruptError,
    CheckpointError,
    DeltastoreError,
    UnsafePickleError,
    UnsupportedDtypeError,
    shown,
)
from deltastore.pickles.child import MAX_MEMORY_BYTES, MAX_SECONDS, lines
from deltastore.pickles.torch_file import TensorPlace
from deltastore.system import limits

DEADLINE_SECONDS = 120
"""For one file, from the start of the child to its last line."""

MAX_ANSWER_BYTES = 1 << 26
MAX_LINE_BYTES = 1 << 14

_START = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from deltastore.pickles.child import main; main(int(sys.argv[2]))"
)
# Where a Python finds its own libraries; nothing else of the environment is the child's business.
_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")

_TENSOR = re.compile(
    r"tensor (?P<name>(?:[0-9a-f]{2})+|-) (?P<dtype>[a-z0-9_]{1,40}) (?P<begin>\d{1,20}) "
    r"(?P<shape>-|\d{1,19}(?:,\d{1,19}){0,63}) (?P<stride>-|\d{1,19}(?:,\d{1,19}){0,63}) "
    r"(?P<flags>[01]{3})",
    re.ASCII,
)
_REFUSED = re.compile(
    r"(?P<kind>corrupt|unsafe|other|unsupported) (?P<text>(?:[0-9a-f]{2}){1,600}) "
    r"(?P<tensor>(?:[0-9a-f]{2}){1,4096}|-)",
    re.ASCII,
)
_FAILED = re.compile(r"failed (?P<number>\d{1,5})", re.ASCII)

_FETCH = "The file is damaged or was not fetched whole; fetch the checkpoint again."
_ALONE = "Save the model's state_dict() alone, without optimizer or trainer state."
_CONVERT = "Convert it where you trust its source: load it in torch and save it as safetensors."


def find_places(descriptor: int, path: Path) -> Generator[TensorPlace, None, None]:
    """Where the tensors of an open file lie, in its order; ranges are for the caller to check.

    To be used up or closed, as the child lives as long.

    Raises:
        CheckpointCorruptError: The file is damaged, or it cannot be read within the limits.
        UnsafePickleError: It holds more than tensors.
        UnsupportedDtypeError: A tensor is sparse or quantised, or has no data.
        CheckpointError: It cannot be read, or no process can be started.
        LimitError: The system allows no further process.
    """
    with closing(_answer(descriptor, path)) as answer:
        for line in answer:
            if line == "end":
                return
            try:
                place = _place(line)
                if place is None:
                    raise _failure(line, path)
            except UnicodeDecodeError as error:
                raise _rubbish(line, path) from error
            yield place


def _answer(descriptor: int, path: Path) -> Generator[str, None, None]:
    """The child's lines, of which the last says how it ended."""
    python = os.fsdecode(spawn.get_executable() or "")
    if not python:
        # Within another program there may be no Python to start: then the same without limits.
        yield from (line.removesuffix("\n") for line in lines(descriptor))
        return
    root = Path(__file__).parents[2]
    command = [python, "-I", "-S", "-c", _START, str(root), str(descriptor)]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    try:
        child = subprocess.Popen(  # noqa: S603 - our own code, and two paths of ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            pass_fds=(descriptor,),
            cwd="/",
        )
    except OSError as error:
        if limit := limits.no_process(error, f"which would read {path}"):
            raise limit from error
        raise CheckpointError(
            f"Cannot start the process that reads {path}: {error.strerror or error}.",
            hint="Reinstall the Python that deltastore runs in, or convert the file to safetensors "
            "where you trust its source.",
            path=str(path),
        ) from error
    with child:
        try:
            yield from _lines_of(child, path)
        finally:
            child.kill()


def _lines_of(child: subprocess.Popen[bytes], path: Path) -> Generator[str, None, None]:
    assert child.stdout is not None
    pipe = child.stdout.fileno()
    until = time.monotonic() + DEADLINE_SECONDS
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    total, rest = 0, b""
    while True:
        left = until - time.monotonic()
        if left <= 0 or not waiting.poll(1000 * left):
            raise _stopped(path, f"takes more than {DEADLINE_SECONDS} s to be read")
        piece = os.read(pipe, 1 << 16)
        if not piece:
            raise _stopped(path, _how(child))
        total += len(piece)
        *whole, rest = (rest + piece).split(b"\n")
        if total > MAX_ANSWER_BYTES or len(rest) > MAX_LINE_BYTES:
            raise _stopped(path, f"describes its tensors by more than {MAX_ANSWER_BYTES} bytes")
        for line in whole:
            yield line.decode("ascii", "replace")


def _how(child: subprocess.Popen[bytes]) -> str:
    """Why a child ended without saying so."""
    try:
        status = child.wait(1)
    except subprocess.TimeoutExpired:
        status = 0
    if status == -signal.SIGXCPU:
        return f"takes more than {MAX_SECONDS} s to be read"
    return f"cannot be read: the process that does it ended with status {status}"


def _place(line: str) -> TensorPlace | None:
    match = _TENSOR.fullmatch(line)
    if match is None:
        return None
    name = _text(match["name"])
    shape, stride = (
        () if match[sizes] == "-" else tuple(map(int, match[sizes].split(",")))
        for sizes in ("shape", "stride")
    )
    conjugate, negative, swapped = (flag == "1" for flag in match["flags"])
    if len(shape) != len(stride):
        return None
    marks = conjugate, negative, swapped
    return TensorPlace(name, match["dtype"], int(match["begin"]), shape, stride, marks)


def _text(digits: str) -> str:
    return "" if digits == "-" else bytes.fromhex(digits).decode("utf-8", "surrogatepass")


def _failure(line: str, path: Path) -> DeltastoreError:
    """The error that a last line tells of."""
    if failed := _FAILED.fullmatch(line):
        number = int(failed["number"])
        return file_error(OSError(number, os.strerror(number)), path, "read")
    if line == f"memory {MAX_MEMORY_BYTES}":
        return _stopped(path, f"takes more than {MAX_MEMORY_BYTES} bytes of memory to be read")
    match = _REFUSED.fullmatch(line)
    if match is None:
        return _rubbish(line, path)
    text, tensor = _text(match["text"]), _text(match["tensor"])
    if not text.isprintable():
        text = shown(text)
    if match["kind"] == "corrupt":
        return CheckpointCorruptError(f"{path} {text}.", hint=_FETCH, path=str(path))
    if match["kind"] == "other":
        return UnsafePickleError(f"{path} {text}.", hint=_ALONE, path=str(path))
    if match["kind"] == "unsafe":
        return UnsafePickleError(
            f"{path} holds more than tensors and was not loaded: {text}.",
            hint=_CONVERT,
            path=str(path),
        )
    return UnsupportedDtypeError(
        f"{path} stores {shown(tensor)} as a tensor that is {text}; expected a dense one.",
        hint="Call .dequantize() or .to_dense() on it, and save the checkpoint again.",
        path=str(path),
        tensor=tensor,
    )


def _stopped(path: Path, why: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(f"{path} {why}.", hint=_CONVERT, path=str(path))


def _rubbish(line: str, path: Path) -> CheckpointCorruptError:
    return _stopped(path, f"cannot be read: the process that does it wrote {shown(line[:80])}")
