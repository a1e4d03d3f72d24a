"""Names that differ by what trainers and libraries put before or into them, recognised as such."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from deltastore.tensor_names.selectors import Renaming
from deltastore.tensor_names.token_rows import (
    StoredNames,
    head_ending,
    is_embedding,
    is_head,
    stand_in,
)

Rule = tuple[str, str]
"""A regular expression and what replaces it, as ``--map`` takes them."""

_WRAPPERS: tuple[Rule, ...] = (
    (r"^(module\.)+", ""),
    (r"(^|\.)(_orig_mod\.)+", r"\1"),
    (r"(^|\.)(_fsdp_wrapped_module\.)+", r"\1"),
    (r"(^|\.)(_checkpoint_wrapped_module\.)+", r"\1"),
    (r"^(_forward_module\.)+", ""),
    (r"^base_model\.model\.", ""),
    (r"\.base_layer\.", "."),
)
"""What stays in a name if a wrapped model's ``state_dict`` is saved rather than the model's own.

DistributedDataParallel and DataParallel, ``torch.compile``, FSDP, activation checkpointing,
Lightning, PEFT: no checkpoint that a library loads has them.
"""

_OLDER_NAMES: tuple[Rule, ...] = (
    (r"(^|\.)LayerNorm\.gamma$", r"\1LayerNorm.weight"),
    (r"(^|\.)LayerNorm\.beta$", r"\1LayerNorm.bias"),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
)
"""Names that older versions of the libraries gave, and that the present ones read as the new."""

_ADDED = (*_WRAPPERS, *_OLDER_NAMES)

_MOST_RULES = 8
_MOST_CANDIDATES = 32
_MOST_RENAMINGS = 8_000_000
"""So many names are renamed on trial, over all rules: some seconds. Models of a hundred thousand
tensors that differ by what their names begin with take a tenth of it."""

_MOST_PARTS = 16
"""Of a name's first parts, those that a beginning may have: the longest that are known have six."""


def recognised(names: Collection[str], known: Collection[str]) -> list[Rule]:
    """Rules that give tensors their names elsewhere, as far as these are recognised.

    What wrappers add is left out first. Then beginnings are exchanged, as ``model.`` and
    ``language_model.model.``: those that make the most names known ones, as long as that takes
    none from a tensor that has its name already and makes no two names one. A second name of a tied
    set counts as known: a head is never taken for embeddings. Layers are never renumbered.

    Args:
        names: The tensors' own names.
        known: Those that they may have elsewhere.

    Returns:
        Rules to be applied one after the other; empty if none makes more names known.
    """
    there, stored = set(known), StoredNames(known)
    now = {name: name for name in names}
    rules: list[Rule] = []
    before = matched = _matched(now.values(), stored)
    tries = _MOST_RENAMINGS // max(1, len(now))
    while len(rules) < _MOST_RULES and matched < len(now):
        best: tuple[int, Rule, dict[str, str]] | None = None
        for rule in (*_found(_ADDED, now.values()), *_beginnings(now.values(), there)):
            if not tries:
                break
            tries -= 1
            renamed = _renamed(now, rule)
            if renamed is None:
                continue
            gained = _matched(renamed.values(), stored)
            kept = all(renamed[own] == name for own, name in now.items() if name in there)
            if not kept or (gained <= matched and rule not in _ADDED):
                continue
            if rule in _ADDED:
                best = (gained, rule, renamed)
                break
            if best is None or gained > best[0]:
                best = (gained, rule, renamed)
        if best is None:
            break
        matched, rule, now = best
        rules.append(rule)
    rules += _beside_the_body(now, there)
    return rules if matched > before else []


def without_wrappers(
    names: Collection[str], known: Collection[str], *, always: bool = False
) -> dict[str, str] | None:
    """The names of one of two models without what wrappers add, if that makes more of them alike.

    Args:
        names: Its names.
        known: Those of the other, from which wrappers are left out likewise.
        always: Whether no model of its kind has such names of its own, so that they go although the
            other has them, too.

    Returns:
        The names that remain, by those that are; None where nothing is to be left out.
    """
    there = set(known)
    rules = [] if there >= set(names) else _unwrapping(names, _ADDED)
    if rules:
        now = renamed(names, rules)
        others = StoredNames(set(renamed(known, _unwrapping(known, _ADDED)).values()))
        if _matched(now.values(), others) > _matched(names, StoredNames(there)):
            return now
    rules = _unwrapping(names, _WRAPPERS) if always else []
    return renamed(names, rules) if rules else None


def with_newer_names(names: Collection[str]) -> dict[str, str]:
    """What present libraries call the tensors, by the names that they have."""
    return renamed(names, rules) if (rules := _unwrapping(names, _OLDER_NAMES)) else {}


