"""Where in a model of transformers the tensors of its checkpoint are.

transformers 5 holds tensors under other names than a checkpoint has them, experts stacked, and
some of them joined, cut, transposed or with their rows in another order. It knows the way back,
for ``save_pretrained``. That way is taken here without the numbers: with tensors that have none,
whose strides say where in memory each element of the checkpoint's tensor is; and, where an
operation copies, with the numbers 0, 1, 2, … in place of the weights.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deltastore.errors import IncompatibleError

if TYPE_CHECKING:
    import torch

_MOST_NUMBERED = 1 << 27
"""Elements of which one operation that copies is followed: 1 GiB of numbers."""

_MOST_PIECES = 1 << 16
"""Runs that one of the checkpoint's tensors may be cut into."""

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of a checkpoint tensor's elements, in row-major order.

    Attributes:
        start: The first of them.
        source: The model's tensor that they are in.
        value: A view of its memory; the view's elements in row-major order are the run's.
    """

    start: int
    source: str
    value: torch.Tensor


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as the checkpoint has it: its shape, and where its elements are, in order."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def place(self) -> tuple[Any, ...]:
        """The same for all that is at the same place in memory."""
        return tuple(place_of(piece.value) for piece in self.pieces)


@dataclass(slots=True)
class Layout:
    """A model's tensors by the names of a checkpoint.

    ``lost``: names in memory of those whose place in the checkpoint cannot be found out.
    """

    stored: dict[str, Stored] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def place_of(value: torch.Tensor) -> tuple[Any, ...]:
    """The same for all names of one tensor in memory."""
    return (value.device, value.data_ptr(), tuple(value.shape), value.stride())


def whole(name: str, value: torch.Tensor) -> Stored:
    """A tensor that a checkpoint has as the model has it."""
    return Stored(tuple(value.shape), (Piece(0, name, value.detach()),))


def layout(
    model: Any, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> Layout:
    """How a checkpoint with the names of a delta is held by a model.

    That is how transformers would load such a checkpoint into the model, or, if more of the names
    are found so, how it loaded the one that the model is from.

    Args:
        model: A ``PreTrainedModel``.
        tensors: What it holds, by its own names.
        shapes: The names and shapes of the delta's tensors.

    Raises:
        IncompatibleError: transformers has changed what it holds, and does not say how.
    """
    loading = _module("transformers.core_model_loading")
    revert = getattr(loading, "revert_weight_conversion", None)
    own = getattr(model, "_weight_conversions", None)
    if revert is None and not own:
        return Layout({name: whole(name, value) for name, value in tensors.items()})
    found: list[Layout] = []
    for ways in (lambda: _for_names(loading, model, shapes), lambda: own):
        try:
            found.append(_WayBack(revert, _Source(model, ways(), shapes), tensors).layout())
        except Exception:  # noqa: BLE001, S112 - what is private to another may raise anything
            continue
    if not found:
        raise IncompatibleError(
            f"transformers does not say under which names a checkpoint has the weights of a "
            f"{type(model).__name__}.",
            hint="Apply the delta to a checkpoint with `store.apply(...)`, and load the result.",
        )
    return max(found, key=lambda one: len(one.stored.keys() & shapes.keys()))


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _for_names(loading: Any, model: Any, names: Iterable[str]) -> list[Any]:
    """The conversions that transformers makes when it loads a checkpoint with these names."""
    mapping = _module("transformers.conversion_mapping")
    found = list(mapping.get_model_conversion_mapping(model))
    renamings = [one for one in found if isinstance(one, loading.WeightRenaming)]
    converters = [one for one in found if isinstance(one, loading.WeightConverter)]
    for name in sorted(names, key=loading.dot_natural_key):
        loading.rename_source_key(name, renamings, converters)
    return [one for one in found if one.was_used()]


class _Source:
    """The model as it would be, had it been loaded with other conversions."""

    def __init__(
        self, model: Any, conversions: list[Any] | None, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._model = model
        self._shapes = shapes
        self._weight_conversions = conversions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def get_parameter(self, name: str) -> Any:
        """What a conversion that goes by a shape is to make: the checkpoint's, if it has it."""
        import torch

        if name in self._shapes:
            return torch.empty(self._shapes[name], device="meta")
        return self._model.get_parameter(name)


