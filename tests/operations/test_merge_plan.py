"""A plan is a value: written as JSON, read again, divided, and executed in pieces elsewhere."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoints import Tensors, load, model, save, specials, trained
from test_vocabulary import WORDS, Model

import deltastore
from deltastore.artifact.reader import ArtifactReader
from deltastore.checkpoint import Checkpoint, CheckpointWriter, open_checkpoint
from deltastore.errors import DeltastoreError, FormatError
from deltastore.execution.progress import Silent
from deltastore.extraction import assembling
from deltastore.extraction import plan as extract_plan
from deltastore.merging import method as methods
from deltastore.merging.engine import Engine
from deltastore.merging.inputs import name_inputs, open_inputs
from deltastore.merging.method import Chunk, MergeMethod, Prepared
from deltastore.merging.plan import MergePlan
from deltastore.merging.plan_document import parse_plan, plan_bytes
from deltastore.merging.planning import MergeOptions, make_plan
from deltastore.merging.recipes import Recipe
from deltastore.operations.apply import apply
from deltastore.store import Store, open_store
from deltastore.tensor_names.selectors import Renaming, ScaleRule
from deltastore.tokenizer.rows import NONE, from_runs, to_runs

PIECE = """
import pickle, sys
from pathlib import Path
from deltastore.artifact.reader import ArtifactReader
from deltastore.checkpoint import open_checkpoint
from deltastore.execution.progress import Silent
from deltastore.merging.engine import Engine
from deltastore.merging.plan_document import parse_plan
from deltastore.store import open_store

class Pieces(list):
    def write(self, name, start_byte, data):
        self.append((name, start_byte, data.tobytes()))

place, base, plan, first, last, out = sys.argv[1:]
pieces = Pieces()
with open_store(Path(place), create=False) as store, open_checkpoint(base) as checkpoint:
    data = Path(plan).read_bytes()
    plan, checkpoint = parse_plan(data, checkpoint, lambda digest: store.load(digest)[1])
    readers = [ArtifactReader(store.blobs, *store.load(delta.digest)) for delta in plan.deltas]
    engine = Engine(plan, checkpoint, readers)
    tally = engine.run(pieces, [range(int(first), int(last))], jobs=2, progress=Silent())
Path(out).write_bytes(pickle.dumps((list(pieces), tally.overflowed, tally.digests)))
"""

Bytes = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Iterator[None]:
    """A tensor has several chunks, and an artifact several parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_plan, "CHUNK_ELEMENTS", 1024)
        builder = assembling.PartBuilder
        patch.setattr(
            assembling, "PartBuilder", lambda *a, **k: builder(*a, **{**k, "part_bytes": 4000})
        )
        yield


def grown(tensors: Tensors, rows: int) -> Tensors:
    """The same with more rows of embeddings and head."""
    return {
        name: torch.cat([tensor, tensor[:rows] * 2]) if len(tensor) == 96 else tensor
        for name, tensor in tensors.items()
    }


