from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from operations.checkpoints import save
from operations.test_lineage import model, moved
from safetensors.torch import save_file

import deltastore
from deltastore.cli.main import main
from deltastore.errors import CheckpointNotFoundError, NoWeightsError, RefNotFoundError
from deltastore.lineage import digests
from deltastore.operations.list import list_artifacts, ref_of_pair
from deltastore.store import Store, open_store
from deltastore.testing.artifacts import publish, put_artifact


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = open_store(tmp_path / "store")
    publish(opened, "llama3-instruct", 1, tags=("prod",))
    publish(opened, "llama3-chat", 2)
    publish(opened, "llama3-chat", 3, tags=("best", "prod"))
    manifest, config = put_artifact(opened, 4)
    opened.publish(manifest, config, name="qwen", labels={"base": "Qwen2.5-7B", "post": "my-run"})
    return opened


def refs(store: Store, **conditions: str) -> list[str]:
    return [f"{row.name}:v{row.version}" for row in list_artifacts(store, **conditions)]


def test_all_versions_are_listed_by_name(store: Store) -> None:
    assert refs(store) == ["llama3-chat:v1", "llama3-chat:v2", "llama3-instruct:v1", "qwen:v1"]


def test_a_line_says_what_is_needed(store: Store) -> None:
    (row,) = list_artifacts(store, name="llama3-instruct")
    artifact = store.resolve("llama3-instruct")
    assert (row.name, row.version, row.digest, row.tags) == (
        "llama3-instruct",
        1,
        artifact.digest,
        ("prod",),
    )
    assert (row.base, row.post, row.codec) == ("org/base", "org/post", "exact")
    assert (row.raw_bytes, row.stored_bytes) == (artifact.raw_bytes, artifact.stored_bytes)
    assert row.created == artifact.created


def test_names_and_tags_select(store: Store) -> None:
    assert refs(store, name="llama3-*") == [
        "llama3-chat:v1",
        "llama3-chat:v2",
        "llama3-instruct:v1",
    ]
    assert refs(store, name="llama3") == []
    assert refs(store, tag="prod") == ["llama3-chat:v2", "llama3-instruct:v1"]
    assert refs(store, name="*chat", tag="prod") == ["llama3-chat:v2"]
    assert refs(store, tag="pro*") == []


def test_sources_select_by_label_id_and_content(store: Store) -> None:
    assert refs(store, base="Qwen2.5-7B") == ["qwen:v1"]
    assert refs(store, base="qwen*") == ["qwen:v1"]
    assert refs(store, post="my-run", base="Qwen*") == ["qwen:v1"]
    assert refs(store, post="my-run", base="org/nothing") == []
    # The id is known whatever the checkpoint was called when it was extracted.
    assert len(refs(store, base="Org/Base")) == 4
    content = store.resolve("llama3-chat:v1").post_content
    assert refs(store, post=content) == ["llama3-chat:v1"]
    assert refs(store, post=content[:20]) == ["llama3-chat:v1"]
    assert refs(store, base=content) == []


def test_an_id_at_a_commit_is_that_commit(store: Store) -> None:
    commit = store.resolve("qwen").base_revision
    assert commit is not None
    assert len(refs(store, base=f"org/base@{commit}")) == 4
    assert len(refs(store, base=f"Org/Base@{commit[:12]}")) == 4
    assert refs(store, base=f"org/base@{'f' * 40}") == []
    assert refs(store, base=f"org/nothing@{commit}") == []


# --- by path ------------------------------------------------------------------------------------


