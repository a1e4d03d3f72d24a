"""The one place that knows how kernels are compiled and where the result is kept.

Kernels compile on their first call and are cached beside their source, or, where that directory
is read-only, in the user's cache directory. Where neither can be written each process compiles
again; that costs seconds, so it is said once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
from numba.extending import intrinsic

SOURCES = ("jit.py", "tokens.py", "manifest/format.py", "delta/*.py", "codecs/*.py")
"""Where kernels, what they call and their constants are written, inside the package."""

_warned = False


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` without the interpreter lock, without fast-math, cached on disk.

    No fast-math: products and sums round separately and are not reordered, which is what makes
    results equal to the documented expression bit for bit on every machine.
    """
    # A cached kernel has what it calls, and constants, compiled into it, and Numba looks only at
    # the one file that it is written in. The name, under which it is cached, is that of them all.
    function.__qualname__ = f"{function.__qualname__}-{_digest()}"
    try:
        return _compile(function, cache=True)
    except RuntimeError:  # numba found no directory in which it may write
        _warn_once()
        return _compile(function, cache=False)


def _compile(function: Callable[..., Any], *, cache: bool) -> Callable[..., Any]:
    with _no_directory_called_tilde():
        return numba.njit(  # type: ignore[no-any-return]
            function, cache=cache, nogil=True, error_model="numpy"
        )


@contextmanager
def _no_directory_called_tilde() -> Iterator[None]:
    """Where there is no home directory, let Numba find no cache in it.

    It would make a directory called "~" in the working directory: there, or where NUMBA_CACHE_DIR
    begins with one that no shell has expanded.
    """
    given: str = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    found = os.path.expanduser(given)  # noqa: PTH111 - names nothing that could be missing
    _set_cache_directory("" if found.startswith("~") else found)
    cache_home = os.environ.get("XDG_CACHE_HOME")
    homeless = not Path(cache_home or os.path.expanduser("~")).is_absolute()  # noqa: PTH111
    if homeless:
        os.environ["XDG_CACHE_HOME"] = os.devnull
    try:
        yield
    finally:
        _set_cache_directory(given)
        if homeless and cache_home is None:
            del os.environ["XDG_CACHE_HOME"]
        elif homeless and cache_home is not None:
            os.environ["XDG_CACHE_HOME"] = cache_home


def _set_cache_directory(path: str) -> None:
    numba.config.CACHE_DIR = path  # type: ignore[attr-defined]


@cache
def _digest() -> str:
    """Of the text of all sources."""
    package = Path(__file__).parent
    hasher = sha256()
    for pattern in SOURCES:
        for path in sorted(package.glob(pattern)):
            hasher.update(path.read_bytes())
    return hasher.hexdigest()[:16]


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        print(
            "deltastore: no writable directory for compiled kernels, so each process compiles "
            "them again; set NUMBA_CACHE_DIR to a writable directory.",
            file=sys.stderr,
        )


def _reinterpreter(source: Any, target: Any) -> Callable[..., Any]:
    """A compiled function that reads the bits of a ``source`` number as a ``target`` number."""

    @intrinsic
    def reinterpret(_typing: Any, _value: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), generate

    return reinterpret


float32_from_bits = _reinterpreter(numba.types.uint32, numba.types.float32)
bits_from_float32 = _reinterpreter(numba.types.float32, numba.types.uint32)
float64_from_bits = _reinterpreter(numba.types.uint64, numba.types.float64)
bits_from_float64 = _reinterpreter(numba.types.float64, numba.types.uint64)
