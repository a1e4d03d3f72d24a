"""What does not fit: structure, conflicts, quantised weights, space, things in the way."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from checkpoints import Tensors, assert_same_bits, load, model, save, trained
from oracle import Step

import deltastore
from deltastore.cli.main import main
from deltastore.errors import (
    DeltaConflictError,
    NoSpaceError,
    OutputExistsError,
    QuantisedCheckpointError,
    RestoreOnlyError,
    StructureMismatchError,
)

NORM = "model.norm.weight"
HEAD = "lm_head.weight"
EMBED = "model.embed_tokens.weight"
LAYER = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def base() -> Tensors:
    return model("base")


@pytest.fixture
def post(base: Tensors) -> Tensors:
    return trained(base, "post")


@pytest.fixture
def delta(store: deltastore.DeltaStore, base: Tensors, post: Tensors, tmp_path: Path) -> str:
    pair = save(tmp_path / "base", base), save(tmp_path / "post", post)
    return store.extract(*pair, name="delta").ref


def extracted(
    store: deltastore.DeltaStore, directory: Path, name: str, base: Tensors, post: Tensors
) -> str:
    pair = save(directory / f"{name}-base", base), save(directory / f"{name}-post", post)
    return store.extract(*pair, name=name, force=True).ref


def left_overs(directory: Path) -> set[str]:
    """What an apply that failed may not leave: everything but what the test itself put there."""
    return {path.name for path in directory.iterdir() if "out" in path.name}


def odd_one(base: Tensors) -> Tensors:
    """A base that differs from the delta's in every way at once."""
    tensors = trained(base, "odd")
    del tensors[HEAD]
    del tensors[NORM]
    tensors["visual.proj.weight"] = torch.ones(3, 3).bfloat16()
    tensors["visual.bias"] = torch.ones(3)
    tensors[EMBED] = torch.ones(97, 32).bfloat16()
    tensors[LAYER] = torch.ones(32, 32, dtype=torch.int8)
    return tensors


def test_one_report_lists_everything(
    store: deltastore.DeltaStore, delta: str, base: Tensors, tmp_path: Path
) -> None:
    odd = save(tmp_path / "odd", odd_one(base))
    with pytest.raises(StructureMismatchError) as caught:
        store.apply(delta, base=odd, out=tmp_path / "out")
    facts = caught.value.facts
    assert {name for name, _ in facts["missing"]} == {HEAD, NORM}
    assert {name for name, _ in facts["extra"]} == {"visual.proj.weight", "visual.bias"}
    mismatched = dict(facts["mismatched"])
    assert mismatched.keys() == {EMBED, LAYER}
    assert "[96, 32]" in mismatched[EMBED]
    assert "[97, 32]" in mismatched[EMBED]
    assert "I8" in mismatched[LAYER]
    assert "BF16" in mismatched[LAYER]
    assert delta in mismatched[LAYER]
    assert caught.value.exit_code == 31
    assert "--partial" in caught.value.hint
    assert left_overs(tmp_path) == set()


def test_the_report_covers_all_deltas(
    store: deltastore.DeltaStore, delta: str, base: Tensors, tmp_path: Path
) -> None:
    wider = base | {"extra.weight": torch.ones(4).bfloat16()}
    other = extracted(store, tmp_path, "other", wider, trained(wider, "other"))
    with pytest.raises(StructureMismatchError) as caught:
        store.apply([delta, other], base=tmp_path / "base", out=tmp_path / "out")
    ((name, problem),) = caught.value.facts["missing"]
    assert name == "extra.weight"
    assert other in problem
    assert left_overs(tmp_path) == set()


def test_partial_applies_the_rest_and_says_what_was_left_out(
    store: deltastore.DeltaStore, delta: str, base: Tensors, post: Tensors, tmp_path: Path
) -> None:
    new = odd_one(base)
    odd = save(tmp_path / "odd", new)
    result = store.apply(delta, base=odd, out=tmp_path / "out", partial=True)
    left_out = {HEAD, NORM, EMBED, LAYER, "visual.proj.weight", "visual.bias"}
    assert {item["name"] for item in result.left_out} == left_out
    document = json.loads((tmp_path / "out" / "deltastore.json").read_text())
    assert document["left_out"].keys() == left_out
    assert all(problem for problem in document["left_out"].values())
    got = load(tmp_path / "out")
    assert got.keys() == new.keys()
    for name, tensor in new.items():
        if name in left_out:
            assert_same_bits({name: got[name]}, {name: tensor})
        else:
            oracle.check(got[name], oracle.applied(tensor, [Step(base[name], post[name])]), name)
    assert not result.restored


