from __future__ import annotations

from pathlib import Path

import pytest

from deltastore.operations.listing import list_artifacts
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


def test_sources_select_by_label_id_path_and_content(store: Store, tmp_path: Path) -> None:
    assert refs(store, base="Qwen2.5-7B") == ["qwen:v1"]
    assert refs(store, base="qwen*") == ["qwen:v1"]
    assert refs(store, post="my-run", base="Qwen*") == ["qwen:v1"]
    assert refs(store, post="my-run", base="org/nothing") == []
    # The id is known whatever the checkpoint was called when it was extracted.
    assert len(refs(store, base="Org/Base")) == 4
    (tmp_path / "models" / "Qwen2.5-7B").mkdir(parents=True)
    assert refs(store, base=str(tmp_path / "models" / "Qwen2.5-7B") + "/") == ["qwen:v1"]
    content = store.resolve("llama3-chat:v1").post_content
    assert refs(store, post=content) == ["llama3-chat:v1"]
    assert refs(store, post=content[:20]) == ["llama3-chat:v1"]
    assert refs(store, base=content) == []
