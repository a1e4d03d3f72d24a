"""The arithmetic of apply, held against plain torch expressions (see ``oracle``)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import oracle
import pytest
import torch
from checkpoints import (
    DTYPES,
    NARROW,
    Tensors,
    all_pairs,
    assert_same_bits,
    from_bytes,
    load,
    model,
    noise,
    random_bits,
    save,
    specials,
    trained,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from oracle import Step

import deltastore
from deltastore.errors import UsageError
from deltastore.extraction import assembling, plan

COMBINATIONS = tuple(itertools.product(DTYPES, DTYPES))
SCALES = (1.0, 0.5, -1.0, 0.3, 0.0)
WITH_ALL_SCALES = ("BF16", "F32")
ELEMENTS = 2500


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Tensors of a few thousand elements have several chunks, and lie in several parts."""
    return use_small_chunks(monkeypatch)


def use_small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(plan, "CHUNK_ELEMENTS", 1024)
    builder = functools.partial(assembling.PartBuilder, part_bytes=20_000)
    monkeypatch.setattr(assembling, "PartBuilder", builder)
    return 1024


def values(what: str, dtype: str, count: int = ELEMENTS) -> torch.Tensor:
    """A third special values, a third any bits, a third like weights."""
    share = count // 3
    special = specials(dtype)
    picks = torch.tensor(list(noise(f"{what} picks", share)), dtype=torch.long)
    generator = torch.Generator().manual_seed(int.from_bytes(noise(what, 3), "big"))
    weights = torch.randn(count - 2 * share, generator=generator) * 0.02
    return torch.cat(
        [special[picks % len(special)], random_bits(what, dtype, share), weights.to(DTYPES[dtype])]
    )


def sources() -> tuple[Tensors, Tensors]:
    """A base and a post with every combination of dtypes."""
    before, after = {}, {}
    for b, p in COMBINATIONS:
        name = f"{b}.to.{p}"
        base, post = values(f"{name} base", b), values(f"{name} post", p)
        # Small steps, as post-training makes them, and elements that it leaves as they are.
        tail = base[-500:].to(torch.float64)
        post[-500:] = (tail * 1.01).to(DTYPES[p])
        if b == p:
            post[::3] = base[::3]
        before[name], after[name] = base, post
        if b == p:
            before[f"{name}.pairs"], after[f"{name}.pairs"] = all_pairs(specials(b))
        for suffix, shape in (("empty", (0,)), ("thin", (3, 0)), ("scalar", ())):
            count = 1 if suffix == "scalar" else 0
            before[f"{name}.{suffix}"] = base[7 : 7 + count].reshape(shape)
            after[f"{name}.{suffix}"] = post[8 : 8 + count].reshape(shape)
    return before, after


@dataclass(frozen=True)
class World:
    """A store with the delta ``all`` between ``base`` and ``post``."""

    directory: Path
    before: Tensors
    after: Tensors

    @property
    def base(self) -> Path:
        return self.directory / "base"

    def open(self) -> deltastore.DeltaStore:
        return deltastore.open(self.directory / "store")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    directory = tmp_path_factory.mktemp("world")
    before, after = sources()
    save(directory / "base", before)
    save(directory / "post", after)
    with pytest.MonkeyPatch.context() as patch, deltastore.open(directory / "store") as opened:
        use_small_chunks(patch)
        opened.extract(directory / "base", directory / "post", name="all", force=True)
    return World(directory, before, after)


def test_the_oracle_itself_rounds_as_torch_does_where_that_is_one_rounding() -> None:
    for name in NARROW:
        dtype = DTYPES[name]
        singles = torch.cat([specials(other).to(torch.float32) for other in DTYPES])
        singles = torch.cat([singles, random_bits("any", "F32", 50_000)])
        singles = torch.cat([singles, random_bits("near", name, 5000).float() * 1.01])
        if name == "F8_E4M3":
            singles = singles[~(singles.abs() > 464)]  # beyond, versions of torch differ
        oracle.check(oracle.nearest(singles.double(), dtype), singles.to(dtype), name)


