"""An extraction's plan as JSON, and back; what is read may have been written by anybody."""

from __future__ import annotations

from typing import Any, cast, get_args

from deltastore.artifact import small_files
from deltastore.checkpoint import TensorSpec
from deltastore.codecs import stored_codec
from deltastore.digest import canonical_json, is_digest
from deltastore.errors import FormatError, ManifestInvalidError
from deltastore.extraction.plan import (
    ExtractPlan,
    LeftFile,
    PlannedFile,
    PlannedSide,
    may_be_unchanged,
)
from deltastore.lineage.pair_similarity import PairLineage
from deltastore.lineage.pairing import Pair, pair_of
from deltastore.lineage.similarity import Verdict
from deltastore.manifest import format as fmt
from deltastore.manifest.parse import (
    Field,
    Reader,
    check_base_names,
    load_json,
    read_not_stored,
    read_sample_runs,
)

_FORMAT = 1
_MOST_LEFT = 4096
_MOST_OVERRULED = 16


def plan_bytes(plan: ExtractPlan) -> bytes:
    """A plan as canonical JSON."""
    return canonical_json(
        {
            "plan": "extract",
            "format": _FORMAT,
            "codec": plan.codec,
            "chunk": plan.chunk,
            "restore_only": plan.restore_only,
            "base": _side(plan.base),
            "post": _side(plan.post),
            "tensors": [_pair(pair) for pair in plan.tensors],
            "samples": [[run.tensor, run.start, run.count] for run in plan.samples],
            "files": [
                {"side": f.side, "path": f.path, "digest": f.digest, "size": f.size}
                for f in plan.files
            ],
            "left": [{"side": f.side, "name": f.name, "why": f.why} for f in plan.left],
            "not_stored": list(plan.not_stored),
            "kinship": {
                "verdict": plan.kinship.verdict,
                "cosine": plan.kinship.cosine,
                "change": plan.kinship.change,
                "tensors": plan.kinship.tensors,
                "told": plan.kinship.told,
                "overruled": list(plan.kinship.overruled),
            },
        }
    )


def parse_plan(data: bytes, *, where: str) -> ExtractPlan:
    """Read a plan; nothing in it is taken on trust that the format or the pairs can tell.

    Args:
        data: As ``plan_bytes`` wrote it.
        where: What to call it in an error.

    Raises:
        FormatError: It is no plan of an extraction, or contradicts itself.
        CodecUnknownError: Its codec is not known here.
    """
    try:
        document, read = load_json(data, limit=fmt.MAX_CONFIG_BYTES, where=where), Reader(where)
        plan = _plan(read, document)
        if not _is_written(document, plan):
            read.fail("plan", "what deltastore writes of it", "something more, or in another form")
        return plan
    except ManifestInvalidError as error:
        raise FormatError(
            error.message, hint="Make the plan anew from the two checkpoints.", **error.facts
        ) from error


def _plan(read: Reader, document: object) -> ExtractPlan:
    fields = read.mapping(document, "plan")
    read.expect(fields.get("plan"), "extract", "plan")
    read.expect(fields.get("format"), _FORMAT, "format")
    rows = read.array(fields.get("tensors"), "tensors", limit=fmt.MAX_TENSORS)
    tensors = tuple(_read_pair(read, row, ("tensors[", i, "]")) for i, row in enumerate(rows))
    names = [pair.name for pair in tensors]
    if names != sorted(set(names)):
        read.fail("tensors", "distinct names in sorted order", "another order or a repeated name")
    check_base_names(read, tensors)
    runs, size = read_sample_runs(read, fields.get("samples"), tensors)
    if size > fmt.MAX_SAMPLE_BYTES:
        read.fail("samples", f"at most {fmt.MAX_SAMPLE_BYTES} bytes", size)
    left = _read_left(read, fields.get("left"))
    not_stored = read_not_stored(read, fields.get("not_stored"))
    if not {file.name for file in left if file.side == "post"}.issuperset(not_stored):
        read.fail("not_stored", "names of what is left beside post", not_stored)
    codec = read.text(fields.get("codec"), "codec", limit=64)
    read.expect(codec, stored_codec(codec, where=read.where).name, "codec")
    return ExtractPlan(
        codec=codec,
        chunk=read.chunk(fields.get("chunk"), "chunk"),
        base=_read_side(read, fields.get("base"), "base", {p.name for p in tensors if p.own_base}),
        post=_read_side(read, fields.get("post"), "post", {p.name for p in tensors if p.post}),
        tensors=tensors,
        samples=runs,
        files=_read_files(read, fields.get("files")),
        left=left,
        not_stored=not_stored,
        kinship=_read_kinship(read, fields.get("kinship")),
        restore_only=read.boolean(fields.get("restore_only"), "restore_only"),
    )


def _is_written(document: object, plan: ExtractPlan) -> bool:
    """Whether a document is what is written of a plan: whatever else is in it is not ours."""
    try:
        return canonical_json(document) == plan_bytes(plan)
    except ValueError:  # halves of surrogate pairs
        return False


