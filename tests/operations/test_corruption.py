"""Damaged blobs of every kind: apply refuses and leaves nothing, verify says what it is."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, assert_same_bits, load, model, random_bits, save, trained

import deltastore
from deltastore.blobs.local import LocalBlobs
from deltastore.checkpoint import CheckpointWriter
from deltastore.cli.main import main
from deltastore.errors import FormatError, IntegrityError
from deltastore.extraction import assembling
from deltastore.manifest import Config, Manifest

KINDS = ("manifest", "config", "part", "last part", "samples", "file")
DAMAGES = ("first byte", "middle byte", "last byte", "truncated", "emptied", "longer", "deleted")
SMALL_PARTS = functools.partial(assembling.PartBuilder, part_bytes=6000)


@dataclass(frozen=True)
class Filled:
    """A store with ``delta:v1``, to be copied before it is damaged."""

    directory: Path
    post: Tensors
    digest: str
    manifest: Manifest
    config: Config

    def blob(self, kind: str) -> str:
        """The digest of a blob of this kind."""
        index = {
            "part": 0,
            "last part": self.config.parts - 1,
            "samples": self.config.samples_layer,
            "file": self.config.samples_layer + 1,
        }
        if kind == "manifest":
            return self.digest
        if kind == "config":
            return self.manifest.config.digest
        return self.manifest.layers[index[kind]].digest


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    directory = tmp_path_factory.mktemp("filled")
    base = model("base")
    post = trained(base, "post") | {"added": torch.arange(300)}
    # Patches, so that every kind of stream is there.
    post["model.norm.weight"] = random_bits("norm", "BF16", 32)
    save(directory / "base", base, config={"model_type": "llama"})
    save(directory / "post", post, config={"model_type": "llama"}, files={"tokenizer.json": "{}"})
    with deltastore.open(directory / "store") as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembling, "PartBuilder", SMALL_PARTS)
        result = store.extract(directory / "base", directory / "post", name="delta")
        manifest, config = store._store.load(result.digest)
    assert config.parts > 1
    assert result.patched == 1
    return Filled(directory, post, result.digest, manifest, config)


@pytest.fixture
def place(filled: Filled, tmp_path: Path) -> Path:
    """A copy of the store, which a test may damage."""
    shutil.copytree(filled.directory / "store", tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def store(place: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(place) as opened:
        yield opened


def path_of(place: Path, digest: str) -> Path:
    return place / "blobs" / "sha256" / digest.removeprefix("sha256:")


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    path.unlink()
    if how == "deleted":
        return
    if how == "truncated":
        del data[-1]
    elif how == "emptied":
        data.clear()
    elif how == "longer":
        data += b"\0"
    else:
        data[{"first byte": 0, "middle byte": len(data) // 2, "last byte": -1}[how]] ^= 1
    path.write_bytes(data)


def nothing_left(directory: Path) -> bool:
    """Neither an output nor the beginning of one."""
    return not [path for path in directory.iterdir() if "out" in path.name]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_apply_refuses(
    filled: Filled, store: deltastore.DeltaStore, place: Path, tmp_path: Path, kind: str, how: str
) -> None:
    digest = filled.blob(kind)
    damage(path_of(place, digest), how)
    with pytest.raises((IntegrityError, FormatError)) as caught:
        store.apply("delta", base=filled.directory / "base", out=tmp_path / "out")
    assert 40 <= caught.value.exit_code < 60
    assert digest in caught.value.message
    assert caught.value.hint
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_verify_names_it(
    filled: Filled, store: deltastore.DeltaStore, place: Path, kind: str, how: str
) -> None:
    assert store.verify().problems == ()
    digest = filled.blob(kind)
    damage(path_of(place, digest), how)
    for report in (store.verify(), store.verify("delta:v1")):
        problems = [problem for problem in report.problems if problem.digest == digest]
        assert problems
        assert all(problem.refs == ("delta:v1",) for problem in problems)
        assert {problem.digest for problem in report.problems} == {digest}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["middle byte", "deleted"])
def test_the_command_line_says_which_blob_of_which_artifact(
    filled: Filled,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    how: str,
) -> None:
    digest = filled.blob(kind)
    damage(path_of(place, digest), how)
    base = str(filled.directory / "base")
    arguments = ["apply", "delta", "--base", base, "--out", str(tmp_path / "out")]
    assert 40 <= main(["--store", str(place), *arguments]) < 60
    said = capsys.readouterr().err
    assert digest in said
    assert "delta:v1" in said
    assert "Traceback" not in said
    assert nothing_left(tmp_path)
    assert main(["--store", str(place), "verify"]) == 40
    assert digest in "".join(capsys.readouterr())


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("share", range(20))
def test_any_byte_of_a_part(
    filled: Filled,
    store: deltastore.DeltaStore,
    place: Path,
    tmp_path: Path,
    share: int,
    jobs: int,
) -> None:
    """In its header, its offsets, its palettes, its frames: found, whatever decoding says of it."""
    digest = filled.blob("part")
    path = path_of(place, digest)
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    position = share if share < 8 else header + (share - 8) * (len(data) - header) // 12
    data[position] ^= 0x10
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises((IntegrityError, FormatError)) as caught:
        store.apply("delta", base=filled.directory / "base", out=tmp_path / "out", jobs=jobs)
    assert digest in caught.value.message
    assert nothing_left(tmp_path)


def test_a_frame_that_fails_before_its_part_is_checked(
    filled: Filled,
    store: deltastore.DeltaStore,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A large part is decoded long before its digest is known; the error names the blob as well."""
    digest = filled.blob("part")
    path = path_of(place, digest)
    data = bytearray(path.read_bytes())
    magic = data.index(bytes.fromhex("28b52ffd"))
    data[magic] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    check = LocalBlobs.check

    def slow(self: LocalBlobs, *arguments: Any, **options: Any) -> None:
        time.sleep(0.3)
        check(self, *arguments, **options)

    monkeypatch.setattr(LocalBlobs, "check", slow)
    with pytest.raises((IntegrityError, FormatError)) as caught:
        store.apply("delta", base=filled.directory / "base", out=tmp_path / "out", jobs=4)
    assert digest in caught.value.message
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["first byte", "truncated", "deleted"])
def test_extracting_again_repairs(
    filled: Filled, place: Path, tmp_path: Path, kind: str, how: str
) -> None:
    """As the errors say: `extract --rehash` of the same pair writes damaged blobs anew."""
    damage(path_of(place, filled.blob(kind)), how)
    pair = ["--base", str(filled.directory / "base"), "--post", str(filled.directory / "post")]
    where = ["--store", str(place)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembling, "PartBuilder", SMALL_PARTS)
        assert main([*where, "extract", *pair, "--name", "delta", "--rehash"]) == 0
    with deltastore.open(place) as store:
        assert store.verify().problems == ()
        result = store.apply("delta:v1", base=filled.directory / "base", out=tmp_path / "out")
    assert result.restored
    assert_same_bits(load(tmp_path / "out"), filled.post)


