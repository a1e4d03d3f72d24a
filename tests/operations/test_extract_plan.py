"""An extraction's plan: one value, written and read, and carried out whole or in pieces."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, model, random_bits, save, trained

import deltastore
from deltastore.artifact.parts import PartBuilder
from deltastore.checkpoint import Checkpoint, open_checkpoint
from deltastore.digest import sha256_digest
from deltastore.errors import (
    CodecUnknownError,
    DeltastoreError,
    FormatError,
    StructureMismatchError,
)
from deltastore.execution.progress import Silent
from deltastore.execution.thread_pool import ThreadPool
from deltastore.extraction import inputs
from deltastore.extraction.assembling import Assembler
from deltastore.extraction.chunk import EncodedChunk
from deltastore.extraction.encoding import Encoding
from deltastore.extraction.plan import ExtractPlan
from deltastore.extraction.plan_document import parse_plan, plan_bytes
from deltastore.lineage.pairing import chunk_count
from deltastore.manifest import config_bytes
from deltastore.testing.killing import start

CONFIG = {"model_type": "llama", "hidden_size": 32, "vocab_size": 96, "tie_word_embeddings": True}
FILES = {"tokenizer.json": '{"model": {"vocab": {"a": 0}}}', "LICENSE": "Do what you like."}
CHUNK = 1024
PART_BYTES = 6000


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A pair of all kinds; base is wrapped, and a head is untied."""
    base = model("base", width=64) | {
        "ids": torch.arange(3000),
        "positions": torch.arange(3000),
        "old": torch.ones(3),
        "empty": torch.empty(0, 4),
    }
    base["lm_head.weight"] = base["model.embed_tokens.weight"]
    post = trained(base, "post") | {
        "ids": torch.arange(3000) * 2,
        "new": random_bits("new", "BF16", 5000),
    }
    post["lm_head.weight"] = trained({"w": base["lm_head.weight"]}, "head")["w"]
    grown = random_bits("rows", "BF16", 30, 64)
    post["model.embed_tokens.weight"] = torch.cat([post["model.embed_tokens.weight"], grown])
    del post["old"]
    del base["lm_head.weight"]
    wrapped: Tensors = {f"module.{name}": tensor for name, tensor in base.items()}
    files = FILES | {"value_head.safetensors": "not read"}
    return (
        save(tmp_path / "base", wrapped, config=CONFIG, files=FILES),
        save(tmp_path / "post", post, config=CONFIG, files=files),
    )


@pytest.fixture
def whole(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ExtractPlan, Any, list[bytes]]:
    """The plan that ``extract`` makes, and the config and the parts that it gives in one run."""
    plans: list[ExtractPlan] = []
    real = inputs.encode_pair

    def encode_pair(store: Any, plan: ExtractPlan, *rest: Any, **more: Any) -> Any:
        assert list((tmp_path / "store" / "blobs" / "sha256").iterdir()) == []
        plans.append(plan)
        return real(store, plan, *rest, **more)

    monkeypatch.setattr("deltastore.extraction.plan.CHUNK_ELEMENTS", CHUNK)
    monkeypatch.setattr(inputs, "encode_pair", encode_pair)
    builder = partial(PartBuilder, part_bytes=PART_BYTES)
    monkeypatch.setattr("deltastore.extraction.assembling.PartBuilder", builder)
    with deltastore.open(tmp_path / "store") as store:
        result = store.extract(*places, name="x", jobs=1, force=True)
        manifest, config = store._store.load(result.digest)
        layers = manifest.layers[: config.parts]
        parts = [store._store.blobs.read(p.digest, limit=1 << 30, what="a part") for p in layers]
    (plan,) = plans
    return plan, config, parts


@contextmanager
def opened(plan: ExtractPlan, places: tuple[Path, Path]) -> Iterator[list[Checkpoint]]:
    """Both checkpoints, opened anew, their tensors called as the plan calls them."""
    with open_checkpoint(places[0]) as base, open_checkpoint(places[1]) as post:
        yield [base.renamed(dict(plan.base.names)), post.renamed(dict(plan.post.names))]


def encoded(
    plan: ExtractPlan, places: tuple[Path, Path], chunks: range, jobs: int = 2
) -> list[EncodedChunk]:
    found: list[EncodedChunk] = []
    with opened(plan, places) as sides:
        Encoding(plan, *sides, chunks).run(found.append, ThreadPool(jobs), Silent())
    return found


