"""What extract stores, how often it reads, and that the same input gives the same bytes."""

from __future__ import annotations

import getpass
import json
import math
import os
import re
import shutil
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from checkpoints import (
    Tensors,
    assert_same_bits,
    bits,
    load,
    model,
    random_bits,
    save,
    save_bin,
    trained,
)

import deltastore
from deltastore.checkpoint import Checkpoint
from deltastore.digest import sha256_digest
from deltastore.errors import (
    CheckpointNotFoundError,
    NoWeightsError,
    RefSyntaxError,
    SourceChangedError,
    UsageError,
)
from deltastore.extraction.result import ExtractResult
from deltastore.manifest import Config, Manifest, config_bytes
from deltastore.manifest import format as fmt

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "vocab_size": 96,
    "text_config": {"vocab_size": 96},
}
FILES = {
    "tokenizer.json": '{"model": {"vocab": {"a": 0}}}',
    "tokenizer_config.json": '{"eos_token": "a"}',
    "chat_template.jinja": "{{ messages }}",
    "README.md": "# A model",
    "LICENSE": "Do what you like.",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def base() -> Tensors:
    return model("base") | {
        "ids": torch.arange(10),
        "positions": torch.arange(10),
        "old": torch.ones(3),
        "empty": torch.empty(0, 4),
    }


@pytest.fixture
def post(base: Tensors) -> Tensors:
    tensors = trained(base, "post") | {"ids": torch.arange(10) * 2, "new": torch.randn(5)}
    grown = torch.cat([tensors["lm_head.weight"], random_bits("rows", "BF16", 3, 32)])
    tensors["lm_head.weight"] = grown
    del tensors["old"]
    return tensors


@pytest.fixture
def pair(base: Tensors, post: Tensors, tmp_path: Path) -> tuple[Path, Path]:
    return (
        save(tmp_path / "base", base, config=CONFIG, files=FILES),
        save(tmp_path / "post", post, config=CONFIG, files=FILES),
    )


@pytest.fixture
def old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files written just now count as long settled, so that their digests are remembered."""
    monkeypatch.setattr("deltastore.catalog.digests._CLOCK_GRAIN_NS", -(10**9))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how many bytes of which tensors are read."""
    count: Counter[str] = Counter()
    real = Checkpoint.read_into

    def read_into(self: Checkpoint, name: str, start: int, buffer: Any) -> None:
        real(self, name, start, buffer)
        count[f"{self.path.name}/{name}"] += memoryview(buffer).nbytes

    monkeypatch.setattr(Checkpoint, "read_into", read_into)
    return count


def blobs(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "blobs" / "sha256").iterdir()}


def artifact(store: deltastore.DeltaStore, result: ExtractResult) -> tuple[Manifest, Config]:
    return store._store.load(result.digest)


def content_digest(tensors: Tensors) -> str:
    """As the format's documentation describes it."""
    names = {
        torch.bfloat16: "BF16",
        torch.float32: "F32",
        torch.int64: "I64",
    }
    rows = [
        [
            name,
            names[tensor.dtype],
            list(tensor.shape),
            blake3(bits(tensor).numpy().tobytes()).hexdigest(),
        ]
        for name, tensor in sorted(tensors.items())
    ]
    return f"blake3:{blake3(json.dumps(rows, separators=(',', ':')).encode()).hexdigest()}"