def test_restoring_gives_post_bit_for_bit(world: World, tmp_path: Path) -> None:
    with world.open() as store:
        result = store.apply("all", base=world.base, out=tmp_path / "out")
    assert_same_bits(load(tmp_path / "out"), world.after)
    assert result.restored


@pytest.mark.parametrize("jobs", [1, 3])
def test_restoring_from_a_base_that_was_never_seen(world: World, tmp_path: Path, jobs: int) -> None:
    """Another copy, sharded otherwise, of which no digests are remembered."""
    copy = save(tmp_path / "copy", world.before, shards=3)
    with world.open() as store:
        result = store.apply("all", base=copy, out=tmp_path / "out", jobs=jobs)
    assert_same_bits(load(tmp_path / "out"), world.after)
    assert result.restored


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(dtype, scale) for dtype in DTYPES for scale in SCALES if dtype in WITH_ALL_SCALES]
    + [(dtype, scale) for dtype in DTYPES for scale in (1.0, 0.3) if dtype not in WITH_ALL_SCALES],
)
def test_another_base(world: World, tmp_path: Path, dtype: str, scale: float) -> None:
    base = {
        name: values(f"{name} of the new base", dtype, tensor.numel()).reshape(tensor.shape)
        for name, tensor in world.before.items()
    }
    save(tmp_path / "base", base)
    with world.open() as store:
        result = store.apply(
            "all", base=tmp_path / "base", out=tmp_path / "out", scale=scale, force=True
        )
    got = load(tmp_path / "out")
    assert got.keys() == base.keys()
    overflowed = 0
    for name, tensor in base.items():
        step = Step(world.before[name], world.after[name], scale)
        out = step.post.dtype if step.base.dtype != step.post.dtype else None
        oracle.check(got[name], oracle.applied(tensor, [step], out), name)
        overflowed += oracle.overflowed(tensor, [step], out)
    assert not result.restored
    assert result.overflowed == overflowed


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_equal_in_base_and_post_stay_untouched(
    store: deltastore.DeltaStore, tmp_path: Path, dtype: str
) -> None:
    base = values("equal", dtype)
    post = base.clone()
    post[1] = 1.0
    new = torch.cat([specials(dtype), random_bits("new", dtype, len(base) - len(specials(dtype)))])
    pair = [save(tmp_path / "base", {"w": base}), save(tmp_path / "post", {"w": post})]
    save(tmp_path / "new", {"w": new})
    artifact = store.extract(*pair)
    for i, scale in enumerate([1.0, -0.7, 0.0]):
        out = tmp_path / f"out{i}"
        store.apply(artifact, base=tmp_path / "new", force=True, out=out, scale=scale)
        keep = torch.arange(len(base)) != 1
        assert_same_bits({"w": load(out)["w"][keep]}, {"w": new[keep]})


