from __future__ import annotations

from pathlib import Path

import pytest

from deltastore.errors import RefAmbiguousError, RefNotFoundError
from deltastore.operations.rm import rm
from deltastore.store import open_store
from deltastore.testing.artifacts import publish


def test_a_version_goes_and_says_what_it_was(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    digest = publish(store, "a", 1, tags=("prod",)).digest
    publish(store, "b", 1)
    with pytest.raises(RefAmbiguousError):
        rm(store, digest)
    removed = rm(store, "a:prod")
    assert (removed.name, removed.version, removed.digest) == ("a", 1, digest)
    assert (removed.tags, removed.still_used) == (("prod",), True)
    assert removed.stored_bytes > 6000
    assert not rm(store, digest).still_used
    with pytest.raises(RefNotFoundError):
        rm(store, "a")
