"""A hub, repositories on it, and huggingface_hub pointed at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.hf_api
import numpy as np
import pytest
from hub_checkpoints import Arrays, save
from hub_server import HubServer

from deltastore.checkpoint.hub import retrying


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories base, post and new-base, of some 4 MB each; only to be read."""
    root = tmp_path_factory.mktemp("sources")
    random = np.random.default_rng(7)
    base = {f"layers.{i}.weight": random.normal(0, 0.02, (512, 1024)) for i in range(4)}
    base["norm.weight"] = np.ones(512)

    def moved(by: float) -> Arrays:
        return {
            name: array + (name != "norm.weight") * random.normal(0, by, array.shape)
            for name, array in base.items()
        }

    save(root / "base", base)
    save(root / "post", moved(2e-4))
    save(root / "new-base", moved(1e-3))
    return root


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """An empty hub, to which this process and its children turn, with an empty cache."""
    home = tmp_path / "hf"
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_HOME", str(home))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE", "HF_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        # The library has read its environment already, when it was imported.
        values = {
            "ENDPOINT": server.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.endpoint
            + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in values.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
        monkeypatch.setattr(retrying, "FIRST_WAIT_S", 0.01)
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def models(hub: HubServer, sources: Path) -> HubServer:
    """The hub with org/base, org/post and org/new-base."""
    for name in ("base", "post", "new-base"):
        hub.publish(f"org/{name}", sources / name)
    return hub


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The hub's local cache."""
    return tmp_path / "hf" / "hub"