@dataclasses.dataclass(frozen=True)
class Case:
    """Deltas of a store, a new base, and what is asked."""

    store: Store
    refs: Sequence[str]
    base: Path
    scales: Sequence[float] = ()
    rules: Sequence[ScaleRule] = ()
    dtype: str | None = None
    method: MergeMethod = methods.LINEAR

    @property
    def options(self) -> MergeOptions:
        return MergeOptions(
            scales=self.scales,
            scale_rules=self.rules,
            dtype=self.dtype,
            method=self.method,
            partial=True,
        )

    def apply(self, out: Path, *, dry_run: bool = False) -> Any:
        options = self.options
        return apply(
            self.store, self.refs, base=self.base, out=out, options=options, dry_run=dry_run
        )

    @contextmanager
    def planned(self) -> Iterator[tuple[MergePlan, Checkpoint, list[ArtifactReader]]]:
        scales = self.options.scales_of(self.refs).scales
        with (
            open_inputs(self.store, zip(self.refs, scales, strict=True)) as inputs,
            open_checkpoint(str(self.base)) as checkpoint,
        ):
            view, named = name_inputs(checkpoint, inputs, Renaming(), Silent())
            plan, _ = make_plan(
                self.store,
                view,
                named,
                self.options,
                look_only=False,
                jobs=1,
                progress=Silent(),
            )
            yield plan, view, [one.reader for one in inputs]

    def read(self, data: bytes) -> MergePlan:
        with open_checkpoint(str(self.base)) as checkpoint:
            return parse_plan(data, checkpoint, self.config_of)[0]

    def config_of(self, digest: str) -> Any:
        return self.store.load(digest)[1]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Case]]:
    place = tmp_path_factory.mktemp("plans")
    base = model("base") | {"numbers": torch.arange(3000), "empty": torch.empty(0).bfloat16()}
    wide = {"wide": torch.linspace(-1, 1, 3000)}
    post = trained(base, "post") | {"score.weight": torch.ones(2, 32).bfloat16()}
    # What a sum does not give back: the restore patch does.
    strange = torch.cat([specials("BF16")] * 40)
    save(place / "base", base | {"strange": strange} | wide)
    save(place / "post", grown(post, 5) | {"strange": strange.flip(0)} | {"wide": wide["wide"] * 2})
    rows = {name: tensor for name, tensor in base.items() if len(tensor) == 96}
    save(place / "other", trained(base, "other") | rows | {"strange": strange} | wide)
    new = trained(base, "new") | {"strange": strange} | wide
    save(place / "new", new, shards=2)
    save(place / "wrapped", {f"module.{name}": tensor for name, tensor in new.items()})
    words = Model(WORDS)
    words.save(place / "words", 0)
    Model([*WORDS, "<call>"]).save(place / "words-post", 1)
    Model([*reversed(WORDS[:30]), "x", "y"], padding=3).save(place / "words-new", 2)
    with deltastore.open(place / "store") as opened:
        opened.extract(place / "base", place / "post", name="post", force=True)
        opened.extract(place / "base", place / "other", name="other", force=True)
        opened.extract(place / "words", place / "words-post", name="words", force=True)
    with open_store(place / "store", create=False) as store:
        rule = ScaleRule("*.mlp.*", (0.25, -1.0))
        yield {
            "restored": Case(store, ["post"], place / "base"),
            "moved": Case(store, ["post"], place / "new", [0.5]),
            "several": Case(store, ["other", "post"], place / "new", [0.5, 1.0], [rule], "float32"),
            "wrapped": Case(store, ["other"], place / "wrapped"),
            "words": Case(store, ["words"], place / "words-new", [0.7]),
        }


CASES = ("restored", "moved", "several", "wrapped", "words")


class Pieces(list[tuple[str, int, bytes]]):
    """What an engine writes, kept."""

    def write(self, name: str, start_byte: int, data: Bytes) -> None:
        self.append((name, start_byte, data.tobytes()))


def weights(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.glob("model*")}


def written(plan: MergePlan, pieces: Sequence[tuple[str, int, bytes]], out: Path) -> Path:
    with CheckpointWriter(out, plan.shards) as writer:
        for name, start_byte, data in pieces:
            writer.write(name, start_byte, data)
        writer.commit()
    return out


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_read_as_it_was_written(cases: Mapping[str, Case], name: str) -> None:
    with cases[name].planned() as (plan, _, _):
        data = plan_bytes(plan)
        again = cases[name].read(data)
        assert plan_bytes(again) == data
        assert again.report() == plan.report()
        assert again.deltas == plan.deltas
        assert again.shards == plan.shards
        assert again.patches == plan.patches
        assert [*again.tensors] == [*plan.tensors]
        for one, other in zip(again.tensors.values(), plan.tensors.values(), strict=True):
            assert (one.output, one.values) == (other.output, other.values)
            assert [a.entry for a in one.addends] == [a.entry for a in other.addends]


