"""Codecs of others from end to end: extracted, listed, shown, applied, verified, refused.

``plain`` is exact and the page's own; ``round:BITS`` is lossy and was written after the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rounding import RoundCodec, RoundEncoder, rounded
from safetensors.torch import load_file, save_file

import deltastore
from deltastore.cli.main import main
from deltastore.codecs import register_codec, registry
from deltastore.codecs.exact import ExactCodec, ExactPaletteEncoder
from deltastore.errors import (
    CodecUnknownError,
    IncompatibleError,
    RestoreFailedError,
    UsageError,
)
from deltastore.kernels.palette import TOKEN_ESCAPE
from deltastore.manifest.format import KEEP, KEEP_WIDE

Tensors = dict[str, torch.Tensor]
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def weights(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.weight": torch.normal(0, 0.02, (40, 64), generator=generator).to(dtype)
        for name, dtype in DTYPES.items()
    }


def trained(tensors: Tensors, seed: int) -> Tensors:
    """Most elements moved a little, some kept; one zero changes its sign, which takes a patch."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, tensor in tensors.items():
        step = torch.normal(0, 1e-3, tensor.shape, generator=generator)
        step[torch.rand(tensor.shape, generator=generator) < 0.2] = 0
        result[name] = (tensor.float() + step).to(tensor.dtype)
        result[name][0, :4] = torch.tensor([-0.0, float("nan"), float("inf"), 1.0])
    return result


def save(directory: Path, tensors: Tensors) -> Path:
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tensors = weights(1)
    for tensor in tensors.values():
        tensor[0, :4] = torch.tensor([0.0, 1.0, 2.0, float("nan")])
    return save(tmp_path / "base", tensors)


@pytest.fixture
def post(tmp_path: Path, base: Path) -> Path:
    return save(tmp_path / "post", trained(load(base), 2))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as opened:
        yield opened


def load(directory: Path) -> Tensors:
    return load_file(directory / "model.safetensors")


def same_bits(found: Tensors, wanted: Tensors) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype
        and found[name].view(torch.uint8).equal(wanted[name].view(torch.uint8))
        for name in wanted
    )


def delta_bits(before: torch.Tensor, after: torch.Tensor) -> Any:
    """post - base in float32, or float64 of float32 tensors, as float bits."""
    wide = before.dtype == torch.float32
    real = torch.float64 if wide else torch.float32
    delta = (after.to(real) - before.to(real)).numpy().reshape(-1)
    return delta.view(np.uint64 if wide else np.uint32)


def expected_error(
    base: Tensors, post: Tensors, bits: int
) -> dict[str, tuple[float, float, float]]:
    """L2 and maximum of what rounding loses, and the delta's own l2, by plain numpy."""
    found = {}
    for name in base:
        delta = delta_bits(base[name], post[name])
        real = np.float64 if delta.dtype == np.uint64 else np.float32
        exact, near = (x.view(real).astype(np.float64) for x in (delta, rounded(delta, bits)))
        usual = np.isfinite(exact)
        off = near[usual] - exact[usual]
        found[name] = (
            float(np.linalg.norm(off)),
            float(np.abs(off).max()),
            float(np.linalg.norm(exact[usual])),
        )
    return found


def test_an_exact_codec(
    store: deltastore.DeltaStore, base: Path, post: Path, tmp_path: Path
) -> None:
    made = store.extract(base, post, name="m", codec="plain")
    assert (made.codec, made.patched) == ("plain", 3)
    assert [row.codec for row in store.list()] == ["plain"]
    details = store.show("m")
    assert (details.codec, details.exactness, details.error) == ("plain", "exact", None)
    assert {tensor.codec for tensor in details.tensors} == {"plain"}
    assert store.apply("m", base=base, out=tmp_path / "restored").restored
    assert same_bits(load(tmp_path / "restored"), load(post))
    new = save(tmp_path / "new", trained(load(base), 3))
    exact = store.extract(base, post, name="exact")
    assert (exact.codec, exact.reused) == ("exact", False)
    for ref in ("m", "exact"):
        store.apply(ref, base=new, out=tmp_path / f"{ref}-out")
    assert same_bits(load(tmp_path / "m-out"), load(tmp_path / "exact-out"))
    assert store.verify().problems == ()


