"""Deltas that follow one another as one: the very artifact that extracting the whole way gives."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from checkpoints import (
    DTYPES,
    Tensors,
    all_pairs,
    assert_same_bits,
    bits,
    load,
    model,
    random_bits,
    save,
    specials,
    trained,
)

import deltastore
from deltastore.artifact.reader import ArtifactReader
from deltastore.checkpoint import Checkpoint, open_checkpoint
from deltastore.digest import sha256_digest
from deltastore.errors import (
    BlobCorruptError,
    BlobMissingError,
    CheckpointNotFoundError,
    DeltastoreError,
    FormatError,
    IncompatibleError,
    IntegrityError,
    ManifestInvalidError,
    RefSyntaxError,
    RestoreFailedError,
    RestoreOnlyError,
    SourceChangedError,
    UsageError,
)
from deltastore.extraction import assembling, plan, storing
from deltastore.extraction.chain import Chain
from deltastore.manifest import config_bytes
from deltastore.merging.post_view import PostView
from deltastore.operations.compose import ComposeResult

EMBED = "model.embed_tokens.weight"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files written just now count as long settled, so that their digests are remembered."""
    monkeypatch.setattr("deltastore.catalog.digests._CLOCK_GRAIN_NS", -(10**9))


@pytest.fixture
def small_chunks() -> Iterator[None]:
    with chunks(1024):
        yield


@contextmanager
def chunks(elements: int) -> Iterator[None]:
    """Artifacts are written in chunks of so many elements."""
    with patch.object(plan, "CHUNK_ELEMENTS", elements):
        yield


def saved(directory: Path, models: Mapping[str, Tensors], **options: Any) -> list[Path]:
    return [save(directory / name, tensors, **options) for name, tensors in models.items()]


def extracted(store: deltastore.DeltaStore, places: list[Path]) -> list[str]:
    """The refs of the steps from each place to the next."""
    return [
        store.extract(base, post, name=f"step-{number}", force=True).ref
        for number, (base, post) in enumerate(itertools.pairwise(places))
    ]


def listed(store: deltastore.DeltaStore) -> set[str]:
    return {f"{found.name}:v{found.version}" for found in store.list()}


def check(
    store: deltastore.DeltaStore,
    directory: Path,
    models: Mapping[str, Tensors],
    result: ComposeResult,
    **options: Any,
) -> None:
    """It is what extracting the whole way gives, and gives the last post on the first base."""
    names = list(models)
    whole = [(name, models[name]) for name in (names[0], names[-1])]
    # As extract would: in another store, from checkpoints of their own.
    places = saved(directory / "whole", dict(whole), **options)
    with deltastore.open(directory / "other") as other:
        assert other.extract(*places, force=True).digest == result.digest
    out = directory / "out"
    assert store.apply(result, base=places[0], out=out).restored
    assert_same_bits(load(out), whole[1][1])


def composed(
    store: deltastore.DeltaStore,
    directory: Path,
    models: Mapping[str, Tensors],
    *,
    jobs: int = 2,
    **options: Any,
) -> ComposeResult:
    """The steps extracted, everything but the first base deleted, and the steps composed."""
    places = saved(directory, models, **options)
    refs = extracted(store, places)
    for place in places[1:]:
        shutil.rmtree(place)
    before = {str(path) for path in directory.rglob("*.safetensors")}
    result = store.compose(refs, base=places[0], name="whole", jobs=jobs)
    assert {str(path) for path in directory.rglob("*.safetensors")} == before
    assert result.composed == refs
    assert not result.reused
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("small_chunks")
def test_every_value_there_and_further(
    store: deltastore.DeltaStore, tmp_path: Path, dtype: str
) -> None:
    kind = DTYPES[dtype]
    first, second = all_pairs(specials(dtype))
    steps = {
        "base": {
            "special": first,
            "any": random_bits("base", dtype, 3, 1001),
            "far": torch.tensor([1.0, 1e-10, -0.0, 0.0, 1.0, 3.0]).to(kind),
            "back": random_bits("back", dtype, 70),
            "scalar": torch.tensor(1.0).to(kind),
            "none": torch.empty(0, 3).to(kind),
        },
        "middle": {
            "special": second,
            "any": random_bits("middle", dtype, 3, 1001),
            "far": torch.tensor([1e-10, 1.0, 0.0, -0.0, torch.inf, 1e-9]).to(kind),
            "back": random_bits("there", dtype, 70),
            "scalar": torch.tensor(1e-10).to(kind),
            "none": torch.empty(0, 3).to(kind),
        },
        "post": {
            "special": bits(second).roll(7).view(kind),
            "any": torch.cat(
                [random_bits("post", dtype, 1, 1001), random_bits("base", dtype, 3, 1001)[1:]]
            ),
            "far": torch.tensor([1e-9, 1e-9, -0.0, 0.0, 1.0, torch.nan]).to(kind),
            "back": random_bits("back", dtype, 70),
            "scalar": torch.tensor(1e-9).to(kind),
            "none": torch.empty(0, 3).to(kind),
        },
    }
    result = composed(store, tmp_path, steps)
    assert result.unchanged == 2
    check(store, tmp_path, steps, result)