def test_the_result_and_the_table(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], base: Tensors, post: Tensors
) -> None:
    result = store.extract(*pair, tags=["good", "newest"])
    assert (result.name, result.version, result.codec) == ("post", 1, "exact")
    assert result.ref == "post:v1"
    assert not result.reused
    assert result.raw_bytes == sum(t.numel() * t.element_size() for t in post.values())
    assert result.tensors == len(base.keys() | post.keys())
    assert result.seconds > 0
    (listed,) = store.list()
    assert set(listed.tags) == {"good", "newest"}

    manifest, config = artifact(store, result)
    kinds = {entry.name: entry.kind for entry in config.tensors}
    assert kinds == {
        name: "unchanged"
        if name in base and torch.equal(bits(base[name]), bits(post[name]))
        else "delta"
        for name in base.keys() & post.keys()
        if name not in ("ids", "lm_head.weight")
    } | {"ids": "replaced", "lm_head.weight": "resized", "old": "removed", "new": "added"}
    assert result.unchanged == sum(kind == "unchanged" for kind in kinds.values()) > 0

    assert config.base.content == content_digest(base)
    assert config.post.content == content_digest(post)
    assert config.post.parameters == sum(tensor.numel() for tensor in post.values())
    parts = manifest.layers[: config.parts]
    assert all(layer.media_type == fmt.TENSORS_MEDIA_TYPE for layer in parts)
    weight = 8 * sum(layer.size for layer in parts) / config.post.parameters
    assert math.isclose(result.bits_per_weight, weight)
    stored = blobs(store._store.path)
    assert result.stored_bytes == sum(map(len, stored.values()))
    assert stored.keys() == {
        digest.removeprefix("sha256:")
        for digest in (result.digest, *(blob.digest for blob in manifest.blobs))
    }


def test_statistics_of_a_tensor(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], base: Tensors, post: Tensors
) -> None:
    _, config = artifact(store, store.extract(*pair))
    entries = {entry.name: entry for entry in config.tensors if entry.delta is not None}
    assert len(entries) > 5
    for name, entry in entries.items():
        before, after = base[name].double(), post[name].double()[: len(base[name])]
        assert entry.changed == int((before != after).sum())
        assert math.isclose(entry.l2, float((after - before).norm()), rel_tol=1e-5)
        assert math.isclose(entry.base_l2, float(before.norm()), rel_tol=1e-5)


def test_equal_checkpoints_cost_next_to_nothing(
    store: deltastore.DeltaStore, base: Tensors, tmp_path: Path
) -> None:
    pair = save(tmp_path / "base", base), save(tmp_path / "same", base)
    result = store.extract(*pair, force=True)
    _, config = artifact(store, result)
    assert result.unchanged == result.tensors
    assert config.parts == 0
    assert result.bits_per_weight == 0
    assert config.base.content == config.post.content
    applied = store.apply(result, base=pair[0], out=tmp_path / "out")
    assert applied.restored


def test_samples_are_the_base_at_their_places(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], base: Tensors
) -> None:
    manifest, config = artifact(store, store.extract(*pair))
    layer = manifest.layers[config.samples_layer]
    data = store._store.blobs.read(layer.digest, limit=fmt.MAX_SAMPLE_BYTES, what="samples")
    assert 0 < len(data) == layer.size <= fmt.MAX_SAMPLE_BYTES
    assert 0 < len(config.samples) <= fmt.MAX_SAMPLE_RUNS
    position = 0
    for run in config.samples:
        flat = bits(base[config.tensors[run.tensor].name]).flatten()
        piece = flat[run.start : run.start + run.count].numpy().tobytes()
        assert data[position : position + len(piece)] == piece
        position += len(piece)
    assert position == len(data)
    sampled = {config.tensors[run.tensor].name for run in config.samples}
    assert any("layers.0" in name for name in sampled)
    assert any("layers.1" in name for name in sampled)


