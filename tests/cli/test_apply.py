"""``apply`` through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deltastore.cli.main import main

if TYPE_CHECKING:
    from tests.cli.conftest import Models

Call = Callable[..., Any]
Say = Callable[..., str]

KEYS = {"out", "refs", "base", "lineage", "tensors", "bytes", "restored", "seconds"}
KEYS |= {"files", "config_left"}


def test_onto_a_new_base(models: Models, store: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    result = call("apply", "instruct", "--base", models.new_base, "--out", str(out))
    assert result.keys() >= KEYS
    assert result["out"] == str(out)
    assert result["refs"][0]["ref"] == "instruct:v1"
    assert result["refs"][0]["scale"] == 1.0
    assert (result["tensors"], result["restored"]) == (3, False)
    assert (out / "model.safetensors").exists()


def test_restored_for_people(models: Models, store: Path, tmp_path: Path, say: Say) -> None:
    out = tmp_path / "out"
    text = say("apply", "instruct", "--base", models.base, "--out", str(out), "--fsync")
    assert text.startswith(f"{out}\n")
    assert "1 x instruct:v1" in text
    assert "the post checkpoint, digest verified" in text
    theirs = Path(models.post, "model.safetensors").read_bytes()
    ours = (out / "model.safetensors").read_bytes()
    assert ours[-20608:] == theirs[-20608:]


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ([], [1.0, 1.0]),
        (["--scale", "0.5"], [0.5, 0.5]),
        (["--scale", "-0.5", "--scale", "2"], [-0.5, 2.0]),
        (["--scale=-1e-1", "--scale=+.5"], [-0.1, 0.5]),
    ],
)
def test_scales(
    models: Models, store: Path, tmp_path: Path, call: Call, given: list[str], used: list[float]
) -> None:
    arguments = ["instruct", "instruct:good", "--base", models.new_base, "--out"]
    result = call("apply", *arguments, str(tmp_path / "out"), *given, "--dry-run")
    assert [ref["scale"] for ref in result["refs"]] == used


def test_a_dry_run_writes_nothing(models: Models, store: Path, tmp_path: Path, say: Say) -> None:
    out = tmp_path / "out"
    text = say("apply", "instruct", "--base", models.new_base, "--out", str(out), "--dry-run")
    assert "nothing was written" in text
    assert "written: README.md, deltastore.json" in text
    assert not out.exists()


def test_shards_and_dtype(models: Models, store: Path, tmp_path: Path, say: Say) -> None:
    out = tmp_path / "out"
    options = ["--max-shard-size", "10kB", "--dtype", "float32", "--jobs", "1"]
    line = say("apply", "instruct", "-q", "--base", models.base, "--out", str(out), *options)
    assert line == f"{out}\n"
    assert len(list(out.glob("*.safetensors"))) > 1


def test_what_does_not_fit_is_listed_in_full(
    models: Models, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["apply", "instruct", "--base", models.other_base, "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert main(arguments) == 31
    text = capsys.readouterr().err
    assert "norm.weight" in text
    assert "layer.0.weight" in text
    assert "--partial" in text
    assert main([*arguments, "--json"]) == 31
    facts = json.loads(capsys.readouterr().err)["error"]["facts"]
    assert {"norm.weight", "layer.0.weight"} <= {
        item[0] for items in facts.values() for item in items
    }
    assert not (tmp_path / "out").exists()


def test_partial_lists_what_was_left_out(
    models: Models, store: Path, tmp_path: Path, say: Say
) -> None:
    out = str(tmp_path / "out")
    text = say("apply", "instruct", "--base", models.other_base, "--out", out, "--partial")
    assert "left out" in text
    assert "layer.0.weight" in text


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--dtype", "int3"], 2),
        (["--base", "/no/such"], 61),
        (["--out", "."], 67),
    ],
)
def test_errors(models: Models, store: Path, tmp_path: Path, more: list[str], code: int) -> None:
    out = str(tmp_path / "out")
    assert main(["apply", "instruct", "--base", models.base, "--out", out, *more]) == code
    assert not (tmp_path / "out").exists()


def test_damage_leaves_no_output(
    models: Models, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for blob in (store / "blobs" / "sha256").iterdir():
        data = blob.read_bytes()
        if b"layer.0.weight" in data[:4096] or not data.startswith(b"{"):
            blob.chmod(0o644)
            blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code = main(["apply", "instruct", "--base", models.base, "--out", str(tmp_path / "out")])
    assert 40 <= code < 50
    assert "sha256:" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
