"""What ``extract`` and ``compose`` print of the artifact that they stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from deltastore.cli.output import fields, message
from deltastore.cli.session import Session
from deltastore.cli.units import count, duration, size

if TYPE_CHECKING:
    from deltastore.extraction.result import ExtractResult


def show(session: Session, result: ExtractResult, more: Sequence[tuple[str, str]] = ()) -> None:
    """Print the result; ``more`` are fields that come before the others."""
    if result.resumed_bytes and not session.quiet:
        message(
            "resumed",
            f"{size(result.resumed_bytes)} of parts were in the store already",
        )
    session.output.result(result, human=lambda: _human(result, more), quiet=[result.ref])


def _human(result: ExtractResult, more: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield f"{result.ref}  {result.digest}"
    yield from fields(
        [
            *more,
            (
                "stored",
                f"{size(result.stored_bytes)} for {size(result.raw_bytes)} of weights "
                f"({result.bits_per_weight:.2f} bits per weight, codec {result.codec})",
            ),
            (
                "tensors",
                f"{count(result.tensors, 'tensor')}, {result.unchanged:,} unchanged, "
                f"{result.patched:,} with a restore patch",
            ),
            ("change", _change(result)),
            ("reused", "the store had this pair already" if result.reused else ""),
            ("took", duration(result.seconds)),
        ]
    )


def _change(result: ExtractResult) -> str:
    """How far post-training went."""
    if result.relative_change is None:
        return ""
    near = "" if result.cosine is None else f", cosine {result.cosine:.4f} of post with base"
    return f"{result.relative_change:.2%} of the weights{near}"