@pytest.mark.parametrize("bits", [2, 8])
def test_a_lossy_codec(
    store: deltastore.DeltaStore, base: Path, post: Path, tmp_path: Path, bits: int
) -> None:
    made = store.extract(base, post, name="m", codec=f"round:0{bits}")
    assert (made.codec, made.patched) == (f"round:{bits}", 0)
    assert [row.codec for row in store.list()] == [f"round:{bits}"]
    before, after = load(base), load(post)
    expected = expected_error(before, after, bits)

    details = store.show("m")
    assert (details.codec, details.exactness) == (f"round:{bits}", "lossy")
    for tensor in details.tensors:
        l2, largest, whole = expected[tensor.name]
        assert tensor.error is not None
        assert (tensor.error.l2, tensor.error.max) == pytest.approx((l2, largest), rel=1e-9)
        assert tensor.error.relative == pytest.approx(l2 / whole, rel=1e-5)
        assert 0 < tensor.error.relative < 2.0**-bits
    l2s, maxima, norms = map(np.array, zip(*expected.values(), strict=True))
    assert details.error is not None
    assert details.error.l2 == pytest.approx(np.linalg.norm(l2s))
    assert details.error.max == pytest.approx(maxima.max())
    assert details.error.relative == pytest.approx(np.linalg.norm(l2s) / np.linalg.norm(norms))

    new = save(tmp_path / "new", trained(before, 3))
    assert not store.apply("m", base=new, out=tmp_path / "out").restored
    for name, found in load(tmp_path / "out").items():
        old, start, end = load(new)[name], before[name], after[name]
        delta = rounded(delta_bits(start, end), bits)
        wide = delta.dtype == np.uint64
        values = torch.from_numpy(delta.view(np.float64 if wide else np.float32)).view(old.shape)
        whole = torch.int32 if wide else torch.int16
        kept = start.view(whole) == end.view(whole)
        total = torch.where(kept, old, (old.to(values.dtype) + values).to(old.dtype))
        assert torch.equal(found.nan_to_num(7.0), total.nan_to_num(7.0))
    report = store.verify()
    assert report.problems == ()
    assert report.checked > 3


def test_a_lossy_codec_never_says_restored(
    store: deltastore.DeltaStore, base: Path, tmp_path: Path
) -> None:
    """Not even where nothing was lost, and the output is post bit for bit."""
    moved = load(base)
    moved["bf16.weight"][3] *= 1.5  # few bits
    post = save(tmp_path / "near", moved)
    for codec, restored in (("round:22", False), ("exact", True)):
        store.extract(base, post, name=codec[:5], codec=codec)
        result = store.apply(codec[:5], base=base, out=tmp_path / codec[:5])
        assert result.restored is restored
        assert same_bits(load(tmp_path / codec[:5]), moved)
        said = json.loads((tmp_path / codec[:5] / "deltastore.json").read_text())
        assert said["restored"] is restored


def test_one_pair_has_an_artifact_for_each_codec(
    store: deltastore.DeltaStore, base: Path, post: Path
) -> None:
    """The canonical spec tells them apart; how it was written does not."""
    first = store.extract(base, post, name="m", codec="round:8")
    for spec, reused in (("round", True), ("round:08", True), ("round:7", False), ("exact", False)):
        again = store.extract(base, post, name="m", codec=spec)
        assert again.reused is reused
        assert (again.digest == first.digest) is reused
    assert [(row.version, row.codec) for row in store.list()] == [
        (1, "round:8"),
        (2, "round:7"),
        (3, "exact"),
    ]


def test_threads_do_not_show(store: deltastore.DeltaStore, base: Path, post: Path) -> None:
    digests = {
        store.extract(base, post, name="m", codec="round:3", jobs=jobs, rehash=True).digest
        for jobs in (1, 4)
    }
    assert len(digests) == 1


