"""The one place that knows how kernels are compiled and where the result is kept.

Kernels compile on their first call and are cached beside their source, or, where that directory
is read-only, in the user's cache directory. Where neither can be written, or the disk is full, each
process compiles again; that costs seconds, so it is said once. What is cached has a digest: of a
file that was cut short or damaged nothing reaches the linker, which would end the process.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.serialize import dumps
from numba.extending import intrinsic

SOURCES = ("kernels/*.py", "manifest/format.py", "delta/*.py", "codecs/*.py")
"""Where kernels, what they call and their constants are written, inside the package."""

_NO_PLACE = "no directory for compiled kernels can be written"

_warned = False


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` without the interpreter lock, without fast-math, cached on disk.

    No fast-math: products and sums round separately and are not reordered, which is what makes
    results equal to the documented expression bit for bit on every machine.
    """
    # A cached kernel has what it calls, and constants, compiled into it, and Numba looks only at
    # the one file that it is written in. The name, under which it is cached, is that of them all.
    function.__qualname__ = f"{function.__qualname__}-{_digest()}"
    compiled: Any = numba.njit(function, nogil=True, error_model="numpy")
    try:
        if compiled is not function:  # as it is with NUMBA_DISABLE_JIT
            # As ``cache=True`` does, with a cache that may fail.
            with _no_directory_called_tilde():
                compiled._cache = _KernelCache(function)  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError):  # numba found no directory in which it may write
        _warn_once(_NO_PLACE)
    return compiled  # type: ignore[no-any-return]


@contextlib.contextmanager
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


class _CheckedKernel(CompileResultCacheImpl):
    """How a compiled kernel becomes bytes and back: with their digest before them."""

    def reduce(self, data: Any) -> tuple[bytes, bytes]:
        """What is kept of a compiled kernel."""
        payload: bytes = dumps(super().reduce(data))  # type: ignore[no-untyped-call]
        return sha256(payload).digest(), payload

    def rebuild(self, target_context: Any, reduced_data: Any) -> Any:
        """The compiled kernel.

        Raises:
            ValueError: It is not what was kept.
        """
        digest, payload = reduced_data
        if sha256(payload).digest() != digest:
            raise ValueError("a compiled kernel has another digest")
        # From the file that numba unpickles as well.
        kept = pickle.loads(payload)  # noqa: S301
        return super().rebuild(target_context, kept)  # type: ignore[no-untyped-call]


class _KernelCache(FunctionCache):
    """A kernel's cache, of which nothing that goes wrong is a failure."""

    _impl_class = _CheckedKernel

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled kernel for a signature; None where there is none that is whole."""
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except Exception:  # noqa: BLE001 - damaged bytes raise whatever they like
            # Its index is the first thing that may be damaged, and saving reads it.
            with contextlib.suppress(OSError):
                self.flush()  # type: ignore[no-untyped-call]
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel, if that can be done."""
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 - it was compiled, which is what counts
            why = getattr(error, "strerror", None) or error
            _warn_once(f"compiled kernels cannot be kept in {self.cache_path}: {why}")


@cache
def _digest() -> str:
    """Of the text of all sources."""
    package = Path(__file__).parents[1]
    hasher = sha256()
    for pattern in SOURCES:
        for path in sorted(package.glob(pattern)):
            hasher.update(path.read_bytes())
    return hasher.hexdigest()[:16]


def _warn_once(problem: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        print(
            f"deltastore: {problem}, so each process compiles them again; set NUMBA_CACHE_DIR to "
            "a directory that can be written.",
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