@pytest.mark.parametrize("name", ["restored", "several"])
def test_three_processes_write_what_one_does(
    cases: Mapping[str, Case], tmp_path: Path, name: str
) -> None:
    case = cases[name]
    done = case.apply(tmp_path / "whole")
    with case.planned() as (plan, _, _):
        (tmp_path / "plan.json").write_bytes(plan_bytes(plan))
        ranges = plan.divided(3)
    assert all(map(len, ranges))
    place = str(case.store.path)
    given = [sys.executable, "-c", PIECE, place, str(case.base), str(tmp_path / "plan.json")]
    running = [
        subprocess.Popen([*given, str(part.start), str(part.stop), str(tmp_path / f"piece{n}")])
        for n, part in enumerate(ranges)
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    results = [pickle.loads((tmp_path / f"piece{n}").read_bytes()) for n in range(3)]
    pieces = [row for rows, _, _ in results for row in rows]
    written(plan, pieces, tmp_path / "pieces")
    assert weights(tmp_path / "pieces") == weights(tmp_path / "whole")
    assert sum(overflowed for _, overflowed, _ in results) == done.overflowed
    digests = [name for _, _, found in results for name in found]
    assert sorted(digests) == (sorted(plan.tensors) if name == "restored" else [])
    assert done.restored is (name == "restored")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pieces", [1, 2, 7, 500])
def test_every_division_writes_each_byte_once(
    cases: Mapping[str, Case], tmp_path: Path, name: str, pieces: int
) -> None:
    case = cases[name]
    case.apply(tmp_path / "whole")
    with case.planned() as (plan, base, readers):
        ranges = plan.divided(pieces)
        assert [r.start for r in ranges[1:]] == [r.stop for r in ranges[:-1]]
        found, checked = Pieces(), []
        for reader in readers:
            reader.check_part = checked.append  # type: ignore[method-assign]
        for part in ranges:
            Engine(plan, base, readers).run(found, [part], jobs=2, progress=Silent())
        written(plan, found, tmp_path / "pieces")
        assert sum(len(data) for _, _, data in found) == plan.nbytes
        parts = {part.digest for reader in readers for part in reader.parts}
        assert {part.digest for part in checked} == parts
        assert len(checked) == len(parts)
    assert weights(tmp_path / "pieces") == weights(tmp_path / "whole")


def test_no_range_cuts_a_tensor_whose_digest_is_taken(cases: Mapping[str, Case]) -> None:
    with cases["restored"].planned() as (plan, base, readers):
        engine, chunks = Engine(plan, base, readers), range(1)
        assert plan.chunks_of(plan.tensors[plan.shards[0].tensors[0].name]) > 1
        with pytest.raises(ValueError, match="cuts"):
            engine.run(Pieces(), [chunks], jobs=1, progress=Silent())


def test_a_dry_run_is_the_report_of_the_plan(cases: Mapping[str, Case], tmp_path: Path) -> None:
    case = cases["several"]
    dry = case.apply(tmp_path / "out", dry_run=True)
    with case.planned() as (plan, _, _):
        report = plan.report()
    for key, value in report.items():
        if key not in ("files", "config_left"):  # which are decided after the tensors
            assert getattr(dry, key) == value
    assert report.keys() <= {field.name for field in dataclasses.fields(dry)}


HOSTILE = (
    None,
    True,
    -1,
    0,
    1,
    1 << 70,
    1e300,
    "",
    "../x",
    "\ud800",
    [],
    {},
    [[-1, 1 << 60]],
    "BF16",
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a document."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


@pytest.mark.parametrize("name", ["restored", "several", "words"])
def test_a_plan_that_was_tampered_with_is_refused_or_does_no_harm(
    cases: Mapping[str, Case], name: str
) -> None:
    case, draw = cases[name], random.Random(13)
    with case.planned() as (plan, _, readers), open_checkpoint(str(case.base)) as checkpoint:
        document = json.loads(plan_bytes(plan))
        ways = [way for way in places(document) if way]
        refused = 0
        for way in [*draw.sample(ways, 150), *((key,) for key in document)]:
            other = copy.deepcopy(document)
            holder = other
            for key in way[:-1]:
                holder = holder[key]
            if draw.random() < 0.2:
                holder.pop(way[-1])
            else:
                holder[way[-1]] = draw.choice((*HOSTILE, 7, copy.deepcopy(holder[way[-1]])))
            try:
                read, base = parse_plan(json.dumps(other).encode(), checkpoint, case.config_of)
            except FormatError:
                refused += 1
                continue
            except DeltastoreError:  # no such artifact
                continue
            assert json.loads(plan_bytes(read)) == other
            Engine(read, base, readers).run(Pieces(), jobs=1, progress=Silent(), check=False)
        assert refused > 60


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(more=1),
        lambda d: d["deltas"][0].update(scale=1),
        lambda d: d["deltas"][0].update(scale=1e39),
        lambda d: d["deltas"][0].update(source_base="blake3:" + "0" * 64),
        lambda d: d.update(chunk=512),
        lambda d: d.update(deltas=[]),
        lambda d: d["method"].update(name="loudest"),
        lambda d: d["method"]["params"].update(density=0.5),
        lambda d: d["tensors"].reverse(),
        lambda d: d["tensors"].append(d["tensors"][-1]),
        lambda d: d["tensors"].pop(),
        lambda d: d["shards"][0].update(file="../model.safetensors"),
        lambda d: d["shards"][0].update(file="config.json"),
        lambda d: d["shards"][0]["tensors"].append(d["shards"][0]["tensors"][0]),
        lambda d: d["shards"].append(d["shards"][0]),
        lambda d: d["tensors"][2]["base"].update(dtype="F32"),
        lambda d: d["tensors"][2].update(base=None),
        lambda d: d["tensors"][2]["addends"][0].update(delta=1),
        lambda d: d["tensors"][2]["addends"][0].update(tensor="numbers"),
        lambda d: d["tensors"][2]["addends"].append(d["tensors"][2]["addends"][0]),
        lambda d: d["tensors"][2].update(shape=[1 << 40, 1 << 40]),
        lambda d: d["tensors"][2].update(order=[[0, 32]]),
        lambda d: d["tensors"][2].update(order=[[0, 1]] * 32),
        lambda d: d["tensors"][2]["addends"][0].update(
            rows={"delta": [[1, 32]], "values": [[-1, 32]]}
        ),
        lambda d: d.update(patches=["numbers"]),
        lambda d: d["prepared"].update(nothing=[0.5]),
        lambda d: d["scale_for"].append({"pattern": "*", "scales": [1.0, 2.0]}),
    ],
    ids=range(27),
)
def test_a_plan_that_cannot_be_meant_is_refused(cases: Mapping[str, Case], change: Any) -> None:
    with cases["moved"].planned() as (plan, _, _):
        document = json.loads(plan_bytes(plan))
    assert document["tensors"][2]["addends"]
    cases["moved"].read(json.dumps(document).encode())
    change(document)
    with pytest.raises(FormatError) as caught:
        cases["moved"].read(json.dumps(document).encode())
    assert caught.value.hint