def divided(plan: ExtractPlan, pieces: int) -> list[range]:
    ends = [plan.chunks * number // pieces for number in range(pieces + 1)]
    return [range(*pair) for pair in itertools.pairwise(ends)]


def test_a_plan_is_written_and_read_again(whole: tuple[ExtractPlan, Any, list[bytes]]) -> None:
    plan, config, _ = whole
    data = plan_bytes(plan)
    assert parse_plan(data, where="it") == plan
    assert plan_bytes(parse_plan(data, where="it")) == data
    kinds = {pair.name: pair.kind for pair in plan.tensors}
    assert set(kinds.values()) == {
        *("delta", "resized", "replaced", "unchanged", "added", "removed")
    }
    assert [pair.name for pair in plan.tensors if pair.base_name] == ["lm_head.weight"]
    assert dict(plan.base.names)["module.ids"] == "ids"
    assert plan.post.names == ()
    assert [(file.side, file.path) for file in plan.files] == [
        (entry.side, entry.path) for entry in config.files
    ]
    assert [(file.side, file.name) for file in plan.left] == [("post", "value_head.safetensors")]
    assert plan.not_stored == config.not_stored == ("value_head.safetensors",)
    assert plan.samples == config.samples
    assert plan.kinship.verdict == "related"
    assert plan.kinship.overruled == ()


def test_what_spoke_against_the_pair_is_in_its_plan(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = save(tmp_path / "stranger", model("another", width=64), config=CONFIG)
    plans: list[ExtractPlan] = []

    def encode_pair(_: Any, plan: ExtractPlan, *rest: Any, **more: Any) -> Any:
        plans.append(plan)
        raise DeltastoreError("stopped")

    monkeypatch.setattr(inputs, "encode_pair", encode_pair)
    with deltastore.open(tmp_path / "store") as store, pytest.raises(DeltastoreError):
        store.extract(places[0], stranger, force=True)
    (plan,) = plans
    assert plan.kinship.verdict == "unrelated"
    assert "is unrelated to" in plan.kinship.overruled[-1]
    assert parse_plan(plan_bytes(plan), where="it") == plan


def test_pieces_in_three_processes_give_the_bytes_of_one_run(
    whole: tuple[ExtractPlan, Any, list[bytes]], places: tuple[Path, Path], tmp_path: Path
) -> None:
    plan, config, parts = whole
    document = tmp_path / "plan.json"
    document.write_bytes(plan_bytes(plan))

    def work(number: int, chunks: range) -> None:
        own = parse_plan(document.read_bytes(), where="the plan")
        piece = encoded(own, places, chunks)
        (tmp_path / f"piece-{number}").write_bytes(pickle.dumps(piece))

    ranges = divided(plan, 3)
    firsts = {0}
    for pair in plan.tensors:
        firsts.add(max(firsts) + chunk_count(pair, plan.chunk))
    assert not {piece.start for piece in ranges[1:]} & firsts, "no piece begins within a tensor"
    children = [start(partial(work, n, chunks)) for n, chunks in enumerate(ranges)]
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    made: list[bytes] = []
    builder = PartBuilder(lambda _, pieces: made.append(b"".join(pieces)), part_bytes=PART_BYTES)
    assembler = Assembler(plan, builder)
    for number, chunks in enumerate(ranges):
        piece = pickle.loads((tmp_path / f"piece-{number}").read_bytes())
        assert len(piece) == len(chunks)
        for chunk in piece:
            assembler.take(chunk)
    assert config_bytes(replace(config, tensors=assembler.finish())) == config_bytes(config)
    assert list(map(sha256_digest, made)) == list(map(sha256_digest, parts))
    assert len(parts) > 3


def test_pieces_out_of_order_or_missing_are_no_table(
    whole: tuple[ExtractPlan, Any, list[bytes]], places: tuple[Path, Path]
) -> None:
    plan, *_ = whole
    chunks = encoded(plan, places, range(plan.chunks))

    def assemble(chunks: list[EncodedChunk]) -> None:
        assembler = Assembler(plan, PartBuilder(lambda *_: None))
        for chunk in chunks:
            assembler.take(chunk)
        assembler.finish()

    assemble(chunks)
    for wrong in (chunks[1:], [*chunks[:3], chunks[4], chunks[3], *chunks[5:]], [*chunks[:2]] * 2):
        with pytest.raises(ValueError, match=r"missing|does not come next"):
            assemble(wrong)
    with pytest.raises(ValueError, match="missing"):
        assemble(chunks[:-1])


def test_other_weights_than_the_plans_are_refused(
    whole: tuple[ExtractPlan, Any, list[bytes]], places: tuple[Path, Path]
) -> None:
    plan, *_ = whole
    with opened(plan, places) as (base, post):
        with pytest.raises(StructureMismatchError, match="is not the base that the plan was made"):
            Encoding(plan, post, base)
        fewer = replace(plan, tensors=plan.tensors[:-1])
        with pytest.raises(StructureMismatchError, match=r"expected \d+ tensors"):
            Encoding(fewer, base, post)
        wider = copy.copy(base)
        info = base.tensors["ids"]
        wider.tensors = base.tensors | {"ids": replace(info, shape=(1, *info.shape))}
        with pytest.raises(StructureMismatchError, match=r"got I64 \[1, 3000\]"):
            Encoding(plan, wider, post)


def _row(document: Any, name: str) -> Any:
    return next(row for row in document["tensors"] if row["name"] == name)


WRONG: dict[str, Callable[[Any], Any]] = {
    "another plan": lambda d: d.update(plan="merge"),
    "a later format": lambda d: d.update(format=2),
    "no tensors": lambda d: d.pop("tensors"),
    "a chunk that is no power of two": lambda d: d.update(chunk=1000),
    "a chunk without end": lambda d: d.update(chunk=1 << 60),
    "a repeated tensor": lambda d: d["tensors"].append(d["tensors"][-1]),
    "tensors in another order": lambda d: d["tensors"].reverse(),
    "a kind that the sides do not have": lambda d: _row(d, "new").update(kind="delta"),
    "a delta that is said to be none": lambda d: _row(d, "lm_head.weight").update(kind="unchanged"),
    "no side": lambda d: _row(d, "new").update(post=None),
    "a shape below zero": lambda d: _row(d, "ids")["base"].update(shape=[-1]),
    "a shape that overflows": lambda d: _row(d, "ids")["base"].update(shape=[1 << 40, 1 << 40]),
    "an unknown dtype": lambda d: _row(d, "ids")["base"].update(dtype="I7"),
    "a base name of nothing": lambda d: _row(d, "lm_head.weight").update(base_name="none"),
    "a base name of another": lambda d: _row(d, "lm_head.weight").update(base_name="ids"),
    "a base name of what is added": lambda d: _row(d, "new").update(base_name="ids"),
    "a name that no tensor may have": lambda d: _row(d, "new").update(name="__metadata__"),
    "a sample past the end": lambda d: d["samples"][0].__setitem__(1, 1 << 40),
    "a sample of no tensor": lambda d: d["samples"][0].__setitem__(0, 10_000),
    "more samples than are stored": lambda d: d.update(samples=d["samples"] * 3),
    "a path that leads out": lambda d: d["files"][0].update(path="../../x"),
    "an absolute path": lambda d: d["files"][0].update(path="/etc/x"),
    "a file twice": lambda d: d["files"].append(d["files"][0]),
    "a file of another side": lambda d: d["files"][0].update(side="new base"),
    "a large file": lambda d: d["files"][0].update(size=1 << 40),
    "no digest": lambda d: d["files"][0].update(digest="sha256:0"),
    "what is not stored and not left": lambda d: d.update(not_stored=["other"]),
    "one tensor under two stored names": lambda d: d["base"]["names"].update(other="ids"),
    "a stored name of no tensor": lambda d: d["base"]["names"].update(other="other"),
    "a verdict": lambda d: d["kinship"].update(verdict="cousins"),
    "a cosine": lambda d: d["kinship"].update(cosine="0.9"),
    "something more": lambda d: _row(d, "ids").update(scale=2),
    "half a character": lambda d: d.update(more="\ud800"),
    "restore_only as a number": lambda d: d.update(restore_only=1),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_plan_that_contradicts_itself_is_refused(
    whole: tuple[ExtractPlan, Any, list[bytes]], wrong: str
) -> None:
    document = json.loads(plan_bytes(whole[0]))
    WRONG[wrong](document)
    with pytest.raises(FormatError) as caught:
        parse_plan(json.dumps(document).encode(), where="the plan")
    assert caught.value.message.startswith("the plan: ")
    assert "Make the plan anew" in caught.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"plan":NaN}', b'{"plan":1,"plan":2}', b"\xff"]
)
def test_what_is_no_plan_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_plan(data, where="the plan")


def test_a_codec_that_is_not_known_is_refused(whole: tuple[ExtractPlan, Any, list[bytes]]) -> None:
    with pytest.raises(CodecUnknownError, match="no-such-codec"):
        parse_plan(plan_bytes(replace(whole[0], codec="no-such-codec")), where="the plan")
