"""Every attack ends as README.md says: at once, in little memory, and leaving nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hostile_artifacts
import hostile_checkpoints
import hostile_pickles
import hostile_stores
import pytest
from attack import ATTACKS, Outcome, table
from safetensors import safe_open

from deltastore.artifact.model_files import CODE_KEYS
from deltastore.checkpoint import is_model_file, is_small_file, open_checkpoint
from deltastore.checkpoint.plan import SINGLE
from deltastore.errors import DeltastoreError
from deltastore.text import is_shown_as_it_is

MAX_SECONDS = 20
MAX_GROWTH_BYTES = 256 << 20
MAX_MESSAGE_CHARS = 2000
MODULES = (hostile_artifacts, hostile_checkpoints, hostile_pickles, hostile_stores)
PROMISED = table()
CARD_KEYS = {
    *("base_model", "base_model_relation", "license", "license_name", "license_link"),
    *("language", "tags", "pipeline_tag", "library_name"),
}
"""All that the head of an output's card says."""


def test_the_table_is_complete() -> None:
    assert all(module.__doc__ for module in MODULES)
    assert PROMISED.keys() == ATTACKS.keys()


@pytest.fixture(scope="module", autouse=True)
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Kernels are compiled, and imports done, before memory is measured."""
    for name in ("samples-nan", "link-temp"):
        place = tmp_path_factory.mktemp("first")
        ATTACKS[name](place)()


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    action = ATTACKS[name](place)
    before, store_before = snapshot(place), entries(place / "store")
    outcome, refusal = Outcome("accepted", 0), None
    with at_most(MAX_SECONDS):
        base = reset_peak()
        try:
            action()
        except DeltastoreError as error:
            outcome, refusal = Outcome(type(error).__name__, error.exit_code), error
        growth = peak() - base
    assert outcome == PROMISED[name]
    assert growth < MAX_GROWTH_BYTES
    after = snapshot(place)
    if outcome.error == "accepted":
        if (place / "out").exists():
            check_output(place / "out")
        assert before == {path: what for path, what in after.items() if path.parts[0] != "out"}
    else:
        assert refusal is not None
        assert len(refusal.message) < MAX_MESSAGE_CHARS
        assert before == after
        assert entries(place / "store") <= store_before


def check_output(out: Path) -> None:
    """An output has files of known names, no code, weights that are read, and a card of text."""
    with open_checkpoint(out) as checkpoint, safe_open(out / SINGLE, "numpy") as library:
        assert set(checkpoint.tensors) == set(library.keys())
    for path in filter(Path.is_file, out.rglob("*")):
        name = str(path.relative_to(out))
        known = is_small_file(name) or is_model_file(name) or name in (SINGLE, "deltastore.json")
        assert known, name
        assert not path.stat().st_mode & 0o111
        if name.endswith(".json"):
            with suppress(ValueError, RecursionError):
                assert not CODE_KEYS & set(keys_of(json.loads(path.read_bytes()))), name
    for name in ("README.md", "deltastore.json"):
        text = (out / name).read_text()
        assert not [line for line in text.splitlines() if line and not is_shown_as_it_is(line)]
        assert len(text) < 1 << 20
    card = (out / "README.md").read_text()
    head = card.split("---\n")[1]
    assert {line.split(":")[0] for line in head.splitlines() if line[0] not in "- "} <= CARD_KEYS
    text = card.split("---\n", 2)[2].replace("https://arxiv.org", "")
    assert not re.search(r"(?<!\\)(<(?!http)|javascript:|[`*!]\[|\]\((?!/)|://(?!l\.))", text), text


def keys_of(document: Any) -> Iterator[str]:
    """The keys of a document, at any depth."""
    holders = [document]
    while holders:
        holder = holders.pop()
        if isinstance(holder, dict):
            yield from holder
        holders += (
            [
                child
                for child in (holder.values() if isinstance(holder, dict) else holder)
                if isinstance(child, (dict, list))
            ]
            if isinstance(holder, (dict, list))
            else []
        )


def snapshot(place: Path) -> dict[Path, str]:
    """Everything but the store, with a digest of what each file holds."""
    found = {}
    for folder, folders, names in os.walk(place):
        if Path(folder) == place and "store" in folders:
            folders.remove("store")
        for name in folders + names:
            path = Path(folder) / name
            what = "other"
            if path.is_symlink():
                what = f"-> {path.readlink()}"
            elif path.is_file():
                size = path.stat().st_size
                what = (
                    str(size) if size > 1 << 24 else hashlib.sha256(path.read_bytes()).hexdigest()
                )
            found[path.relative_to(place)] = what
    return found


def entries(store: Path) -> set[str]:
    """What a refused command must not add to: records, tags, leases, temporary files."""
    found = set()
    for part in ("names", "leases", "tmp"):
        for folder, _, names in os.walk(store / part):
            found |= {str(Path(folder, name).relative_to(store)) for name in names}
    return found


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail rather than hang: a pipe that is waited for, say."""

    def expired(*_: object) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def reset_peak() -> int:
    """Forget the peak of this process's resident memory; what it has now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not let a process reset its memory's peak")
    return peak()


def peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM")
