from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from memory_blobs import damage

from deltastore.errors import BlobCorruptError, BlobMissingError, RefError, RefSyntaxError
from deltastore.operations.verify import verify
from deltastore.store import Store, open_store
from deltastore.testing.artifacts import LABELS, publish, put_artifact
from deltastore.testing.killing import together


def refs(store: Store) -> list[str]:
    return [artifact.ref for artifact in store.artifacts()]


def test_versions_count_up_by_name(store: Store) -> None:
    assert [publish(store, "a", seed).version for seed in (1, 2, 3)] == [1, 2, 3]
    assert publish(store, "b", 4).ref == "b:v1"
    assert refs(store) == ["a:v1", "a:v2", "a:v3", "b:v1"]


def test_what_is_published_is_what_was_made(store: Store) -> None:
    manifest, config = put_artifact(store, 5)
    published = store.publish(manifest, config, name="m", labels=LABELS, tags=["prod", "best"])
    artifact = store.resolve("m")
    assert store.load(artifact.digest) == (manifest, config)
    assert artifact.digest == published.digest
    assert artifact.tags == ("best", "prod")
    assert (artifact.base, artifact.post) == ("org/base", "org/post")
    assert (artifact.base_repo, artifact.post_repo) == ("org/base", "org/post")
    sizes = [store.blobs.size(digest) or 0 for digest in store.blobs.digests()]
    assert artifact.stored_bytes == published.stored_bytes == sum(sizes)
    assert artifact.bits_per_weight == 8 * 6000 / config.post.parameters
    assert (artifact.tensors, artifact.unchanged) == (3, 1)
    pair = (config.base.content, config.post.content, "exact")
    assert store.parts.catalog.find_pair(*pair) == [artifact.digest]


def test_the_record_says_who_and_when_and_the_blobs_do_not(store: Store, tmp_path: Path) -> None:
    first = publish(store, "m", 1)
    record = json.loads((store.path / "names" / "m" / "v1.json").read_text())
    assert record["format"] == 1
    assert record["digest"] == first.digest
    assert record["labels"] == LABELS
    assert record["tool"].startswith("deltastore ")
    assert "@" in record["created_by"]
    assert record["created"].endswith("Z")
    with open_store(tmp_path / "other") as other:
        assert publish(other, "n", 1).digest == first.digest


def test_the_same_artifact_is_not_given_another_version(store: Store) -> None:
    first = publish(store, "m", 1)
    publish(store, "m", 2)
    again = publish(store, "m", 1, tags=("prod",))
    assert again == dataclasses.replace(first, reused=True)
    assert refs(store) == ["m:v1", "m:v2"]
    assert store.resolve("m:prod").version == 1
    other = publish(store, "n", 1)
    assert (other.version, other.digest, other.reused) == (1, first.digest, False)


def test_what_could_not_be_read_back_is_not_published(store: Store) -> None:
    manifest, config = put_artifact(store, 1)
    store.blobs.delete(manifest.layers[1].digest)
    with pytest.raises(BlobMissingError, match=manifest.layers[1].digest):
        store.publish(manifest, config, name="m", labels=LABELS)
    manifest, config = put_artifact(store, 1)
    layers = (dataclasses.replace(manifest.layers[0], size=5), *manifest.layers[1:])
    wrong = dataclasses.replace(manifest, layers=layers)
    with pytest.raises(BlobCorruptError, match="the manifest says 5"):
        store.publish(wrong, config, name="m", labels=LABELS)
    with pytest.raises(BlobCorruptError, match="have the digest"):
        store.publish(manifest, dataclasses.replace(config, codec="x"), name="m", labels=LABELS)
    assert refs(store) == []
    assert list((store.path / "names").iterdir()) == []
    assert list((store.path / "leases").iterdir()) == []


