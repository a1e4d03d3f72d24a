from __future__ import annotations

import pytest
from worlds import World, make_world


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Made once, and copied: nobody changes it."""
    return make_world(tmp_path_factory.mktemp("template"))