def test_where_only_exact_ones_will_do(
    store: deltastore.DeltaStore, base: Path, post: Path, tmp_path: Path
) -> None:
    last = save(tmp_path / "last", trained(load(post), 4))
    store.extract(base, post, name="one", codec="plain")
    store.extract(post, last, name="two", codec="plain")
    store.extract(post, last, name="lossy", codec="round:8")
    composed = store.compose(["one", "two"], base=base, name="both")
    assert store.apply("both", base=base, out=tmp_path / "out").restored
    assert composed.codec == "exact"
    with pytest.raises(IncompatibleError, match="codec round:8, which is lossy") as caught:
        store.compose(["one", "lossy"], base=base)
    assert caught.value.exit_code == 30
    with pytest.raises(UsageError, match="needs an exact codec, got round:8, which is lossy"):
        store.extract(base, post, name="r", codec="round:8", restore_only=True)
    assert store.extract(base, post, name="r", codec="plain", restore_only=True).codec == "plain"


def test_in_memory(store: deltastore.DeltaStore, base: Path, tmp_path: Path) -> None:
    moved = load(base)
    moved["bf16.weight"][3] *= 1.5
    post = save(tmp_path / "near", moved)
    store.extract(base, post, name="lossy", codec="round:22")
    store.extract(base, post, name="exact")
    model = torch.nn.Module()
    for name in DTYPES:
        layer = torch.nn.Linear(64, 40, bias=False, dtype=DTYPES[name])
        layer.weight.data = load(base)[f"{name}.weight"]
        model.add_module(name, layer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for ref, restored in (("lossy", False), ("exact", True)):
        assert store.patch(model, ref).restored is restored
        assert same_bits(model.state_dict(), moved)
        store.unpatch(model)
        assert same_bits(model.state_dict(), before)


class Declares(RoundCodec):
    """Rounds to two bits and declares something else."""

    def __init__(self, exactness: str, bound: str = "0") -> None:
        super().__init__("2")
        self.exactness = exactness  # type: ignore[assignment]
        self.bound = float(bound)
        self.name = f"declares:{exactness}:{bound}"

    def encoder(self, sample: Any, elements: int) -> RoundEncoder:
        encoder = super().encoder(sample, elements)
        if self.bound:
            encoder.bound = self.bound  # type: ignore[attr-defined]
        return encoder


@pytest.mark.parametrize(
    ("declares", "kept"),
    [
        ("exact", False),
        ("bounded", False),  # and states no bound
        ("bounded:1e-9", False),
        ("bounded:nan", False),
        ("bounded:1", True),
        ("lossy", True),
        ("lossy:1e-9", True),
    ],
)
def test_what_is_declared_is_proven(
    store: deltastore.DeltaStore, base: Path, post: Path, declares: str, kept: bool
) -> None:
    register_codec("declares", Declares)
    if kept:
        made = store.extract(base, post, name="m", codec=f"declares:{declares}")
        assert store.show("m").exactness == declares.partition(":")[0]
        assert made.patched == 0
        return
    with pytest.raises(RestoreFailedError, match="elements from 0 on do not decode") as caught:
        store.extract(base, post, name="m", codec=f"declares:{declares}")
    assert caught.value.exit_code == 43
    assert "defect of the codec" in caught.value.hint
    assert list(store.list()) == []


@pytest.mark.parametrize("wrong", ["keeps a number", "moves what is kept", "loses an infinity"])
@pytest.mark.parametrize("exactness", ["bounded", "lossy"])
def test_what_is_no_number_stays_what_it_is(
    store: deltastore.DeltaStore,
    base: Path,
    post: Path,
    monkeypatch: pytest.MonkeyPatch,
    exactness: str,
    wrong: str,
) -> None:
    """Whatever a codec declares, and however small the error would be."""
    import rounding

    def decode(self: Any, frame: Any, out: Any) -> None:
        right(self, frame, out)
        wide = out.dtype == np.uint64
        keep = KEEP_WIDE if wide else KEEP
        values = out.view(np.float64 if wide else np.float32)
        if wrong == "keeps a number":
            out[np.flatnonzero(np.isfinite(values))[0]] = keep
        elif wrong == "moves what is kept":
            out[np.flatnonzero(out == keep)[0]] = 0
        else:
            values[np.isinf(values)] = 1.0

    right = rounding.RoundDecoder.decode
    monkeypatch.setattr(rounding.RoundDecoder, "decode", decode)
    register_codec("declares", Declares)
    with pytest.raises(RestoreFailedError):
        store.extract(base, post, name="m", codec=f"declares:{exactness}:99")
    assert list(store.list()) == []


class Coarse(ExactCodec):
    """Palette tokens that stand for several values each: an ability, and a loss."""

    name = "coarse"
    exactness = "lossy"

    def encoder(self, sample: Any, elements: int) -> CoarseEncoder:
        values = (sample >> 16)[np.isfinite(sample.view(np.float32)) & (sample & 0xFFFF == 0)]
        palette = np.unique([*(values & 0xFFF0), KEEP >> 16])[-255:].astype(np.uint16)
        return CoarseEncoder("palette", sparse=False, palette=palette, bytes_per_element=1.0)


class CoarseEncoder(ExactPaletteEncoder):
    @cached_property
    def _table(self) -> Any:
        assert self.palette is not None
        table = np.full(1 << 16, TOKEN_ESCAPE, np.uint8)
        for token, value in enumerate(self.palette.tolist()):
            table[value : value + 1 if value == KEEP >> 16 else value + 16] = token
        return table


def test_a_lossy_codec_of_palette_tokens(
    store: deltastore.DeltaStore, base: Path, post: Path, tmp_path: Path
) -> None:
    """The fast path compares bits: it is for exact codecs, and others are measured."""
    register_codec("coarse", Coarse)
    names = ["bf16.weight", "f16.weight"]
    pair = [
        save(tmp_path / side, {name: load(path)[name] for name in names})
        for side, path in (("one", base), ("two", post))
    ]
    store.extract(*pair, name="m", codec="coarse")
    for tensor in store.show("m").tensors:
        assert tensor.error is not None
        assert tensor.error.relative is not None
        assert 0 < tensor.error.relative < 2.0**-3
    assert store.apply("m", base=base, out=tmp_path / "out", partial=True).out


def test_without_the_package_that_has_it(
    store: deltastore.DeltaStore,
    base: Path,
    post: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that needs no deltas works; what does says which codec is missing."""
    store.extract(base, post, name="m", codec="round:8")
    monkeypatch.setattr(registry, "_registered", {})
    assert [row.codec for row in store.list()] == ["round:8"]
    assert store.show("m").error is not None
    assert store.verify().problems == ()
    store.export("m", tmp_path / "oci")
    with pytest.raises(CodecUnknownError, match="is encoded by 'round:8'; this deltastore reads"):
        store.apply("m", base=base, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="Codec 'round' is not known"):
        store.extract(base, post, name="m", codec="round:8")


def test_on_the_command_line(
    base: Path, post: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*argv: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(("--store", str(tmp_path / "cli"), *argv)) == code
        return "".join(capsys.readouterr())

    pair = ("extract", "--base", str(base), "--post", str(post), "--name")
    assert "codec round:2)" in run(*pair, "m", "--codec", "round:02")
    text = run("show", "m")
    assert "exactness  lossy" in text
    assert "% of the delta, " in text
    assert "CHANGE" in text
    assert " ERROR\n" in text
    shown = json.loads(run("show", "m", "--json"))
    assert shown["error"].keys() == {"l2", "relative", "max"}
    assert all(tensor["error"]["max"] > 0 for tensor in shown["tensors"])
    run(*pair, "e", "--codec", "exact")
    assert "error" not in run("show", "e").lower()
    assert json.loads(run("show", "e", "--json"))["error"] is None
    assert "BITS should be in 1..22, got 99" in run(*pair, "n", "--codec", "round:99", code=2)
    assert "codec" in run(*pair, "n", "--codec", "quant:4", code=2).lower()
    assert "exact codec" in run(*pair, "n", "--codec", "round", "--restore-only", code=2)
