"""Whether deltas fit a new base, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from deltastore.checkpoint import Weights
from deltastore.errors import StructureMismatchError, UsageError
from deltastore.structure.matching import Matching
from deltastore.structure.places import Delta, Mismatch, Report
from deltastore.tensor_names.recognising import Rule, as_options, recognised, renamed
from deltastore.tensor_names.token_rows import has_tokens

_SAME_FIELDS = ("num_attention_heads", "num_key_value_heads", "head_dim", "n_head")
"""Fields of ``config.json`` that say how a matrix is cut, which its shape does not show."""


def check_structure(
    base: Weights,
    deltas: Sequence[Delta],
    *,
    partial: bool,
    config: Mapping[str, Any] | None = None,
) -> Report:
    """Find a place for every tensor of every delta in the new base.

    Args:
        base: The new base.
        deltas: What is to be applied.
        partial: Go on with what fits.
        config: The new base's ``config.json``, if known.

    Raises:
        StructureMismatchError: Something cannot be matched and ``partial`` is false; ``facts``
            lists all of it.
    """
    report = Report()
    for delta in deltas:
        Matching(base, delta, report, config, alone=len(deltas) == 1).run()
    # A base of another size has other heads too: tensors say so better.
    for delta in deltas if not report.all else ():
        _compare_configs(config or {}, delta, report)
    report.skipped = sorted(set(report.skipped))
    if report.all and not partial:
        raise _mismatch_error(base, deltas, report, config)
    return report


def _compare_configs(config: Mapping[str, Any], delta: Delta, report: Report) -> None:
    source = delta.source_config or {}
    for where in ("", "text_config"):
        ours, theirs = (part.get(where) if where else part for part in (config, source))
        for key in _SAME_FIELDS:
            got, wanted = (p.get(key) if isinstance(p, Mapping) else None for p in (ours, theirs))
            if isinstance(got, int) and isinstance(wanted, int) and got != wanted:
                name = f"config.json {where}{'.' if where else ''}{key}"
                problem = f"expected {wanted} as in the base of {delta.ref}, got {got}"
                report.mismatched.append(Mismatch(name, problem))


def _mismatch_error(
    base: Weights,
    deltas: Sequence[Delta],
    report: Report,
    config: Mapping[str, Any] | None,
) -> StructureMismatchError:
    refs = ", ".join(delta.ref for delta in deltas)
    return StructureMismatchError(
        f"{base.path} does not have the structure that {refs} was extracted from: "
        f"{report.summary}.",
        hint=_hint(base, deltas, report, config),
        missing=[(m.name, m.problem) for m in report.missing],
        extra=[(m.name, m.problem) for m in report.extra],
        mismatched=[(m.name, m.problem) for m in report.mismatched],
    )


def _hint(
    base: Weights,
    deltas: Sequence[Delta],
    report: Report,
    config: Mapping[str, Any] | None,
) -> str:
    """What helps; what is advised was tried."""
    if any(delta.config.restore_only for delta in deltas):
        return "What was stored for restoration only goes onto its own base, as `--base`, alone."
    if report.missing and report.extra:
        own = {entry.name: entry for delta in deltas for entry in delta.config.tensors}
        if any(delta.named(e) != e.name for delta in deltas for e in delta.config.tensors):
            if _fits(base, [replace(delta, names={}) for delta in deltas], config):
                return "The names are the new base's without `--map`: leave it out."
        else:
            rules = recognised([n for n, e in own.items() if e.base is not None], base.tensors)
            if rules and _fits(base, [_renamed(delta, rules) for delta in deltas], config):
                return f"The names differ by what they begin with: give `{as_options(rules)}`."
    if report.mismatched and all(has_tokens(m.name) for m in report.all):
        return "Only rows of tokens differ: give `--skip-embeddings` to leave them as they are."
    if all(report.places):
        return "Choose another base, or give `--partial` to apply what fits and list the rest."
    return "Choose another base: `deltastore resolve --base CKPT` says what fits."


def _renamed(delta: Delta, rules: Sequence[Rule]) -> Delta:
    try:
        return replace(delta, names=renamed([e.name for e in delta.config.tensors], rules))
    except UsageError:  # of several deltas, one that the rules do not fit
        return delta


def _fits(base: Weights, deltas: Sequence[Delta], config: Mapping[str, Any] | None) -> bool:
    """Whether every tensor finds its place."""
    report = Report()
    for delta in deltas:
        Matching(base, delta, report, config, alone=len(deltas) == 1).run()
    return not report.all