def structures() -> dict[str, Tensors]:
    """Three models whose tensors come, go, grow, shrink and change their dtype in every order."""
    rows = {n: random_bits("rows", "BF16", n, 30) for n in (0, 1, 40, 50, 60, 70)}
    more = {n: random_bits("more", "F16", n, 30) for n in (40, 50, 60, 70)}
    floats = torch.arange(3000).float() / 7
    shapes: dict[str, tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]] = {
        "grows.twice": (rows[40], more[60].bfloat16(), more[70].bfloat16()),
        "grows.shrinks": (rows[50], more[70].bfloat16(), rows[60]),
        "shrinks.grows": (rows[60], rows[40], rows[70]),
        "shrinks.back": (rows[60], rows[40], rows[60]),
        "shrinks.away": (rows[60], rows[40], rows[1]),
        "grows.from.nothing": (rows[0], rows[40], rows[70]),
        "grows.as.another": (more[40], more[50].float(), more[70].float()),
        "added.then.moved": (None, rows[40], more[40].bfloat16()),
        "added.then.grown": (None, rows[40], rows[70]),
        "added.then.removed": (None, rows[40], None),
        "removed.then.added": (rows[40], None, rows[60]),
        "removed.then.back": (rows[40], None, rows[40]),
        "removed": (rows[40], more[40].bfloat16(), None),
        "added.last": (None, None, rows[40]),
        "reshaped": (rows[40], rows[40].reshape(30, 40), rows[40].reshape(20, 60)),
        "reshaped.back": (rows[40], rows[40].reshape(30, 40), rows[40]),
        "wider": (floats.bfloat16(), floats, floats.double() + 1e-9),
        "narrower": (floats.double() + 1e-9, floats, floats.half()),
        "wider.and.back": (floats.bfloat16(), floats, floats.bfloat16() * 2),
        "ints": (torch.arange(2000), torch.arange(2000) * 3, torch.arange(2000) * 5),
        "ints.back": (torch.arange(2000), torch.arange(2000) * 3, torch.arange(2000)),
        "ints.to.floats": (torch.arange(2000), torch.arange(2000.0), torch.arange(2000.0) / 3),
        "bools": (torch.ones(9).bool(), torch.zeros(9).bool(), torch.eye(3).bool()),
        "still": (rows[70], rows[70], rows[70]),
        "still.ints": (torch.arange(9), torch.arange(9), torch.arange(9)),
        "still.then.moved": (rows[70], rows[70], more[70].bfloat16()),
    }
    return {
        name: {key: sides[i] for key, sides in shapes.items() if sides[i] is not None}  # type: ignore[misc]
        for i, name in enumerate(("base", "middle", "post"))
    }