def test_samples_of_a_large_checkpoint_stay_within_the_limits(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    base = model("large", width=64, layers=30, vocab=2000)
    pair = save(tmp_path / "base", base), save(tmp_path / "post", trained(base, "post"))
    manifest, config = artifact(store, store.extract(*pair))
    assert manifest.layers[config.samples_layer].size <= fmt.MAX_SAMPLE_BYTES
    assert len({run.tensor for run in config.samples}) == fmt.MAX_SAMPLE_TENSORS
    assert len(config.samples) == fmt.MAX_SAMPLE_RUNS


# --- the same input gives the same bytes ----------------------------------------------------------

Writer = Callable[..., Path]


def extract_in(directory: Path, base: Path, post: Path, **options: Any) -> tuple[str, dict]:
    with deltastore.open(directory) as store:
        result = store.extract(base, post, name="x", **options)
    return result.digest, blobs(directory)


@pytest.mark.parametrize(
    ("writer", "shards", "jobs"),
    [(save, 1, 3), (save, 4, 1), (save, 3, 2), (save_bin, 1, 2), (save_bin, 3, 3)],
    ids=["more threads", "four shards", "three shards", "a pickle", "three pickles"],
)
def test_threads_sharding_and_container_make_no_difference(
    base: Tensors,
    post: Tensors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writer: Writer,
    shards: int,
    jobs: int,
) -> None:
    monkeypatch.setattr("deltastore.extraction.plan.CHUNK_ELEMENTS", 1024)
    first = [
        save(tmp_path / "here" / name, tensors, config=CONFIG, files=FILES)
        for name, tensors in (("base", base), ("post", post))
    ]
    shuffled = [dict(reversed(tensors.items())) for tensors in (base, post)]
    second = [
        writer(tmp_path / "there" / name, tensors, shards=shards, config=CONFIG, files=FILES)
        for name, tensors in zip(("other-base", "other-post"), shuffled, strict=True)
    ]
    once = extract_in(tmp_path / "once", *first, jobs=1)
    again = extract_in(tmp_path / "again", *second, jobs=jobs)
    assert again == once


def test_blobs_hold_nothing_of_this_machine(base: Tensors, post: Tensors, tmp_path: Path) -> None:
    """Also where a model was saved with the path that it was loaded from."""
    local = str(tmp_path / "secret-place")
    config = CONFIG | {
        "_name_or_path": local,
        "text_config": {"_name_or_path": local, "vocab_size": 96},
    }
    files = FILES | {
        "tokenizer_config.json": json.dumps({"name_or_path": local, "eos_token": "a"}),
        "generation_config.json": json.dumps({"_name_or_path": local, "eos_token_id": 1}),
    }
    place = tmp_path / "secret-place"
    first = save(place / "base", base, config=config, files=files)
    second = save(place / "post", post, config=config, files=files)
    _, stored = extract_in(tmp_path / "store", first, second)
    assert len(stored) > 5
    now = time.time()
    secrets = [str(tmp_path), "secret-place", socket.gethostname(), deltastore.__version__]
    with suppress(KeyError, OSError):  # a user id need not have a name
        secrets.append(getpass.getuser())
    days = {time.strftime(f"%Y{dash}%m{dash}%d", time.gmtime(now)) for dash in ("-", "/")}
    for digest, data in stored.items():
        for secret in (*secrets, *days, f"{int(now) // 1000}"):
            # Short words, as root's name, turn up in noise by chance.
            if len(secret) > 5:
                assert secret.encode() not in data, (digest, secret)


def test_numbers_that_json_lacks(
    store: deltastore.DeltaStore, base: Tensors, post: Tensors, tmp_path: Path
) -> None:
    """Python writes them all the same, and so do the configs of some state space models."""
    config = CONFIG | {"time_step_limit": [0.0, math.inf], "_name_or_path": "/home/someone"}
    pair = [
        save(tmp_path / name, tensors, config=config)
        for name, tensors in (("base", base), ("post", post))
    ]
    store.apply(store.extract(*pair), base=pair[0], out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["time_step_limit"][1] > 1
    assert not any(b"/home/someone" in data for data in blobs(store._store.path).values())


def test_documents_are_canonical_json(
    store: deltastore.DeltaStore, pair: tuple[Path, Path]
) -> None:
    result = store.extract(*pair)
    manifest, _ = artifact(store, result)
    for digest in (result.digest, manifest.config.digest):
        data = blobs(store._store.path)[digest.removeprefix("sha256:")]
        document = json.loads(data)
        canonical = json.dumps(
            document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        assert data == canonical.encode()
    text = data.decode()
    assert not re.search(r"20\d\d-\d\d-\d\d", text)


# --- extracted once -------------------------------------------------------------------------------


@pytest.mark.usefixtures("old_files")
def test_a_second_time_reads_nothing(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], read: Counter[str]
) -> None:
    first = store.extract(*pair, name="x")
    assert sum(read.values()) > 0
    read.clear()
    second = store.extract(*pair, name="x")
    assert read == Counter()
    assert second.reused
    assert (second.version, second.digest) == (1, first.digest)
    assert second.stored_bytes == first.stored_bytes
    assert second.bits_per_weight == first.bits_per_weight
    assert second.tensors == first.tensors
    assert second.patched == first.patched
    assert len(store.list()) == 1


def test_each_tensor_is_read_once_but_for_samples(
    store: deltastore.DeltaStore, tmp_path: Path, read: Counter[str]
) -> None:
    base = model("base", width=256, vocab=2000)
    post = trained(base, "post")
    pair = save(tmp_path / "base", base), save(tmp_path / "post", post)
    store.extract(*pair)
    whole = sum(t.numel() * t.element_size() for t in (*base.values(), *post.values()))
    assert whole <= sum(read.values()) < 1.6 * whole


def test_files_written_a_moment_ago_are_read_again(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], read: Counter[str]
) -> None:
    """They may change once more without their times showing it."""
    first = store.extract(*pair, name="x")
    read.clear()
    second = store.extract(*pair, name="x")
    assert {key.partition("/")[0] for key in read} == {"base", "post"}
    assert second.reused
    assert second.digest == first.digest


@pytest.mark.usefixtures("old_files")
def test_under_a_new_name_it_is_the_first_version_of_that_name(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], read: Counter[str]
) -> None:
    first = store.extract(*pair, name="x")
    read.clear()
    second = store.extract(*pair, name="y", tags=["t"])
    assert read == Counter()
    assert second.reused
    assert (second.ref, second.digest) == ("y:v1", first.digest)
    assert {(a.name, a.version, a.digest) for a in store.list()} == {
        ("x", 1, first.digest),
        ("y", 1, first.digest),
    }
    assert store.show("y:t").digest == first.digest