class _WayBack:
    """One way from what a model holds to what a checkpoint has."""

    def __init__(self, revert: Any, source: _Source, tensors: Mapping[str, torch.Tensor]) -> None:
        self._revert = revert
        self._source = source
        self._tensors = {name: value.detach() for name, value in tensors.items()}

    def layout(self) -> Layout:
        """Where everything is that the way leads to."""
        import torch

        empty = {
            name: torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            for name, value in self._tensors.items()
        }
        sources = {_storage(value): name for name, value in empty.items()}
        found: dict[str, Stored] = {}
        copied: dict[frozenset[str], dict[str, torch.Tensor]] = {}
        with torch.no_grad(), _tracing(sources) as origins:
            made = self._revert(self._source, dict(empty))
        if any(value._version for value in empty.values()):
            raise ValueError("a conversion writes to the model")
        for name, value in made.items():
            source = sources.get(_storage(value))
            if source is None:
                copied.setdefault(origins.get(_storage(value), frozenset()), {})[name] = value
            elif value.dtype == self._tensors[source].dtype:
                shape = tuple(value.shape)
                view = self._view(source, shape, value.stride(), value.storage_offset())
                found[name] = Stored(shape, (Piece(0, source, view),))
        for names, outputs in copied.items():
            found.update(self._numbered(sorted(names), outputs))
        return self._only_whole(found)

    def _view(
        self, source: str, sizes: Sequence[int], strides: Sequence[int], offset: int
    ) -> torch.Tensor:
        held = self._tensors[source]
        return held.as_strided(sizes, strides, held.storage_offset() + offset)

    def _numbered(
        self, names: Sequence[str], outputs: Mapping[str, torch.Tensor]
    ) -> dict[str, Stored]:
        """The places of what is made of copies; empty if they cannot be told.

        Args:
            names: The model's tensors that are copied.
            outputs: What is made of them, without numbers.
        """
        import torch

        held = [self._tensors[name] for name in names]
        ends: Index = np.cumsum([value.numel() for value in held], dtype=np.int64)
        kinds = {value.dtype for value in (*held, *outputs.values())}
        plain = all(value.is_contiguous() for value in held)
        if not held or ends[-1] > _MOST_NUMBERED or len(kinds) > 1 or not plain:
            return {}
        numbers = {
            name: torch.arange(int(end) - value.numel(), int(end)).reshape(value.shape)
            for name, end, value in zip(names, ends, held, strict=True)
        }
        with torch.no_grad():
            made = self._revert(self._source, numbers)
        seen = np.zeros(ends[-1], bool)
        found = {}
        for name, like in outputs.items():
            value = made[name]
            if value.dtype != torch.int64 or value.shape != like.shape:
                return {}
            index: Index = value.reshape(-1).numpy()
            if not index.size or index.min() < 0 or index.max() >= ends[-1]:
                return {}
            seen[index] = True
            pieces = self._pieces(index, names, ends)
            if not pieces:
                return {}
            found[name] = Stored(tuple(like.shape), pieces)
        # Each number once: as many as there are, and none left out.
        every = sum(value.numel() for value in outputs.values())
        return found if every == seen.size and seen.all() else {}

    def _pieces(self, index: Index, names: Sequence[str], ends: Index) -> tuple[Piece, ...]:
        """The runs of one output by the tensors they are from; none if one is no view."""
        owners = np.searchsorted(ends, index, side="right")
        cuts = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), index.size]
        if len(cuts) > _MOST_PIECES:
            return ()
        pieces = []
        for start, end in pairwise(cuts):
            name = names[owners[start]]
            strided = _strided(index[start:end])
            if strided is None:
                return ()
            first = int(index[start] - ends[owners[start]]) + self._tensors[name].numel()
            pieces.append(Piece(start, name, self._view(name, *strided, first)))
        return tuple(pieces)

    def _only_whole(self, found: dict[str, Stored]) -> Layout:
        """Without what is made of tensors that go into the checkpoint in part, or twice."""
        places = {name: place_of(value) for name, value in self._tensors.items()}
        while True:
            taken: Counter[tuple[Any, ...]] = Counter()
            for stored in {one.place: one for one in found.values()}.values():
                for piece in stored.pieces:
                    taken[places[piece.source]] += piece.value.numel()
            lost = [n for n, value in self._tensors.items() if taken[places[n]] != value.numel()]
            broken = [
                name
                for name, stored in found.items()
                if any(piece.source in lost for piece in stored.pieces)
            ]
            if not broken:
                return Layout(found, lost)
            for name in broken:
                del found[name]


def _strided(index: Index) -> tuple[list[int], list[int]] | None:
    """Sizes and strides of the view whose elements have these places; None if there is none."""
    sizes: list[int] = []
    strides: list[int] = []
    while index.size > 1:
        step = index[1] - index[0]
        ends = np.flatnonzero(np.diff(index) != step)
        run = int(ends[0]) + 1 if ends.size else index.size
        if step <= 0 or index.size % run:
            return None
        rows = index.reshape(-1, run)
        if (rows != rows[:, :1] + step * np.arange(run)).any():
            return None
        sizes.insert(0, run)
        strides.insert(0, int(step))
        index = rows[:, 0]
    return sizes, strides


def _storage(value: torch.Tensor) -> int:
    return int(value.untyped_storage()._cdata)


@contextmanager
def _tracing(sources: Mapping[int, str]) -> Iterator[dict[int, frozenset[str]]]:
    """Note what is made of what, by storages; copies that move nothing are left out.

    Yields:
        Names of the sources that each storage is made of.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    origins = {storage: frozenset([name]) for storage, name in sources.items()}
    kept: list[torch.Tensor] = []  # as long as a storage lives nothing else has its number

    class Tracing(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in (torch.Tensor.contiguous, torch.Tensor.clone, torch.clone):
                return args[0]
            result = func(*args, **(kwargs or {}))
            given = frozenset[str]().union(
                *(origins.get(_storage(t), ()) for t in _tensors_in([args, kwargs]))
            )
            for made in _tensors_in(result):
                storage = _storage(made)
                if storage not in sources:
                    origins[storage] = origins.get(storage, frozenset()) | given
                    kept.append(made)
            return result

    with Tracing():
        yield origins


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
