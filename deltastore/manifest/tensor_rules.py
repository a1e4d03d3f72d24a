"""What a tensor may be called and how large it may be, wherever its name and shape come from.

One place for all that read or write them: headers of checkpoints, their indices, the tensor table
of an artifact, and the headers of outputs. What one accepts, the others do.
"""

from __future__ import annotations

from collections.abc import Sequence

from deltastore.errors import shown
from deltastore.manifest import format as fmt

METADATA = "__metadata__"
"""What a safetensors header calls its own metadata, in the place of a tensor's name."""


def name_problem(name: str) -> str | None:
    """Why no tensor may be called so, as "has …, expected …"; None if it may."""
    if not 0 < len(name) <= fmt.MAX_NAME_CHARS:
        return f"a tensor name of {len(name)} characters; expected 1 to {fmt.MAX_NAME_CHARS}"
    if not name.isprintable():
        return f"the tensor name {shown(name)}; expected printable characters only"
    if name == METADATA:
        return f"the tensor name {METADATA}; expected another, as safetensors keeps this one"
    return None


def shape_problem(shape: Sequence[int]) -> str | None:
    """Why no tensor may have this shape, as "has …, expected …"; None if it may."""
    if len(shape) > fmt.MAX_DIMENSIONS:
        return f"{len(shape)} dimensions; expected at most {fmt.MAX_DIMENSIONS}"
    elements = 1
    for size in shape:
        if size < 0:
            return "a size below zero"
        # A zero does not make the other factors harmless to those who multiply in 64 bits.
        elements *= size or 1
    if elements > fmt.MAX_ELEMENTS:
        return f"a shape of more than {fmt.MAX_ELEMENTS} elements, zeros apart"
    return None
