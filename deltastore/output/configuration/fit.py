"""The output's ``config.json`` made to fit its tensors, or the application refused.

New base, source bases and posts are examples of how documents stand to tensors (``sizes.py``).
What they say of a number holds for the output, too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltastore.checkpoint import TensorInfo
from deltastore.checkpoint.documents import same
from deltastore.errors import StructureMismatchError, shown
from deltastore.manifest import TensorEntry
from deltastore.merging.recipes import Recipe
from deltastore.output.configuration.ids import holds_ids
from deltastore.output.configuration.sizes import (
    COUNT,
    LENGTH,
    Example,
    Kind,
    Law,
    Measure,
    Path,
    Shapes,
    fields,
    kind_of,
    kind_of_field,
    likely,
    measures,
    proven,
    shown_path,
    stack_counts,
    stacks_of,
)
from deltastore.tensor_names.token_rows import has_tokens

Document = dict[str, Any]

_BUFFERS = ("inv_freq", "masked_bias", "attn.bias", "position_ids", "num_batches_tracked")
"""What libraries saved once and compute today: there or not, it is no part of a structure."""

_BY_CHANCE = 16
"""Smaller numbers are in many fields that do not mean them."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What a delta shows: documents and tensors of its source base and its post.

    Attributes:
        before: The source base's document; None if it is not known.
        after: Post's.
        tensors: The delta's tensors by the output's names.
    """

    before: Document | None
    after: Document | None
    tensors: Mapping[str, TensorEntry]


def fitted(
    own: Document,
    output: Document,
    base: Mapping[str, TensorInfo],
    recipes: Mapping[str, Recipe],
    pairs: Sequence[Pair],
    *,
    ruled: frozenset[str] = frozenset(),
    restoring: bool = False,
) -> Document:
    """The output's document with the numbers that its tensors show.

    Args:
        own: The new base's document.
        output: The output's, as far as it is known.
        base: The new base's tensors.
        recipes: The output's tensors.
        pairs: What is known of each delta.
        ruled: Fields that follow rules of their own.
        restoring: The output's document is post's, as is all of the output.

    Raises:
        StructureMismatchError: No document fits the output's tensors, as far as the new base and
            the deltas show what a document says of tensors.
    """
    shapes = {name: recipe.output.shape for name, recipe in recipes.items()}
    if shapes == {name: info.shape for name, info in base.items()} and fields(own) == fields(
        output
    ):
        return output
    try:
        return _Fit(own, output, base, recipes, pairs).run(ruled)
    except StructureMismatchError:
        if restoring and shapes == _shapes_of_post(pairs[-1]):
            return output  # post's own document beside post's own tensors
        raise


def _shapes_of_base(pair: Pair) -> dict[str, tuple[int, ...]]:
    return {name: e.base.shape for name, e in pair.tensors.items() if e.base is not None}


def _shapes_of_post(pair: Pair) -> dict[str, tuple[int, ...]]:
    return {name: e.post.shape for name, e in pair.tensors.items() if e.post is not None}


class _Pair:
    """A pair, measured."""

    def __init__(self, pair: Pair) -> None:
        self.documents = pair.before, pair.after
        self.tensors = pair.tensors
        self.said = fields(pair.before), fields(pair.after)
        self.shapes = _shapes_of_base(pair), _shapes_of_post(pair)
        self.shown: tuple[dict[Measure, int], dict[Measure, int]] = ({}, {})
        self.added = {n for n, e in pair.tensors.items() if e.base is None}
        self.removed = {n for n, e in pair.tensors.items() if e.post is None}
        here, there = (_modules(pair.tensors.keys() - gone) for gone in (self.added, self.removed))
        self.common = here.keys() & there.keys()

    def examples(self, measure: Measure) -> Iterator[Example]:
        for document, said, shown_ in zip(self.documents, self.said, self.shown, strict=True):
            if document is not None and measure in shown_:
                yield Example(said, shown_[measure])

    def moved(self, measure: Measure) -> bool:
        before, after = (shown_.get(measure) for shown_ in self.shown)
        return before is not None and after is not None and before != after

    @property
    def renamed_class(self) -> bool:
        """Whether post is of another class, whose name says which tensors there are."""
        before, after = self.documents
        if before is None or after is None or "architectures" not in after:
            return False
        return not same(after["architectures"], before.get("architectures"))


class _Fit:
    def __init__(
        self,
        own: Document,
        output: Document,
        base: Mapping[str, TensorInfo],
        recipes: Mapping[str, Recipe],
        pairs: Sequence[Pair],
    ) -> None:
        self._own, self._output = own, copy.deepcopy(output)
        self._base, self._recipes = base, recipes
        self._pairs = [_Pair(pair) for pair in pairs]
        self._own_said = fields(own)
        before = {n: r.base.shape for n, r in recipes.items() if r.base is not None}
        before |= {name: info.shape for name, info in base.items()}
        after = {name: recipe.output.shape for name, recipe in recipes.items()}
        shapes = [before, after, *(side for pair in self._pairs for side in pair.shapes)]
        self._before, self._after, *shown_ = _measured(shapes)
        for number, pair in enumerate(self._pairs):
            pair.shown = shown_[2 * number], shown_[2 * number + 1]
        self._claims: dict[Path, dict[int, Measure]] = {}
        self._known: dict[tuple[object, ...], list[Law]] = {}

    def run(self, ruled: frozenset[str]) -> Document:
        unsaid = []
        for measure, value in self._after.items():
            laws = self._laws(measure)
            changed = self._before.get(measure, value) != value
            for law in laws:
                self._claim(measure, law, value)
            if changed and not laws:
                unsaid.append(measure)
        self._settle()
        for pair in self._pairs:
            self._check_stacks(pair)
            self._follow_structure(pair, ruled)
        for path, wanted in self._claims.items():
            for value, measure in wanted.items():
                self._put(path, value, measure)
        said = set(fields(self._output).values())
        for measure in unsaid:
            self._require_said(measure, said)
        return self._output

    # --- what fields say ---------------------------------------------------------------------

    def _laws(self, measure: Measure) -> list[Law]:
        value, before = self._after[measure], self._before.get(measure)
        known = [] if before is None else [Example(self._own_said, before)]
        known += [example for pair in self._pairs for example in pair.examples(measure)]
        moved = any(pair.moved(measure) for pair in self._pairs)
        kind = self._kind(measure)
        if kind is None and not moved and len({value, *(n for _, n in known)}) < 2:
            return []
        name = measure.name if kind is not None else ""
        key = (kind, name, value, before, moved, tuple(number for _, number in known))
        if key not in self._known:
            self._known[key] = self._learned(measure, kind, known)
        return self._known[key]

    def _learned(self, measure: Measure, kind: Kind | None, known: list[Example]) -> list[Law]:
        laws = proven(known, kind)
        before = self._before.get(measure)
        own = [law for law in laws if law.path in self._own_said]
        if own:
            if kind is not None and before is not None:
                # The new base may say it in a second place, of which no other document knows.
                others = {path for one in known[1:] for path in one.fields}
                own += [
                    law for law in likely(known[:1], kind, measure.name) if law.path not in others
                ]
            return own
        if kind is not None:
            # Post's document may be stale where it resized a tensor, and says nothing then.
            stale = [pair.said[1] for pair in self._pairs if pair.moved(measure)]
            trusted = [one for one in known if not any(one.fields is said for said in stale)]
            found = likely(trusted, kind, measure.name) if trusted else []
            if before is None:
                found = [law for law in found if law.path in self._own_said]
            if found:
                return found
            if not laws and before not in (None, self._after[measure]):
                return self._of_post(measure, kind)
        return laws

    def _of_post(self, measure: Measure, kind: Kind) -> list[Law]:
        """What post alone says of a number that is post's, as where base had rows to spare."""
        value = self._after[measure]
        return [
            Law(path)
            for pair in self._pairs
            if pair.moved(measure) and pair.shown[1][measure] == value
            for path, said in pair.said[1].items()
            if said == value != pair.said[0].get(path)
            and kind_of_field(path) == kind
            and path in self._own_said
        ]

    def _kind(self, measure: Measure) -> Kind | None:
        recipe = self._recipes.get(measure.name)
        kind = kind_of(measure, 0 if recipe is None else len(recipe.output.shape))
        if kind is None and recipe is not None and not measure.axis:
            # A matrix under another name that grew as the vocabulary does.
            before = self._before.get(measure)
            if len(recipe.output.shape) == 2 and before not in (None, self._after[measure]):
                paths = [path for path, said in self._own_said.items() if said == before]
                if paths and all(kind_of_field(path) == "vocabulary" for path in paths):
                    return "vocabulary"
        return kind

    def _claim(self, measure: Measure, law: Law, value: int) -> None:
        wanted = law.field(value)
        if wanted is None:
            raise self._refusal(measure, law.path, f"a multiple of {law.factor}")
        self._claims.setdefault(law.path, {}).setdefault(wanted, measure)

    def _settle(self) -> None:
        """Refuse two tensors that would need one field to say two numbers."""
        for path, wanted in self._claims.items():
            if len(wanted) > 1:
                (one, first), (other, second) = list(wanted.items())[:2]
                raise StructureMismatchError(
                    f"config.json's {shown_path(path)} says {first} and {second}; expected one "
                    f"number for both, got {one} and {other}.",
                    hint=self._hint(first, second),
                    field=shown_path(path),
                    tensors=[first.name, second.name],
                )

    # --- what is written ---------------------------------------------------------------------

    def _put(self, path: Path, wanted: int, measure: Measure) -> None:
        """Have a field say a number that a tensor shows."""
        said = fields(self._output).get(path)
        if said == wanted:
            return
        whole = path[:-1] if path[-1] == LENGTH else path
        if self._after[measure] == self._before.get(measure):
            _set(self._output, whole, copy.deepcopy(_get(self._own, whole)))
            return
        if path[-1] != LENGTH:
            if _set(self._output, whole, wanted):
                return
        else:
            for value in self._lists(whole):
                if len(value) == wanted and _set(self._output, whole, value):
                    return
        raise self._refusal(measure, path, wanted)

    def _lists(self, path: Path) -> Iterator[list[Any] | dict[str, Any]]:
        """Post's lists at a place, where the new base has there what the source base has."""
        for pair in reversed(self._pairs):
            before, after = (_get(document, path) for document in pair.documents)
            own = _get(self._own, path)
            if isinstance(after, list | dict) and (own is None or same(own, before)):
                yield copy.deepcopy(after)

    def _require_said(self, measure: Measure, said: set[int]) -> None:
        """Refuse a new size that nothing says, where the size before was said."""
        before, value = self._before[measure], self._after[measure]
        if before < _BY_CHANCE or value in said or measure.axis == COUNT:
            return
        for path, number in self._own_said.items():
            sources = [pair for pair in self._pairs if pair.moved(measure)]
            if number == before and all(
                pair.documents[0] is not None
                and pair.said[0].get(path) == pair.shown[0].get(measure)
                for pair in sources
            ):
                raise self._refusal(measure, path, value)

    # --- which tensors there are -------------------------------------------------------------

    def _taken(self, name: str, pair: _Pair) -> bool:
        return (name in self._recipes) is (name in pair.added)

    def _structure(self, pair: _Pair) -> list[str]:
        """Tensors that post added or removed, but for heads, which may be tied, and buffers."""
        return [
            name
            for name in sorted(pair.added | pair.removed)
            if not has_tokens(name) and not name.endswith(_BUFFERS)
        ]

    def _check_stacks(self, pair: _Pair) -> None:
        """Refuse a layer of which only some of the tensors would be there."""
        left = [name for name in self._structure(pair) if not self._taken(name, pair)]
        if not left:
            return
        ours, there = _modules(self._base), _modules(self._recipes)
        post = _modules(pair.tensors.keys() - pair.removed)
        for name in left:
            for module in _modules([name]):
                if name in pair.added:
                    half = set() if module in ours else there.get(module, set())
                else:
                    gone = ours[module] - self._recipes.keys()
                    half = set() if module in post else gone
                if half:
                    raise StructureMismatchError(
                        f"{module} would be there by half: {shown(min(half))} is as in post, and "
                        f"{shown(name)} is not.",
                        hint=_WHOLE,
                        tensors=[name],
                    )

    def _follow_structure(self, pair: _Pair, ruled: frozenset[str]) -> None:
        """Take what post changed in its document where no number says what it did to tensors."""
        before, after = pair.documents
        if before is None or after is None:
            return
        names = self._structure(pair)
        if pair.renamed_class:
            self._require_all_or_nothing(names, pair)
            names = []
        names = [name for name in names if not self._counted(name, pair)]
        sizes = [
            m
            for m in pair.shown[0]
            if m.axis != COUNT and pair.moved(m) and m in self._after and not self._laws(m)
        ]
        sizes = [m for m in sizes if not has_tokens(m.name)]
        moved = list(_moved(self._own, before, after, ruled))
        taken = [self._taken(n, pair) for n in names]
        taken += [self._after[m] == pair.shown[1][m] for m in sizes]
        if not moved or not any(taken):
            return
        if not all(taken):
            which = [*names, *(m.name for m in sizes)][taken.index(False)]
            raise StructureMismatchError(
                f"{shown(which)} would not be as in post, and config.json's {shown_path(moved[0])} "
                "cannot be both post's and the new base's.",
                hint=_WHOLE,
                tensors=[which],
                field=shown_path(moved[0]),
            )
        for path in moved:
            _set(self._output, path, copy.deepcopy(_get(after, path)))

    def _counted(self, name: str, pair: _Pair) -> bool:
        """Whether a tensor is in a layer that only base or post has, and a field counts them."""
        for stack, index in stacks_of(name):
            measure, inside = Measure(stack, COUNT), f"{stack}.{index}"
            if inside not in pair.common and measure in self._after and self._laws(measure):
                return True
        return False

    def _require_all_or_nothing(self, names: Sequence[str], pair: _Pair) -> None:
        """Refuse what is half of one class and half of another."""
        taken = [self._taken(name, pair) for name in names]
        if any(taken) and not all(taken):
            name = names[taken.index(False)]
            said = "lack" if name in pair.added else "have"
            raise StructureMismatchError(
                f"The output would {said} {shown(name)}; expected all or nothing of what makes "
                f"{shown(pair.documents[1]['architectures'])} of the base's "  # type: ignore[index]
                f"{shown((pair.documents[0] or {}).get('architectures'))}.",
                hint=_WHOLE,
                tensors=[name],
            )

    # --- refusals ----------------------------------------------------------------------------

    def _refusal(self, measure: Measure, path: Path, wanted: object) -> StructureMismatchError:
        said = fields(self._output).get(path)
        before, value = self._before.get(measure), self._after[measure]
        return StructureMismatchError(
            f"In the output, {measure} would be {value} and not {before}; expected config.json's "
            f"{shown_path(path)} to become {wanted}, got {said}, and no other document says how.",
            hint=self._hint(measure),
            tensor=measure.name,
            dimension=measure.axis,
            field=shown_path(path),
            expected=value,
            got=said,
        )

    def _hint(self, *measures_: Measure) -> str:
        if all(has_tokens(measure.name) for measure in measures_):
            return "Leave embeddings and head as they are: `--skip-embeddings`."
        if len(measures_) == 1 and measures_[0].axis != COUNT:
            return f"Leave this tensor as it is: `--scale-for '{measures_[0].name}=0'`."
        return _WHOLE


