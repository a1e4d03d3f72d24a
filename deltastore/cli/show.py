"""``deltastore show``: everything about one artifact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltastore.cli import options
from deltastore.cli.output import fields, table
from deltastore.cli.session import Session
from deltastore.cli.units import count, size

if TYPE_CHECKING:
    from deltastore.operations.show import Details, Error, Source, Tensor

_HEADER = ("TENSOR", "KIND", "DTYPE", "SHAPE", "CODEC", "STORED", "CHANGE")


@options.command("show")
@options.ref_argument
def command(session: Session, *, ref: str) -> None:
    """Show an artifact and its tensors."""
    from deltastore.operations.show import show

    with session.open_store() as store:
        details = show(store, ref)
    session.output.result(details, human=lambda: _human(details), quiet=[details.digest])


def _human(details: Details) -> Iterator[str]:
    yield f"{details.name}:v{details.version}  {details.digest}"
    yield from fields(
        [
            ("tags", ", ".join(details.tags)),
            ("base", _source(details.sources["base"])),
            ("post", _source(details.sources["post"])),
            ("codec", details.codec),
            ("exactness", details.exactness),
            ("error", _error(details.error)),
            ("use", "restores its own pair only" if details.restore_only else ""),
            (
                "stored",
                f"{size(details.stored_bytes)} for {size(details.raw_bytes)} of weights "
                f"({details.bits_per_weight:.2f} bits per weight)",
            ),
            (
                "tensors",
                f"{count(len(details.tensors), 'tensor')}, {details.unchanged:,} unchanged, "
                f"{count(details.parameters, 'parameter')}",
            ),
            ("files", ", ".join(f"{file.path} ({file.side})" for file in details.files)),
            ("not stored", ", ".join(details.not_stored)),
            ("created", f"{details.created} by {details.created_by} with {details.tool}"),
        ]
    )
    yield ""
    rows = [_HEADER, *map(_row, details.tensors)]
    if details.error is not None:
        errors = (_share(t.error.relative if t.error else None) for t in details.tensors)
        rows = [(*row, error) for row, error in zip(rows, ("ERROR", *errors), strict=True)]
    yield from table(rows[0], rows[1:], right="     rrr"[: len(rows[0])])


def _source(source: Source) -> str:
    """A source checkpoint by its label, where it is on the hub, and what it holds."""
    on_hub = f"{source.repo}@{source.revision}" if source.repo and source.revision else ""
    known_as = f"{source.label} ({on_hub})" if on_hub else source.label
    return f"{known_as}  {source.content}"


def _error(error: Error | None) -> str:
    """How far the deltas are off, over what they are, and at most."""
    return (
        "" if error is None else f"{_share(error.relative)} of the delta, {error.max:.3g} at most"
    )


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.3%}"


def _row(tensor: Tensor) -> tuple[str, ...]:
    return (
        tensor.name,
        tensor.kind,
        tensor.dtype,
        "x".join(map(str, tensor.shape)) or "scalar",
        tensor.codec or "-",
        size(tensor.bytes),
        _share(tensor.relative_change),
    )