@pytest.mark.parametrize("dtypes", [("BF16", "BF16"), ("F32", "BF16"), ("F16", "F8_E5M2")])
def test_several_deltas_are_added_from_left_to_right(
    store: deltastore.DeltaStore, tmp_path: Path, dtypes: tuple[str, str], small_chunks: int
) -> None:
    first, second = dtypes
    pairs = []
    for i, dtype in enumerate((first, second, first)):
        before, after = values(f"{i} base", dtype), values(f"{i} post", dtype)
        after[i::3] = before[i::3]
        base = save(tmp_path / f"base{i}", {"w": before})
        post = save(tmp_path / f"post{i}", {"w": after})
        store.extract(base, post, name=f"d{i}", force=True)
        pairs.append((before, after))
    for dtype in DTYPES:
        new = values("new", dtype)
        base = save(tmp_path / f"new{dtype}", {"w": new})
        for order, scales in (((0, 1, 2), (0.7, -0.4, 2.0)), ((2, 1), (1.0, 1.0))):
            out = tmp_path / f"out{dtype}{len(order)}"
            refs = [f"d{i}" for i in order]
            result = store.apply(refs, base=base, out=out, scale=scales, force=True)
            steps = [Step(*pairs[i], scale) for i, scale in zip(order, scales, strict=True)]
            oracle.check(load(out)["w"], oracle.applied(new, steps), f"{dtype} {order}")
            assert result.overflowed == oracle.overflowed(new, steps)
            assert not result.restored


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_output_dtype(world: World, tmp_path: Path, dtype: str, scale: float) -> None:
    """One rounding, whatever dtypes the base and the sources have."""
    base = {
        name: values(f"{name} new", name.partition(".")[0], tensor.numel()).reshape(tensor.shape)
        for name, tensor in world.before.items()
    }
    save(tmp_path / "base", base)
    with world.open() as store:
        result = store.apply(
            "all",
            base=tmp_path / "base",
            out=tmp_path / "out",
            dtype=dtype,
            scale=scale,
            force=True,
        )
    got = load(tmp_path / "out")
    overflowed = 0
    for name, tensor in base.items():
        step = Step(world.before[name], world.after[name], scale)
        oracle.check(got[name], oracle.applied(tensor, [step], DTYPES[dtype]), name)
        overflowed += oracle.overflowed(tensor, [step], DTYPES[dtype])
    assert result.overflowed == overflowed
    assert not result.restored


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E4M3", "F8_E5M2"])
def test_float64_is_rounded_once_and_not_by_way_of_float32(
    store: deltastore.DeltaStore, tmp_path: Path, dtype: str
) -> None:
    """Just above the middle of two neighbours, by less than float32 can tell."""
    points = torch.tensor([1.0, 1.5, 3.0, -0.375, 0.0078125], dtype=torch.float64)
    eps = torch.finfo(DTYPES[dtype]).eps
    exponent = torch.floor(torch.log2(points.abs()))
    middle = points * 1 + points.sign() * 2**exponent * eps / 2
    base = torch.cat([middle * (1 + 2**-40), middle, middle * (1 - 2**-40)])
    twice = base.float().to(DTYPES[dtype])
    save(tmp_path / "new", {"w": base, "kept": base})
    save(tmp_path / "base", {"w": torch.zeros_like(base), "kept": base})
    save(tmp_path / "post", {"w": torch.full_like(base, 2.0**-80), "kept": base})
    artifact = store.extract(tmp_path / "base", tmp_path / "post")
    store.apply(artifact, base=tmp_path / "new", force=True, out=tmp_path / "out", dtype=dtype)
    got = load(tmp_path / "out")
    for name in ("w", "kept"):
        oracle.check(got[name], oracle.nearest(base, DTYPES[dtype]), name)
        assert not torch.equal(got[name].float(), twice.float())


