from __future__ import annotations

import pytest
from page import run_page
from rounding import RoundCodec

from deltastore.codecs import register_codec, registry


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codecs ``plain``, the page's own, and ``round``, written after it."""
    monkeypatch.setattr(registry, "_registered", {})
    run_page()
    register_codec("round", RoundCodec)