def test_tags_are_set_on_what_is_reused(
    store: deltastore.DeltaStore, pair: tuple[Path, Path]
) -> None:
    store.extract(*pair, name="x", tags=["a"])
    store.extract(*pair, name="x", tags=["b"])
    (listed,) = store.list()
    assert set(listed.tags) == {"a", "b"}


def test_a_removed_version_comes_back_under_a_new_number(
    store: deltastore.DeltaStore, pair: tuple[Path, Path]
) -> None:
    first = store.extract(*pair, name="x")
    store.rm(first.ref)
    second = store.extract(*pair, name="x")
    assert (second.version, second.digest) == (2, first.digest)
    assert store.verify().problems == ()


@pytest.mark.usefixtures("old_files")
def test_one_byte_of_post_makes_a_new_artifact(
    store: deltastore.DeltaStore, pair: tuple[Path, Path]
) -> None:
    first = store.extract(*pair, name="x")
    weights = pair[1] / "model.safetensors"
    before = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    # Even where the clock is too coarse, or was set back, to tell the two apart by mtime.
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = store.extract(*pair, name="x")
    assert not second.reused
    assert second.digest != first.digest
    assert second.version == 2


@pytest.mark.usefixtures("old_files")
def test_one_byte_of_base_makes_a_new_artifact(
    store: deltastore.DeltaStore, pair: tuple[Path, Path]
) -> None:
    first = store.extract(*pair, name="x")
    weights = pair[0] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    second = store.extract(*pair, name="x")
    assert not second.reused
    assert (second.version, second.digest != first.digest) == (2, True)


