"""Work grows with the number of tensors, not with its square.

The lines that each case runs are counted at a size and at four times that: linear work takes four
times as many, quadratic work sixteen times.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import SequenceMatcher
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import pytest

from deltastore.checkpoint import TensorInfo, Weights
from deltastore.errors import StructureMismatchError
from deltastore.lineage.copies import Copies
from deltastore.lineage.pair_structure import check_pair_structure
from deltastore.lineage.pairing import pair_up
from deltastore.manifest import Config, SourceModel, TensorEntry, TensorSide
from deltastore.merging.recipes import in_names_of, recipes, tied_as_post
from deltastore.structure.architecture import explained
from deltastore.structure.checking import check_structure
from deltastore.structure.places import Delta
from deltastore.suggesting import nearest
from deltastore.tensor_names.recognising import recognised, without_wrappers
from deltastore.tensor_names.selectors import Renaming, Scales
from deltastore.tensor_names.token_rows import TiedNames, aliases, stand_in

SMALL = 400
MOST = 5
CONFIG = {"architectures": ["M"], "tie_word_embeddings": True}


class Stored:
    """Tensors of random numbers, or of zeros; counts what is read."""

    path = Path("base")
    label = repo = "base"
    config = CONFIG

    def __init__(self, names: Sequence[str], *, shape: tuple[int, ...], zeros: bool = False):
        self.tensors = {name: TensorInfo(name, "BF16", shape, 0, 0, 0) for name in names}
        self.zeros = zeros
        self.reads = 0
        self.rng = np.random.default_rng(0)

    def read_samples(self, places: Sequence[tuple[str, int, Any]]) -> None:
        self.reads += len(places)
        for _, _, buffer in places:
            buffer[:] = 0 if self.zeros else np.frombuffer(self.rng.bytes(buffer.size), np.uint8)


def stored(names: Sequence[str], shape: tuple[int, ...] = (4, 64), **more: Any) -> Any:
    return cast("Weights", Stored(names, shape=shape, **more))


def side(shape: tuple[int, ...] = (4, 64), digest: str = "0") -> TensorSide:
    return TensorSide("BF16", shape, digest * 64)


def delta(names: Sequence[str], kind: str = "unchanged", shape: tuple[int, ...] = (4, 64)) -> Delta:
    whole = side(shape)
    entries = tuple(
        TensorEntry(name, cast("Any", kind), whole, None if kind == "removed" else whole)
        for name in sorted(names)
    )
    source = SourceModel("blake3:" + "0" * 64, "sha256:" + "0" * 64, 0, 0)
    config = Config("exact", "exact", 1 << 10, source, source, entries, 0, ())
    return Delta("d:v1", config, source_config=CONFIG)


def numbered(form: str) -> Callable[[int], list[str]]:
    return lambda n: [form.format(i) for i in range(n)]


PLAIN = numbered("model.layers.{}.mlp.up_proj.weight")
OTHERS = numbered("m.layers.{}.mlp.down_proj.weight")
MOVED = numbered("language_model.model.layers.{}.mlp.up_proj.weight")
HEADS = numbered("m.{}.lm_head.weight")
EMBEDDINGS = numbered("m.{}.embed_tokens.weight")
ENCODERS = numbered("m.{}.encoder.embed_tokens.weight")
SHARED = numbered("m.{}.shared.weight")
BIASES = numbered("m.{}.lm_head.bias")
DECODERS = numbered("m.{}.lm_head.decoder.bias")
LONG = numbered("x." + "a." * 200 + "l{}.w")
LONGER = numbered("y." + "a." * 200 + "l{}.w")
SHAPES: tuple[tuple[int, ...], ...] = ((4, 64), (64,))


def matching(
    ours: Sequence[str], base: Any, *, kind: str = "unchanged", others: Sequence[Delta] = ()
) -> None:
    deltas = [delta(ours, kind, next(iter(base.tensors.values())).shape), *others]
    report = check_structure(base, deltas, partial=True, config=CONFIG)
    if all(report.places):
        made = recipes(base, deltas, report, Scales([1.0] * len(deltas)), None)
        in_names_of(base, tied_as_post(made))


def refused(ours: Sequence[str], base: Any) -> None:
    deltas = [delta(ours)]
    with pytest.raises(StructureMismatchError) as caught:
        check_structure(base, deltas, partial=False, config=CONFIG)
    explained(caught.value, base, deltas)


def paired(base: Any, post: Any) -> None:
    pairs = pair_up(base, post, may_tie=True)
    with suppress(StructureMismatchError):
        check_pair_structure(base, post, pairs)


def index_names(n: int) -> None:
    is_alias = aliases(dict.fromkeys(PLAIN(n)), CONFIG)
    for name in HEADS(n):
        is_alias(name)


CASES: dict[str, Callable[[int], object]] = {
    "all there": lambda n: matching(PLAIN(n), stored(PLAIN(n))),
    "none there": lambda n: matching(PLAIN(n), stored(OTHERS(n))),
    "half there": lambda n: matching(PLAIN(n), stored([*PLAIN(n), *OTHERS(n)])),
    "zeros": lambda n: matching(PLAIN(n), stored([*PLAIN(n), *OTHERS(n)], zeros=True)),
    "two deltas": lambda n: matching(PLAIN(n), stored(PLAIN(n)), others=[delta(OTHERS(n))]),
    "removed": lambda n: matching(PLAIN(n), stored(OTHERS(n)), kind="removed"),
    "refused": lambda n: refused(PLAIN(n), stored(OTHERS(n))),
    "refused, of another beginning": lambda n: refused(PLAIN(n), stored(MOVED(n))),
    "heads for embeddings": lambda n: matching(HEADS(n), stored(EMBEDDINGS(n))),
    "embeddings for heads": lambda n: matching(EMBEDDINGS(n), stored(HEADS(n))),
    "one of a family": lambda n: matching(ENCODERS(n), stored(SHARED(n))),
    "biases": lambda n: matching(BIASES(n), stored(DECODERS(n), shape=(64,))),
    "tied, of two": lambda n: matching(
        ENCODERS(n), stored([*SHARED(n), *HEADS(n)]), others=[delta([*SHARED(n), *HEADS(n)])]
    ),
    "vectors of heads": lambda n: matching(
        [*HEADS(n), *EMBEDDINGS(n)], stored(HEADS(n), shape=(64,)), kind="removed"
    ),
    "wrapped": lambda n: without_wrappers([f"module.{name}" for name in PLAIN(n)], PLAIN(n)),
    "beginnings": lambda n: recognised(PLAIN(n), MOVED(n)),
    "beginnings that differ": lambda n: recognised(
        [f"a{name}" for name in numbered("{}.x.w")(n)],
        [f"b{name}" for name in numbered("{}.x.w")(n)],
    ),
    "beginnings of heads": lambda n: recognised(
        [f"x.{name}" for name in HEADS(n)], [f"y.{name}" for name in EMBEDDINGS(n)]
    ),
    "long names": lambda n: recognised(LONG(n // 4), LONGER(n // 4)),
    "pairs": lambda n: paired(stored(PLAIN(n)), stored([*PLAIN(n), *OTHERS(n)])),
    "pairs of none": lambda n: paired(stored(PLAIN(n)), stored(OTHERS(n))),
    "pairs of heads": lambda n: paired(stored(HEADS(n)), stored(EMBEDDINGS(n))),
    "names in an index": index_names,
    "names after a rule": lambda n: Renaming.of([("^model", "m")]).names([PLAIN(n)]),
}


def lines_run(case: Callable[[int], object], size: int) -> int:
    """How many lines of Python a case runs; each turn of a loop counts, on one line, too."""
    count = 0

    def counting(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return counting

    before = sys.gettrace()
    sys.settrace(counting)
    try:
        case(size)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("what", CASES)
def test_four_times_the_tensors(what: str) -> None:
    small, large = (lines_run(CASES[what], size) for size in (SMALL, 4 * SMALL))
    assert large < MOST * small


def test_what_would_be_quadratic_is_noticed() -> None:
    def pairs(n: int) -> int:
        return sum(a == b for a in PLAIN(n) for b in OTHERS(n))

    assert lines_run(pairs, 4 * SMALL) > MOST * lines_run(pairs, SMALL)


@pytest.mark.parametrize("zeros", [False, True])
def test_a_tensor_is_sampled_once(zeros: bool) -> None:
    """By one short read, and by sixteen more where another agrees in that."""
    base = Stored(PLAIN(500), shape=(4, 512), zeros=zeros)
    among = Copies(cast("Weights", base)).among(PLAIN(500))
    for name in PLAIN(500):
        assert among.find(name) is None
    assert base.reads <= 500 * (17 if zeros else 1)


def test_copies_are_found_whenever_they_are_added() -> None:
    base = Stored(["a", "b", "c", "d"], shape=(4, 64))
    content = {"a": 1, "b": 2, "c": 1, "d": 1}

    def read_samples(places: Sequence[tuple[str, int, Any]]) -> None:
        for name, start, buffer in places:
            rng = np.random.default_rng([content[name], start])
            buffer[:] = np.frombuffer(rng.bytes(buffer.size), np.uint8)

    base.read_samples = read_samples  # type: ignore[method-assign]
    among = Copies(cast("Weights", base)).among(["d", "b", "x"])
    assert among.find("a") == "d"
    among.add("c")
    assert [among.find(name) for name in "abcd"] == ["c", None, "d", "c"]


def test_suggestions_compare_a_few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    ratio = SequenceMatcher.ratio
    monkeypatch.setattr(SequenceMatcher, "ratio", lambda self: compared.append(self) or ratio(self))
    names = [f"{'ab' * 12}{i}" for i in range(50_000)]
    assert len(nearest("ab" * 13, names, most=3)) == 3
    assert len(compared) <= 2 * 300
    assert nearest("a" * 10_000, names, most=3) == []
    assert nearest("qwen-math", ["x" * 500, "qwen-maths", "llama"], most=3) == ["qwen-maths"]


def test_tied_names_are_those_of_which_two_alone_are_one() -> None:
    """What is looked up says what going through all names would."""
    endings = ("lm_head.weight", "embed_tokens.weight", "shared.weight", "w", "lm_head.bias")
    endings += ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    endings += ("lm_head.decoder.bias", "predictions.bias", "predictions.decoder.bias")
    every = [f"{prefix}{end}" for prefix in ("", "a.", "b.") for end in endings]
    rng = random.Random(0)
    for _ in range(300):
        chosen = rng.sample(every, 8)
        tied = TiedNames()
        for name in chosen:
            tied.add(name)
        tied.remove(chosen.pop(rng.randrange(8)))
        for name in rng.sample(every, 8):
            one = (other for other in chosen if other != name and _alone(name, other))
            assert tied.first_tied(name) == next(one, None), (name, chosen)
            assert tied.first(name) == next(other for other in chosen if other != name)


def _alone(name: str, other: str) -> bool:
    pairs = itertools.permutations((name, other))
    return any(stand_in(one, [two], ties=True) == two for one, two in pairs)
