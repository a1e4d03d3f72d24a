"""Bytes to manifest and config, refusing whatever breaks the specification.

Every field is checked here, once, so that the rest of the program may trust what it is handed:
types, ranges, sizes before allocation, paths that could leave a directory, references between
the tensor table, the segments and the layers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NoReturn, Protocol, TypeVar, cast

from deltastore.digest import HEX64, is_content_digest, is_digest
from deltastore.errors import ManifestInvalidError, shown
from deltastore.manifest import format as fmt
from deltastore.manifest import strict_json
from deltastore.manifest.model import (
    Config,
    DeltaError,
    Descriptor,
    FileEntry,
    Manifest,
    SampleRun,
    Segment,
    SourceModel,
    Stream,
    TensorEntry,
    TensorKind,
    TensorSide,
)
from deltastore.manifest.tensor_rules import name_problem, shape_problem

_DTYPES = tuple(fmt.DTYPE_BYTES)
_KINDS = ("unchanged", "delta", "resized", "replaced", "added", "removed")
_WITH_VALUES = ("replaced", "added", "resized")
_HINT = "Run `deltastore verify` to see whose it is; `deltastore rm REF` gives that version up."


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Read an artifact's manifest.

    Args:
        data: The blob's bytes, already checked against their digest or about to be.
        where: What to call it in an error.

    Raises:
        ManifestInvalidError: The bytes are no manifest of an artifact of this format.
    """
    document = load_json(data, limit=fmt.MAX_MANIFEST_BYTES, where=where)
    read = Reader(where)
    fields = read.mapping(document, "manifest")
    read.expect(fields.get("schemaVersion"), 2, "schemaVersion")
    read.expect(fields.get("mediaType"), fmt.MANIFEST_MEDIA_TYPE, "mediaType")
    read.expect(fields.get("artifactType"), fmt.ARTIFACT_TYPE, "artifactType")
    config = read.descriptor(fields.get("config"), "config", limit=fmt.MAX_CONFIG_BYTES)
    read.expect(config.media_type, fmt.CONFIG_MEDIA_TYPE, "config.mediaType")
    rows = read.array(fields.get("layers"), "layers", limit=fmt.MAX_LAYERS)
    layers = tuple(read.descriptor(item, f"layers[{i}]") for i, item in enumerate(rows))
    total = sum(layer.size for layer in layers)
    if total > fmt.MAX_TOTAL_BYTES:
        read.fail("layers", f"at most {fmt.MAX_TOTAL_BYTES} bytes together", total)
    return Manifest(config=config, layers=layers)


def parse_config(data: bytes, manifest: Manifest, *, where: str) -> Config:
    """Read a config blob and check it against its manifest.

    Raises:
        ManifestInvalidError: The bytes are no config of this format, or contradict the manifest.
    """
    document = load_json(data, limit=fmt.MAX_CONFIG_BYTES, where=where)
    read = Reader(where)
    fields = read.mapping(document, "config")
    version = read.integer(fields.get("format"), "format", low=1)
    if version != fmt.FORMAT_VERSION:
        raise ManifestInvalidError(
            f"{where} is of format {version}; this deltastore reads format {fmt.FORMAT_VERSION}.",
            hint="Upgrade deltastore: `pip install -U deltastore`.",
        )
    chunk = read.chunk(fields.get("chunk"), "chunk")
    parts = read.integer(fields.get("parts"), "parts", high=len(manifest.layers))
    for index, layer in enumerate(manifest.layers[:parts]):
        read.expect(layer.media_type, fmt.TENSORS_MEDIA_TYPE, f"layers[{index}].mediaType")
    if parts >= len(manifest.layers):
        read.fail("layers", f"a samples layer at index {parts}", f"{len(manifest.layers)} layers")
    samples_layer = manifest.layers[parts]
    read.expect(samples_layer.media_type, fmt.SAMPLES_MEDIA_TYPE, f"layers[{parts}].mediaType")
    if samples_layer.size > fmt.MAX_SAMPLE_BYTES:
        read.fail(f"layers[{parts}].size", f"<= {fmt.MAX_SAMPLE_BYTES}", samples_layer.size)
    rows = read.array(fields.get("tensors"), "tensors", limit=fmt.MAX_TENSORS)
    exactness = read.choice(fields.get("exactness"), "exactness", ("exact", "bounded", "lossy"))
    exact = exactness == "exact"
    tensors = tuple(_tensors(read, rows, chunk=chunk, parts=parts, exact=exact))
    names = [entry.name for entry in tensors]
    if names != sorted(set(names)):
        read.fail("tensors", "distinct names in sorted order", "another order or a repeated name")
    check_base_names(read, tensors)
    return Config(
        codec=read.text(fields.get("codec"), "codec", limit=fmt.MAX_CODEC_CHARS),
        exactness=cast("Any", exactness),
        chunk=chunk,
        base=_source(read, fields.get("base"), "base"),
        post=_source(read, fields.get("post"), "post"),
        tensors=tensors,
        parts=parts,
        samples=_samples(read, fields.get("samples"), tensors, samples_layer.size),
        files=_files(read, fields.get("files"), manifest, first=parts + 1),
        restore_only=read.boolean(fields.get("restore_only"), "restore_only"),
        not_stored=read_not_stored(read, fields.get("not_stored", [])),
    )


