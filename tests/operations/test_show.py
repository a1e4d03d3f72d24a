from __future__ import annotations

from pathlib import Path

import pytest

from deltastore.errors import BlobCorruptError, RefNotFoundError
from deltastore.operations.show import show
from deltastore.store import Store, open_store
from deltastore.testing.artifacts import flip, publish


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = open_store(tmp_path / "store")
    publish(opened, "m", 1, tags=("prod",))
    return opened


def test_an_artifact_is_shown_with_its_sources_and_files(store: Store) -> None:
    details = show(store, "m:prod")
    assert (details.name, details.version, details.tags) == ("m", 1, ("prod",))
    assert (details.codec, details.exactness, details.restore_only) == ("exact", "exact", False)
    assert details.parameters == 4 * 8 + 8 + 16
    assert details.bits_per_weight == 8 * 6000 / details.parameters
    assert details.unchanged == 1
    assert details.sources["base"].repo == "org/base"
    assert details.sources["post"].revision == "0" * 40
    assert details.sources["base"].content != details.sources["post"].content
    assert [(f.side, f.path, f.size) for f in details.files] == [("post", "chat.jinja", 14)]


def test_each_tensor_is_shown_with_its_change(store: Store) -> None:
    tensors = {tensor.name: tensor for tensor in show(store, "m").tensors}
    delta = tensors["a.weight"]
    assert (delta.kind, delta.shape, delta.dtype, delta.codec) == ("delta", (4, 8), "BF16", "exact")
    assert (delta.bytes, delta.changed, delta.l2, delta.relative_change) == (1000, 30, 0.5, 0.25)
    added, removed, unchanged = (tensors[f"{n}.weight"] for n in "bcd")
    assert (added.kind, added.codec, added.l2) == ("added", "exact", None)
    assert (removed.kind, removed.shape, removed.codec) == ("removed", (2,), None)
    assert (unchanged.kind, unchanged.bytes, unchanged.relative_change) == ("unchanged", 0, None)


def test_what_is_not_there_or_damaged_is_not_shown(store: Store) -> None:
    with pytest.raises(RefNotFoundError):
        show(store, "n")
    manifest, _ = store.load(store.resolve("m").digest)
    flip(store.blobs.path(manifest.config.digest))
    with pytest.raises(BlobCorruptError, match="Config"):
        show(store, "m")