@pytest.mark.usefixtures("old_files")
def test_a_touched_file_is_read_again_and_recognised(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], read: Counter[str]
) -> None:
    first = store.extract(*pair, name="x")
    os.utime(pair[1] / "model.safetensors")
    read.clear()
    second = store.extract(*pair, name="x")
    assert second.reused
    assert (second.version, second.digest) == (1, first.digest)
    assert {key.partition("/")[0] for key in read} == {"post"}


def test_a_copy_is_recognised(
    store: deltastore.DeltaStore,
    pair: tuple[Path, Path],
    base: Tensors,
    post: Tensors,
    tmp_path: Path,
) -> None:
    first = store.extract(*pair, name="x")
    same = {"config": CONFIG, "files": FILES}
    copies = (
        save(tmp_path / "b", base, shards=2, **same),
        save(tmp_path / "p", post, shards=3, **same),
    )
    second = store.extract(*copies, name="y")
    assert second.reused
    assert second.digest == first.digest
    assert store.list(name="y")[0].post == "p"


@pytest.mark.parametrize(
    ("side", "name", "content"),
    [
        (1, "chat_template.jinja", "{{ other }}"),
        (1, "tokenizer.json", '{"model": {"vocab": {"a": 0, "b": 1}}}'),
        (0, "config.json", '{"model_type": "llama", "hidden_size": 31}'),
        (1, "generation_config.json", '{"eos_token_id": 1}'),
    ],
    ids=str,
)
def test_small_files_are_part_of_the_artifact(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], side: int, name: str, content: str
) -> None:
    """The same weights with another chat template are another version, of the same parts."""
    first = store.extract(*pair, name="x")
    (pair[side] / name).write_text(content)
    second = store.extract(*pair, name="x")
    assert not second.reused
    assert (second.version, second.digest != first.digest) == (2, True)
    before, after = (artifact(store, result) for result in (first, second))
    parts = before[1].parts
    assert after[0].layers[:parts] == before[0].layers[:parts]
    third = store.extract(*pair, name="x")
    assert (third.version, third.digest, third.reused) == (2, second.digest, True)


def test_an_artifact_for_restoration_only_is_another(
    store: deltastore.DeltaStore, pair: tuple[Path, Path]
) -> None:
    first = store.extract(*pair, name="x")
    second = store.extract(*pair, name="x", restore_only=True)
    assert (second.version, second.digest != first.digest) == (2, True)
    assert store.extract(*pair, name="x", restore_only=True).digest == second.digest
    assert store.extract(*pair, name="x").digest == first.digest


# --- what others published, or wrote into the catalog ---------------------------------------------


@pytest.fixture
def lying(
    store: deltastore.DeltaStore, base: Tensors, tmp_path: Path
) -> tuple[tuple[Path, Path], str, str]:
    """A pair, its artifact's digest, and one that says to be of it and has another's weights."""
    directories = [
        save(tmp_path / name, tensors, config=CONFIG, files=FILES)
        for name, tensors in (
            ("before", base),
            ("after", trained(base, "after")),
            ("wrong", trained(base, "wrong")),
        )
    ]
    right = store.extract(directories[0], directories[1], name="right")
    wrong = store.extract(directories[0], directories[2], name="wrong")
    (_, truth), (manifest, config) = artifact(store, right), artifact(store, wrong)
    forged = replace(
        config,
        post=truth.post,
        tensors=tuple(
            replace(entry, post=true.post)
            for entry, true in zip(config.tensors, truth.tensors, strict=True)
        ),
    )
    data = config_bytes(forged)
    manifest = replace(
        manifest, config=replace(manifest.config, digest=sha256_digest(data), size=len(data))
    )
    labels = {"base": "before", "post": "after"}
    published = store._store.publish(manifest, forged, name="lying", labels=labels)
    for ref in ("right:v1", "wrong:v1"):
        store.rm(ref)
    store.close()
    return (directories[0], directories[1]), right.digest, published.digest


