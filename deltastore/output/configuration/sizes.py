"""Which numbers of ``config.json`` say the sizes of tensors: learned from checkpoints.

No architecture is known here. A checkpoint is an example of how the fields of its document stand
to its tensors. A field that says a size in every example, and was another number where the size
was another one, says it in the output as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from deltastore.output.configuration.ids import holds_ids
from deltastore.tensor_names.token_rows import has_token_rows

Kind = Literal["vocabulary", "positions", "types", "labels", "layers", "experts"]
Path = tuple[str | int, ...]
"""Keys and indices that lead to a number; ``LENGTH`` at its end is the length of a list."""

LENGTH = -1
COUNT = -1

Fields = Mapping[Path, int]
Shapes = Mapping[str, tuple[int, ...]]

_MOST_FIELDS = 10_000
_LONGEST_LIST = 1_000
_MOST_STACKS = 4
_MAX_OFFSET = 64
_NO_SIZES = ("rope", "label2id", "id2label", "quantization_config", "task_specific_params")
_MAPS_OF_LABELS = ("id2label", "label2id")


class Measure(NamedTuple):
    """A number that tensors show: the size of an axis or, as ``COUNT``, modules of a stack."""

    name: str
    axis: int

    def __str__(self) -> str:
        if self.axis == COUNT:
            return f"the number of {self.name}.*"
        return f"dimension {self.axis} of {self.name}" if self.axis else f"the rows of {self.name}"


class Example(NamedTuple):
    """What a document says of a number, and the number."""

    fields: Fields
    value: int


@dataclass(frozen=True, slots=True)
class Law:
    """A number is ``factor`` times a field, plus ``offset``."""

    path: Path
    offset: int = 0
    factor: int = 1

    def field(self, value: int) -> int | None:
        """What the field says where the number is ``value``; None if it cannot."""
        whole, rest = divmod(value - self.offset, self.factor)
        return None if rest or whole < 0 else whole


def fields(document: Mapping[str, Any] | None) -> dict[Path, int]:
    """The whole numbers and the lengths of lists in a document, at any depth, but for token ids."""
    found: dict[Path, int] = {}
    todo: list[tuple[Path, Any]] = [((), document)]
    while todo and len(found) < _MOST_FIELDS:
        path, value = todo.pop()
        if isinstance(value, bool):
            continue
        if isinstance(value, int):
            found[path] = value
        elif isinstance(value, list):
            found[(*path, LENGTH)] = len(value)
            todo += [((*path, i), item) for i, item in enumerate(value[:_LONGEST_LIST])]
        elif isinstance(value, Mapping):
            if path and path[-1] in _MAPS_OF_LABELS:
                found[(*path, LENGTH)] = len(value)
            elif not (path and str(path[-1]).startswith(_NO_SIZES)):
                todo += [((*path, k), v) for k, v in value.items() if not holds_ids(k)]
    return found


def measures(shapes: Shapes) -> dict[Measure, int]:
    """The sizes of all axes of tensors of these names and shapes."""
    return {
        Measure(n, axis): size for n, shape in shapes.items() for axis, size in enumerate(shape)
    }


def stack_counts(names: Iterable[str]) -> dict[Measure, int]:
    """How many modules each stack has, as 32 are in ``model.layers``."""
    stacks: dict[str, set[str]] = {}
    for name in names:
        for stack, index in stacks_of(name):
            stacks.setdefault(stack, set()).add(index)
    return {Measure(stack, COUNT): len(indices) for stack, indices in stacks.items()}


def stacks_of(name: str) -> list[tuple[str, str]]:
    """The stacks that a tensor is in, and its place in each: ``model.layers`` and ``7``."""
    words = name.split(".")
    numbers = [i for i, word in enumerate(words) if i and word.isascii() and word.isdigit()]
    return [(".".join(words[:i]), words[i]) for i in numbers[:_MOST_STACKS]]


def kind_of(measure: Measure, dimensions: int) -> Kind | None:
    """What a number counts, by its tensor's name; ``dimensions`` are those of the tensor."""
    name, axis = measure
    words = name.split(".")
    if axis == COUNT:
        last = words[-1]
        return "experts" if "expert" in last else "layers" if last in _STACKS else None
    if axis:
        return None
    if has_token_rows(name):
        return "vocabulary"
    if dimensions == 2 and any("position" in word or word in _POSITIONS for word in words):
        return "positions"
    if dimensions == 2 and "token_type" in name:
        return "types"
    return "labels" if any(word in _CLASSIFIERS for word in words) else None