def test_a_plan_is_of_one_base(cases: Mapping[str, Case]) -> None:
    with cases["moved"].planned() as (plan, _, _):
        data = plan_bytes(plan)
    with pytest.raises(FormatError, match="new base"):
        cases["words"].read(data)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"plan":"merge"}', b"[" * 10_000])
def test_what_is_no_plan_is_refused(cases: Mapping[str, Case], data: bytes) -> None:
    with pytest.raises(FormatError):
        cases["moved"].read(data)


@pytest.mark.parametrize(
    "rows", [[], [NONE], [0, 1, 2], [NONE, NONE, 4, 5, NONE, 3, 2, 2], [7, NONE, 8]]
)
def test_rows_as_runs(rows: list[int]) -> None:
    places = np.array(rows, np.int64)
    assert from_runs(to_runs(places)).tolist() == rows
    assert from_runs(to_runs(places)).dtype == np.int64
    assert len(to_runs(places)) <= len(rows)


# --- another method -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Loudest:
    """Of several deltas the one of the largest absolute values that lie above a tensor's mean."""

    factor: float = 1.0
    name = "loudest"
    formula = "out = base + scale * the largest delta"
    restores = False

    @property
    def params(self) -> Mapping[str, Any]:
        return {"factor": self.factor}

    def prepare(self, recipes: Mapping[str, Recipe], readers: Sequence[ArtifactReader]) -> Prepared:
        found = {}
        for name, recipe in recipes.items():
            means = []
            for addend in recipe.addends:
                bits = np.empty(
                    addend.entry.common_elements, np.uint64 if addend.entry.wide else np.uint32
                )
                readers[addend.index].delta(addend.entry, 0, bits)
                means.append(float(np.nanmean(np.abs(floats(bits)))))
            if means:
                found[name] = tuple(means)
        return found

    def combine(self, chunk: Chunk) -> int:
        assert chunk.recipe.base is not None
        base = torch.frombuffer(chunk.base, dtype=torch.bfloat16).double().numpy()
        best = np.zeros(base.size)
        for addend, mean in zip(chunk.recipe.addends, chunk.numbers, strict=True):
            delta = np.nan_to_num(floats(chunk.delta(addend)).astype(np.float64))
            delta[np.abs(delta) < mean * self.factor] = 0
            best = np.where(np.abs(delta) > np.abs(best), addend.scale * delta, best)
        out = torch.from_numpy(base + best).to(torch.bfloat16).view(torch.uint8)
        chunk.out[:] = out.numpy()
        return 0