@pytest.mark.usefixtures("old_files")
@pytest.mark.parametrize("known", [True, False], ids=["files known", "nothing known"])
def test_what_another_says_to_be_of_the_pair_is_not_used_again(
    lying: tuple[tuple[Path, Path], str, str], tmp_path: Path, known: bool
) -> None:
    pair, right, wrong = lying
    if not known:
        shutil.rmtree(tmp_path / "xdg" / "deltastore")
    with deltastore.open(tmp_path / "store") as store:
        assert store.show("lying").digest == wrong
        result = store.extract(*pair, name="lying")
        assert (result.digest, result.reused, result.version) == (right, False, 2)
        assert store.apply(result, base=pair[0], out=tmp_path / "out").restored
        assert_same_bits(load(tmp_path / "out"), load(pair[1]))
        # What the user has made is used again, and found whether the files are known or not.
        assert store.extract(*pair, name="again").reused


@pytest.mark.usefixtures("old_files")
def test_rows_that_say_to_be_of_the_pair_are_not_believed(
    lying: tuple[tuple[Path, Path], str, str], base: Tensors, tmp_path: Path
) -> None:
    """An artifact that the user made himself, of another pair, though the catalog says of this."""
    pair, right, _ = lying
    third = save(tmp_path / "third", trained(base, "third"), config=CONFIG, files=FILES)
    with deltastore.open(tmp_path / "store") as store:
        mine = store.extract(pair[0], third, name="third")
        _, config = artifact(store, store.extract(*pair, name="x"))
        store.rm("x:v1")
    with sqlite3.connect(tmp_path / "store" / "catalog.db") as connection:
        content = (config.base.content, config.post.content)
        connection.execute("UPDATE artifacts SET base_content = ?, post_content = ?", content)
    connection.close()
    with deltastore.open(tmp_path / "store") as store:
        result = store.extract(*pair, name="x")
        assert (result.digest, mine.digest != right) == (right, True)


@pytest.mark.usefixtures("old_files")
def test_no_path_of_a_checkpoint_is_in_the_store(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    result = store.extract(*pair, name="x")
    store.apply(result, base=pair[0], out=tmp_path / "out")
    for path in (tmp_path / "store").rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path


@pytest.mark.usefixtures("old_files")
def test_rehash_reads_everything_again(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], read: Counter[str]
) -> None:
    first = store.extract(*pair, name="x")
    whole = sum(read.values())
    read.clear()
    second = store.extract(*pair, name="x", rehash=True)
    assert sum(read.values()) == whole
    assert second.reused
    assert (second.version, second.digest) == (1, first.digest)