_STACKS = ("layers", "layer", "h", "blocks", "block")
_POSITIONS = ("wpe", "pos_emb", "pos_embed")
_CLASSIFIERS = ("classifier", "score", "classification_head")


def kind_of_field(path: Path) -> Kind | None:
    """What a field counts, by its name."""
    names = [key for key in path if isinstance(key, str)]
    name = names[-1] if names else ""
    if name == "type_vocab_size":
        return "types"
    if name in (*_MAPS_OF_LABELS, "num_labels"):
        return "labels"
    for kind, words in _FIELD_WORDS.items():
        if any(word in name for word in words):
            return kind
    return None


_FIELD_WORDS: dict[Kind, tuple[str, ...]] = {
    "vocabulary": ("vocab", "n_words"),
    "positions": ("position", "n_ctx", "max_seq_len", "seq_length"),
    "experts": ("expert",),
    "layers": ("layer", "depth", "block"),
}


def proven(known: Sequence[Example], kind: Kind | None) -> list[Law]:
    """Fields that say a number in every example, and were seen to say different ones.

    A field that stands in some documents alone says its default in the others. That counts where
    its name says what the number is, and no other field does.

    Args:
        known: The examples that have the number, with their documents.
        kind: What the number counts, if that is known.
    """
    if len({value for _, value in known}) < 2:
        return []
    moved, defaults = [], []
    for path in sorted({path for said, _ in known for path in said}, key=str):
        seen = {(said[path], value) for said, value in known if path in said}
        values = {value for _, value in seen}
        if len(values) > 1:
            law = _law(path, seen)
            if law is not None:
                moved.append(law)
        elif seen == {(value, value) for value in values}:
            others = {value for said, value in known if path not in said}
            if others and not others & values and kind_of_field(path) == kind is not None:
                defaults.append(Law(path))
    shifts = [law for law in moved if law.factor == 1]
    if shifts:
        least = min(abs(law.offset) for law in shifts)
        return _of_kind([law for law in shifts if abs(law.offset) == least], kind)
    return _of_kind(moved, kind) or defaults


def _law(path: Path, seen: Iterable[tuple[int, int]]) -> Law | None:
    """The law that all pairs of field and number follow."""
    offsets = {value - field for field, value in seen}
    if len(offsets) == 1 and abs(offset := offsets.pop()) <= _MAX_OFFSET:
        return Law(path, offset)
    factors = {divmod(value, field) if field > 0 else (0, 1) for field, value in seen}
    if path[-1] == LENGTH or len(factors) != 1:
        return None
    factor, rest = factors.pop()
    return Law(path, 0, factor) if not rest and factor > 1 else None


def _of_kind(laws: list[Law], kind: Kind | None) -> list[Law]:
    """Those whose names say what the number is, if there are any; lists of so many items stay."""
    named = {law for law in laws if kind is not None and kind_of_field(law.path) == kind}
    if not named:
        return laws
    return [law for law in laws if law in named or law.path[-1] == LENGTH]


def likely(known: Sequence[Example], kind: Kind, name: str) -> list[Law]:
    """Fields that say a number in every example, by their names, though it was nowhere another.

    Args:
        known: The examples, the first of which must have the field.
        kind: What the number counts.
        name: The tensor's or stack's name. Fields of its own part of the document are preferred.
    """
    for offset in (0, 2, 1) if kind == "positions" else (0,):
        paths = [
            path
            for path in known[0].fields
            if kind_of_field(path) == kind
            and all(said[path] + offset == value for said, value in known if path in said)
        ]
        if paths:
            return [Law(path, offset) for path in _near(paths, name)]
    return []


def _near(paths: list[Path], name: str) -> list[Path]:
    """Those in a part of the document that the tensor's name mentions, and those in no part."""
    words = set(name.replace("_", ".").split("."))
    if "language" in words or "lm" in words:
        words |= {"text", "llm", "language"}
    parts = {
        path: {
            word
            for key in path
            if isinstance(key, str)
            for word in key.split("_")
            if key != path[-1] or word in _PARTS
        }
        for path in paths
    }
    own = [path for path in paths if parts[path] & words]
    return [path for path in paths if path in own or not parts[path]] if own else paths


_PARTS = ("encoder", "decoder", "text", "vision", "audio", "visual", "source", "target")
"""Of the names of fields themselves, words that say whose numbers they are."""


def shown_path(path: Path) -> str:
    """A path as messages have it."""
    return ".".join(str(key) for key in path if key != LENGTH)
