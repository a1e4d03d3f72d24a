"""A merge's plan as JSON, and back; what is read may have been written by anybody."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import numpy as np

from deltastore.checkpoint import Checkpoint, ShardPlan, TensorInfo, TensorSpec
from deltastore.checkpoint.index import is_shard_name
from deltastore.digest import canonical_json, is_digest
from deltastore.errors import FormatError, ManifestInvalidError, UsageError
from deltastore.manifest import Config, TensorEntry
from deltastore.manifest import format as fmt
from deltastore.manifest.parse import Field, Reader, load_json
from deltastore.manifest.tensor_rules import shape_problem
from deltastore.merging.method import MergeMethod, get_method
from deltastore.merging.plan import MergePlan
from deltastore.merging.recipes import Addend, Recipe
from deltastore.tensor_names.selectors import is_scale
from deltastore.tokenizer.rows import NONE, Places, Rows, from_runs, to_runs

_FORMAT = 1
_MAX_BYTES = 1 << 30
_MAX_TENSORS = 2 * fmt.MAX_TENSORS
_MAX_ROWS = 1 << 24
"""Rows of a tensor of tokens: a hundred times as many as the largest vocabularies have."""

_ROWS = ("delta", "values")
_FIELDS = {
    name: kind
    for name, kind in get_type_hints(MergePlan).items()
    if name not in ("tensors", "shards", "method")
}
"""What is read and written by what it is; the others name tensors of base and deltas."""

Lookup = Callable[[str], Config]
"""The config of an artifact by its digest."""


def plan_bytes(plan: MergePlan) -> bytes:
    """A plan as canonical JSON."""
    return canonical_json(_document(plan))


def parse_plan(
    data: bytes, checkpoint: Checkpoint, config_of: Lookup, *, where: str = "The plan"
) -> tuple[MergePlan, Checkpoint]:
    """Read a plan, and give the new base the plan's names.

    Nothing in it is taken on trust that the new base and the artifacts can tell.

    Args:
        data: As ``plan_bytes`` wrote it.
        checkpoint: The new base.
        config_of: Looks an artifact's config up by the digest.
        where: What to call the plan in an error.

    Raises:
        FormatError: It is no plan of a merge, contradicts itself, or is one of another base.
        BlobMissingError: An artifact is not there.
    """
    read = Reader(where)
    try:
        document = load_json(data, limit=_MAX_BYTES, where=where)
        plan, base = _Plan(read, config_of).read(document, checkpoint)
        # Whatever else is in it, or is written otherwise, is not ours.
        if not _is_written(document, plan):
            read.fail("plan", "what deltastore writes of it", "something more, or in another form")
    except ManifestInvalidError as error:
        raise FormatError(
            error.message, hint="Make the plan anew from the base and the deltas.", **error.facts
        ) from error
    return plan, base


def _is_written(document: object, plan: MergePlan) -> bool:
    try:
        return canonical_json(document) == plan_bytes(plan)
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can say
        return False


def _document(plan: MergePlan) -> dict[str, Any]:
    return {
        "plan": "merge",
        "format": _FORMAT,
        "method": {"name": plan.method.name, "params": dict(plan.method.params)},
        "tensors": [_recipe(recipe) for recipe in plan.tensors.values()],
        "shards": [
            {"file": shard.filename, "tensors": [tensor.name for tensor in shard.tensors]}
            for shard in plan.shards
        ],
        **{name: _plain(getattr(plan, name)) for name in _FIELDS},
    }


def _plain(value: Any) -> Any:
    """A value of a record as JSON has it."""
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | frozenset):
        return [_plain(item) for item in (value if isinstance(value, tuple) else sorted(value))]
    return value


def _recipe(recipe: Recipe) -> dict[str, Any]:
    return {
        **_tensor(recipe.output),
        "base": None if recipe.base is None else _tensor(recipe.base),
        "addends": [
            {
                "delta": addend.index,
                "tensor": addend.entry.name,
                "scale": addend.scale,
                "rows": None if addend.rows is None else _rows(addend.rows),
            }
            for addend in recipe.addends
        ],
        "values": None
        if recipe.values is None
        else {"delta": recipe.values[0], "tensor": recipe.values[1].name},
        "order": None if recipe.order is None else to_runs(recipe.order),
    }


def _tensor(tensor: TensorSpec | TensorInfo) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _rows(rows: Rows) -> dict[str, Any]:
    return {of: to_runs(getattr(rows, of)) for of in _ROWS}


class _Plan:
    """Reads one plan."""

    def __init__(self, read: Reader, config_of: Lookup) -> None:
        self._read = read
        self._config_of = config_of
        self._tables: list[Mapping[str, TensorEntry]] = []

    def read(self, document: object, checkpoint: Checkpoint) -> tuple[MergePlan, Checkpoint]:
        read = self._read
        rows = read.mapping(document, "plan")
        read.expect(rows.get("plan"), "merge", "plan")
        read.expect(rows.get("format"), _FORMAT, "format")
        known = {name: self._as(kind, rows.get(name), name) for name, kind in _FIELDS.items()}
        for i, delta in enumerate(known["deltas"]):
            config = self._config_of(read.match(delta.digest, "digest", is_digest, "a digest"))
            told = (delta.post_repo, delta.source_base, delta.source_post)
            if told != (config.post.repo, config.base.content, config.post.content):
                read.fail(("deltas[", i, "]"), "what the artifact says of base and post", told)
            if not i:
                read.expect(known["chunk"], config.chunk, "chunk")
            self._tables.append({entry.name: entry for entry in config.tensors})
        if not self._tables:
            read.fail("deltas", "one delta or more", [])
        given = [(delta.scale,) for delta in known["deltas"]]
        for scales in (*given, *(rule.scales for rule in known["scale_for"])):
            if len(scales) not in (1, len(given)) or not all(map(is_scale, scales)):
                read.fail("scale", "a finite float32 number for all deltas, or for each", scales)
        try:
            checkpoint = checkpoint.renamed(known["base"].names)
        except ValueError as error:
            read.fail("base.names", "names that keep tensors apart", str(error))
        tensors: dict[str, Recipe] = {}
        for i, row in enumerate(read.array(rows.get("tensors"), "tensors", limit=_MAX_TENSORS)):
            recipe = self._recipe(row, ("tensors[", i, "]"), checkpoint)
            tensors[recipe.output.name] = recipe
        if list(tensors) != sorted(tensors):
            read.fail("tensors", "in the order of their names", "another order")
        if not known["prepared"].keys() <= tensors.keys():
            read.fail("prepared", "numbers for tensors of the output", "others")
        self._check_patches(known["patches"] or frozenset(), tensors)
        shards = self._shards(rows.get("shards"), tensors)
        method = self._method(rows.get("method"))
        return MergePlan(tensors=tensors, shards=shards, method=method, **known), checkpoint

    def _as(self, kind: Any, value: Any, field: Field) -> Any:
        """A value as the type that a record's annotation names."""
        origin, args = get_origin(kind), get_args(kind)
        if kind is Any:
            return value
        if origin is UnionType:  # with None
            return None if value is None else self._as(args[0], value, field)
        if origin is Literal:
            return self._read.choice(value, field, args)
        if origin in (tuple, frozenset):
            rows = self._read.array(value, field, limit=_MAX_TENSORS)
            return origin(
                self._as(args[0], row, (field, "[", i, "]")) for i, row in enumerate(rows)
            )
        if origin is Mapping:
            items = self._read.mapping(value, field).items()
            return {name: self._as(args[1], item, (field, ".", name)) for name, item in items}
        if is_dataclass(kind):
            known = self._read.mapping(value, field)
            kinds = get_type_hints(kind).items()
            return kind(**{n: self._as(of, known.get(n), (field, ".", n)) for n, of in kinds})  # type: ignore[operator]
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            self._read.fail(field, f"of type {kind.__name__}", value)
        return value

    def _method(self, value: object) -> MergeMethod:
        known = self._read.mapping(value, "method")
        try:
            name = self._as(str, known.get("name"), "method.name")
            return get_method(name, self._read.mapping(known.get("params"), "method.params"))
        except UsageError:
            self._read.fail("method", "a merge method that this deltastore has", value)

    def _shards(self, value: object, tensors: Mapping[str, Recipe]) -> tuple[ShardPlan, ...]:
        read = self._read
        shards = []
        for i, row in enumerate(read.array(value, "shards", limit=_MAX_TENSORS)):
            field: Field = ("shards[", i, "]")
            known = read.mapping(row, field)
            filename = self._as(str, known.get("file"), (field, ".file"))
            if not is_shard_name(filename) or not filename.endswith(".safetensors"):
                read.fail((field, ".file"), "the name of a file of weights", filename)
            names = self._as(tuple[str, ...], known.get("tensors"), (field, ".tensors"))
            outputs = (tensors[name].output for name in names if name in tensors)
            shards.append((filename, names, ShardPlan(filename, tuple(outputs))))
        if sorted(name for _, names, _ in shards for name in names) != list(tensors):
            read.fail("shards", "every tensor of the output in one file", "others, or one twice")
        if len({filename.casefold() for filename, _, _ in shards}) != len(shards):
            read.fail("shards", "distinct files", "one of them twice")
        return tuple(shard for _, _, shard in shards)

    def _check_patches(self, patches: frozenset[str], tensors: Mapping[str, Recipe]) -> None:
        """Restore patches are used of one delta, of tensors that have one."""
        for name in patches:
            entry, recipe = self._tables[0].get(name), tensors.get(name)
            used = (entry, *(a.entry for a in recipe.addends[:1])) if recipe else (entry,)
            if len(self._tables) > 1 or any(one is None or one.patch is None for one in used):
                self._read.fail("patches", "tensors of the one delta that have a patch", name)

    def _recipe(self, value: object, field: Field, checkpoint: Checkpoint) -> Recipe:
        read = self._read
        known = read.mapping(value, field)
        output = TensorSpec(
            read.tensor_name(known.get("name"), (field, ".name")),
            read.choice(known.get("dtype"), (field, ".dtype"), tuple(fmt.DTYPE_BYTES)),
            self._as(tuple[int, ...], known.get("shape"), (field, ".shape")),
        )
        if shape_problem(output.shape) is not None:
            read.fail((field, ".shape"), "a shape that a tensor may have", known["shape"])
        base, order, values = None, None, None
        if known.get("base") is not None:
            row = read.mapping(known["base"], (field, ".base"))
            base = checkpoint.tensors.get(self._as(str, row.get("name"), (field, ".base.name")))
            if base is None or _tensor(base) != row:
                read.fail((field, ".base"), "a tensor as the new base has it", row)
        if known.get("order") is not None:
            order = self._places(known["order"], (field, ".order"), output)
            if not np.array_equal(np.sort(order), np.arange(order.size)):
                read.fail((field, ".order"), "each row of the tensor once", "others")
        if known.get("values") is not None:
            values = self._entry(known["values"], (field, ".values"))
        rows = read.array(known.get("addends"), (field, ".addends"), limit=len(self._tables))
        addends = tuple(
            self._addend(row, (field, ".addends[", i, "]"), output) for i, row in enumerate(rows)
        )
        recipe = Recipe(output, base, addends, values, order)
        problem = _problem(recipe)
        if problem is not None:
            read.fail(field, problem, f"another recipe for {output.name}")
        return recipe

    def _entry(self, value: object, field: Field) -> tuple[int, TensorEntry]:
        """A delta's number, and one of its tensors."""
        known = self._read.mapping(value, field)
        index = self._read.integer(
            known.get("delta"), (field, ".delta"), high=len(self._tables) - 1
        )
        entry = self._tables[index].get(self._as(str, known.get("tensor"), (field, ".tensor")))
        if entry is None:
            self._read.fail((field, ".tensor"), "a tensor of the delta", known["tensor"])
        return index, entry

    def _addend(self, value: object, field: Field, output: TensorSpec) -> Addend:
        index, entry = self._entry(value, field)
        known = self._read.mapping(value, field)
        scale = self._as(float, known.get("scale"), (field, ".scale"))
        if not is_scale(scale):
            self._read.fail((field, ".scale"), "a finite float32 number", scale)
        if known.get("rows") is None:
            return Addend(index, entry, scale)
        sides = self._read.mapping(known["rows"], (field, ".rows"))
        rows = (self._places(sides.get(of), (field, ".rows.", of), output) for of in _ROWS)
        return Addend(index, entry, scale, Rows(*rows))

    def _places(self, value: object, field: Field, output: TensorSpec) -> Places:
        """A source, or none, for each row of an output tensor."""
        read = self._read
        rows = left = output.shape[0] if output.shape else 0
        if rows > _MAX_ROWS:
            read.fail(field, f"at most {_MAX_ROWS} rows", rows)
        for run in read.array(value, field, limit=rows):
            first, count = run if isinstance(run, list) and len(run) == 2 else (None, None)
            read.integer(first, field, low=NONE, high=_MAX_ROWS)
            left -= read.integer(count, field, low=1, high=left)
        if left:
            read.fail(field, f"as many rows as the tensor has, which are {rows}", rows - left)
        return from_runs(cast("list[list[int]]", value))


