"""The hub of the tests, seen through huggingface_hub itself."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from hub_server import HubServer
from huggingface_hub import errors

SHARD = "model-00001-of-00002.safetensors"


def test_what_huggingface_hub_sees(models: HubServer, sources: Path, cache: Path) -> None:
    info = huggingface_hub.model_info("org/base", files_metadata=True)
    commit = models.repositories["org/base"].refs["main"]
    assert info.sha == commit
    (shard,) = [file for file in info.siblings or () if file.rfilename == SHARD]
    assert shard.lfs is not None
    assert shard.size == shard.lfs.size == (sources / "base" / SHARD).stat().st_size
    api = huggingface_hub.HfApi()
    assert {entry.path for entry in api.list_repo_tree("org/base")} >= {SHARD, "config.json"}
    (found,) = api.get_paths_info("org/base", [SHARD])
    assert found.lfs is not None
    assert found.lfs.sha256 == shard.lfs.sha256
    for name in (SHARD, "config.json"):
        path = Path(huggingface_hub.hf_hub_download("org/base", name))
        assert path.read_bytes() == (sources / "base" / name).read_bytes()
        assert path.is_relative_to(cache)
        assert path.parent.name == commit
    assert Path(huggingface_hub.snapshot_download("org/base")).name == commit


def test_refusals(models: HubServer) -> None:
    for repo, options, kind in [
        ("org/none", {}, errors.RepositoryNotFoundError),
        ("org/base", {"revision": "none"}, errors.RevisionNotFoundError),
    ]:
        with pytest.raises(kind):
            huggingface_hub.model_info(repo, **options)
    with pytest.raises(errors.RemoteEntryNotFoundError):
        huggingface_hub.hf_hub_download("org/base", "none")
    models.repositories["org/post"].token = "secret"
    models.repositories["org/post"].gated = True
    with pytest.raises(errors.GatedRepoError):
        huggingface_hub.model_info("org/post", token="other")
    assert huggingface_hub.model_info("org/post", token="secret").sha


def test_a_cut_download_is_done_again(models: HubServer, sources: Path) -> None:
    models.cut("cdn", after=1000)
    path = Path(huggingface_hub.hf_hub_download("org/base", SHARD))
    assert path.read_bytes() == (sources / "base" / SHARD).read_bytes()
    assert models.count("cdn") == 2
