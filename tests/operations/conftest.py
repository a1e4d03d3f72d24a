from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from worlds import World, make_world

import deltastore
from deltastore.store import refreshing


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Made once, and copied: nobody changes it."""
    return make_world(tmp_path_factory.mktemp("template"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    """An empty store."""
    with deltastore.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def quiet() -> Iterator[None]:
    """No progress bars of transformers; and one thread, as the models are small."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_change_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that rots leaves the times of a file as they were, so that it is not read again."""
    monkeypatch.setattr(refreshing, "_compare", lambda *_: ([], []))
