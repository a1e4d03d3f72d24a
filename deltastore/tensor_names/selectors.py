"""``--map 'old=new'`` and ``--scale-for 'pattern=x'``: what is said of tensors by their names."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from deltastore.errors import UsageError, shown

if TYPE_CHECKING:
    import regex

_FORM = (
    r"Give it as 'old=new', where old is a regular expression, as in '^model\.=language_model.'."
)
_MAX_SECONDS = 2.0
"""So long all expressions may search all names. Of a hundred thousand names each takes half a
second; one whose repeated parts can match a name in many ways would never end."""

_MAX_FLOAT32 = 3.4028234e38


def is_scale(value: float) -> bool:
    """Whether α can be ``value``: a finite float32 number."""
    return math.isfinite(value) and abs(value) <= _MAX_FLOAT32


@dataclass(frozen=True, slots=True)
class Renaming:
    r"""Names of a delta's tensors as the new base has them.

    Each rule replaces its regular expression wherever it is found in a name; rules follow on each
    other in the order given, and ``new`` may refer to groups, as in ``\1``.
    """

    rules: tuple[tuple[regex.Pattern[str], str], ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Renaming:
        """Rules of the form ``old=new``; the last ``=`` divides.

        Raises:
            UsageError: One of them has another form, or is no regular expression.
        """
        pairs = []
        for text in texts:
            old, divider, new = text.rpartition("=")
            if not divider or not old:
                raise UsageError(f"{text!r} is no renaming.", hint=_FORM)
            pairs.append((old, new))
        return cls.of(pairs)

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Renaming:
        """Rules from pairs of old and new.

        Raises:
            UsageError: One of them is no regular expression.
        """
        # Python's own expressions cannot be stopped; these can, and read the same language.
        import regex

        rules = []
        for old, new in pairs:
            try:
                rules.append((regex.compile(old), new))
            except (regex.error, RecursionError, OverflowError) as error:
                raise _no_map(old, new, error) from error
        return cls(tuple(rules))

    def names(self, tables: Sequence[Iterable[str]]) -> list[dict[str, str]]:
        """The new names of several deltas' tensors, by their own.

        Raises:
            UsageError: A rule changes no name of any of them, or two names become one, or the
                rules take longer than two seconds of the processor.
        """
        deadline = time.process_time() + _MAX_SECONDS
        used = [False] * len(self.rules)
        result = []
        for table in tables:
            renamed: dict[str, str] = {}
            owner: dict[str, str] = {}
            for name in table:
                now = name
                for number, (pattern, new) in enumerate(self.rules):
                    before = now
                    now = _replaced(pattern, new, before, deadline)
                    used[number] |= before != now
                if now in owner:
                    raise UsageError(
                        f"{owner[now]} and {name} would both be called {now}.",
                        hint="Give a `--map` that keeps names apart.",
                    )
                owner[now] = name
                renamed[name] = now
            result.append(renamed)
        for (pattern, _), one in zip(self.rules, used, strict=True):
            if not one:
                raise UsageError(
                    f"`--map` {pattern.pattern!r} changes the name of no tensor of the delta.",
                    hint="See its names with `deltastore show REF`.",
                )
        return result


def _replaced(pattern: regex.Pattern[str], new: str, name: str, deadline: float) -> str:
    """A name after a rule.

    Raises:
        UsageError: The rule takes longer than until the deadline, or refers to no group.
    """
    import regex

    try:
        # A limit of no time at all counts as none.
        replaced: str = pattern.sub(new, name, timeout=max(1e-6, deadline - time.process_time()))
        return replaced
    except TimeoutError as error:
        raise UsageError(
            f"`--map` {shown(pattern.pattern)} did not get through the names of the tensors in "
            f"{_MAX_SECONDS:.0f} seconds; the one that it was searching is {shown(name)}.",
            hint="Repeated parts within repeated parts, as in '(a+)+', can match in too many "
            "ways: give a simpler expression.",
        ) from error
    except (regex.error, IndexError) as error:  # no such group
        raise _no_map(pattern.pattern, new, error) from error


def _no_map(old: str, new: str, error: Exception) -> UsageError:
    return UsageError(f"'{old}={new}' cannot be used to rename: {error}.", hint=_FORM)


@dataclass(frozen=True, slots=True)
class ScaleRule:
    """α of the tensors whose name matches a pattern: one for all deltas, or one for each."""

    pattern: str
    scales: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> ScaleRule:
        """``pattern=x``, or ``pattern=x,y`` with a scale for each delta.

        Raises:
            UsageError: It has another form.
        """
        pattern, _, numbers = text.rpartition("=")
        try:
            scales = [float(number) for number in numbers.split(",")]
        except ValueError:
            scales = []
        if not pattern or not scales:
            raise UsageError(
                f"{text!r} is no scale for a pattern of names.",
                hint="Give it as in 'model.layers.*.mlp.*=0.7', or with a number for each ref: "
                "'model.layers.*.mlp.*=0.7,0.3'.",
            )
        return cls.checked(pattern, scales)

    @classmethod
    def checked(cls, pattern: str, scales: Sequence[float]) -> ScaleRule:
        """The rule, if every scale is a finite float32 number.

        Raises:
            UsageError: One is not.
        """
        if not all(map(is_scale, scales)):
            raise UsageError(
                f"The scale for {pattern!r} should be a finite float32 number.",
                hint="Give another scale.",
            )
        return cls(pattern, tuple(scales))

    def of(self, delta: int) -> float:
        """α for a delta by its number."""
        return self.scales[delta] if len(self.scales) > 1 else self.scales[0]


class Scales:
    """α of every tensor and delta. The last rule whose pattern matches a name counts.

    Args:
        scales: α of each delta where no rule matches.
        rules: Exceptions. ``*`` in a pattern stands for any characters, dots included.

    Raises:
        UsageError: A rule has scales for another number of deltas.
    """

    def __init__(self, scales: Sequence[float], rules: Sequence[ScaleRule] = ()) -> None:
        self.scales = tuple(scales)
        self.rules = tuple(rules)
        for rule in rules:
            if len(rule.scales) not in (1, len(scales)):
                raise UsageError(
                    f"{len(rule.scales)} scales were given for {rule.pattern!r} and "
                    f"{len(scales)} refs.",
                    hint="Give one for all, or one for each ref.",
                )

    def __call__(self, name: str, delta: int) -> float:
        """α of a delta for the output tensor ``name``."""
        for rule in reversed(self.rules):
            if fnmatchcase(name, rule.pattern):
                return rule.of(delta)
        return self.scales[delta]

    def check_used(self, names: Iterable[str]) -> None:
        """Refuse a pattern that matches none of these names: it is most likely mistyped.

        Raises:
            UsageError: There is one.
        """
        every = list(names)
        for rule in self.rules:
            if not any(fnmatchcase(name, rule.pattern) for name in every):
                raise UsageError(
                    f"`--scale-for` {rule.pattern!r} matches no tensor of the output.",
                    hint="See the names with `deltastore show REF`; * stands for any characters.",
                )


def checked_scales(refs: Sequence[str], scales: Sequence[float]) -> list[float]:
    """A scale for each ref: 1 for all if none is given.

    Raises:
        UsageError: Their numbers differ, or a scale is no finite float32 number.
    """
    if not refs:
        raise UsageError("There is nothing to apply: no ref was given.", hint="Give a ref.")
    if not scales:
        return [1.0] * len(refs)
    if len(scales) != len(refs):
        raise UsageError(
            f"{len(scales)} scales were given for {len(refs)} refs.",
            hint="Give one `--scale` for each ref, or none.",
        )
    for ref, scale in zip(refs, scales, strict=True):
        if not is_scale(scale):
            raise UsageError(
                f"The scale of {ref} is {scale:g}; expected a finite float32 number.",
                hint="Give another scale; 1 adds the delta as it was measured.",
            )
    return [float(scale) for scale in scales]