def test_a_damaged_artifact_of_another_encoder_is_not_taken_for_whole(
    filled: Filled, store: deltastore.DeltaStore, place: Path, tmp_path: Path
) -> None:
    """Here parts of another size stand for an encoder of another version."""
    damage(path_of(place, filled.blob("last part")), "last byte")
    pair = filled.directory / "base", filled.directory / "post"
    result = store.extract(*pair, name="delta", rehash=True)
    assert (result.version, result.digest != filled.digest) == (2, True)
    assert store.verify("delta:v2").problems == ()
    assert store.apply("delta", base=pair[0], out=tmp_path / "out").restored


def test_a_blob_that_is_a_link_or_a_directory(
    filled: Filled, store: deltastore.DeltaStore, place: Path, tmp_path: Path
) -> None:
    for kind in ("part", "config"):
        path = path_of(place, filled.blob(kind))
        moved = path.rename(tmp_path / path.name)
        path.symlink_to(moved)
        with pytest.raises(IntegrityError) as caught:
            store.apply("delta", base=filled.directory / "base", out=tmp_path / "out")
        assert path.name in caught.value.message
        path.unlink()
        path.mkdir()
        with pytest.raises(IntegrityError):
            store.apply("delta", base=filled.directory / "base", out=tmp_path / "out")
        path.rmdir()
        moved.rename(path)
    assert nothing_left(tmp_path)
    assert store.apply("delta", base=filled.directory / "base", out=tmp_path / "out").restored


def test_damage_that_appears_while_applying(
    filled: Filled,
    store: deltastore.DeltaStore,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check that runs beside the decoding must not look at other bytes than were decoded."""
    write = CheckpointWriter.write
    path = path_of(place, filled.blob("last part"))
    whole = path.read_bytes()

    def damaging(self: CheckpointWriter, *arguments: object) -> None:
        if path.read_bytes() == whole:
            data = bytearray(whole)
            data[-1] ^= 1
            path.chmod(0o644)
            with open(path, "r+b") as file:
                file.write(data)
        write(self, *arguments)

    monkeypatch.setattr(CheckpointWriter, "write", damaging)
    with pytest.raises((IntegrityError, FormatError)):
        store.apply("delta", base=filled.directory / "base", out=tmp_path / "out", jobs=1)
    assert nothing_left(tmp_path)