def _problem(recipe: Recipe) -> str | None:
    """What a recipe should be that nothing can be made by; None if it can."""
    output, base, addends = recipe.output, recipe.base, recipe.addends
    if base is None:
        if addends or recipe.order is not None or recipe.values is None:
            return "values alone where the new base has no tensor"
    elif not _converts(base.dtype, output.dtype) or (addends and not _floats(base.dtype)):
        return "of a dtype that the new base's can be converted to"
    if [a.index for a in addends] != sorted({a.index for a in addends}):
        return "made of each delta once, in their order"
    if any(addend.entry.delta is None or not _floats(output.dtype) for addend in addends):
        return "made of tensors that have a delta"
    if recipe.order is not None:
        return _problem_of_rows(recipe)
    if any(
        a.rows is not None or a.entry.common_elements != recipe.common_elements for a in addends
    ):
        return "made of deltas with as many elements as it has"
    rest = output.elements - recipe.common_elements
    if recipe.values is None:
        return "made of as many elements as it has" if rest else None
    entry = recipe.values[1]
    if entry.values is None or entry.post is None or not _converts(entry.post.dtype, output.dtype):
        return "made of values of its dtype"
    known = 0 if entry.kind in ("added", "replaced") else entry.common_elements
    return None if rest == entry.post.elements - known else "made of as many values as post has"


def _problem_of_rows(recipe: Recipe) -> str | None:
    """The same where rows go by token: each has a source that is there, or none."""
    output, base = recipe.output, recipe.base
    assert base is not None
    if recipe.values is not None or base.shape[1:] != output.shape[1:] or not base.shape:
        return "of rows as the new base's"
    for addend in recipe.addends:
        entry, rows = addend.entry, addend.rows
        if rows is None or entry.base is None or entry.post is None:
            return "of rows that all have a place"
        if (entry.base.shape[1:], entry.post.shape[1:]) != (output.shape[1:],) * 2:
            return "of rows as the delta's"
        common = min(entry.base.shape[0], entry.post.shape[0])
        further = entry.post.shape[0] - common if entry.values is not None else 0
        if rows.delta.max(initial=NONE) >= common or rows.values.max(initial=NONE) >= further:
            return "of rows that the delta has"
        if further and not _converts(entry.post.dtype, output.dtype):
            return "made of values of its dtype"
    return None


def _floats(dtype: str) -> bool:
    return dtype in fmt.DELTA_DTYPES


def _converts(dtype: str, output_dtype: str) -> bool:
    return dtype == output_dtype or (_floats(dtype) and _floats(output_dtype))
