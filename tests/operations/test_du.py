from __future__ import annotations

from pathlib import Path

from deltastore.operations.du import du
from deltastore.store import open_store
from deltastore.testing.artifacts import publish


def test_every_byte_is_counted_once_and_in_its_place(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    publish(store, "a", 1)
    publish(store, "a", 2)
    publish(store, "b", 1)
    publish(store, "gone", 3)
    store.rm("gone")
    usage = du(store)
    files = [f.stat().st_size for f in (store.path / "blobs" / "sha256").iterdir()]
    assert usage.total_bytes == sum(files)
    assert usage.referenced_bytes + usage.unreferenced_bytes == usage.total_bytes
    # Samples and chat template are the same in all; the two parts, config and manifest are not.
    assert usage.shared_bytes == 8 + 14
    assert usage.unreferenced == 4
    one, two = (v for v in usage.versions if v.name == "a")
    assert one.stored_bytes == store.resolve("a:v1").stored_bytes
    assert one.own_bytes == one.stored_bytes - 22
    assert usage.names["a"] == one.stored_bytes + two.stored_bytes - 22
    assert usage.names["b"] == one.stored_bytes
    assert usage.unreadable == ()


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    digest = publish(store, "a", 1).digest
    store.blobs.delete(digest)
    usage = du(store)
    assert usage.unreadable == (digest,)
    assert usage.versions[0].stored_bytes is None
    assert usage.unreferenced_bytes == usage.total_bytes
