"""Runs one target under atheris; ``scripts/fuzz`` calls it.

    python tests/fuzz/fuzz.py TARGET CORPUS [LIBFUZZER OPTION]...

Seeds are written into the directory CORPUS first.
"""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path

import atheris
from mutate import mutated

_ROOT = Path(__file__).parents[2]

# Numba compiles bytecode and does not know atheris's; the kernels are told by their callers.
_KERNELS = [
    "deltastore.kernels.jit",
    *(
        ".".join(path.relative_to(_ROOT).with_suffix("").parts)
        for path in sorted((_ROOT / "deltastore").rglob("*.py"))
        if "@kernel" in path.read_text()
    ),
]

with atheris.instrument_imports(include=["deltastore", "targets"], exclude=_KERNELS):
    import targets


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    name, corpus = sys.argv[1], Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in targets.seeds(name):
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        # Kernels are compiled before the clock of a single input runs.
        targets.run(name, seed)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        return mutated(draw, name, data)[:max_size]

    arguments = [sys.argv[0], *sys.argv[2:]]
    atheris.Setup(arguments, lambda data: targets.run(name, data), custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
