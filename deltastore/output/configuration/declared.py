"""A quantisation that an output's ``config.json`` would declare, and its tensors do not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltastore.checkpoint.quantised import (
    Stored,
    declarations,
    is_declaration,
    method_of,
    quantised_weights,
)
from deltastore.output.ledger import Ledger, joined

Document = dict[str, Any]


def leave_out_declarations(
    output: Document,
    tensors: Mapping[str, Stored],
    ledger: Ledger,
    *,
    name: str,
    restoring: bool,
) -> Document:
    """``output`` without what declares a quantisation, at any nesting.

    A reader would take plain weights for packed ones, or quantise them anew. Only where the output
    is a quantised post, restored, is it right.

    Args:
        output: The document.
        tensors: The output's.
        ledger: Is told what is left out.
        name: The file's.
        restoring: The output is post, as far as is known.
    """
    said = {f"{key} ({method_of(value)})" for key, value in declarations(output)}
    if not said or (restoring and quantised_weights(tensors, output) is not None):
        return output
    ledger.warn(name, f"{joined(sorted(said))} is left out: the weights are not quantised")
    result = _without(output)
    assert isinstance(result, dict)
    return result


def _without(value: Any) -> Any:
    if isinstance(value, list):
        return [_without(item) for item in value]
    if isinstance(value, dict):
        return {k: _without(v) for k, v in value.items() if not is_declaration(k, v)}
    return value
