from __future__ import annotations

from pathlib import Path

import pytest

from deltastore.errors import RefNotFoundError
from deltastore.operations.tag import Tagged, tag, untag
from deltastore.store import open_store
from deltastore.testing.artifacts import publish


def test_a_tag_is_set_moved_and_removed(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    first, second = publish(store, "m", 1), publish(store, "m", 2)
    assert tag(store, "m:v1", "prod") == Tagged("m", 1, first.digest, ("prod",))
    assert tag(store, "m", "prod") == Tagged("m", 2, second.digest, ("prod",))
    assert untag(store, "m:v1", "prod") == Tagged("m", 2, second.digest, ())
    with pytest.raises(RefNotFoundError):
        untag(store, "m", "prod")
    with pytest.raises(RefNotFoundError):
        tag(store, "m:v3", "prod")