@pytest.mark.usefixtures("old_files")
def test_rehash_finds_what_was_changed_behind_the_clock(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every sign of a change hidden, only --rehash can tell."""
    from deltastore.catalog import FileIdentity

    first = store.extract(*pair, name="x")
    real = (pair[1] / "model.safetensors").stat()
    data = bytearray((pair[1] / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (pair[1] / "model.safetensors").write_bytes(data)
    of = FileIdentity.of

    def blind(path: Path) -> FileIdentity:
        found = of(path)
        if path.parent.name != "post":
            return found
        return FileIdentity(
            **{
                **{name: getattr(found, name) for name in FileIdentity.__slots__},
                "mtime_ns": real.st_mtime_ns,
                "ctime_ns": real.st_ctime_ns,
            }
        )

    monkeypatch.setattr(FileIdentity, "of", staticmethod(blind))
    assert store.extract(*pair, name="x").digest == first.digest
    second = store.extract(*pair, name="x", rehash=True)
    assert not second.reused
    assert second.digest != first.digest


def test_the_same_post_on_another_base_is_another_artifact(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], base: Tensors, tmp_path: Path
) -> None:
    first = store.extract(*pair, name="x")
    other = save(tmp_path / "other", trained(base, "other"))
    second = store.extract(other, pair[1], name="x")
    assert second.digest != first.digest
    assert second.version == 2
    back = store.extract(pair[1], pair[0], name="x")
    assert back.version == 3


# --- small files ----------------------------------------------------------------------------------


def test_which_small_files_are_stored(
    store: deltastore.DeltaStore, base: Tensors, post: Tensors, tmp_path: Path
) -> None:
    other = FILES | {"tokenizer_config.json": '{"eos_token": "b"}', "LICENSE": "None of yours."}
    pair = (
        save(tmp_path / "base", base, config=CONFIG, files=other | {"notes.txt": "?"}),
        save(tmp_path / "post", post, config=CONFIG, files=FILES | {"train.py": "import os"}),
    )
    manifest, config = artifact(store, store.extract(*pair))
    found = {}
    for entry in config.files:
        layer = manifest.layers[entry.layer]
        assert layer.title == f"{entry.side}/{entry.path}"
        found[layer.title] = store._store.blobs.read(layer.digest, limit=1 << 20, what="file")
    assert {name for name in found if name.startswith("post/")} == {
        f"post/{name}" for name in (*FILES, "config.json")
    }
    assert found["post/chat_template.jinja"] == b"{{ messages }}"
    assert found["base/tokenizer_config.json"] == b'{"eos_token": "b"}'
    assert "base/config.json" in found
    assert "base/chat_template.jinja" not in found
    assert not any("train.py" in name or "notes.txt" in name for name in found)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": "no name"}, RefSyntaxError),
        ({"name": "../up"}, RefSyntaxError),
        ({"name": ""}, RefSyntaxError),
        ({"tags": ["v3"]}, RefSyntaxError),
        ({"tags": ["no tag"]}, RefSyntaxError),
        ({"codec": "zip"}, UsageError),
        ({"codec": "exact:3"}, UsageError),
    ],
    ids=str,
)
def test_refused_before_anything_is_read(
    store: deltastore.DeltaStore,
    pair: tuple[Path, Path],
    read: Counter[str],
    options: dict[str, Any],
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        store.extract(*pair, **options)
    assert read == Counter()
    assert list(store.list()) == []


def test_a_checkpoint_that_is_not_there(
    store: deltastore.DeltaStore, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointNotFoundError):
        store.extract(tmp_path / "nowhere", pair[1])
    (tmp_path / "hollow").mkdir()
    with pytest.raises(NoWeightsError):
        store.extract(pair[0], tmp_path / "hollow")
    assert list(store.list()) == []


@pytest.mark.parametrize("rehash", [False, True])
def test_a_file_that_changes_while_it_is_read(
    store: deltastore.DeltaStore,
    pair: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    rehash: bool,
) -> None:
    real = Checkpoint.read_into

    def changing(self: Checkpoint, name: str, start: int, buffer: Any) -> None:
        real(self, name, start, buffer)
        with open(pair[1] / "model.safetensors", "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"x")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "read_into", changing)
        with pytest.raises(SourceChangedError) as caught:
            store.extract(*pair, name="x", rehash=rehash)
    assert caught.value.exit_code == 44
    assert list(store.list()) == []
    # And nothing wrong was remembered of it.
    result = store.extract(*pair, name="x")
    assert store.apply(result, base=pair[0], out=pair[0].parent / "out").restored


@pytest.mark.parametrize("jobs", [1, 4])
def test_an_encoder_that_loses_something_is_caught(
    store: deltastore.DeltaStore,
    pair: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    jobs: int,
) -> None:
    """The proof of restoration: what was encoded is decoded and compared before it is stored."""
    from deltastore.codecs.exact import ExactDecoder
    from deltastore.errors import RestoreFailedError

    decode = ExactDecoder.decode

    def wrong(self: ExactDecoder, frame: bytes, out: Any) -> None:
        decode(self, frame, out)
        out[-1] ^= 1

    monkeypatch.setattr(ExactDecoder, "decode", wrong)
    with pytest.raises(RestoreFailedError):
        store.extract(*pair, jobs=jobs)
    assert list(store.list()) == []