def load_json(data: bytes, *, limit: int, where: str) -> Any:
    """Parse JSON of at most ``limit`` bytes, without repeated keys, NaN or deep nesting.

    It may take ``MAX_DOCUMENT_MEMORY`` once parsed.

    Raises:
        ManifestInvalidError: It is not that.
    """
    if len(data) > limit:
        raise ManifestInvalidError(
            f"{where} has {len(data)} bytes; the format allows {limit}.", hint=_HINT
        )
    try:
        return strict_json.parse(data, memory=fmt.MAX_DOCUMENT_MEMORY)
    except strict_json.TooManyValuesError as error:
        raise ManifestInvalidError(
            f"{where} {str(error).removeprefix('it ')}.", hint=_HINT
        ) from error
    except ValueError as error:
        raise ManifestInvalidError(f"{where} is not valid JSON: {error}.", hint=_HINT) from error


T = TypeVar("T")

Field = str | int | tuple["Field", ...]
"""A field's name, or what it is made of: of a million tensors the names are put together only for
an error."""


def _named(field: Field) -> str:
    return "".join(map(_named, field)) if isinstance(field, tuple) else str(field)


class Row(Protocol):
    """A tensor's row, in an artifact or in a plan for one, as far as other fields name it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def base(self) -> TensorShape | None: ...  # noqa: D102
    @property
    def base_name(self) -> str | None: ...  # noqa: D102
    @property
    def own_base(self) -> TensorShape | None: ...  # noqa: D102


class TensorShape(Protocol):
    """A tensor of base."""

    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def elements(self) -> int: ...  # noqa: D102


class Reader:
    """Typed access to JSON values with one error for all: where, which field, expected, got.

    Every method takes a value and its field's name, and raises ``ManifestInvalidError`` where the
    value is not what the method is called.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._shared: dict[Any, Any] = {}

    def share(self, value: T) -> T:
        """The first value that is equal: of a hundred thousand tensors most are much alike."""
        return cast("T", self._shared.setdefault(value, value))

    def fail(self, field: Field, expected: str, got: object) -> NoReturn:
        """Refuse the field."""
        named = _named(field)
        raise ManifestInvalidError(
            f"{self.where}: field {named} should be {expected}, got {shown(got)}.",
            hint=_HINT,
            field=named,
        )

    def expect(self, value: object, wanted: object, field: Field) -> None:
        """Refuse another value, or one of another type."""
        if value != wanted or type(value) is not type(wanted):
            self.fail(field, repr(wanted), value)

    def mapping(self, value: object, field: Field) -> dict[str, Any]:
        """An object."""
        if not isinstance(value, dict):
            self.fail(field, "an object", value)
        return value

    def params(self, value: object, field: Field) -> dict[str, Any]:
        """An object that is shared with those that are equal."""
        params = self.mapping(value, field)
        if any(isinstance(item, list | dict) for item in params.values()):
            return params
        # With the types: 1 and true are equal.
        key = ("params", *((name, type(item), item) for name, item in params.items()))
        return cast("dict[str, Any]", self._shared.setdefault(key, params))

    def array(self, value: object, field: Field, *, limit: int) -> list[Any]:
        """An array of bounded length."""
        if not isinstance(value, list) or len(value) > limit:
            self.fail(field, f"an array of at most {limit} items", value)
        return value

    def integer(self, value: object, field: Field, *, low: int = 0, high: int = 1 << 62) -> int:
        """An integer within bounds."""
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.fail(field, f"an integer in {low}..{high}", value)
        return value

    def chunk(self, value: object, field: Field) -> int:
        """How many elements a chunk has."""
        chunk = self.integer(value, field, low=fmt.MIN_CHUNK_ELEMENTS, high=fmt.MAX_CHUNK_ELEMENTS)
        if chunk & (chunk - 1):
            self.fail(field, "a power of two", chunk)
        return chunk

    def number(self, value: object, field: Field, *, low: int = 0) -> float:
        """A finite number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(field, "a number", value)
        try:
            number = float(value)
        except OverflowError:  # an integer that no float can hold
            number = math.inf
        if not math.isfinite(number) or number < low:
            self.fail(field, f"a finite number >= {low}", value)
        return number

    def boolean(self, value: object, field: Field) -> bool:
        """True or false."""
        if not isinstance(value, bool):
            self.fail(field, "true or false", value)
        return value

    def text(self, value: object, field: Field, *, limit: int = fmt.MAX_NAME_CHARS) -> str:
        """Printable text of bounded length."""
        if not isinstance(value, str) or not 0 < len(value) <= limit or not value.isprintable():
            self.fail(field, f"printable text of 1..{limit} characters", value)
        return value

    def optional_text(self, value: object, field: Field) -> str | None:
        """The same, or null."""
        return None if value is None else self.text(value, field)

    def tensor_name(self, value: object, field: Field) -> str:
        """What a tensor may be called."""
        name = self.text(value, field)
        problem = name_problem(name)
        if problem is not None:
            self.fail(field, "a name that a tensor of a checkpoint may have", name)
        return name

    def dtype_and_shape(self, fields: dict[str, Any], field: Field) -> tuple[str, tuple[int, ...]]:
        """What a tensor is, of an object that says it."""
        dims = self.array(fields.get("shape"), (field, ".shape"), limit=fmt.MAX_DIMENSIONS)
        shape = tuple(
            self.integer(dim, (field, ".shape[", i, "]"), high=fmt.MAX_ELEMENTS)
            for i, dim in enumerate(dims)
        )
        problem = shape_problem(shape)
        if problem is not None:
            self.fail((field, ".shape"), "a shape that checkpoints may have", problem)
        dtype = self.choice(fields.get("dtype"), (field, ".dtype"), _DTYPES)
        return sys.intern(dtype), self.share(shape)

    def path(self, value: object, field: Field) -> str:
        """A small file's path: plain components, so that it cannot leave a directory."""
        path = self.text(value, field, limit=255)
        plain = all(part not in ("", ".", "..") for part in path.split("/"))
        if PurePosixPath(path).is_absolute() or not plain or "\\" in path or ":" in path:
            self.fail(field, "a relative path of plain components", path)
        return path

    def choice(self, value: object, field: Field, choices: tuple[str, ...]) -> str:
        """One of some words."""
        if not isinstance(value, str) or value not in choices:
            self.fail(field, "one of " + ", ".join(choices), value)
        return value

    def match(self, value: object, field: Field, check: Callable[[object], bool], what: str) -> str:
        """What passes a check."""
        if not check(value):
            self.fail(field, what, value)
        return cast("str", value)

    def descriptor(
        self, value: object, field: Field, *, limit: int = fmt.MAX_ELEMENTS
    ) -> Descriptor:
        """A blob as a manifest describes it."""
        fields = self.mapping(value, field)
        title = None
        if "annotations" in fields:
            notes = self.mapping(fields["annotations"], (field, ".annotations"))
            if fmt.TITLE_ANNOTATION in notes:
                title = self.text(notes[fmt.TITLE_ANNOTATION], (field, ".annotations.title"))
        return Descriptor(
            media_type=self.text(fields.get("mediaType"), (field, ".mediaType")),
            digest=self.match(
                fields.get("digest"), (field, ".digest"), is_digest, "sha256:<64 hex digits>"
            ),
            size=self.integer(fields.get("size"), (field, ".size"), high=limit),
            title=title,
        )