def _unwrapping(names: Collection[str], among: Sequence[Rule]) -> list[Rule]:
    """Those of some rules that change names; empty where they would make two names one."""
    now = {name: name for name in names}
    rules: list[Rule] = []
    while found := _found(among, now.values()):
        renamed = _renamed(now, found[0])
        if renamed is None or len(rules) == _MOST_RULES:
            return []
        now = renamed
        rules.append(found[0])
    return rules


def as_options(rules: Iterable[Rule]) -> str:
    """Rules as they are typed."""
    return " ".join(f"--map '{old}={new}'" for old, new in rules)


def renamed(names: Collection[str], rules: Sequence[Rule]) -> dict[str, str]:
    """The names after all rules, by the names before.

    Raises:
        UsageError: A rule changes no name, or two names become one.
    """
    return Renaming.of(rules).names([names])[0]


def _matched(names: Iterable[str], known: StoredNames) -> int:
    """How many names are known ones, or second names of such in a tied set."""
    return sum(name in known or _is_second_name(name, known) for name in names)


def _is_second_name(name: str, known: StoredNames) -> bool:
    return stand_in(name, known, ties=True) is not None


def _found(rules: Sequence[Rule], names: Iterable[str]) -> list[Rule]:
    """The rules whose expressions are found in some of the names."""
    every = list(names)
    return [rule for rule in rules if any(re.search(rule[0], name) for name in every)]


def _beside_the_body(now: dict[str, str], known: Collection[str]) -> list[Rule]:
    """Rules for heads that have come under no known name, into what holds the embeddings.

    The other model ties its head, so that no name says where it would be. What holds the body is
    beside the head.
    """
    heads = [new for own, new in now.items() if new != own and new not in known and is_head(new)]
    if not heads:
        return []
    every = set(now.values())
    modules = [name.rpartition(".")[0] for name in every if is_embedding(name)]
    bodies = tuple({f"{body}." for module in modules if (body := module.rpartition(".")[0])})
    if len(bodies) > _MOST_RULES:
        return []  # of a model that has so many bodies none is the one that the head is beside
    return [
        (f"^{re.escape(head)}$", head_ending(head))
        for head in heads[:_MOST_RULES]
        if head.startswith(bodies) and head_ending(head) not in every
    ]


def _renamed(now: dict[str, str], rule: Rule) -> dict[str, str] | None:
    """The names after a rule; None if two become one, or none changes."""
    pattern, new = re.compile(rule[0]), rule[1]
    renamed = {own: pattern.sub(new, name) for own, name in now.items()}
    distinct = len(set(renamed.values())) == len(renamed)
    return renamed if distinct and renamed != now else None


def _beginnings(names: Iterable[str], known: set[str]) -> list[Rule]:
    """Exchanges of beginnings that the names' longest common endings suggest, commonest first."""
    every = set(names)
    unknown = every - known
    by_ending: dict[int, str | None] = {}
    for name in known - every:
        for ending in _endings(name):
            # By a number, as the endings of a hundred thousand long names fill the memory.
            key = hash(ending)
            by_ending[key] = None if key in by_ending else name
    found: Counter[tuple[str, str]] = Counter()
    for name in unknown:
        for ending in _endings(name):
            if (key := hash(ending)) not in by_ending:
                continue
            other = by_ending[key]
            # No more than ``weight`` in common is nothing, unless it is all of a name, or both
            # are what a model has one of.
            if other is not None and (
                "." in ending or ending in (name, other) or _are_alike(name, other)
            ):
                old, new = name.removesuffix(ending), other.removesuffix(ending)
                # Two names of a tied set are two names of one tensor, and both are right.
                tied = stand_in(name, [other], ties=True) == other
                if _digits(old) == _digits(new) and not tied:
                    found[old, new] += 1
            break
    rules = []
    for (old, new), _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))[
        :_MOST_CANDIDATES
    ]:
        rules.append((f"^{re.escape(old)}", _literal(new)))
        # Where some names begin otherwise, or have no beginning to be exchanged: by the next part.
        rest = (name.removeprefix(old) for name in unknown if name.startswith(old))
        for part in sorted({next_.split(".", 1)[0] for next_ in rest if "." in next_}):
            longer = f"{old}{part}."
            rules.append((f"^{re.escape(longer)}", _literal(f"{new}{part}.")))
    return rules[: 4 * _MOST_CANDIDATES]


def _are_alike(name: str, other: str) -> bool:
    """Whether both are a head, or both embeddings."""
    return (is_head(name) and is_head(other)) or (is_embedding(name) and is_embedding(other))


def _endings(name: str) -> Iterator[str]:
    """What a name ends with, whole parts, the longest first."""
    start = 0
    for _ in range(_MOST_PARTS):
        yield name[start:]
        start = name.find(".", start) + 1
        if not start:
            return


def _digits(beginning: str) -> list[str]:
    return [part for part in beginning.split(".") if part.isdigit()]


def _literal(text: str) -> str:
    """A beginning as ``re.sub`` takes it for a replacement."""
    return text.replace("\\", r"\\")
