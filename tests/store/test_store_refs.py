from __future__ import annotations

from pathlib import Path

import pytest

from deltastore.errors import RefAmbiguousError, RefNotFoundError, RefSyntaxError
from deltastore.operations.verify import verify
from deltastore.store import Store, finding
from deltastore.testing.artifacts import publish


def hint_of(store: Store, ref: str) -> str:
    with pytest.raises(RefNotFoundError) as caught:
        store.resolve(ref)
    return caught.value.hint


def test_every_form_of_ref_finds_its_version(store: Store) -> None:
    publish(store, "m", 1, tags=("prod",))
    second = publish(store, "m", 2)
    for ref in ("m", "m:v2", f"m@{second.digest}", second.digest, second.digest[:15]):
        assert store.resolve(ref).ref == "m:v2"
    assert store.resolve("m:v1") == store.resolve("m:prod")
    for version in range(3, 12):
        publish(store, "m", version)
    assert store.resolve("m").version == 11


def test_a_digest_with_several_names_means_the_one_last_published(store: Store) -> None:
    first = publish(store, "a", 1)
    publish(store, "b", 1)
    assert store.resolve(first.digest).ref == "b:v1"
    assert store.resolve(f"a@{first.digest[:15]}").ref == "a:v1"
    with pytest.raises(RefAmbiguousError, match="2 versions") as caught:
        store.rm(first.digest)
    assert caught.value.facts["refs"] == ["a:v1", "b:v1"]
    assert store.rm(f"a@{first.digest}").ref == "a:v1"


def test_a_prefix_of_several_digests_is_ambiguous(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = publish(store, "a", 1), publish(store, "b", 2)
    # Eight digits never collide in a test; a ref of none does.
    monkeypatch.setattr(finding, "parse_ref", lambda _: finding.Ref(digest="sha256:"))
    with pytest.raises(RefAmbiguousError, match="fits 2 artifacts") as caught:
        store.resolve("sha256:")
    assert one.digest in caught.value.hint
    assert two.digest in caught.value.hint


def test_an_empty_store_says_how_to_fill_it(store: Store) -> None:
    for ref in ("m", "m:v1", "m:prod", "sha256:01234567"):
        assert "deltastore extract" in hint_of(store, ref)


def test_the_nearest_names_are_named(store: Store) -> None:
    for name in ("llama3-instruct", "llama3-chat", "qwen", "Mistral-7B"):
        publish(store, name)
    assert "`llama3-instruct`" in hint_of(store, "lama3-instruct")
    assert "`llama3-instruct`" in hint_of(store, "llama3:v1")
    assert "`Mistral-7B`" in hint_of(store, "mistral-7b")
    assert "`qwen`" not in hint_of(store, "llama")
    assert "deltastore list" in hint_of(store, "zzz")
    assert "deltastore list" in hint_of(store, "sha256:01234567")


def test_the_versions_and_tags_of_a_name_are_named(store: Store) -> None:
    publish(store, "m", 1, tags=("production",))
    assert hint_of(store, "m:v9") == "m has the version v1 and the tag production."
    assert "Did you mean `m:production`?" in hint_of(store, "m:produktion")
    for seed in range(2, 15):
        publish(store, "m", seed)
    assert "versions v1, v2, v3, …, v9, v10, v11, v12, v13, v14" in hint_of(store, "m:v99")


def test_a_removed_version_is_said_to_be(store: Store) -> None:
    publish(store, "m", 1)
    store.rm("m:v1")
    with pytest.raises(RefNotFoundError, match="m:v1 was removed from the store"):
        store.resolve("m:v1")


def test_what_is_no_ref_is_refused(store: Store) -> None:
    with pytest.raises(RefSyntaxError):
        store.resolve("../../etc/passwd")


# --- tags ---------------------------------------------------------------------------------------


def test_a_tag_moves_and_goes(store: Store) -> None:
    publish(store, "m", 1)
    publish(store, "m", 2)
    assert store.tag("m:v1", "prod").tags == ("prod",)
    moved = store.tag("m", "prod")
    assert (moved.version, moved.tags) == (2, ("prod",))
    assert store.resolve("m:v1").tags == ()
    assert store.tag("m:prod", "best").tags == ("best", "prod")
    untagged = store.untag("m:v1", "prod")
    assert (untagged.version, untagged.tags) == (2, ("best",))
    with pytest.raises(RefNotFoundError, match="no m:prod"):
        store.untag("m", "prod")
    assert verify(store).problems == ()


def test_a_tag_cannot_be_set_on_nothing_or_look_like_a_version(store: Store) -> None:
    publish(store, "m", 1)
    with pytest.raises(RefSyntaxError):
        store.tag("m", "v1")
    with pytest.raises(RefNotFoundError):
        store.tag("n", "prod")
    assert store.resolve("m").tags == ()


# --- removal ------------------------------------------------------------------------------------


def test_a_removed_number_is_never_used_again(store: Store) -> None:
    publish(store, "m", 1)
    publish(store, "m", 2, tags=("prod", "best"))
    removed = store.rm("m:prod")
    assert (removed.ref, removed.tags) == ("m:v2", ("best", "prod"))
    assert [a.ref for a in store.artifacts()] == ["m:v1"]
    assert publish(store, "m", 2).version == 3
    assert [a.tags for a in store.artifacts()] == [(), ()]
    store.rm("m")
    store.rm("m")
    assert store.artifacts() == []
    assert publish(store, "m", 9).version == 4
    store.reindex()
    assert [a.ref for a in store.artifacts()] == ["m:v4"]
    assert verify(store).problems == ()


def test_the_blobs_stay_for_others_and_as_orphans(store: Store) -> None:
    digest = publish(store, "a", 1).digest
    publish(store, "b", 1)
    store.rm("a")
    assert verify(store).orphans == ()
    store.load(digest)
    store.rm("b")
    assert set(verify(store).orphans) == set(store.blobs.digests())
    assert len(verify(store).orphans) == 6


def test_a_damaged_artifact_can_be_listed_and_removed(store: Store, tmp_path: Path) -> None:
    digest = publish(store, "m", 1).digest
    store.blobs.delete(digest)
    indexed = store.reindex()
    assert indexed.problems
    assert digest in indexed.problems[0]
    (artifact,) = store.artifacts()
    assert (artifact.codec, artifact.base) == ("unreadable", "org/base")
    assert store.rm("m").digest == digest
    assert store.artifacts() == []
    # Once it is there again, it is as it was.
    publish(store, "m", 1)
    assert store.resolve("m").codec == "exact"