def _source(read: Reader, value: object, field: Field) -> SourceModel:
    fields = read.mapping(value, field)
    return SourceModel(
        content=read.match(
            fields.get("content"), (field, ".content"), is_content_digest, "blake3:<64 hex digits>"
        ),
        fingerprint=read.match(
            fields.get("fingerprint"), (field, ".fingerprint"), is_digest, "sha256:<64 hex digits>"
        ),
        nbytes=read.integer(fields.get("nbytes"), (field, ".nbytes")),
        parameters=read.integer(fields.get("parameters"), (field, ".parameters")),
        repo=read.optional_text(fields.get("repo"), (field, ".repo")),
        revision=read.optional_text(fields.get("revision"), (field, ".revision")),
    )


def _is_hex64(value: object) -> bool:
    return isinstance(value, str) and HEX64.match(value) is not None


def _side(read: Reader, value: object, field: Field) -> TensorSide | None:
    if value is None:
        return None
    fields = read.mapping(value, field)
    dtype, shape = read.dtype_and_shape(fields, field)
    return TensorSide(
        dtype=dtype,
        shape=shape,
        blake3=read.match(
            fields.get("blake3"),
            (field, ".blake3"),
            _is_hex64,
            "64 hex digits",
        ),
    )


def _stream(
    read: Reader, value: object, field: Field, *, frames: int, parts: int, sparse: bool
) -> Stream:
    fields = read.mapping(value, field)
    rows = read.array(fields.get("segments"), (field, ".segments"), limit=fmt.MAX_SEGMENTS)
    segments = []
    last_part, next_frame = -1, 0
    for i, row in enumerate(rows):
        at = (field, ".segments[", i, "]")
        triple = read.array(row, at, limit=3)
        if len(triple) != 3:
            read.fail(at, "[part, first frame, frames]", row)
        segment = Segment(
            part=read.integer(triple[0], (at, "[0]"), low=last_part + 1, high=parts - 1),
            first=read.integer(triple[1], (at, "[1]"), low=next_frame, high=frames),
            frames=read.integer(triple[2], (at, "[2]"), low=1, high=frames),
        )
        if segment.first + segment.frames > frames or (not sparse and segment.first != next_frame):
            read.fail(at, f"frames that follow on each other within {frames}", row)
        last_part, next_frame = segment.part, segment.first + segment.frames
        segments.append(segment)
    if not sparse and next_frame != frames:
        read.fail((field, ".segments"), f"{frames} frames in all", next_frame)
    return Stream(
        codec=sys.intern(
            read.text(fields.get("codec"), (field, ".codec"), limit=fmt.MAX_CODEC_CHARS)
        ),
        params=read.params(fields.get("params"), (field, ".params")),
        segments=read.share(tuple(segments)),
        stored_bytes=read.integer(fields.get("bytes"), (field, ".bytes")),
    )