def floats(bits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return bits.view(np.float64 if bits.dtype == np.uint64 else np.float32)


def test_another_method_is_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads whole tensors first, is written and read with the plan, and told of."""
    monkeypatch.setitem(methods.METHODS, Loudest.name, Loudest)
    base, posts = model("base"), {}
    save(tmp_path / "base", base, config={})
    with deltastore.open(tmp_path / "store") as opened:
        for name in ("one", "two"):
            posts[name] = trained(base, name)
            save(tmp_path / name, posts[name])
            opened.extract(tmp_path / "base", tmp_path / name, name=name)
    with open_store(tmp_path / "store", create=False) as store:
        case = Case(store, ["one", "two"], tmp_path / "base", [1.0, 0.5], method=Loudest(1.5))
        done = case.apply(tmp_path / "out")
        with case.planned() as (plan, view, readers):
            data = plan_bytes(plan)
            assert plan_bytes(case.read(data)) == data
            assert plan.prepared.keys() == {n for n, r in plan.tensors.items() if r.addends}
            found = Pieces()
            for part in plan.divided(5):
                Engine(case.read(data), view, readers).run(found, [part], jobs=1, progress=Silent())
        assert weights(written(plan, found, tmp_path / "pieces")) == weights(tmp_path / "out")
        alone = Case(store, ["one"], tmp_path / "base", method=Loudest())
        assert not alone.apply(tmp_path / "alone").restored
    got = load(tmp_path / "out")
    changed = 0
    for name, tensor in base.items():
        best = torch.zeros(tensor.shape, dtype=torch.float64)
        for post, scale in (("one", 1.0), ("two", 0.5)):
            delta = posts[post][name].double() - tensor.double()
            moved = delta[delta != 0]
            mean = moved.abs().mean() if moved.numel() else 0.0
            # The element that equals the threshold to the last bit is nobody's concern.
            assert not ((delta.abs() - mean * 1.5).abs() < 1e-12).logical_and(delta != 0).any()
            delta[delta.abs() < mean * 1.5] = 0
            best = torch.where(delta.abs() > best.abs(), scale * delta, best)
        expected = (tensor.double() + best).bfloat16()
        assert torch.equal(got[name], expected)
        changed += int((best != 0).sum())
    assert changed > 1000
    assert not done.restored
    provenance = json.loads((tmp_path / "out" / "deltastore.json").read_text())
    assert provenance["method"] == {"name": "loudest", "params": {"factor": 1.5}}
    assert provenance["formula"] == Loudest.formula
    assert "- method: loudest, factor 1.5" in (tmp_path / "out" / "README.md").read_text()


def test_the_linear_sum_is_told_of(cases: Mapping[str, Case], tmp_path: Path) -> None:
    cases["moved"].apply(tmp_path / "out")
    provenance = json.loads((tmp_path / "out" / "deltastore.json").read_text())
    assert provenance["method"] == {"name": "linear", "params": {}}
    assert provenance["formula"] == "out = base + sum(scale * delta)"
    assert "- method: linear\n" in (tmp_path / "out" / "README.md").read_text()
