"""Every command on a real store: what its JSON document has, and what people see."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.shell_completion import ShellComplete

from deltastore.cli.main import cli, main

if TYPE_CHECKING:
    from tests.cli.conftest import Models

Call = Callable[..., Any]
Say = Callable[..., str]

LISTED = {
    "name",
    "version",
    "digest",
    "tags",
    "base",
    "post",
    "codec",
    "raw_bytes",
    "stored_bytes",
    "created",
}


def extract(models: Models, *more: str) -> list[str]:
    return ["extract", "--base", models.base, "--post", models.post, *more]


def test_extract(models: Models, tmp_path: Path, call: Call) -> None:
    store = tmp_path / "new" / "store"
    result = call("--store", str(store), *extract(models, "--tag", "a", "--tag", "b"))
    assert result.keys() >= {
        "name",
        "version",
        "digest",
        "codec",
        "raw_bytes",
        "stored_bytes",
        "bits_per_weight",
        "tensors",
        "unchanged",
        "reused",
        "seconds",
    }
    assert (result["name"], result["version"], result["codec"]) == ("post", 1, "exact")
    assert (result["tensors"], result["unchanged"], result["reused"]) == (3, 1, False)
    assert result["raw_bytes"] == 2 * (96 * 64 + 64 * 64 + 64)
    listed = call("--store", str(store), "list")
    assert listed[0]["tags"] == ["a", "b"]


def test_extract_again_reuses(models: Models, store: Path, call: Call, say: Say) -> None:
    result = call(*extract(models, "--name", "other"))
    assert result["reused"] is True
    assert (result["name"], result["version"]) == ("other", 1)
    assert "the store had this pair already" in say(*extract(models, "--name", "third"))


def test_extract_for_people(models: Models, store: Path, say: Say) -> None:
    text = say(*extract(models, "--name", "other"))
    assert text.startswith("other:v1  sha256:")
    assert "bits per weight" in text


def test_quiet_extract_prints_the_ref(models: Models, store: Path, say: Say) -> None:
    assert say("-q", *extract(models, "--name", "other")) == "other:v1\n"
    assert say(*extract(models, "--name", "other"), "-q") == "other:v1\n"


def test_a_bare_word_is_a_store_to_be_made(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: Say
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    say("--store", "mine", *extract(models, "--name", "a"))
    assert say("--store", "mine", "list", "-q") == "a:v1\n"
    assert (tmp_path / "mine" / "store.json").exists()


def test_list(store: Path, call: Call, say: Say) -> None:
    (row,) = call("list")
    assert row.keys() >= LISTED
    assert (row["name"], row["version"], row["tags"]) == ("instruct", 1, ["good"])
    header, line = say("list").splitlines()
    assert header.split()[:5] == ["REF", "TAGS", "BASE", "POST", "CODEC"]
    assert line.split()[:5] == ["instruct:v1", "good", "base", "post", "exact"]
    assert say("list", "-q") == "instruct:v1\n"


def test_list_on_either_side(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = []
    for argv in (["--json", "list"], ["list", "--json"], ["--json", "list", "--json"]):
        assert main(argv) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0] == documents[1] == documents[2] != []


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--name", "inst*"], 1),
        (["--name", "x*"], 0),
        (["--tag", "good"], 1),
        (["--tag", "bad"], 0),
        (["--base", "base"], 1),
        (["--post", "base"], 0),
    ],
)
def test_list_filters(store: Path, call: Call, arguments: list[str], found: int) -> None:
    assert len(call("list", *arguments)) == found


def test_show(store: Path, call: Call, say: Say) -> None:
    details = call("show", "instruct:good")
    assert details.keys() >= LISTED | {"tensors"}
    assert details["tensors"][0].keys() >= {
        "name",
        "shape",
        "dtype",
        "kind",
        "codec",
        "bytes",
        "l2",
        "relative_change",
    }
    text = say("show", "instruct")
    assert "embed.weight" in text
    assert "96x64" in text
    assert say("show", "instruct", "-q") == details["digest"] + "\n"


def test_verify(store: Path, call: Call, say: Say) -> None:
    report = call("verify")
    assert report.keys() >= {"checked", "bytes", "problems", "orphans"}
    assert report["problems"] == []
    assert report["checked"] > 0
    assert "all is well" in say("verify", "instruct:v1")


def test_verify_of_damage_is_40_after_it_told(
    store: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    blob = max((store / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    report = call("verify", code=40)
    assert blob.name in report["problems"][0]["digest"]
    assert main(["verify"]) == 40
    assert "affects instruct:v1" in capsys.readouterr().out


def test_tag_and_untag(store: Path, call: Call, say: Say) -> None:
    tagged = call("tag", "instruct:v1", "best")
    assert (tagged["name"], tagged["version"], tagged["tags"]) == (
        "instruct",
        1,
        ["best", "good"],
    )
    assert say("tag", "instruct", "newest") == "instruct:newest is now instruct:v1\n"
    assert call("untag", "instruct", "best")["tags"] == ["good", "newest"]
    assert "no longer" in say("untag", "instruct", "newest")


def test_a_tag_that_looks_like_a_version(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tag", "instruct", "v7"]) == 21
    assert "hint: " in capsys.readouterr().err


def test_rm(store: Path, call: Call, say: Say) -> None:
    removed = call("rm", "instruct:v1")
    assert (removed["name"], removed["version"]) == ("instruct", 1)
    assert call("list") == []
    assert say("list") == "no artifacts\n"
    report = call("verify")
    assert report["problems"] == []
    assert report["orphans"] != []


def test_rm_for_people(store: Path, say: Say) -> None:
    assert say("rm", "instruct").startswith("removed instruct:v1 and its tags good\n")


def test_export(store: Path, tmp_path: Path, call: Call, say: Say) -> None:
    done = call("export", "instruct", str(tmp_path / "layout"))
    assert done["ref"] == "instruct:v1"
    assert (tmp_path / "layout" / "oci-layout").exists()
    assert done["linked"] == 0
    assert "hard links" not in say("export", "instruct", str(tmp_path / "again"))
    assert "of them hard links" in say("export", "instruct", str(tmp_path / "links"), "--link")
    assert main(["export", "instruct", str(tmp_path / "layout")]) == 67


def test_du(store: Path, call: Call, say: Say) -> None:
    usage = call("du")
    assert usage["total_bytes"] == call("list")[0]["stored_bytes"]
    assert "instruct:v1" in say("du")
    assert say("du", "-q") == f"{usage['total_bytes']}\n"


def test_doctor(store: Path, call: Call, say: Say) -> None:
    assert call("doctor")["healthy"] is True
    assert "catalog" in say("doctor")


def test_doctor_of_a_store_of_the_future(store: Path, call: Call) -> None:
    marker = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps(marker | {"format": 99}))
    diagnosis = call("doctor", code=10)
    assert any(check["status"] == "fail" for check in diagnosis["checks"])


def test_reindex(store: Path, call: Call, say: Say) -> None:
    (store / "catalog.db").unlink()
    assert call("reindex")["versions"] == 1
    assert say("reindex") == "indexed 1 version of 1 artifact and 1 tag\n"
    assert say("list", "-q") == "instruct:v1\n"


def test_migrate(store: Path, call: Call, say: Say) -> None:
    migrated = call("migrate")
    assert migrated["before"] == migrated["after"]
    assert say("migrate").startswith("nothing to do")


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["show", "instruct:v9"], 22),
        (["show", "instrukt"], 22),
        (["show", "a/b"], 21),
        (["show", "sha256:00000000"], 22),
        (["extract", "--base", "/no/such", "--post", "/no/such"], 61),
        (["extract", "--base", ".", "--post", ".", "--name", "-"], 21),
    ],
)
def test_errors_have_their_codes(
    store: Path, argv: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert main([*argv, "--json"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err.splitlines()[-1])["error"]["exit_code"] == code


def test_a_mistyped_ref_names_the_nearest(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "instrcut"]) == 22
    assert "instruct" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_failure(store: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    done = subprocess.run(
        [bash, "-c", f"set -o pipefail; {sys.executable} -m deltastore --json list | true"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_refs_complete_from_the_store(store: Path) -> None:
    def completions(*words: str) -> list[str]:
        shell = ShellComplete(cli, {}, "deltastore", "_DELTASTORE_COMPLETE")
        return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]

    assert completions("show", "in") == ["instruct"]
    assert completions("show", "instruct:") == ["instruct:good", "instruct:v1"]
    assert completions("--store", "/no/such", "show", "in") == []
    assert completions("apply", "instruct", "--out", "x", "in") == ["instruct"]
    assert completions("ex") == ["extract", "export"]
