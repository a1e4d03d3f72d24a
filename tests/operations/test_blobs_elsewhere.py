"""Every command on a store whose blobs are no files: as on one whose blobs are."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from checkpoints import model, random_bits, save, trained
from memory_blobs import MemoryBlobs, damage

from deltastore.artifact.parts import PartBuilder
from deltastore.cli.main import main
from deltastore.errors import BlobCorruptError, StoreError
from deltastore.extraction import assembling
from deltastore.store import open_store, opening

CONFIG = {"model_type": "llama"}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = functools.partial(assembling.PartBuilder, part_bytes=6000)
    monkeypatch.setattr(assembling, "PartBuilder", builder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of training, ``a`` to ``b`` to ``c``, and a relative of ``a``."""
    directory = tmp_path_factory.mktemp("models")
    first = model("base")
    second = trained(first, "post")
    third = trained(second, "later")
    third["model.norm.weight"] = random_bits("norm", "BF16", 32)  # makes patches
    save(directory / "a", first, config=CONFIG)
    save(directory / "b", second, config=CONFIG, files={"tokenizer.json": "{}"})
    save(directory / "c", third, config=CONFIG)
    save(directory / "like a", trained(first, "sibling"), config=CONFIG)
    return directory


class Place:
    """A store and what is made with it."""

    def __init__(self, directory: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = directory / "store"
        self.out = directory / "out"
        self._models = models
        self._capsys = capsys

    def run(self, *argv: str, code: int = 0) -> Any:
        """What a command says as JSON, without what differs from run to run."""
        self._capsys.readouterr()
        named = [arg.format(models=self._models, out=self.out) for arg in argv]
        assert main(["--store", str(self.path), *named, "--json"]) == code
        said = self._capsys.readouterr()
        text = (said.out if code in (0, 40) else said.err).replace(str(self.path.parent), "HERE")
        return _without(json.loads(text), ("seconds", "created", "id", "created_at"))

    def made(self) -> dict[str, bytes]:
        """Every file under ``out``."""
        return {
            path.relative_to(self.out).as_posix(): path.read_bytes().replace(
                str(self.path.parent).encode(), b"HERE"
            )
            for path in self.out.rglob("*")
            if path.is_file()
        }


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, keys) for key, item in value.items() if key not in keys}
    return [_without(item, keys) for item in value] if isinstance(value, list) else value


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture
def files(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    (tmp_path / "files").mkdir()
    return Place(tmp_path / "files", models, capsys)


@pytest.fixture
def memory(
    tmp_path: Path,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    blobs: MemoryBlobs,
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    """Its blobs are in memory, and each call of them takes a moment."""
    blobs.before = lambda *_: time.sleep(0.0005)
    real = opening.open_blobs
    place = Place(tmp_path / "memory", models, capsys)
    place.path.parent.mkdir()
    monkeypatch.setattr(
        opening, "open_blobs", lambda at: blobs if at.root == place.path else real(at)
    )
    return place


COMMANDS: dict[str, tuple[str, ...]] = {
    "extract": ("extract", "--base", "{models}/a", "--post", "{models}/b", "--name", "one"),
    "extract again": ("extract", "--base", "{models}/a", "--post", "{models}/b", "--name", "two"),
    "extract the next": ("extract", "--base", "{models}/b", "--post", "{models}/c", "--name", "n"),
    "list": ("list",),
    "show": ("show", "one"),
    "verify": ("verify",),
    "apply": ("apply", "one", "--base", "{models}/a", "--out", "{out}/restored"),
    "apply to another": ("apply", "one", "--base", "{models}/like a", "--out", "{out}/other"),
    "apply both": ("apply", "one", "n", "--base", "{models}/a", "--out", "{out}/both"),
    "compare": ("compare", "one", "n"),
    "compose": ("compose", "one", "n", "--base", "{models}/a", "--name", "whole"),
    "resolve": ("resolve", "--base", "{models}/like a"),
    "export": ("export", "n", "{out}/layout"),
    "export by links": ("export", "n", "{out}/linked", "--link"),
    "tag": ("tag", "n", "prod"),
    "du": ("du",),
    "rm": ("rm", "n"),
    "a dry gc": ("gc", "--grace", "0", "--dry-run"),
    "gc": ("gc", "--grace", "0"),
    "reindex": ("reindex",),
    "verify quickly": ("verify", "--quick"),
    "verify at last": ("verify",),
}


def test_commands_say_and_make_the_same(files: Place, memory: Place, blobs: MemoryBlobs) -> None:
    for what, argv in COMMANDS.items():
        wanted, found = files.run(*argv), memory.run(*argv)
        for said in (wanted, found) if argv[0] == "export" else ():
            # Only a file can be linked or cloned.
            del said["linked"], said["cloned"]
        assert found == wanted, what
    assert memory.made().keys() > {"restored/model.safetensors", "layout/index.json"}
    assert memory.made() == files.made()
    stored = {path.name: path.read_bytes() for path in (files.path / "blobs/sha256").iterdir()}
    assert {digest.removeprefix("sha256:"): data for digest, data in blobs.data.items()} == stored
    assert [path for path in (memory.path / "blobs").rglob("*") if path.is_file()] == []


def test_damage_is_found_told_and_mended(memory: Place, blobs: MemoryBlobs) -> None:
    memory.run(*COMMANDS["extract"])
    with open_store(memory.path) as store:
        manifest, config = store.load(store.resolve("one").digest)
        part = manifest.layers[config.parts - 1].digest
    for position in (0, 40, len(blobs.data[part]) // 2, -1):
        damage(blobs, part, position)
        assert main(["--store", str(memory.path), "verify"]) == 40
        (problem,) = memory.run("verify", code=40)["problems"]
        assert (problem["where"], problem["refs"]) == (part, ["one:v1"])
        assert part in json.dumps(memory.run(*COMMANDS["apply"], code=BlobCorruptError.exit_code))
        assert memory.made() == {}
        memory.run(*COMMANDS["extract"], "--rehash")
    memory.run(*COMMANDS["apply"])


@pytest.mark.parametrize("call", ["open", "read"])
def test_a_place_that_fails_now_and_then(memory: Place, blobs: MemoryBlobs, call: str) -> None:
    """Wherever it does, the command ends with its error and leaves nothing."""
    memory.run(*COMMANDS["extract"])
    calls = 0

    def count(found: str, _digest: str) -> None:
        nonlocal calls
        calls += found == call

    blobs.before = count
    memory.run(*COMMANDS["apply"])
    total, again = calls, COMMANDS["apply"][:-1]
    assert total > 5
    for number in {1, 2, 3, *range(4, total, max(1, total // 12)), total}:
        left = number

        def fail(found: str, _digest: str) -> None:
            nonlocal left
            left -= found == call
            if found == call and left == 0:
                raise StoreError("There was no answer.", hint="Try again.")

        blobs.before = fail
        said = memory.run(*again, "{out}/failed", code=StoreError.exit_code)
        assert "There was no answer" in json.dumps(said)
        assert not (memory.out / "failed").exists()
        assert [path.name for path in memory.out.iterdir()] == ["restored"]


def test_what_is_applied_is_read_once(
    memory: Place, blobs: MemoryBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest of a part is that of the bytes that pass; of what is small a little is not."""
    monkeypatch.setattr(assembling, "PartBuilder", PartBuilder)
    base = model("base", width=1024, layers=1)
    save(tmp_path / "base", base, config=CONFIG)
    save(tmp_path / "post", trained(base, "post"), config=CONFIG)
    pair = ("--base", str(tmp_path / "base"), "--post", str(tmp_path / "post"))
    memory.run("extract", *pair, "--name", "large")
    with open_store(memory.path) as store:
        size = store.resolve("large").stored_bytes
    blobs.bytes_read = 0
    memory.run("apply", "large", *pair[:2], "--out", "{out}/large")
    assert size < blobs.bytes_read < 1.1 * size