def test_every_kind_of_change_after_every_other(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    """The steps' chunks are of different sizes, and others than those of the whole."""
    steps = structures()
    places = saved(tmp_path, steps)
    with chunks(2048):
        store.extract(*places[:2], name="a", force=True)
    with chunks(1024):
        store.extract(*places[1:], name="b", force=True)
        result = store.compose(["a", "b"], base=places[0])
        check(store, tmp_path, steps, result)
    with chunks(4096):
        again = store.compose(["a", "b"], base=places[0])
        assert (again.digest, again.reused) == (result.digest, True)
        store.rm(result.ref)
        result = store.compose(["a", "b"], base=places[0], name="c")
        shutil.rmtree(tmp_path / "whole")
        shutil.rmtree(tmp_path / "other")
        shutil.rmtree(tmp_path / "out")
        check(store, tmp_path, steps, result)


@pytest.mark.usefixtures("small_chunks")
def test_threads_and_shards_make_no_difference(tmp_path: Path) -> None:
    base = structures()["base"] | model("base")
    steps = {"base": base, "middle": trained(base, "middle"), "post": trained(base, "post")}
    digests = set()
    for jobs, shards in ((1, 1), (3, 4)):
        directory = tmp_path / str(jobs)
        with deltastore.open(directory / "store") as store:
            result = composed(store, directory, steps, jobs=jobs, shards=shards)
            check(store, directory, steps, result)
            digests.add(result.digest)
    assert len(digests) == 1


HEAD = "lm_head.weight"


@pytest.mark.parametrize("tied", list(itertools.product([True, False], repeat=3)), ids=str)
def test_heads_that_are_tied_or_not(
    store: deltastore.DeltaStore, tmp_path: Path, tied: tuple[bool, bool, bool]
) -> None:
    """A head that only post has is measured from its base's embeddings, of which it has none."""
    sides = {"base": model("base")}
    sides["middle"] = trained(sides["base"], "middle")
    sides["post"] = trained(sides["middle"], "post")
    for tensors, shares in zip(sides.values(), tied, strict=True):
        if shares:
            del tensors[HEAD]
    config = {"model_type": "llama", "tie_word_embeddings": tied[0]}
    result = composed(store, tmp_path, sides, config=config)
    check(store, tmp_path, sides, result, config=config)


def test_more_than_two(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    steps = {"base": model("base")}
    for name in ("one", "two", "three"):
        steps[name] = trained(list(steps.values())[-1], name)
    steps["four"] = steps["two"]
    result = composed(store, tmp_path, steps)
    check(store, tmp_path, steps, result)
    assert len(result.composed) == 4


@pytest.fixture
def steps() -> dict[str, Tensors]:
    base = model("base")
    return {
        "base": base,
        "middle": trained(base, "middle"),
        "post": trained(trained(base, "middle"), "post"),
    }


@pytest.fixture
def places(steps: dict[str, Tensors], tmp_path: Path) -> list[Path]:
    return saved(tmp_path, steps, shards=2)


@pytest.fixture
def chain(store: deltastore.DeltaStore, places: list[Path]) -> list[str]:
    """step-0:v1 and step-1:v1."""
    return extracted(store, places)


def test_names_labels_and_tags(
    store: deltastore.DeltaStore, chain: list[str], places: list[Path]
) -> None:
    """The composition has neither name: given again, the refs mean what they meant."""
    result = store.compose(["step-0", "step-1"], base=places[0], tags=["whole"])
    assert (result.name, result.version) == ("step-0-step-1", 1)
    (found,) = store.list(tag="whole")
    assert (found.name, found.base, found.post) == ("step-0-step-1", "base", "post")
    again = store.compose(["step-0", "step-1"])
    assert (again.ref, again.reused) == (result.ref, True)
    again = store.compose(store.list(name="step-?"), name="other", tags=["more"])
    assert (again.ref, again.digest, again.reused) == ("other:v1", result.digest, True)
    assert again.composed == chain
    assert store.list(name="other")[0].tags == ("more",)


TOKENIZERS: dict[str, tuple[str | None, str | None, str | None]] = {
    "the same": ("a", "a", "a"),
    "none": (None, None, None),
    "last changes": ("a", "a", "b"),
    "first changes": ("a", "b", "b"),
    "there and back": ("a", "b", "a"),
    "comes": (None, "a", "a"),
    "comes and goes": (None, "a", None),
    "comes last": (None, None, "a"),
    "goes": ("a", None, None),
    "goes last": ("a", "a", None),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_small_files_are_those_of_the_whole(
    store: deltastore.DeltaStore, steps: dict[str, Tensors], tmp_path: Path, case: str
) -> None:
    places = []
    for (name, tensors), tokenizer in zip(steps.items(), TOKENIZERS[case], strict=True):
        files = {
            "config.json": f'{{"model_type": "{name}", "_name_or_path": "/x"}}',
            "README.md": name,
            f"LICENSE.{name}": "Do.",
        }
        if tokenizer is not None:
            text = f'{{"of": "{tokenizer}", "name_or_path": "/{name}"}}'
            files |= {"tokenizer.json": text, "tokenizer_config.json": "{}"}
        places.append(save(tmp_path / name, tensors, files=files))
    chain = extracted(store, places)
    result = store.compose(chain, base=places[0], name="whole")
    with deltastore.open(tmp_path / "other") as other:
        assert other.extract(places[0], places[2], force=True).digest == result.digest
    # What is stored is found without the base, which need not be there then.
    for place in places:
        shutil.rmtree(place)
    assert store.compose(chain, name="whole").reused


def test_what_was_extracted_is_not_composed(
    store: deltastore.DeltaStore,
    chain: list[str],
    places: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = store.extract(places[0], places[2], name="whole")
    shutil.rmtree(places[0])
    for kind in (Checkpoint, PostView, ArtifactReader):
        name = "delta" if kind is ArtifactReader else "read_into"
        monkeypatch.setattr(kind, name, None)
    result = store.compose(chain)
    assert (result.digest, result.reused, result.ref) == (whole.digest, True, "step-0-step-1:v1")


def test_any_piece_of_a_restored_tensor(
    store: deltastore.DeltaStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges of bytes in any order and by several threads at once, over two deltas."""
    steps = structures()
    places = saved(tmp_path, steps)
    with chunks(1024):
        refs = extracted(store, places)
    with open_checkpoint(places[0]) as base, ExitStack() as stack:
        weights: Any = base
        for ref in refs:
            loaded = store._store.load(store.show(ref).digest)
            reader = stack.enter_context(ArtifactReader(store._store.blobs, *loaded))
            weights = PostView(weights, reader, ref)
        expected = {name: bits(tensor).numpy().tobytes() for name, tensor in steps["post"].items()}
        assert weights.tensors.keys() == expected.keys()

        def read(seed: int) -> None:
            choose = random.Random(seed)
            for _ in range(60):
                name = choose.choice(list(expected))
                size = len(expected[name])
                start = choose.randrange(size + 1)
                count = choose.choice([0, 1, choose.randrange(size - start + 1), size - start])
                buffer = np.full(min(count, size - start), 170, np.uint8)
                weights.read_into(name, start, buffer)
                assert buffer.tobytes() == expected[name][start : start + count], (name, start)

        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(read, range(6))) == [None] * 6
        with pytest.raises(ValueError, match="still"):
            weights.read_into("still", 1, bytearray(len(expected["still"])))


# --- what is refused: nothing is listed that was not there before ------------------------------


@contextmanager
def refused(
    store: deltastore.DeltaStore, kind: type[DeltastoreError], code: int
) -> Iterator[pytest.ExceptionInfo[DeltastoreError]]:
    before = listed(store)
    with pytest.raises(kind) as caught:
        yield caught
    assert type(caught.value) is kind
    assert caught.value.exit_code == code
    assert caught.value.hint
    assert listed(store) == before


def test_the_wrong_order(
    store: deltastore.DeltaStore, chain: list[str], places: list[Path]
) -> None:
    with refused(store, IncompatibleError, 30) as caught:
        store.compose(chain[::-1], base=places[0])
    message, hint = caught.value.message, caught.value.hint
    shown = [store.show(ref).sources for ref in chain]
    assert "step-0:v1 does not follow step-1:v1" in message
    assert f"post ({shown[1]['post'].content})" in message
    assert f"base ({shown[0]['base'].content})" in message
    assert "`deltastore compose step-0:v1 step-1:v1`" in hint


def test_what_does_not_follow(
    store: deltastore.DeltaStore, chain: list[str], places: list[Path]
) -> None:
    with refused(store, IncompatibleError, 30) as caught:
        store.compose([chain[0], chain[0]], base=places[0])
    assert "`deltastore list --base blake3:" in caught.value.hint


@pytest.mark.parametrize("count", [0, 1])
def test_less_than_two(store: deltastore.DeltaStore, chain: list[str], count: int) -> None:
    with refused(store, UsageError, 2):
        store.compose(chain[:count])


@pytest.mark.parametrize("wrong", [{"name": "a/b"}, {"tags": ["v1"]}], ids=str)
def test_names_that_cannot_be(
    store: deltastore.DeltaStore, chain: list[str], places: list[Path], wrong: dict[str, Any]
) -> None:
    with refused(store, RefSyntaxError, 21):
        store.compose(chain, base=places[0], **wrong)


def another_element(tensors: Tensors) -> Tensors:
    """In one place that no sample sees."""
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    flat = bits(changed[EMBED]).view(-1)
    flat[1] ^= 1
    return changed


WRONG: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "a tensor less": (lambda t: {k: v for k, v in t.items() if k != EMBED}, "got no such tensor"),
    "a tensor more": (lambda t: t | {"more": torch.ones(2)}, "expected no such tensor as more"),
    "another shape": (lambda t: t | {EMBED: torch.ones(96, 31).bfloat16()}, r"got BF16 \[96, 31\]"),
    "another dtype": (lambda t: t | {EMBED: t[EMBED].half()}, r"got F16 \[96, 32\]"),
    "other weights": (lambda t: trained(t, "other"), "at a distance of"),
    "one element": (another_element, "got blake3:"),
}


@pytest.mark.parametrize("what", WRONG)
def test_another_base(
    store: deltastore.DeltaStore,
    chain: list[str],
    steps: dict[str, Tensors],
    tmp_path: Path,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change, said = WRONG[what]
    wrong = save(tmp_path / "wrong", change(steps["base"]))
    if what != "one element":  # found out before anything is encoded
        monkeypatch.setattr(storing, "assemble", None)
    with refused(store, IncompatibleError, 30) as caught:
        store.compose(chain, base=wrong)
    assert caught.match(said)
    assert caught.match(r"wrong is not the base that step-0:v1 was extracted from, base")
    assert "`deltastore apply`" in caught.value.hint


@pytest.mark.usefixtures("old_files")
def test_another_base_that_is_remembered(
    store: deltastore.DeltaStore,
    chain: list[str],
    steps: dict[str, Tensors],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = save(tmp_path / "wrong", another_element(steps["base"]))
    with refused(store, IncompatibleError, 30):
        store.compose(chain, base=wrong)
    monkeypatch.setattr(Checkpoint, "read_into", None)
    with refused(store, IncompatibleError, 30):
        store.compose(chain, base=wrong)


def test_a_base_that_changes_while_it_is_read(
    store: deltastore.DeltaStore,
    chain: list[str],
    places: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = storing.assemble

    def assemble(*arguments: Any) -> assembling.Assembled:
        result = real(*arguments)
        os.utime(next(places[0].glob("*.safetensors")), ns=(1, 1))
        return result

    with monkeypatch.context() as patching:
        patching.setattr(storing, "assemble", assemble)
        with refused(store, SourceChangedError, 44):
            store.compose(chain, base=places[0])
    assert not store.compose(chain, base=places[0]).reused


def test_for_restoration_only(
    store: deltastore.DeltaStore, chain: list[str], places: list[Path]
) -> None:
    store.extract(*places[1:], name="only", restore_only=True)
    for refs in ([chain[0], "only"], ["only", chain[0]]):
        with refused(store, RestoreOnlyError, 33) as caught:
            store.compose(refs, base=places[0])
        assert caught.match("only:v1 was stored for restoration only")


def republished(store: deltastore.DeltaStore, ref: str, **changes: Any) -> str:
    """The same artifact with another config, as a stranger may send it."""
    inner = store._store
    manifest, config = inner.load(store.show(ref).digest)
    config = replace(config, **changes)
    data = config_bytes(config)
    descriptor = replace(manifest.config, digest=sha256_digest(data), size=len(data))
    labels = {"base": "one", "post": "two"}
    name = f"other-{ref.partition(':')[0]}"
    made = inner.publish(replace(manifest, config=descriptor), config, name=name, labels=labels)
    return made.ref


@pytest.mark.parametrize("exactness", ["bounded", "lossy"])
def test_what_is_not_exact(
    store: deltastore.DeltaStore, chain: list[str], places: list[Path], exactness: str
) -> None:
    other = republished(store, chain[1], exactness=exactness)
    with refused(store, IncompatibleError, 30) as caught:
        store.compose([chain[0], other], base=places[0])
    assert caught.match(f"{other} cannot be composed.*{exactness}")


def test_an_artifact_that_says_it_ends_elsewhere(
    store: deltastore.DeltaStore, chain: list[str], places: list[Path]
) -> None:
    """Its parts are whole; only the post that comes out shows it."""
    _, config = store._store.load(store.show(chain[1]).digest)
    elsewhere = replace(config.post, content="blake3:" + "0" * 64)
    other = republished(store, chain[1], post=elsewhere)
    with refused(store, RestoreFailedError, 43) as caught:
        store.compose([chain[0], other], base=places[0])
    assert caught.match("do not lead from base to two")


def test_an_artifact_that_contradicts_the_one_before_it(
    store: deltastore.DeltaStore, chain: list[str], places: list[Path]
) -> None:
    _, config = store._store.load(store.show(chain[1]).digest)
    (index,) = (i for i, entry in enumerate(config.tensors) if entry.name == EMBED)
    entry = config.tensors[index]
    assert entry.base is not None
    tensors = list(config.tensors)
    tensors[index] = replace(entry, base=replace(entry.base, blake3="0" * 64))
    other = republished(store, chain[1], tensors=tuple(tensors))
    with refused(store, ManifestInvalidError, 51):
        store.compose([chain[0], other], base=places[0])


def part_of(store: deltastore.DeltaStore, ref: str) -> Path:
    manifest, _ = store._store.load(store.show(ref).digest)
    digest = manifest.layers[0].digest.partition(":")[2]
    return store._store.path / "blobs" / "sha256" / digest


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_part(
    store: deltastore.DeltaStore, chain: list[str], places: list[Path], which: int
) -> None:
    part = part_of(store, chain[which])
    data = bytearray(part.read_bytes())
    data[-20] ^= 1
    part.chmod(0o644)
    part.write_bytes(data)
    with refused(store, BlobCorruptError, 41) as caught:
        store.compose(chain, base=places[0])
    assert caught.match(f"It was read for {chain[which]}")
    part.unlink()
    with refused(store, BlobMissingError, 42) as caught:
        store.compose(chain, base=places[0])
    assert caught.match(f"It was read for {chain[which]}")


def test_a_part_that_is_damaged_after_it_was_checked(
    store: deltastore.DeltaStore,
    chain: list[str],
    places: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever a byte is flipped, no artifact of other weights is listed."""
    monkeypatch.setattr(Chain, "check_parts", lambda *_: None)
    part = part_of(store, chain[0])
    good = part.read_bytes()
    part.chmod(0o644)
    whole = store.compose(chain, base=places[0], name="whole").digest
    store.rm("whole")
    failed = 0
    for position in range(7, len(good), len(good) // 24):
        part.write_bytes(good[:position] + bytes([good[position] ^ 16]) + good[position + 1 :])
        try:
            assert store.compose(chain, base=places[0], name="whole").digest == whole
            store.rm("whole")
        except (IntegrityError, FormatError):
            failed += 1
        assert listed(store) == set(chain)
    assert failed > 12


# --- where the base comes from ----------------------------------------------------------------


def test_a_base_that_nobody_knows(
    store: deltastore.DeltaStore, chain: list[str], places: list[Path]
) -> None:
    """Files this new are not remembered."""
    with refused(store, CheckpointNotFoundError, 61) as caught:
        store.compose(chain)
    assert caught.match("The base of step-0:v1, base with content blake3:")
    assert "`--base CKPT`" in caught.value.hint
    assert "`deltastore apply step-0:v1 step-1:v1 --base CKPT --out DIR`" in caught.value.hint
    with refused(store, CheckpointNotFoundError, 61):
        store.compose(chain, base=places[0] / "nowhere")


@pytest.mark.usefixtures("old_files")
@pytest.mark.parametrize("as_file", [False, True])
def test_a_base_that_is_remembered(
    store: deltastore.DeltaStore, steps: dict[str, Tensors], tmp_path: Path, as_file: bool
) -> None:
    places = saved(tmp_path / "models", steps)
    if as_file:  # beside other weights, so that the directory is no checkpoint
        flat = tmp_path / "flat"
        flat.mkdir()
        moved = [
            (place / "model.safetensors").rename(flat / f"{place.name}.safetensors")
            for place in places
        ]
        places = moved
    chain = extracted(store, places)
    # Others that have some of its tensors, seen later.
    store.extract(save(tmp_path / "half", steps["base"] | {"more": torch.ones(2)}), places[2])
    found = store.compose(chain, name="whole")
    with deltastore.open(tmp_path / "other") as other:
        assert other.extract(places[0], places[2]).digest == found.digest


@pytest.mark.usefixtures("old_files")
@pytest.mark.parametrize("how", ["touched", "moved"])
def test_a_base_that_is_no_longer_what_it_was(
    store: deltastore.DeltaStore, chain: list[str], places: list[Path], how: str
) -> None:
    if how == "moved":
        places[0].rename(places[0].with_name("elsewhere"))
    else:
        os.utime(next(places[0].glob("*.safetensors")), ns=(1, 1))
    with refused(store, CheckpointNotFoundError, 61):
        store.compose(chain)


def test_the_base_is_remembered_afterwards(
    store: deltastore.DeltaStore,
    chain: list[str],
    places: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deltastore.catalog.digests._CLOCK_GRAIN_NS", -(10**9))
    result = store.compose(chain, base=places[0], name="whole")
    store.rm("whole")
    assert store.compose(chain, name="whole").digest == result.digest