def _tensors(
    read: Reader, rows: list[Any], *, chunk: int, parts: int, exact: bool
) -> Iterator[TensorEntry]:
    """The tensor table; empties the document as it goes, which takes twice as much memory."""
    for i, row in enumerate(rows):
        rows[i] = None
        yield _tensor(read, row, ("tensors[", i, "]"), chunk=chunk, parts=parts, exact=exact)


def _tensor(
    read: Reader, value: object, field: Field, *, chunk: int, parts: int, exact: bool
) -> TensorEntry:
    fields = read.mapping(value, field)
    name = read.tensor_name(fields.get("name"), (field, ".name"))
    kind = cast("TensorKind", sys.intern(read.choice(fields.get("kind"), (field, ".kind"), _KINDS)))
    base = _side(read, fields.get("base"), (field, ".base"))
    post = _side(read, fields.get("post"), (field, ".post"))
    if (base is None) != (kind == "added") or (post is None) != (kind == "removed"):
        read.fail(field, f"the sides that kind {kind} has", "another set of sides")
    base_name = _base_name(read, fields, field, kind) if "base_name" in fields else None
    delta = patch = None
    changed, l2, base_l2, error = 0, 0.0, 0.0, None
    common = 0
    if kind in ("delta", "resized"):
        assert base is not None
        assert post is not None
        _check_pair(read, field, kind, base, post)
        common = min(base.elements, post.elements)
        delta, patch = _delta_and_patch(read, fields, field, -(-common // chunk), parts)
    elif kind == "unchanged" and base != post:
        read.fail(field, "equal sides, as the kind is unchanged", "sides that differ")
    further = post.elements - common if kind in _WITH_VALUES and post is not None else 0
    values = _values(read, fields, field, kind, further, chunk=chunk, parts=parts)
    if delta is not None:
        changed = read.integer(fields.get("changed"), (field, ".changed"), high=common)
        l2 = read.number(fields.get("l2"), (field, ".l2"))
        base_l2 = read.number(fields.get("base_l2"), (field, ".base_l2"))
    else:
        for role in ("delta", "patch"):
            if role in fields:
                read.fail((field, ".", role), f"absent for kind {kind}", "present")
    if "error" in fields:
        error = _error(read, fields["error"], (field, ".error"))
        if delta is None or exact:
            read.fail((field, ".error"), "absent but for a delta that is not exact", "present")
    return TensorEntry(
        name=name,
        kind=kind,
        base=base,
        post=post,
        delta=delta,
        values=values,
        patch=patch,
        changed=changed,
        l2=l2,
        base_l2=base_l2,
        base_name=base_name,
        error=error,
    )


def _error(read: Reader, value: object, field: Field) -> DeltaError:
    fields = read.mapping(value, field)
    return DeltaError(
        l2=read.number(fields.get("l2"), (field, ".l2")),
        max=read.number(fields.get("max"), (field, ".max")),
    )


def _base_name(read: Reader, fields: dict[str, Any], field: Field, kind: TensorKind) -> str:
    name = read.tensor_name(fields["base_name"], (field, ".base_name"))
    if kind not in ("unchanged", "delta", "resized"):
        read.fail((field, ".base_name"), f"absent for kind {kind}", name)
    return name


def _delta_and_patch(
    read: Reader, fields: dict[str, Any], field: Field, frames: int, parts: int
) -> tuple[Stream, Stream | None]:
    if "delta" not in fields:
        read.fail((field, ".delta"), "an object", None)
    at = (field, ".delta")
    delta = _stream(read, fields["delta"], at, frames=frames, parts=parts, sparse=False)
    if "patch" not in fields:
        return delta, None
    at = (field, ".patch")
    return delta, _stream(read, fields["patch"], at, frames=frames, parts=parts, sparse=True)


def _values(
    read: Reader,
    fields: dict[str, Any],
    field: Field,
    kind: TensorKind,
    elements: int,
    *,
    chunk: int,
    parts: int,
) -> Stream | None:
    """The stream of those elements of post that have no delta."""
    has_values = kind in _WITH_VALUES and (kind != "resized" or elements > 0)
    if ("values" in fields) != has_values:
        read.fail((field, ".values"), "present just where the kind has values", kind)
    if not has_values:
        return None
    at, frames = (field, ".values"), -(-elements // chunk)
    return _stream(read, fields["values"], at, frames=frames, parts=parts, sparse=False)


def check_base_names(read: Reader, tensors: Sequence[Row]) -> None:
    """Refuse a row whose base is said to be another row's tensor, and is not."""
    own = {row.name: row.own_base for row in tensors}
    for i, row in enumerate(tensors):
        if row.base_name is not None and own.get(row.base_name) != row.base:
            read.fail(
                f"tensors[{i}].base_name",
                "the name of a tensor whose base is this one's",
                row.base_name,
            )


def _check_pair(
    read: Reader, field: Field, kind: TensorKind, base: TensorSide, post: TensorSide
) -> None:
    for side in (base, post):
        if side.dtype not in fmt.DELTA_DTYPES:
            read.fail(field, "a floating-point dtype, as the kind has a delta", side.dtype)
    same = base.shape == post.shape
    if kind == "delta" and not same:
        read.fail(field, "equal shapes for kind delta", (base.shape, post.shape))
    if kind == "resized" and (same or not base.shape or base.shape[1:] != post.shape[1:]):
        read.fail(field, "shapes that differ in the first dimension only", (base.shape, post.shape))


def _samples(
    read: Reader, value: object, tensors: tuple[TensorEntry, ...], layer_bytes: int
) -> tuple[SampleRun, ...]:
    runs, total = read_sample_runs(read, value, tensors)
    if total != layer_bytes:
        read.fail("samples", f"{layer_bytes} bytes, as the samples layer has", total)
    return runs


def read_sample_runs(
    read: Reader, value: object, tensors: Sequence[Row]
) -> tuple[tuple[SampleRun, ...], int]:
    """Where base is sampled, and how many bytes that are."""
    runs = []
    total = 0
    rows = read.array(value, "samples", limit=fmt.MAX_SAMPLE_RUNS)
    for i, row in enumerate(rows):
        at = f"samples[{i}]"
        triple = read.array(row, at, limit=3)
        if len(triple) != 3:
            read.fail(at, "[tensor, start, count]", row)
        index = read.integer(triple[0], (at, "[0]"), high=len(tensors) - 1)
        side = tensors[index].own_base
        if side is None:
            read.fail((at, "[0]"), "a tensor of the base's own", tensors[index].name)
        start = read.integer(triple[1], (at, "[1]"), high=side.elements)
        count = read.integer(triple[2], (at, "[2]"), low=1, high=side.elements - start)
        total += count * fmt.DTYPE_BYTES[side.dtype]
        runs.append(SampleRun(index, start, count))
    if len({run.tensor for run in runs}) > fmt.MAX_SAMPLE_TENSORS:
        read.fail("samples", f"at most {fmt.MAX_SAMPLE_TENSORS} tensors", "more")
    return tuple(runs), total


def _files(read: Reader, value: object, manifest: Manifest, *, first: int) -> tuple[FileEntry, ...]:
    entries = []
    for i, row in enumerate(read.array(value, "files", limit=fmt.MAX_LAYERS)):
        at = f"files[{i}]"
        fields = read.mapping(row, at)
        side = read.choice(fields.get("side"), (at, ".side"), ("base", "post"))
        path = read.path(fields.get("path"), (at, ".path"))
        layer = read.integer(fields.get("layer"), (at, ".layer"), low=first)
        if layer >= len(manifest.layers):
            read.fail((at, ".layer"), f"below {len(manifest.layers)}", layer)
        descriptor = manifest.layers[layer]
        read.expect(descriptor.media_type, fmt.FILE_MEDIA_TYPE, f"layers[{layer}].mediaType")
        if descriptor.size > fmt.MAX_SMALL_FILE_BYTES:
            read.fail(f"layers[{layer}].size", f"<= {fmt.MAX_SMALL_FILE_BYTES}", descriptor.size)
        entries.append(FileEntry(side=cast("Any", side), path=path, layer=layer))
    total = sum(manifest.layers[entry.layer].size for entry in entries)
    if total > fmt.MAX_SMALL_FILES_BYTES:
        read.fail("files", f"at most {fmt.MAX_SMALL_FILES_BYTES} bytes together", total)
    if len({(entry.side, entry.path) for entry in entries}) != len(entries):
        read.fail("files", "distinct paths", "a repeated path")
    return tuple(entries)


def read_not_stored(read: Reader, value: object) -> tuple[str, ...]:
    """The names of what lay beside post's weights and is not stored."""
    names = [
        read.text(name, f"not_stored[{i}]")
        for i, name in enumerate(read.array(value, "not_stored", limit=fmt.MAX_NOT_STORED))
    ]
    if names != sorted(set(names)):
        read.fail(
            "not_stored", "distinct names in sorted order", "another order or a repeated name"
        )
    return tuple(names)