def _side(side: PlannedSide) -> dict[str, Any]:
    return {"repo": side.repo, "revision": side.revision, "names": dict(side.names)}


def _read_side(read: Reader, value: object, field: Field, known: set[str]) -> PlannedSide:
    fields = read.mapping(value, field)
    names = read.mapping(fields.get("names"), (field, ".names"))
    for stored, name in names.items():
        read.tensor_name(stored, (field, ".names"))
        if not isinstance(name, str) or name not in known:
            read.fail((field, ".names.", stored), "the name of a tensor of this side", name)
    if len(set(names.values())) != len(names):
        read.fail((field, ".names"), "distinct tensors", "one under two names")
    return PlannedSide(
        repo=read.optional_text(fields.get("repo"), (field, ".repo")),
        revision=read.optional_text(fields.get("revision"), (field, ".revision")),
        names=tuple(names.items()),
    )


def _pair(pair: Pair) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": pair.name,
        "kind": pair.kind,
        "base": _tensor(pair.base),
        "post": _tensor(pair.post),
    }
    if pair.base_name is not None:
        document["base_name"] = pair.base_name
    return document


def _tensor(tensor: TensorSpec | None) -> dict[str, Any] | None:
    return None if tensor is None else {"dtype": tensor.dtype, "shape": list(tensor.shape)}


def _read_pair(read: Reader, value: object, field: Field) -> Pair:
    fields = read.mapping(value, field)
    name = read.tensor_name(fields.get("name"), (field, ".name"))
    source = name
    if "base_name" in fields:
        source = read.tensor_name(fields["base_name"], (field, ".base_name"))
    base = _read_tensor(read, source, fields.get("base"), (field, ".base"))
    post = _read_tensor(read, name, fields.get("post"), (field, ".post"))
    if base is None and post is None:
        read.fail(field, "a tensor of base or post", None)
    pair = pair_of(name, base, post)
    if source != name and pair.kind not in ("delta", "resized"):
        read.fail((field, ".base_name"), f"absent for kind {pair.kind}", source)
    if fields.get("kind") == "unchanged" and may_be_unchanged(pair):
        return Pair(name, "unchanged", base, post)
    read.expect(fields.get("kind"), pair.kind, (field, ".kind"))
    return pair


def _read_tensor(read: Reader, name: str, value: object, field: Field) -> TensorSpec | None:
    if value is None:
        return None
    dtype, shape = read.dtype_and_shape(read.mapping(value, field), field)
    return TensorSpec(name, dtype, shape)


def _read_files(read: Reader, value: object) -> tuple[PlannedFile, ...]:
    files = []
    for i, row in enumerate(read.array(value, "files", limit=fmt.MAX_LAYERS)):
        field: Field = ("files[", i, "]")
        fields = read.mapping(row, field)
        files.append(
            PlannedFile(
                side=_read_which(read, fields.get("side"), (field, ".side")),
                path=read.path(fields.get("path"), (field, ".path")),
                digest=read.match(
                    fields.get("digest"), (field, ".digest"), is_digest, "sha256:<64 hex digits>"
                ),
                size=read.integer(
                    fields.get("size"), (field, ".size"), high=fmt.MAX_SMALL_FILE_BYTES
                ),
            )
        )
    if len({(file.side, file.path) for file in files}) != len(files):
        read.fail("files", "distinct paths", "a repeated path")
    total = sum(file.size for file in files)
    if total > fmt.MAX_SMALL_FILES_BYTES:
        read.fail("files", f"at most {fmt.MAX_SMALL_FILES_BYTES} bytes together", total)
    return tuple(files)


def _read_left(read: Reader, value: object) -> tuple[LeftFile, ...]:
    left = []
    for i, row in enumerate(read.array(value, "left", limit=_MOST_LEFT)):
        field: Field = ("left[", i, "]")
        fields = read.mapping(row, field)
        left.append(
            LeftFile(
                side=_read_which(read, fields.get("side"), (field, ".side")),
                name=read.text(fields.get("name"), (field, ".name")),
                why=read.text(fields.get("why"), (field, ".why")),
            )
        )
    return tuple(left)


def _read_which(read: Reader, value: object, field: Field) -> small_files.Side:
    return cast("small_files.Side", read.choice(value, field, get_args(small_files.Side)))


def _read_kinship(read: Reader, value: object) -> PairLineage:
    fields = read.mapping(value, "kinship")
    cosine, change = fields.get("cosine"), fields.get("change")
    overruled = read.array(fields.get("overruled"), "kinship.overruled", limit=_MOST_OVERRULED)
    verdict = read.choice(fields.get("verdict"), "kinship.verdict", get_args(Verdict))
    return PairLineage(
        verdict=cast("Verdict", verdict),
        cosine=None if cosine is None else read.number(cosine, "kinship.cosine", low=-2),
        change=None if change is None else read.number(change, "kinship.change"),
        tensors=read.integer(fields.get("tensors"), "kinship.tensors", high=fmt.MAX_TENSORS),
        told=read.text(fields.get("told"), "kinship.told", limit=4096),
        overruled=tuple(read.text(one, "kinship.overruled", limit=4096) for one in overruled),
    )
