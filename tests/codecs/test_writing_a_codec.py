"""Two codecs written after the documentation alone keep what the suite asks of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from page import run_page
from rounding import RoundCodec

from deltastore.testing.codecs import CodecContract


class TestPlainCodec(CodecContract):
    """The one in the page."""

    @pytest.fixture
    def codec(self) -> Any:
        return run_page()["PlainCodec"]()


class TestRoundCodec(CodecContract):
    @pytest.fixture(params=["1", "8", "22"])
    def codec(self, request: pytest.FixtureRequest) -> RoundCodec:
        return RoundCodec(request.param)

    def allowed_error(self, encoder: Any, delta: Any) -> Any:
        return 2.0**-encoder.bits * np.maximum(np.abs(delta), 2.0**-126)