def test_partial_of_what_fits_leaves_nothing_out(
    store: deltastore.DeltaStore, delta: str, post: Tensors, tmp_path: Path
) -> None:
    result = store.apply(delta, base=tmp_path / "base", out=tmp_path / "out", partial=True)
    assert result.left_out == []
    assert result.restored
    assert json.loads((tmp_path / "out" / "deltastore.json").read_text())["left_out"] is None


def test_a_tensor_that_post_added_and_the_new_base_has(
    store: deltastore.DeltaStore, base: Tensors, tmp_path: Path
) -> None:
    bias = {"bias": torch.ones(3)}
    ref = extracted(store, tmp_path, "adding", base, base | bias)
    new = base | {"bias": torch.zeros(3)}
    save(tmp_path / "new", new)
    with pytest.raises(StructureMismatchError) as caught:
        store.apply(ref, base=tmp_path / "new", out=tmp_path / "out")
    assert [name for name, _ in caught.value.facts["mismatched"]] == ["bias"]
    result = store.apply(ref, base=tmp_path / "new", out=tmp_path / "out", partial=True)
    assert_same_bits(load(tmp_path / "out"), new)
    assert [item["name"] for item in result.left_out] == ["bias"]


def test_a_tensor_that_post_removed_and_the_new_base_never_had(
    store: deltastore.DeltaStore, base: Tensors, post: Tensors, tmp_path: Path
) -> None:
    """As with position_ids, a buffer that older versions of transformers saved."""
    old = base | {"position_ids": torch.arange(8)[None]}
    ref = extracted(store, tmp_path, "removing", old, post)
    new = trained(base, "new")
    save(tmp_path / "new", new)
    result = store.apply(ref, base=tmp_path / "new", out=tmp_path / "out")
    assert result.left_out == []
    assert not result.restored
    expected = {n: oracle.applied(t, [Step(base[n], post[n])]) for n, t in new.items()}
    assert_same_bits(load(tmp_path / "out"), expected)


def test_another_dtype_of_the_same_kind_is_no_mismatch(
    store: deltastore.DeltaStore, delta: str, base: Tensors, post: Tensors, tmp_path: Path
) -> None:
    wide = {name: tensor.float() for name, tensor in base.items()}
    save(tmp_path / "wide", wide)
    store.apply(delta, base=tmp_path / "wide", out=tmp_path / "out")
    expected = {n: oracle.applied(t, [Step(base[n], post[n])]) for n, t in wide.items()}
    assert_same_bits(load(tmp_path / "out"), expected)


def conflicts() -> dict[str, tuple[Tensors, Tensors, Tensors]]:
    """Sources of two deltas that change one tensor of a common base in different ways."""
    w = torch.ones(4, 3).bfloat16()
    ids = torch.arange(4)
    base = {"w": w, "ids": ids}
    rows = torch.ones(2, 3).bfloat16()
    longer, much_longer = torch.cat([w, rows]), torch.cat([w, rows * 2])
    new = {"new": torch.ones(2)}
    return {
        "replaced differently": (base, base | {"ids": ids + 1}, base | {"ids": ids + 2}),
        "added differently": (base, base | new, base | {"new": torch.zeros(2)}),
        "added as another dtype": (base, base | new, base | {"new": torch.ones(2).half()}),
        "resized and moved": (base, base | {"w": longer}, base | {"w": w * 2}),
        "resized differently": (base, base | {"w": longer}, base | {"w": much_longer}),
        "removed and moved": (base, {"ids": ids}, base | {"w": w * 2}),
        "removed and resized": (base, {"ids": ids}, base | {"w": longer}),
        "replaced and moved": (base, base | {"w": w[:, :2]}, base | {"w": w * 2}),
        "removed and replaced": (base, {"w": w}, base | {"ids": ids + 1}),
    }


