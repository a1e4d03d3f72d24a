"""A module's weights, read and written as a checkpoint's are."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deltastore.checkpoint import TORCH_DTYPES, TensorInfo
from deltastore.errors import IncompatibleError, StructureMismatchError
from deltastore.inmemory.conversions import Layout, Stored, layout, place_of, whole
from deltastore.inmemory.wrappers import Held, held, unwrapped
from deltastore.manifest import TensorEntry
from deltastore.manifest.format import DTYPE_BYTES

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


class ModelWeights:
    """A module's weights as a checkpoint is read, and written in place.

    Their names are the delta's, whatever wrappers are around the module or its layers, and
    however transformers holds what the delta's checkpoint has. ``lost`` has what cannot be
    followed so far.

    Tied weights have several names for one memory. Names that the delta knows are used, the
    first of them for each memory; a name that it does not know, of memory that it does, is left
    out.

    Args:
        model: Any module.
        entries: The delta's tensors.
        names: What the model calls them, where it is something else.

    Raises:
        IncompatibleError: A weight is on the meta device, sparse, sharded or quantised, or
            overlaps another.
        StructureMismatchError: The delta changes tied weights in different ways.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        entries: Sequence[TensorEntry],
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(type(unwrapped(model)).__name__)
        self.names = names or {}
        known = {entry.name: entry for entry in entries}
        self.tensors: dict[str, TensorInfo] = {}
        self._values: dict[str, Stored] = {}
        self.tied: dict[str, str] = {}
        found, self.lost = _named(model, self.path, _calls(known, self.names))
        memory: dict[Any, str] = {}
        # Of a tied set, what post stores counts, and then what only its base stored.
        removed = {name for name, entry in known.items() if entry.kind == "removed"}
        for name in sorted(found, key=lambda name: (name not in known, name in removed, name)):
            stored = found[name]
            info = _info(name, stored)
            first = memory.setdefault(stored.place, name) if info.elements else name
            self.tensors[name] = info
            self._values[name] = stored
            if first == name:
                continue
            if name in known and first in known and name not in removed:
                _refuse_different(known[first], known[name])
                self.tied[name] = first
            else:
                del self.tensors[name]

    def read_into(self, name: str, start_byte: int, buffer: Any) -> None:
        """Copy bytes of a weight, in row-major order, from its device."""
        import torch

        target = torch.from_numpy(np.frombuffer(buffer, np.uint8))
        size = DTYPE_BYTES[self.tensors[name].dtype]
        at = 0
        for view in self._views(name, start_byte // size, target.numel() // size):
            piece = target[at : at + view.nbytes].view(view.dtype)
            piece.view(view.shape).copy_(view)
            at += view.nbytes

    def read_samples(self, places: Sequence[tuple[str, int, Any]]) -> None:
        """Fill each buffer from its place."""
        for name, start_byte, buffer in places:
            self.read_into(name, start_byte, buffer)

    def write(self, name: str, start: int, data: Bytes) -> None:
        """Overwrite elements from ``start`` on with their bytes."""
        import torch

        size = DTYPE_BYTES[self.tensors[name].dtype]
        at = 0
        with torch.no_grad():
            for view in self._views(name, start, data.size // size):
                source = torch.from_numpy(data[at : at + view.nbytes]).view(view.dtype)
                view.copy_(source.view(view.shape))
                at += view.nbytes

    def _views(self, name: str, start: int, count: int) -> Iterator[torch.Tensor]:
        """Views of memory that together have a run of elements, in order."""
        pieces = self._values[name].pieces
        number = bisect.bisect_right(pieces, start, key=lambda piece: piece.start) - 1
        end = start + count
        while start < end:
            piece = pieces[number]
            first = start - piece.start
            here = min(end - start, piece.value.numel() - first)
            yield from _run(piece.value, first, here)
            start += here
            number += 1


def _calls(known: Mapping[str, TensorEntry], names: Mapping[str, str]) -> dict[str, TensorEntry]:
    """The delta's tensors by what a model without wrappers calls them."""
    called = {names.get(name, name): entry for name, entry in known.items()}
    plain = {_plain(name): entry for name, entry in called.items()}
    if all(name.startswith("module.") for name in plain):
        plain = {name.removeprefix("module."): entry for name, entry in plain.items()}
    return plain if len(plain) == len(called) else called


def _plain(name: str) -> str:
    """A name that was saved with the names of wrappers, without them."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _named(
    model: torch.nn.Module, where: Path, called: Mapping[str, TensorEntry]
) -> tuple[dict[str, Stored], list[str]]:
    """What a model holds, by the delta's names where it has them; and what cannot be followed.

    Args:
        model: Any module.
        where: What to call it.
        called: The delta's tensors by what a model calls them.
    """
    tensors = list(held(model))
    for item in tensors:
        _refuse_strange(item.name, item.value, where)
    _refuse_overlaps(tensors)
    rows: list[tuple[tuple[str, ...], Stored]] = []
    lost = []
    owners = list({id(item.owner): item.owner for item in tensors}.values())
    for owner in owners:
        own = [item for item in tensors if item.owner is owner]
        if owner is None:
            rows += [((item.name, item.path), whole(item.name, item.value)) for item in own]
            continue
        start = own[0].name.removesuffix(own[0].inner)
        found = _layout(owner, start, own, called)
        lost += [f"{start}{name}" for name in found.lost]
        for name, stored in found.stored.items():
            row = (f"{start}{name}", name, _with_or_without(owner, name))
            passing = name in (getattr(owner, "_keys_to_ignore_on_save", None) or ())
            if not passing or not called.keys().isdisjoint(row):
                rows.append((row, stored))
    return _by_delta(rows, called), lost


def _layout(
    owner: Any, start: str, own: Sequence[Held], called: Mapping[str, TensorEntry]
) -> Layout:
    """How a model of transformers, perhaps within another module, holds a checkpoint."""
    shapes = {}
    for name, entry in called.items():
        side = entry.base or entry.post
        shapes[name.removeprefix(start)] = side.shape if side is not None else ()
    return layout(owner, {item.inner: item.value for item in own}, shapes)


def _with_or_without(owner: Any, name: str) -> str:
    """A name as it is with a head around the model, or without, whichever this one is not.

    Models are saved and loaded either way, and transformers takes the one for the other.
    """
    prefix = f"{owner.base_model_prefix}."
    return name.removeprefix(prefix) if name.startswith(prefix) else f"{prefix}{name}"


def _by_delta(
    rows: Sequence[tuple[tuple[str, ...], Stored]], called: Mapping[str, TensorEntry]
) -> dict[str, Stored]:
    """Tensors by the delta's names. One that may be called otherwise is, if nothing else is."""
    exact = {names[0] for names, _ in rows if names[0] in called}
    other = [
        next((name for name in names[1:] if name in called and name not in exact), None)
        for names, _ in rows
    ]
    claims = Counter(
        name for (names, _), name in zip(rows, other, strict=True) if names[0] not in exact
    )
    own = {entry.name for entry in called.values()}
    found: dict[str, Stored] = {}
    for (names, stored), name in zip(rows, other, strict=True):
        if names[0] in exact:
            key = called[names[0]].name
        elif name is not None and claims[name] == 1:
            key = called[name].name
        else:
            key = names[0]
            while key in own or key in found:
                key += " in the model"
        found[key] = stored
    return found


def _refuse_different(one: TensorEntry, other: TensorEntry) -> None:
    if (one.base, one.post) != (other.base, other.post):
        raise StructureMismatchError(
            f"{one.name} and {other.name} are one tensor in the model, and the delta changes them "
            "in different ways.",
            hint="Untie them, or apply the delta to a checkpoint where they are two.",
        )


def _refuse_strange(name: str, value: torch.Tensor, where: Path) -> None:
    """Refuse what has no elements in memory that could be read and written one by one."""
    import torch

    kind = str(value.dtype).removeprefix("torch.")
    problem, hint = "", "Load the weights first, without quantisation."
    if any(of.__name__ == "DTensor" for of in type(value).__mro__):
        problem = "a shard of a distributed tensor"
        hint = "Patch the model before it is sharded, or load what `store.apply(...)` writes."
    elif torch.nn.parameter.is_lazy(value):
        problem = "not yet initialised"
    elif (
        kind not in TORCH_DTYPES
        or value.is_meta
        or value.is_sparse
        or value.is_quantized
        or type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    ):
        problem = f"{kind} on {value.device}, as a {type(value).__name__}"
    if problem:
        raise IncompatibleError(
            f"{name} of {where} is {problem}; expected a dense tensor of numbers.",
            hint=hint,
            tensor=name,
        )


def _refuse_overlaps(tensors: Sequence[Held]) -> None:
    """Refuse weights that have elements in common and are not one tensor: they would add twice."""
    ranges = {}
    for item in tensors:
        value = item.value
        if value.numel() and value.is_contiguous():
            ranges[place_of(value)] = item.name, value
    laid = sorted(ranges.values(), key=lambda row: (str(row[1].device), row[1].data_ptr()))
    for (name, value), (other, following) in pairwise(laid):
        end = value.data_ptr() + value.nbytes
        if value.device == following.device and following.data_ptr() < end:
            raise IncompatibleError(
                f"{name} and {other} overlap in memory and are not one tensor.",
                hint="Give one of them memory of its own.",
                tensor=name,
            )


def _info(name: str, stored: Stored) -> TensorInfo:
    value = stored.pieces[0].value
    dtype = TORCH_DTYPES[str(value.dtype).removeprefix("torch.")]
    elements = sum(piece.value.numel() for piece in stored.pieces)
    return TensorInfo(name, dtype, stored.shape, 0, 0, elements * DTYPE_BYTES[dtype])


def _run(value: torch.Tensor, start: int, count: int) -> Iterator[torch.Tensor]:
    """Views that have a run of a tensor's elements: of a transposed one, rows and parts of rows."""
    if value.is_contiguous():
        yield value.view(-1)[start : start + count]
    elif value.dim() == 1:
        yield value[start : start + count]
    else:
        size = value[0].numel()
        row, first = divmod(start, size)
        if first:
            here = min(count, size - first)
            yield from _run(value[row], first, here)
            row, count = row + 1, count - here
        rows, rest = divmod(count, size)
        if rows:
            yield value[row : row + rows]
        if rest:
            yield from _run(value[row + rows], 0, rest)