_WHOLE = (
    "Apply all of what post changed of the structure, without `--partial` and `--scale-for`, or "
    "choose another base."
)


def _measured(sides: Sequence[Shapes]) -> list[dict[Measure, int]]:
    """What each side shows, but for what is the same in all and has no name that tells more."""
    names = set[str]().union(*sides)
    alike = all(side.keys() == names for side in sides)

    def tells(name: str) -> bool:
        shapes = {side.get(name) for side in sides}
        known = next(shape for shape in shapes if shape is not None)
        return len(shapes) > 1 or kind_of(Measure(name, 0), len(known)) is not None

    telling = {name for name in names if tells(name)}
    return [
        measures({name: shape for name, shape in side.items() if name in telling})
        | ({} if alike else stack_counts(side))
        for side in sides
    ]


def _modules(names: Iterable[str]) -> dict[str, set[str]]:
    """The tensors in each place of each stack, as ``model.layers.7``."""
    found: dict[str, set[str]] = {}
    for name in names:
        for stack, index in stacks_of(name):
            found.setdefault(f"{stack}.{index}", set()).add(name)
    return found


def _get(document: Any, path: Path) -> Any:
    for key in path:
        if isinstance(document, dict) and isinstance(key, str):
            document = document.get(key)
        elif isinstance(document, list) and isinstance(key, int) and 0 <= key < len(document):
            document = document[key]
        else:
            return None
    return document


def _set(document: Any, path: Path, value: Any) -> bool:
    """Put a value at a place, or take it away if it is None; whether there is such a place."""
    *parents, last = path
    for key in parents:
        if isinstance(document, dict) and isinstance(key, str):
            document = document.get(key) if value is None else document.setdefault(key, {})
        elif isinstance(document, list) and isinstance(key, int) and 0 <= key < len(document):
            document = document[key]
        else:
            return False
    if isinstance(document, dict) and isinstance(last, str):
        if value is None:
            document.pop(last, None)
        else:
            document[last] = value
        return True
    if isinstance(document, list) and isinstance(last, int) and 0 <= last < len(document):
        document[last] = value
        return True
    return False


def _moved(
    own: Document, before: Document, after: Document, ruled: frozenset[str], path: Path = ()
) -> Iterator[Path]:
    """Fields that post changed, and that the new base has as the source base had."""
    for name, value in after.items():
        if name in ruled or holds_ids(name):
            continue
        old, mine = before.get(name), own.get(name)
        if isinstance(value, dict) and isinstance(old, dict) and isinstance(mine, dict):
            yield from _moved(mine, old, value, ruled, (*path, name))
        elif not same(value, old) and same(mine, old) and value is not None:
            yield (*path, name)
