"""Local paths, misspelt paths, and Hub ids out of the local cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltastore.checkpoint import Location, locate, open_checkpoint
from deltastore.errors import CheckpointNotFoundError, HubError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Any) -> Path:
    """A Hub cache with one repository, in the Hub's layout of links into blobs."""
    root = tmp_path / "hub"
    repo = root / "models--org--name"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    save(repo / "blobs" / "0a", "a")
    (repo / "blobs" / "0b").write_text('{"model_type": "llama"}')
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/0a"))
    (snapshot / "config.json").symlink_to(Path("../../blobs/0b"))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for place in ("huggingface_hub.constants", "huggingface_hub._snapshot_download.constants"):
        monkeypatch.setattr(f"{place}.HF_HUB_CACHE", str(root))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot


def test_a_local_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("org/name") == Location(Path("org/name"))
    assert locate(tmp_path) == Location(tmp_path)
    (tmp_path / "org" / "name@main").mkdir()
    assert locate("org/name@main") == Location(Path("org/name@main"))


def test_the_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert locate("~/model") == Location(tmp_path / "model")


@pytest.mark.parametrize("wrong", ["lama-3-8b", "llama-3-8", "Llama-3-8b"])
def test_a_misspelt_path_gets_suggestions(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "llama-3-8b").mkdir()
    with pytest.raises(CheckpointNotFoundError, match="does not exist") as caught:
        open_checkpoint(tmp_path / wrong)
    assert str(tmp_path / "llama-3-8b") in caught.value.hint


def test_a_path_into_nowhere(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError) as caught:
        locate(str(tmp_path / "x" / "y"))
    assert str(tmp_path / "x") in caught.value.hint
    with pytest.raises(CheckpointNotFoundError) as caught:
        locate(str(tmp_path / "quite-different"))
    assert f"ls {tmp_path}" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["name", "./org/name", "a/b/c", "-x/y", "org/name@", "org/na me", "../org"]
)
def test_what_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFoundError):
        locate(text)


def test_an_empty_text_is_no_checkpoint() -> None:
    with pytest.raises(UsageError, match="empty text"):
        locate("")


def test_a_path_object_is_never_a_hub_id(cache: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        locate(Path("org/name"))


def test_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(CheckpointNotFoundError, match="symbolic link to gone"):
        locate(tmp_path / "link")


@pytest.mark.parametrize("source", ["org/name", "org/name@main", f"org/name@{COMMIT}"])
def test_a_cached_repository_is_pinned(cache: Path, source: str) -> None:
    assert locate(source) == Location(cache, "org/name", COMMIT)
    with open_checkpoint(source) as checkpoint:
        assert (checkpoint.repo, checkpoint.revision) == ("org/name", COMMIT)
        assert list(checkpoint.tensors) == ["a"]
        assert checkpoint.config == {"model_type": "llama"}
        assert checkpoint.shards[0].filename == "model.safetensors"
        assert checkpoint.shards[0].path == cache / "model.safetensors"


@pytest.mark.parametrize("source", ["org/other", "org/name@dev"])
def test_what_the_cache_does_not_hold(cache: Path, source: str) -> None:
    with pytest.raises(HubError, match="local cache") as caught:
        locate(source)
    assert "hf download" in caught.value.hint
    assert caught.value.facts["repo"] == source.split("@")[0]


def test_a_misspelt_relative_path_that_looks_like_an_id(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama-3").mkdir(parents=True)
    with pytest.raises(HubError, match="no local path") as caught:
        locate("models/lama-3")
    assert "models/llama-3" in caught.value.hint
