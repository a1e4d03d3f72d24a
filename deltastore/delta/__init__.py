"""Arithmetic on chunks of weights: subtract to get a delta, add to apply one.

A *delta chunk* is an array of float bits: uint32 holding float32 where both source tensors have
16 bits or fewer (*narrow*), uint64 holding float64 where one of them is float32 or float64
(*wide*). The reserved bits ``KEEP`` / ``KEEP_WIDE`` mark elements whose bits are equal in base
and post; applying leaves such an element of the new base as it is.
"""

from deltastore.delta.add import Term, add, add_tokens
from deltastore.delta.products import Products, products
from deltastore.delta.subtract import (
    Difference,
    are_differences,
    is_wide,
    subtract,
    subtract_to_tokens,
)

__all__ = [
    "Difference",
    "Products",
    "Term",
    "add",
    "add_tokens",
    "are_differences",
    "is_wide",
    "products",
    "subtract",
    "subtract_to_tokens",
]
