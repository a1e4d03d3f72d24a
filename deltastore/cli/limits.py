"""What a command's process may use: threads of libraries, memory; before either is used."""

from __future__ import annotations

import os

from deltastore.system import limits
from deltastore.system.threads import LEAST_BYTES, address_space


def use_few_threads() -> None:
    """Have numerical libraries start no threads of their own, unless the user says how many.

    Work is spread over our threads. Where one of theirs cannot be started, OpenBLAS sends its own
    process SIGINT and OpenMP ends it. For a command's process, before numpy is imported.
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # No kernel has threads of Numba's; a number that makes no sense would fail its import.
    os.environ["NUMBA_NUM_THREADS"] = "1"


def require_memory() -> None:
    """For commands that compute, before the libraries are loaded that do.

    Raises:
        LimitError: Loading them would end the process without a word, or never end.
    """
    limit = address_space()
    if limit is not None and limit < LEAST_BYTES:
        raise limits.too_little_memory(least=LEAST_BYTES)