@pytest.fixture
def extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two deltas, whose bases and posts are called the same and are other models."""
    with deltastore.open(tmp_path / "store") as opened:
        for seed, name in enumerate(("one", "two")):
            base = model(seed)
            paths = (
                save(tmp_path / name / "base", base),
                save(tmp_path / name / "run", moved(base, 0.01)),
            )
            opened.extract(*paths, name=name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_path_means_what_lies_there(extracted: Path) -> None:
    with open_store(extracted / "store") as opened:
        assert refs(opened, base="base") == refs(opened, post="run") == ["one:v1", "two:v1"]
        for name in ("one", "two"):
            (extracted / f"link-{name}").symlink_to(extracted / name / "run")
            for path in (
                f"{extracted}/{name}/run",
                f"{name}/run/",
                f"./{name}/../{name}/run",
                f"link-{name}",
                f"{name}/run/model.safetensors",
            ):
                assert refs(opened, post=path) == [f"{name}:v1"], path
            assert refs(opened, base=f"{name}/base", post=f"{name}/run") == [f"{name}:v1"]
            assert ref_of_pair(opened, f"{name}/base", f"{name}/run") == f"{name}:v1"
            assert refs(opened, base=f"{name}/run") == []
        assert refs(opened, base="one/base", post="two/run") == []


def test_the_same_weights_are_the_same_model_wherever_they_are(extracted: Path) -> None:
    shutil.copytree(extracted / "one" / "run", extracted / "elsewhere")
    with open_store(extracted / "store") as opened:
        assert refs(opened, post="elsewhere") == ["one:v1"]
        # What was trained on is another one, though it is called as before.
        save_file(model(5), extracted / "one" / "run" / "model.safetensors")
        assert refs(opened, post="one/run") == []
        with pytest.raises(
            RefNotFoundError, match=r"one/run \(blake3:\w+\) in the store"
        ) as caught:
            ref_of_pair(opened, "one/base", "one/run")
        assert "`deltastore list --base one/base`" in caught.value.hint
        with pytest.raises(RefNotFoundError) as caught:
            ref_of_pair(opened, "two/run", "one/run")
        assert caught.value.hint == "See the pairs that there are: `deltastore list`."
        save_file(model(6), extracted / "one" / "base" / "model.safetensors")
        with pytest.raises(RefNotFoundError) as caught:
            ref_of_pair(opened, "one/base", "one/run")
        assert "one:v1 is of models of these names" in caught.value.hint


def test_post_is_found_under_its_own_names(extracted: Path) -> None:
    """As the artifact has those of its base: a trainer, or another class, put more before them."""
    post = moved(model(0), 0.02)
    save(extracted / "renamed", {f"bert.{name}": value for name, value in post.items()})
    save(extracted / "other", {f"bert.{name}": value * 2 for name, value in post.items()})
    with deltastore.open(extracted / "store") as opened:
        opened.extract(extracted / "one" / "base", extracted / "renamed", name="delta")
    with open_store(extracted / "store") as again:
        assert refs(again, post="./renamed") == ["delta:v1"]
        assert ref_of_pair(again, "one/base", "./renamed") == "delta:v1"
        assert refs(again, post="./other") == []
        # Nothing else stops working because one artifact is damaged.
        digest = again.resolve("delta").digest.removeprefix("sha256:")
        (extracted / "store" / "blobs" / "sha256" / digest).unlink()
        assert refs(again, post="./renamed") == []
        assert refs(again, post="one/run") == ["one:v1"]


def test_a_checkpoint_of_another_structure_is_not_read(
    extracted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(extracted / "other", model(0) | {"more.weight": torch.ones(2)})

    def fail(*_: object) -> None:
        raise AssertionError("all of a checkpoint is read")

    monkeypatch.setattr(digests, "hash_checkpoint", fail)
    with open_store(extracted / "store") as opened:
        assert refs(opened, base="other") == refs(opened, post="other") == []
        with pytest.raises(RefNotFoundError, match="no stored delta has a base of its structure"):
            ref_of_pair(opened, "other", "run")
        with pytest.raises(AssertionError, match="all of a checkpoint"):
            refs(opened, base="one/base")


def test_a_path_wins_over_a_label(extracted: Path) -> None:
    (extracted / "base").mkdir()
    with open_store(extracted / "store") as opened:
        with pytest.raises(NoWeightsError):
            refs(opened, base="base")
        assert refs(opened, base="bas[e]") == ["one:v1", "two:v1"]
        save(extracted / "run", model(9))
        assert refs(opened, post="run") == []


@pytest.mark.parametrize("path", ["/no/where", "./nowhere", "../nowhere", "nowhere/", "a/b/c"])
def test_a_path_that_is_not_there_is_no_label(extracted: Path, path: str) -> None:
    with open_store(extracted / "store") as opened:
        for given in ({"base": path}, {"post": path}):
            with pytest.raises(CheckpointNotFoundError, match="does not exist"):
                refs(opened, **given)
        with pytest.raises(CheckpointNotFoundError):
            ref_of_pair(opened, "base", path)


@pytest.mark.parametrize("name", [b"lat\xe4in", "a\u00a0b".encode(), b"run[3]", b"~x"])
def test_a_path_may_be_called_anything(extracted: Path, name: bytes) -> None:
    text = os.fsdecode(name)
    shutil.copytree(extracted / "one" / "run", extracted / text)
    with open_store(extracted / "store") as opened:
        assert refs(opened, post=text) == ["one:v1"]
        assert refs(opened, post=str(extracted / text)) == ["one:v1"]


def test_a_label_with_brackets_is_itself(store: Store) -> None:
    manifest, config = put_artifact(store, 5)
    store.publish(manifest, config, name="x", labels={"base": "b", "post": "run[3]"})
    assert refs(store, post="run[3]") == refs(store, post="RUN[[]?]") == ["x:v1"]


def test_on_the_command_line(extracted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--store", str(extracted / "store")]
    assert main([*place, "-q", "list", "--post", "two/run/"]) == 0
    assert capsys.readouterr().out == "two:v1\n"
    pair = ["--from-base", "one/base", "--from-post"]
    out = ["--base", "one/base", "--out", "out", "--dry-run"]
    assert main([*place, "-q", "apply", *pair, "one/run", *out]) == 0
    capsys.readouterr()
    assert main([*place, "apply", *pair, "two/run", *out]) == 22
    assert "no delta from one/base (blake3:" in capsys.readouterr().err
    assert main([*place, "apply", *pair, "store", *out]) == 62