@pytest.mark.parametrize("case", conflicts())
def test_two_deltas_that_conflict(store: deltastore.DeltaStore, tmp_path: Path, case: str) -> None:
    base, first, second = conflicts()[case]
    refs = [extracted(store, tmp_path, f"d{i}", base, p) for i, p in enumerate((first, second))]
    for order in (refs, refs[::-1]):
        with pytest.raises(DeltaConflictError) as caught:
            store.apply(order, base=tmp_path / "d0-base", out=tmp_path / "out")
        assert caught.value.facts["tensor"] in ("w", "ids", "new")
        assert set(caught.value.facts["refs"]) == set(refs)
    assert left_overs(tmp_path) == set()
    # With scale 0 it has no structure to change, hence is in nobody's way.
    store.apply(refs, base=tmp_path / "d0-base", out=tmp_path / "out", scale=[0.0, 1.0])
    assert_same_bits(load(tmp_path / "out"), second)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": torch.arange(4) * 2},
        {"new": torch.ones(2)},
        {"w": torch.ones(2, 2)},
        {"w": None},
    ],
    ids=["replaced", "added", "replaced by another shape", "removed"],
)
def test_two_deltas_that_agree(
    store: deltastore.DeltaStore, tmp_path: Path, change: dict[str, torch.Tensor | None]
) -> None:
    """Both make the same of a tensor; elsewhere they differ."""
    base = {"w": torch.ones(4, 3).bfloat16(), "ids": torch.arange(4), "v": torch.ones(3)}

    def changed(v: float) -> Tensors:
        tensors = base | change | {"v": torch.full((3,), v)}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    refs = [extracted(store, tmp_path, f"d{i}", base, changed(v)) for i, v in enumerate((2.0, 5.0))]
    store.apply(refs, base=tmp_path / "d0-base", out=tmp_path / "out")
    assert_same_bits(load(tmp_path / "out"), changed(6.0))


def test_one_delta_changes_the_structure_where_the_other_leaves_it(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    w = torch.randn(4, 3).bfloat16()
    base = {"w": w, "v": torch.ones(3)}
    longer = torch.cat([w * 2, torch.ones(2, 3).bfloat16()])
    first = extracted(store, tmp_path, "d0", base, {"w": longer, "v": torch.ones(3)})
    second = extracted(store, tmp_path, "d1", base, {"w": w, "v": torch.full((3,), 2.0)})
    for i, order in enumerate(([first, second], [second, first])):
        store.apply(order, base=tmp_path / "d0-base", out=tmp_path / f"out{i}")
        assert_same_bits(load(tmp_path / f"out{i}"), {"w": longer, "v": torch.full((3,), 2.0)})


@pytest.fixture
def packed(base: Tensors) -> Tensors:
    """A quantised copy, as GPTQ packs it."""
    tensors = {name: tensor for name, tensor in base.items() if "up_proj" not in name}
    for i in range(2):
        prefix = f"model.layers.{i}.mlp.up_proj"
        tensors[f"{prefix}.qweight"] = torch.arange(128, dtype=torch.int32).reshape(4, 32) + i
        tensors[f"{prefix}.scales"] = torch.ones(1, 32).half()
    return tensors


QUANTISED = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}


def test_quantised_sources_are_refused(
    store: deltastore.DeltaStore, base: Tensors, packed: Tensors, tmp_path: Path
) -> None:
    plain = save(tmp_path / "plain", base, config={"model_type": "llama"})
    small = save(tmp_path / "small", packed, config=QUANTISED)
    for pair in ((plain, small), (small, plain)):
        with pytest.raises(QuantisedCheckpointError) as caught:
            store.extract(*pair)
        assert str(small) in caught.value.message
        assert "equantise" in caught.value.hint
        assert caught.value.exit_code == 66
    assert list(store.list()) == []


def test_a_quantised_new_base_is_refused(
    store: deltastore.DeltaStore, delta: str, packed: Tensors, tmp_path: Path
) -> None:
    small = save(tmp_path / "small", packed, config=QUANTISED)
    with pytest.raises(QuantisedCheckpointError) as caught:
        store.apply(delta, base=small, out=tmp_path / "out")
    assert str(small) in caught.value.message
    assert left_overs(tmp_path) == set()


def test_restore_only_restores_from_its_own_base_alone(
    store: deltastore.DeltaStore, base: Tensors, packed: Tensors, tmp_path: Path
) -> None:
    after = {name: t + 1 if t.dtype == torch.int32 else t * 2 for name, t in packed.items()}
    small = save(tmp_path / "small", packed, config=QUANTISED)
    tuned = save(tmp_path / "tuned", after, config=QUANTISED)
    artifact = store.extract(small, tuned, restore_only=True)

    result = store.apply(artifact, base=small, out=tmp_path / "restored")
    assert result.restored
    assert_same_bits(load(tmp_path / "restored"), after)
    copy = save(tmp_path / "copy", packed, config=QUANTISED, shards=2)
    assert store.apply(artifact, base=copy, out=tmp_path / "again").restored

    other = packed | {NORM: packed[NORM] * 1.5}
    other = save(tmp_path / "other", other, config=QUANTISED)
    deep = {n: t.clone() for n, t in packed.items()}
    deep[EMBED][50, 17] += 1  # a place that no sample shows
    deep = save(tmp_path / "deep", deep, config=QUANTISED)
    for options in (
        {"base": other},
        {"base": deep},
        {"base": small, "scale": 0.5},
        {"base": small, "dtype": "float32"},
    ):
        for extra in ({}, {"force": True}, {"partial": True}):
            with pytest.raises(RestoreOnlyError) as caught:
                store.apply(artifact, out=tmp_path / "out", **options, **extra)
            assert caught.value.exit_code == 33
    with pytest.raises(RestoreOnlyError):
        store.apply([artifact, artifact], base=small, out=tmp_path / "out")
    assert left_overs(tmp_path) == set()