def test_names_and_tags_that_cannot_be_are_refused_before_anything_is_written(
    store: Store,
) -> None:
    manifest, config = put_artifact(store, 1)
    before = set(store.blobs.digests())
    for name, tags in (("a/b", ()), ("m", ("v1",)), ("m", ("ok", "not ok"))):
        with pytest.raises(RefSyntaxError):
            store.publish(manifest, config, name=name, labels=LABELS, tags=tags)
    assert set(store.blobs.digests()) == before
    assert list((store.path / "names").iterdir()) == []


def test_case_alone_does_not_tell_names_or_tags_apart(store: Store) -> None:
    publish(store, "Model", 1, tags=("Prod",))
    with pytest.raises(RefError, match="'model' differs from 'Model' only") as caught:
        publish(store, "model", 2)
    assert "`Model`" in caught.value.hint
    with pytest.raises(RefError, match="'prod' differs from 'Prod' only"):
        publish(store, "Model", 2, tags=("prod",))
    with pytest.raises(RefError, match="'PROD' differs from 'Prod' only"):
        store.tag("Model", "PROD")
    assert refs(store) == ["Model:v1"]


def test_labels_are_made_printable(store: Store) -> None:
    manifest, config = put_artifact(store, 1)
    store.publish(manifest, config, name="m", labels={"base": "a\nb\x1b[31m", "post": "x" * 5000})
    artifact = store.resolve("m")
    assert artifact.base == "a?b?[31m"
    assert len(artifact.post) == 1024
    assert verify(store).problems == ()


@pytest.mark.blob_files
def test_of_processes_that_publish_at_once_each_has_a_version(store: Store, tmp_path: Path) -> None:
    def work(number: int) -> None:
        with open_store(store.path, create=False) as opened:
            for round_ in range(3):
                done = publish(opened, "model", seed=1 + 10 * number + round_, tags=("newest",))
                (tmp_path / f"done-{done.version}-{number}-{round_}").write_text(done.digest)

    together(tmp_path, [lambda number=number: work(number) for number in range(5)])
    done = {int(p.name.split("-")[1]): p.read_text() for p in tmp_path.glob("done-*")}
    assert len(list(tmp_path.glob("done-*"))) == 15
    assert sorted(done) == list(range(1, 16))
    assert {a.version: a.digest for a in store.artifacts()} == done
    assert verify(store).problems == ()
    assert list((store.path / "leases").iterdir()) == []
    assert list((store.path / "tmp").iterdir()) == []


@pytest.mark.blob_files
def test_of_processes_that_publish_the_same_at_once_one_has_a_version(
    store: Store, tmp_path: Path
) -> None:
    def work() -> None:
        with open_store(store.path, create=False) as opened:
            done = publish(opened, "model", seed=1)
            (tmp_path / f"done-{os.getpid()}").write_text(str(done.reused))

    together(tmp_path, [work] * 6)
    assert sorted(p.read_text() for p in tmp_path.glob("done-*")) == ["False"] + ["True"] * 5
    assert refs(store) == ["model:v1"]
    assert verify(store).problems == ()


def test_processes_that_move_a_tag_at_once_leave_it_whole(store: Store, tmp_path: Path) -> None:
    for seed in range(4):
        publish(store, "m", seed)

    def work(version: int) -> None:
        with open_store(store.path, create=False) as opened:
            for _ in range(5):
                opened.tag(f"m:v{version}", "prod")

    together(tmp_path, [lambda version=version: work(version) for version in (1, 2, 3, 4)])
    assert verify(store).problems == ()


def test_publishing_again_after_damage_heals_what_can_be(store: Store) -> None:
    manifest, config = put_artifact(store, 1)
    published = store.publish(manifest, config, name="m", labels=LABELS)
    for digest in (published.digest, manifest.config.digest, manifest.layers[0].digest):
        damage(store.blobs, digest, 3)
    assert len(verify(store).problems) == 1
    again = publish(store, "m", 1)
    assert again.reused
    assert verify(store).problems == ()
