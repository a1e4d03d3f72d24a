"""Cosines between deltas, against torch in float64 over what safetensors loads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from operations.checkpoints import DTYPES, Tensors, load, random_bits, save
from operations.oracle import Step

import deltastore
from deltastore.cli.output import document
from deltastore.comparison.figures import Comparison, Group, PairFigures
from deltastore.errors import (
    BlobCorruptError,
    BlobMissingError,
    IncompatibleError,
    RefNotFoundError,
    RestoreOnlyError,
    UsageError,
)
from deltastore.execution.progress import Silent
from deltastore.store import open_store
from deltastore.testing.artifacts import flip

LAYERED = "model.layers.{}.{}.weight"


class Sums:
    """a·b, a·a and b·b of two deltas, over the elements that are finite in both."""

    def __init__(self, tensors: Sequence[tuple[Step, Step]]) -> None:
        pieces = [(vector(one), vector(other)) for one, other in tensors]
        a = torch.cat([piece for piece, _ in pieces])
        b = torch.cat([piece for _, piece in pieces])
        fits = torch.isfinite(a) & torch.isfinite(b) & (a.abs() <= 1e140) & (b.abs() <= 1e140)
        self.not_finite = int((~fits).sum())
        a, b = a[fits], b[fits]
        self.elements = a.numel()
        self.norms = (exact_norm(a), exact_norm(b))
        self.both = int(((a != 0) & (b != 0)).sum())
        agree = int((((a > 0) & (b > 0)) | ((a < 0) & (b < 0))).sum())
        self.same_sign = agree / self.both if self.both else None
        # Each divided by its norm first: nothing overflows, and errors stay small.
        self.cosine = None
        if all(self.norms):
            self.cosine = math.fsum((a / self.norms[0] * (b / self.norms[1])).tolist())


def exact_norm(values: torch.Tensor) -> float:
    scale = float(values.abs().max()) if values.numel() else 0.0
    return scale * math.sqrt(math.fsum((values / scale).square().tolist())) if scale else 0.0


def vector(step: Step) -> torch.Tensor:
    """A delta in float64, zero where nothing moved."""
    delta = step.delta.double()
    return torch.where(step.moved, delta, torch.zeros_like(delta)).reshape(-1)


def assert_is(group: Group, want: Sums) -> None:
    assert (group.elements, group.not_finite) == (want.elements, want.not_finite)
    assert (group.both_changed, group.same_sign) == (want.both, want.same_sign)
    assert group.norms == pytest.approx(want.norms, rel=1e-12)
    if want.cosine is None:
        assert group.cosine is None
    else:
        assert group.cosine == pytest.approx(want.cosine, rel=1e-9, abs=1e-12)
    if want.norms[0]:
        assert group.ratio == pytest.approx(want.norms[1] / want.norms[0], rel=1e-12)
    else:
        assert group.ratio is None


def extract(directory: Path, **pairs: tuple[Tensors, Tensors]) -> Path:
    """A store with one artifact for each pair of base and post."""
    with deltastore.open(directory / "store") as store:
        for name, (base, post) in pairs.items():
            sides = [save(directory / f"{name}-base", base), save(directory / f"{name}-post", post)]
            store.extract(*sides, name=name, force=True)
    return directory / "store"


def compared(place: Path, *refs: str, jobs: int | None = None) -> Comparison:
    with deltastore.open(place, create=False) as store:
        return store.compare(*refs, jobs=jobs)


def only_pair(comparison: Comparison) -> PairFigures:
    (pair,) = comparison.pairs
    return pair


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(tensors: Mapping[str, torch.Tensor], seed: int, size: float = 1e-3) -> Tensors:
    """Each tensor plus noise, but for every third element and the norms."""
    post = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        step = size * normal(seed + number, *tensor.shape)
        step.view(-1)[::3] = 0
        post[name] = tensor if "norm" in name else (tensor.double() + step).to(tensor.dtype)
    return post


def small_model(dtype: torch.dtype = torch.bfloat16) -> Tensors:
    tensors = {"model.embed_tokens.weight": normal(1, 20, 8)}
    for layer in range(3):
        for number, kind in enumerate(("self_attn.q_proj", "mlp.up_proj")):
            tensors[LAYERED.format(layer, kind)] = normal(10 * layer + number, 8, 8)
        tensors[LAYERED.format(layer, "input_layernorm")] = torch.ones(8)
    return {name: (0.02 * tensor).to(dtype) for name, tensor in tensors.items()}


def steps(place: Path, *names: str) -> list[dict[str, Step]]:
    """The deltas as the checkpoints on the disk say."""
    found = []
    for name in names:
        base, post = (load(place.parent / f"{name}-{side}") for side in ("base", "post"))
        found.append({key: Step(base[key], post[key]) for key in base})
    return found


def test_every_group_is_what_torch_says_of_its_tensors(tmp_path: Path) -> None:
    base = small_model()
    place = extract(tmp_path, a=(base, moved(base, 100)), b=(base, moved(base, 200, 3e-3)))
    pair = only_pair(compared(place, "a", "b"))
    a, b = steps(place, "a", "b")

    def over(*names: str) -> Sums:
        return Sums([(a[name], b[name]) for name in names])

    assert_is(pair.overall, over(*base))
    kinds = ["input_layernorm", "mlp.up_proj", "self_attn.q_proj"]
    assert [group.kind for group in pair.kinds] == [*kinds, "embed_tokens"]
    for group in pair.kinds[:-1]:
        assert (group.layer, group.tensors) == (None, 3)
        assert_is(group, over(*(LAYERED.format(i, group.kind) for i in range(3))))
    assert_is(pair.kinds[-1], over("model.embed_tokens.weight"))
    assert [group.layer for group in pair.layers] == [0, 1, 2, None]
    for group in pair.layers[:-1]:
        assert (group.kind, group.tensors) == (None, 3)
        assert_is(group, over(*(LAYERED.format(group.layer, kind) for kind in kinds)))
    assert_is(pair.layers[-1], over("model.embed_tokens.weight"))
    where = [(layer, kind) for layer in range(3) for kind in kinds]
    assert [(group.layer, group.kind) for group in pair.cells] == [*where, (None, "embed_tokens")]
    for group in pair.cells[:-1]:
        assert_is(group, over(LAYERED.format(group.layer, group.kind)))
    assert pair.left_out == []


narrow_and_wide = st.sampled_from(["BF16", "F16", "F32", "F64", "F8_E5M2"])
tensor_plans = st.lists(
    st.tuples(
        narrow_and_wide,  # base
        narrow_and_wide,  # post of the first
        narrow_and_wide,  # post of the second
        st.integers(0, 40),
        st.sampled_from(["any bits", "small", "same", "one is the same"]),
    ),
    min_size=1,
    max_size=5,
)


@given(plans=tensor_plans, seed=st.integers(0, 99))
@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.generate],  # an example takes long: making it smaller would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_bits_in_any_dtypes(
    plans: list[tuple[str, str, str, int, str]],
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """NaN, infinities, subnormals, sums across dtypes, tensors without elements."""
    base, posts = {}, ({}, {})
    for number, (dtype, *post_dtypes, count, how) in enumerate(plans):
        name = f"layers.{number}.w"
        base[name] = random_bits(f"base {seed} {number}", dtype, count)
        for i, post_dtype in enumerate(post_dtypes):
            if how == "same" or (how == "one is the same" and i == 0):
                posts[i][name] = base[name]
            elif how == "small":
                step = 1e-3 * normal(seed + 7 * number + i, count)
                posts[i][name] = (base[name].double() + step).to(DTYPES[post_dtype])
            else:
                what = f"post {seed} {number} {i}"
                posts[i][name] = random_bits(what, post_dtype, count)
    directory = tmp_path_factory.mktemp("any")
    place = extract(directory, a=(base, posts[0]), b=(base, posts[1]))
    pair = only_pair(compared(place, "a", "b"))
    a, b = steps(place, "a", "b")
    assert_is(pair.overall, Sums([(a[name], b[name]) for name in base]))
    for group in pair.cells:
        name = f"layers.{group.layer}.w"
        assert_is(group, Sums([(a[name], b[name])]))
    assert "NaN" not in document(pair)
    assert "Infinity" not in document(pair)


def test_three_refs_are_three_pairs_and_a_matrix(tmp_path: Path) -> None:
    base = small_model(torch.float32)
    posts = {name: moved(base, seed) for name, seed in (("a", 100), ("b", 200), ("c", 300))}
    place = extract(tmp_path, **{name: (base, post) for name, post in posts.items()})
    comparison = compared(place, "a", "b", "c")
    assert [pair.refs for pair in comparison.pairs] == list(
        combinations(("a:v1", "b:v1", "c:v1"), 2)
    )
    found = dict(zip("abc", steps(place, "a", "b", "c"), strict=True))
    for pair in comparison.pairs:
        one, other = (found[ref[0]] for ref in pair.refs)
        assert_is(pair.overall, Sums([(one[name], other[name]) for name in base]))
    ab, ac, bc = (pair.overall.cosine for pair in comparison.pairs)
    assert comparison.matrix == [[1, ab, ac], [ab, 1, bc], [ac, bc, 1]]
    assert len({ab, ac, bc}) == 3


def test_the_order_of_refs_changes_nothing_but_the_order(tmp_path: Path) -> None:
    base = small_model()
    place = extract(tmp_path, a=(base, moved(base, 100)), b=(base, moved(base, 200, 5e-3)))
    one, other = only_pair(compared(place, "a", "b")), only_pair(compared(place, "b", "a"))
    assert other.refs == one.refs[::-1]
    for group, turned in zip([one.overall, *one.cells], [other.overall, *other.cells], strict=True):
        assert turned.cosine == group.cosine
        assert turned.norms == group.norms[::-1]
        assert (turned.both_changed, turned.same_sign) == (group.both_changed, group.same_sign)


def test_a_delta_with_itself_is_one_and_with_its_negative_minus_one(tmp_path: Path) -> None:
    base = {name: torch.zeros_like(tensor) for name, tensor in small_model().items()}
    post = {n: torch.full_like(t, 1e-3) if "norm" in n else t for n, t in small_model().items()}
    negative = {name: -tensor for name, tensor in post.items()}
    double = {name: 2 * tensor for name, tensor in post.items()}
    place = extract(tmp_path, a=(base, post), minus=(base, negative), twice=(base, double))
    comparison = compared(place, "a", "a", "minus", "twice")
    assert [pair.overall.cosine for pair in comparison.pairs] == [1, -1, 1, -1, 1, -1]
    verdicts = ["same", "opposite", "same", "opposite", "same", "opposite"]
    assert [pair.verdict for pair in comparison.pairs] == verdicts
    for pair in comparison.pairs:
        assert {group.cosine for group in pair.cells} == {pair.overall.cosine}
        assert pair.overall.same_sign == (1 if pair.overall.cosine == 1 else 0)
    assert [pair.overall.ratio for pair in comparison.pairs] == [1, 1, 2, 1, 2, 2]


def test_what_one_delta_leaves_unchanged_is_a_zero_vector(tmp_path: Path) -> None:
    base = {"x.weight": torch.ones(4), "y.weight": torch.ones(4), "n": torch.arange(3)}
    first = base | {"x.weight": torch.tensor([1.0, 1, 1, 4])}
    second = base | {"y.weight": torch.tensor([1.0, 1, 1, 5])}
    place = extract(tmp_path, a=(base, first), b=(base, second), none=(base, dict(base)))
    pair = only_pair(compared(place, "a", "b"))
    assert (pair.overall.cosine, pair.overall.norms, pair.verdict) == (0, (3, 4), "orthogonal")
    assert [(g.kind, g.cosine, g.norms, g.ratio) for g in pair.kinds] == [
        ("n", None, (0, 0), None),
        ("x", None, (3, 0), 0),
        ("y", None, (0, 4), None),
    ]
    assert (pair.overall.tensors, pair.overall.elements) == (3, 11)
    undefined = compared(place, "a", "none")
    assert (undefined.pairs[0].overall.cosine, undefined.pairs[0].verdict) == (None, "undefined")
    assert undefined.matrix == [[1, None], [None, None]]
    assert json.loads(document(undefined))["pairs"][0]["overall"]["cosine"] is None


def test_several_chunks_in_any_number_of_threads(tmp_path: Path) -> None:
    """A tensor of two and a bit chunks, beside one whose chunks are all kept in one delta."""
    size = (2 << 19) + 5
    base = {f"layers.{i}.w": (0.02 * normal(i, size)).bfloat16() for i in range(2)}
    first = moved(base, 100) | {"layers.1.w": base["layers.1.w"].clone()}
    first["layers.1.w"][-1] += 1
    place = extract(tmp_path, a=(base, first), b=(base, moved(base, 200)))
    results = [only_pair(compared(place, "a", "b", jobs=jobs)) for jobs in (1, 4, 4)]
    assert results[0] == results[1] == results[2]
    a, b = steps(place, "a", "b")
    for group in results[0].cells:
        name = f"layers.{group.layer}.w"
        assert_is(group, Sums([(a[name], b[name])]))


def test_different_structures_are_compared_over_what_they_share(tmp_path: Path) -> None:
    base = small_model()
    wider = base | {
        LAYERED.format(0, "self_attn.q_proj"): normal(5, 12, 8).bfloat16(),
        "extra.weight": normal(6, 4).bfloat16(),
    }
    del wider[LAYERED.format(2, "mlp.up_proj")]
    post = moved(base, 100)
    grown = moved(wider, 200)
    grown["model.embed_tokens.weight"] = torch.cat(
        [grown["model.embed_tokens.weight"], normal(7, 3, 8).bfloat16()]
    )
    grown["added.weight"] = normal(8, 4).bfloat16()
    grown[LAYERED.format(1, "mlp.up_proj")] = normal(9, 8, 7).bfloat16()
    place = extract(tmp_path, a=(base, post), b=(wider, grown))
    pair = only_pair(compared(place, "a", "b"))
    q_proj, up_proj = "self_attn.q_proj", "mlp.up_proj"
    assert {item.name: item.problem for item in pair.left_out} == {
        LAYERED.format(0, q_proj): "[8, 8] in a:v1, [12, 8] in b:v1",
        LAYERED.format(1, up_proj): "no delta: replaced in b:v1",
        LAYERED.format(2, up_proj): "only in a:v1",
        "added.weight": "only in b:v1",
        "extra.weight": "only in b:v1",
    }
    rows = slice(0, 20)
    embed = "model.embed_tokens.weight"
    shared = [
        (Step(base[embed], post[embed]), Step(wider[embed], grown[embed][rows])),
        *(
            (Step(base[name], post[name]), Step(wider[name], grown[name]))
            for name in (
                LAYERED.format(0, up_proj),
                LAYERED.format(1, q_proj),
                LAYERED.format(2, q_proj),
            )
        ),
    ]
    assert pair.overall.tensors == len(shared) + 3  # and the norms, which are zero
    got, want = pair.overall, Sums(shared)
    assert got.norms == pytest.approx(want.norms)
    assert got.cosine == pytest.approx(want.cosine)
    assert got.elements == want.elements + 3 * 8


def test_three_refs_of_which_two_share_another_shape(tmp_path: Path) -> None:
    """Each pair has its own tensors: the odd one out takes nothing from the others."""
    small, large = normal(1, 4, 4), normal(2, 6, 4)
    common = {"same": normal(3, 5)}
    place = extract(
        tmp_path,
        **{
            name: ({"w": first} | common, moved({"w": first} | common, seed))
            for name, first, seed in (
                ("a", small, 1),
                ("b", large, 2),
                ("c", large, 3),
                ("d", small, 4),
            )
        },
    )
    comparison = compared(place, "a", "b", "c", "d")
    found = dict(zip("abcd", steps(place, "a", "b", "c", "d"), strict=True))
    for pair in comparison.pairs:
        one, other = pair.refs[0][0], pair.refs[1][0]
        names = ["w", "same"] if one + other in ("ad", "bc") else ["same"]
        assert_is(pair.overall, Sums([(found[one][n], found[other][n]) for n in names]))
        assert [item.name for item in pair.left_out] == (["w"] if len(names) == 1 else [])


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    one, other = {"x": torch.ones(3)}, {"y": torch.ones(3)}
    place = extract(
        tmp_path, a=(one, moved(one, 1)), b=(other, moved(other, 2)), c=(one, moved(one, 3))
    )
    with pytest.raises(
        IncompatibleError, match=r"a:v1 and b:v1 have no tensor in common.*x: only in a:v1"
    ):
        compared(place, "a", "c", "b")


@pytest.mark.parametrize("refs", [(), ("a",)])
def test_it_takes_two(tmp_path: Path, refs: tuple[str, ...]) -> None:
    base = {"x": torch.ones(3)}
    place = extract(tmp_path, a=(base, moved(base, 1)))
    with pytest.raises(UsageError, match="two deltas or more"):
        compared(place, *refs)
    with pytest.raises(RefNotFoundError):
        compared(place, "a", "b")


def test_what_only_restores_is_refused(tmp_path: Path) -> None:
    base = small_model()
    quantised = {"quantization_config": {"quant_method": "gptq"}}
    sides = [
        save(tmp_path / name, tensors, config=quantised)
        for name, tensors in (("base", base), ("post", moved(base, 1)))
    ]
    with deltastore.open(tmp_path / "store") as store:
        store.extract(*sides, name="q", restore_only=True)
        with pytest.raises(RestoreOnlyError, match="q:v1"):
            store.compare("q", "q")


def part_of(place: Path, ref: str) -> Path:
    with open_store(place) as store:
        manifest, config = store.load(store.resolve(ref).digest)
        assert config.parts == 1
        return Path(store.blobs.path(manifest.layers[0].digest))


def test_a_damaged_part_is_named_wherever_it_is_damaged(tmp_path: Path) -> None:
    base = small_model()
    place = extract(tmp_path, a=(base, moved(base, 1)), b=(base, moved(base, 2)))
    part = part_of(place, "b")
    whole = part.read_bytes()
    part.chmod(0o644)
    for at in range(0, len(whole), len(whole) // 29):
        flip(part, at)
        with pytest.raises(BlobCorruptError, match=r"read for a:v1, b:v1") as caught:
            compared(place, "a", "b")
        assert caught.value.exit_code == 41
        part.write_bytes(whole)
    part.write_bytes(whole[:-1])
    with pytest.raises(BlobCorruptError):
        compared(place, "a", "b")
    part.unlink()
    with pytest.raises(BlobMissingError):
        compared(place, "a", "b")


def test_progress_comes_to_its_end(tmp_path: Path) -> None:
    class Watcher(Silent):
        total = done = 0

        def start(self, label: str, total_bytes: int) -> None:
            assert label == "comparing"
            self.total = total_bytes

        def advance(self, done_bytes: int) -> None:
            self.done += done_bytes

    base = small_model()
    place = extract(tmp_path, a=(base, moved(base, 1)), b=(base, moved(base, 2)))
    watcher = Watcher()
    with deltastore.open(place) as store:
        store.compare("a", "b", jobs=1, progress=watcher)
    assert watcher.done == watcher.total > 0