@pytest.mark.parametrize("what", ["file", "full directory", "link to a full directory"])
def test_something_in_the_way(
    store: deltastore.DeltaStore, delta: str, tmp_path: Path, what: str
) -> None:
    out = tmp_path / "out"
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious.txt").write_text("mine")
    if what == "file":
        out.write_text("mine")
    elif what == "full directory":
        shutil.copytree(full, out)
    else:
        out.symlink_to(full)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(OutputExistsError) as caught:
        store.apply(delta, base=tmp_path / "base", out=out)
    assert caught.value.exit_code == 67
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (full / "precious.txt").read_text() == "mine"
    if what == "file":
        assert out.read_text() == "mine"


def test_an_empty_directory_is_not_in_the_way(
    store: deltastore.DeltaStore, delta: str, post: Tensors, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    store.apply(delta, base=tmp_path / "base", out=tmp_path / "out")
    assert_same_bits(load(tmp_path / "out"), post)


def test_the_base_itself_is_never_the_output(
    store: deltastore.DeltaStore, delta: str, base: Tensors, tmp_path: Path
) -> None:
    with pytest.raises(OutputExistsError):
        store.apply(delta, base=tmp_path / "base", out=tmp_path / "base")
    assert_same_bits(load(tmp_path / "base"), base)


def test_no_space_for_the_output(
    store: deltastore.DeltaStore, delta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    size = sum(path.stat().st_size for path in (tmp_path / "base").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, size // 2))
    with pytest.raises(NoSpaceError) as caught:
        store.apply(delta, base=tmp_path / "base", out=tmp_path / "out")
    assert caught.value.exit_code == 16
    assert caught.value.facts["needed_bytes"] >= size
    assert left_overs(tmp_path) == set()


def test_the_disk_fills_up_while_writing(
    store: deltastore.DeltaStore, delta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = os.pwrite

    def full(descriptor: int, data: Any, position: int) -> int:
        if position > 4000:
            raise OSError(28, "No space left on device")
        return written(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoSpaceError):
        store.apply(delta, base=tmp_path / "base", out=tmp_path / "out")
    assert left_overs(tmp_path) == set()


def test_no_space_in_the_store(
    store: deltastore.DeltaStore,
    base: Tensors,
    post: Tensors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = save(tmp_path / "base", base), save(tmp_path / "post", post)
    real = os.statvfs

    class Full:
        f_bavail = 10
        f_frsize = 4096

    monkeypatch.setattr(os, "statvfs", lambda path: Full())
    with pytest.raises(NoSpaceError) as caught:
        store.extract(*pair, name="late")
    monkeypatch.setattr(os, "statvfs", real)
    assert caught.value.facts["available"] == 10 * 4096
    assert list(store.list()) == []
    assert store.verify().orphans == ()


def test_a_base_that_changes_while_it_is_read(
    store: deltastore.DeltaStore, delta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltastore.checkpoint.writer import CheckpointWriter
    from deltastore.errors import SourceChangedError

    write = CheckpointWriter.write

    def touching(self: CheckpointWriter, *arguments: Any) -> None:
        with open(tmp_path / "base" / "model.safetensors", "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"x")
        write(self, *arguments)

    monkeypatch.setattr(CheckpointWriter, "write", touching)
    with pytest.raises(SourceChangedError):
        store.apply(delta, base=tmp_path / "base", out=tmp_path / "out")
    assert left_overs(tmp_path) == set()


def test_the_command_line_ends_with_the_same_code(
    store: deltastore.DeltaStore,
    delta: str,
    base: Tensors,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    odd = save(tmp_path / "odd", odd_one(base))
    where = ["--store", str(tmp_path / "store"), "-q"]
    arguments = ["apply", delta, "--base", str(odd), "--out", str(tmp_path / "out")]
    assert main([*where, *arguments]) == 31
    said = capsys.readouterr().err
    assert all(name in said for name in (HEAD, NORM, EMBED, LAYER, "visual.proj.weight"))
    assert main([*where, *arguments, "--partial"]) == 0
    assert main([*where, *arguments, "--partial"]) == 67
