"""The base of a composition is where its first artifact says: at a commit of the hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hub_server import HubServer

import deltastore
from deltastore.errors import IncompatibleError


@pytest.fixture
def store(models: HubServer, sources: Path, tmp_path: Path) -> Path:
    """A store with a, from org/base to org/post, and b, from there to org/new-base."""
    place = tmp_path / "store"
    with deltastore.open(place) as opened:
        opened.extract("org/base", "org/post", name="a")
        opened.extract("org/post", "org/new-base", name="b")
    return place


def test_the_base_is_fetched_at_the_commit_that_the_artifact_names(
    models: HubServer, sources: Path, store: Path, cache: Path, tmp_path: Path
) -> None:
    with deltastore.open(tmp_path / "other") as other:
        expected = other.extract("org/base", "org/new-base").digest
    shutil.rmtree(cache)
    models.publish("org/base", sources / "post")  # the branch has moved on since
    with deltastore.open(store) as opened:
        result = opened.compose(["a", "b"], name="whole")
        assert result.digest == expected
        fetched = {path.name for path in cache.glob("models--*")}
        assert fetched == {"models--org--base"}


def test_a_wrong_base_is_refused_before_it_is_fetched(
    models: HubServer, sources: Path, store: Path, cache: Path
) -> None:
    shutil.rmtree(cache)
    with deltastore.open(store) as opened, pytest.raises(IncompatibleError, match="not the base"):
        opened.compose(["a", "b"], base="org/new-base")
    assert not list(cache.rglob("*.safetensors"))


def test_what_the_artifact_says_of_the_hub_stays(
    models: HubServer, sources: Path, store: Path, tmp_path: Path
) -> None:
    """Also where the same base is read from a directory."""
    with deltastore.open(tmp_path / "other") as other:
        expected = other.extract("org/base", "org/new-base").digest
    with deltastore.open(store) as opened:
        result = opened.compose(["a", "b"], base=sources / "base", name="whole")
        assert result.digest == expected
        assert opened.show("whole").sources["base"].repo == "org/base"