def test_overflow_of_what_is_only_converted_is_counted(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    """Unchanged and added tensors are as much a part of the output as those with a delta."""
    large = torch.tensor([1.0, 1e30, -1e30, torch.inf, 65519.0, 65520.0]).bfloat16()
    before = {"same": large, "moved": large}
    after = {"same": large, "moved": large * 0.5, "new": large}
    save(tmp_path / "base", before)
    save(tmp_path / "post", after)
    artifact = store.extract(tmp_path / "base", tmp_path / "post")
    result = store.apply(artifact, base=tmp_path / "base", out=tmp_path / "out", dtype="float16")
    got = load(tmp_path / "out")
    count = 0
    for name, tensor in after.items():
        oracle.check(got[name], tensor.to(torch.float16), name)
        count += int((torch.isfinite(tensor) & ~torch.isfinite(tensor.to(torch.float16))).sum())
    assert result.overflowed == count


def test_values_follow_the_delta_unless_the_scale_is_zero(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    before = {
        "ids": torch.arange(5),
        "mask": torch.tensor([True, False, True]),
        "same": torch.arange(7, dtype=torch.int16),
        "turned": torch.ones(4, 3).bfloat16(),
        "gone": torch.ones(3).bfloat16(),
        "cast": torch.arange(4, dtype=torch.int32),
        "grown": torch.randn(4, 3).bfloat16(),
        "shrunk": torch.randn(4, 3).bfloat16(),
    }
    after = {
        "ids": torch.arange(5) * 3,
        "mask": torch.tensor([True, True, False]),
        "same": before["same"],
        "turned": torch.full((6, 2), 2.0).bfloat16(),
        "cast": torch.arange(4, dtype=torch.int64),
        "grown": torch.cat([before["grown"] * 2, torch.randn(3, 3).bfloat16()]),
        "shrunk": before["shrunk"][:2] + 1,
        "added": torch.randn(2, 2),
        "added.bool": torch.tensor([True]),
        "added.empty": torch.empty(0, 4),
    }
    save(tmp_path / "base", before)
    save(tmp_path / "post", after)
    artifact = store.extract(tmp_path / "base", tmp_path / "post")
    restored = store.apply(artifact, base=tmp_path / "base", out=tmp_path / "restored")
    assert_same_bits(load(tmp_path / "restored"), after)
    assert restored.restored

    new = before | {name: torch.randn(4, 3).bfloat16() for name in ("grown", "shrunk")}
    save(tmp_path / "new", new)
    for i, scale in enumerate((0.5, -1.0)):
        store.apply(
            artifact, base=tmp_path / "new", force=True, out=tmp_path / f"out{i}", scale=scale
        )
        got = load(tmp_path / f"out{i}")
        expected = dict(after)
        for name, rows in (("grown", 4), ("shrunk", 2)):
            step = Step(before[name][:rows], after[name][:rows], scale)
            expected[name] = torch.cat(
                [oracle.applied(new[name][:rows], [step]), after[name][rows:]]
            )
        assert_same_bits(got, expected)

    store.apply(artifact, base=tmp_path / "new", force=True, out=tmp_path / "zero", scale=0.0)
    assert_same_bits(load(tmp_path / "zero"), new)


@pytest.mark.parametrize("rows", [(5, 9), (9, 5), (0, 4), (4, 1)])
@pytest.mark.parametrize("dtypes", [("BF16", "BF16"), ("F32", "F16"), ("F16", "F64")])
def test_resized_tensors_of_many_chunks(
    store: deltastore.DeltaStore,
    tmp_path: Path,
    small_chunks: int,
    rows: tuple[int, int],
    dtypes: tuple[str, str],
) -> None:
    width = 700
    b, p = dtypes
    base = random_bits("base", b, rows[0], width)
    post = random_bits("post", p, rows[1], width)
    new = random_bits("new", "BF16", rows[0], width)
    other = {"other": torch.ones(3)}
    save(tmp_path / "base", {"w": base} | other)
    save(tmp_path / "post", {"w": post} | other)
    save(tmp_path / "new", {"w": new} | other)
    artifact = store.extract(tmp_path / "base", tmp_path / "post", force=True)
    result = store.apply(artifact, base=tmp_path / "base", out=tmp_path / "restored")
    assert_same_bits(load(tmp_path / "restored"), {"w": post} | other)
    assert result.restored

    store.apply(artifact, base=tmp_path / "new", force=True, out=tmp_path / "out", scale=0.3)
    common = min(rows)
    out = post.dtype if b != p else new.dtype
    summed = oracle.applied(new[:common], [Step(base[:common], post[:common], 0.3)], out)
    got = load(tmp_path / "out")["w"]
    oracle.check(got[:common], summed)
    oracle.check(got[common:], oracle.rounded(post[common:].double(), out))
    assert got.shape == post.shape


def test_many_chunks_of_real_size(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    count = 2 * (1 << 19) + 4321
    generator = torch.Generator().manual_seed(5)
    base = (torch.randn(count, generator=generator) * 0.02).bfloat16()
    post = (base.float() + torch.randn(count, generator=generator) * 2e-4).bfloat16()
    post[:: 1 << 17] = random_bits("some", "BF16", len(post[:: 1 << 17]))
    new = (base.float() + torch.randn(count, generator=generator) * 1e-3).bfloat16()
    save(tmp_path / "base", {"w": base})
    save(tmp_path / "post", {"w": post})
    save(tmp_path / "new", {"w": new})
    artifact = store.extract(tmp_path / "base", tmp_path / "post", jobs=2)
    result = store.apply(artifact, base=tmp_path / "base", out=tmp_path / "restored", jobs=2)
    assert_same_bits(load(tmp_path / "restored"), {"w": post})
    assert result.restored
    store.apply(
        artifact, base=tmp_path / "new", force=True, out=tmp_path / "out", scale=0.3, jobs=2
    )
    oracle.check(load(tmp_path / "out")["w"], oracle.applied(new, [Step(base, post, 0.3)]))


@pytest.mark.parametrize("changed", [0, 1, 1023, 1024, 2500, 4095])
def test_chunks_that_are_equal_cost_nothing_and_stay(
    store: deltastore.DeltaStore, tmp_path: Path, small_chunks: int, changed: int
) -> None:
    """One changed element in one of four chunks, the first and the last among them."""
    base = random_bits("base", "BF16", 4096)
    post = base.clone()
    post[changed] = 0.25 if base[changed] != 0.25 else 0.5
    new = random_bits("new", "BF16", 4096)
    save(tmp_path / "base", {"w": base})
    save(tmp_path / "post", {"w": post})
    save(tmp_path / "new", {"w": new})
    artifact = store.extract(tmp_path / "base", tmp_path / "post")
    store.apply(artifact, base=tmp_path / "base", out=tmp_path / "restored")
    assert_same_bits(load(tmp_path / "restored"), {"w": post})
    store.apply(artifact, base=tmp_path / "new", force=True, out=tmp_path / "out")
    oracle.check(load(tmp_path / "out")["w"], oracle.applied(new, [Step(base, post)]))


def test_a_patch_is_for_its_own_tensor_alone(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """A base that is equal at every sampled place, and another elsewhere, is no restoration."""
    count = 200_000
    base = random_bits("base", "BF16", count).nan_to_num(1.0, 1.0, 1.0)
    post = random_bits("post", "BF16", count)
    other = random_bits("other", "BF16", 64)
    save(tmp_path / "base", {"w": base, "other": other})
    save(tmp_path / "post", {"w": post, "other": other})
    artifact = store.extract(tmp_path / "base", tmp_path / "post", force=True)
    assert artifact.patched == 1
    new = base.clone()
    new[-3:] = 2.0
    save(tmp_path / "new", {"w": new, "other": other})
    result = store.apply(artifact, base=tmp_path / "new", force=True, out=tmp_path / "out")
    assert result.lineage[0]["same"]  # or this test shows nothing
    assert not result.restored
    oracle.check(load(tmp_path / "out")["w"], oracle.applied(new, [Step(base, post)]))


def test_a_patch_is_not_used_with_a_scale_or_another_delta_or_dtype(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    base, post = values("base", "BF16"), values("post", "BF16")
    save(tmp_path / "base", {"w": base})
    save(tmp_path / "post", {"w": post})
    artifact = store.extract(tmp_path / "base", tmp_path / "post", force=True)
    assert artifact.patched == 1
    step = Step(base, post)

    cases = {
        "half": (oracle.applied(base, [Step(base, post, 0.5)]), [artifact], {"scale": 0.5}),
        "twice": (oracle.applied(base, [step, step]), [artifact, artifact], {}),
        "wide": (oracle.applied(base, [step], torch.float32), [artifact], {"dtype": "float32"}),
    }
    for name, (expected, artifacts, options) in cases.items():
        out = tmp_path / name
        result = store.apply(artifacts, base=tmp_path / "base", out=out, **options)
        oracle.check(load(out)["w"], expected, name)
        assert not result.restored


def test_tensors_of_several_widths_in_one_file_load(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    before = {f"t{i}": random_bits(f"b{i}", d, 2 * i + 1) for i, d in enumerate(DTYPES)}
    before["flag"] = torch.tensor([True])
    after = {name: tensor.clone() for name, tensor in before.items()}
    after["t0"] = random_bits("post", "F64", 1)
    save(tmp_path / "base", before)
    save(tmp_path / "post", after)
    artifact = store.extract(tmp_path / "base", tmp_path / "post")
    store.apply(artifact, base=tmp_path / "base", out=tmp_path / "out")
    assert_same_bits(load(tmp_path / "out"), after)


def test_a_dry_run_writes_nothing(world: World, tmp_path: Path) -> None:
    with world.open() as store:
        result = store.apply("all", base=world.base, out=tmp_path / "out", dry_run=True)
    assert result.dry_run
    assert result.tensors == len(world.after)
    assert result.bytes == sum(t.numel() * t.element_size() for t in world.after.values())
    assert [path.name for path in tmp_path.iterdir()] == []


def test_shards_of_the_output(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base = model("base")
    post = trained(base, "post")
    save(tmp_path / "base", base, shards=3)
    save(tmp_path / "post", post)
    artifact = store.extract(tmp_path / "base", tmp_path / "post")
    store.apply(artifact, base=tmp_path / "base", out=tmp_path / "out")
    assert_same_bits(load(tmp_path / "out"), post)
    names = {path.name for path in (tmp_path / "base").iterdir()}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}
    store.apply(artifact, base=tmp_path / "base", out=tmp_path / "more", max_shard_bytes=4000)
    assert len(list((tmp_path / "more").glob("*.safetensors"))) > 3
    assert_same_bits(load(tmp_path / "more"), post)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": [1.0, 2.0]},
        {"scale": float("nan")},
        {"scale": float("inf")},
        {"scale": 1e39},
        {"dtype": "int8"},
        {"dtype": ""},
    ],
    ids=str,
)
def test_options_that_make_no_sense(
    world: World, tmp_path: Path, options: dict[str, object]
) -> None:
    with world.open() as store, pytest.raises(UsageError):
        store.apply("all", base=world.base, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_to_apply(world: World, tmp_path: Path) -> None:
    with world.open() as store, pytest.raises(UsageError):
        store.apply([], base=world.base, out=tmp_path / "out")


@st.composite
def cases(draw: st.DrawFn) -> list[tuple[str, str, str, bytes, bytes, bytes]]:
    """Tensors of a source base, a post and a new base: dtypes and any bytes."""
    drawn = []
    for _ in range(draw(st.integers(1, 6))):
        dtypes = [draw(st.sampled_from(list(DTYPES))) for _ in range(3)]
        if draw(st.booleans()):
            dtypes[1] = dtypes[0]
        count = draw(st.integers(0, 12))
        raws = [
            draw(st.binary(min_size=n, max_size=n))
            for n in (count * DTYPES[dtype].itemsize for dtype in dtypes)
        ]
        if dtypes[0] == dtypes[1] and draw(st.booleans()):
            same = draw(st.integers(0, len(raws[0])))
            raws[1] = raws[0][:same] + raws[1][same:]
        drawn.append((*dtypes, *raws))
    return drawn


@settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes of disk
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn=cases(), scale=st.floats(-4, 4, width=32), out_dtype=st.sampled_from([None, *DTYPES]))
def test_any_bits(
    store: deltastore.DeltaStore,
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[str, str, str, bytes, bytes, bytes]],
    scale: float,
    out_dtype: str | None,
) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    before, after, new = {}, {}, {}
    for i, (b, p, n, raw_base, raw_post, raw_new) in enumerate(drawn):
        before[f"t{i}"] = from_bytes(raw_base, b)
        after[f"t{i}"] = from_bytes(raw_post, p)
        new[f"t{i}"] = from_bytes(raw_new, n)
    save(tmp_path / "base", before)
    save(tmp_path / "post", after)
    save(tmp_path / "new", new)
    artifact = store.extract(tmp_path / "base", tmp_path / "post", name="any", force=True)
    result = store.apply(artifact, base=tmp_path / "base", out=tmp_path / "restored")
    assert_same_bits(load(tmp_path / "restored"), after)
    # Without a single byte to sample there is nothing to recognise the base by.
    assert result.restored or not any(tensor.numel() for tensor in before.values())

    result = store.apply(
        artifact,
        base=tmp_path / "new",
        force=True,
        out=tmp_path / "out",
        scale=scale,
        dtype=out_dtype,
    )
    got = load(tmp_path / "out")
    for name, tensor in new.items():
        step = Step(before[name], after[name], scale)
        out = step.post.dtype if step.base.dtype != step.post.dtype else None
        out = DTYPES[out_dtype] if out_dtype is not None else out
        oracle.check(got[name], oracle.applied(tensor, [step], out), name)
