"""Specs: which codec they mean, with which options, and what is said of those that mean none."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltastore.codecs import codec_names, get_codec, register_codec, registry, stored_codec
from deltastore.codecs.exact import ExactCodec
from deltastore.errors import CodecUnknownError, UsageError


class Stepped(ExactCodec):
    """Has an option that is needed, and one that is not."""

    def __init__(self, step: str, rows: str = "1") -> None:
        if not 0 < float(step) < 10:
            raise ValueError(f"STEP should be between 0 and 10, got {step}")
        self.name = f"stepped:{float(step):g}:{int(rows)}"


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other codecs than the other tests have."""
    monkeypatch.setattr(registry, "_registered", {})
    register_codec("stepped", Stepped)


def test_names() -> None:
    assert codec_names() == ("exact", "stepped")
    assert get_codec("exact").exactness == "exact"
    with pytest.raises(ValueError, match="exact is a codec of deltastore"):
        register_codec("exact", Stepped)


@pytest.mark.parametrize("spec", ["stepped:2", "stepped:2.0", "stepped:02:1", "stepped:2e0:01"])
def test_a_spec_has_one_canonical_form(spec: str) -> None:
    assert get_codec(spec).name == "stepped:2:1"
    assert get_codec(get_codec(spec).name).name == "stepped:2:1"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("exakt", "Codec 'exakt' is not known; this deltastore has exact, stepped."),
        ("", "Codec '' is not known; "),
        ("stepped ", "Codec 'stepped ' is not known; "),
        ("exact:", "Codec 'exact:' has other options than expected: exact."),
        ("exact:8", "Codec 'exact:8' has other options than expected: exact."),
        ("stepped", "Codec 'stepped' has other options than expected: stepped:STEP[:ROWS]."),
        ("stepped:1:2:3", "expected: stepped:STEP[:ROWS]."),
        ("stepped:11", "expected: stepped:STEP[:ROWS]; STEP should be between 0 and 10, got 11."),
        ("stepped:x", "expected: stepped:STEP[:ROWS]; could not convert string to float"),
    ],
)
def test_a_spec_that_means_none(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        get_codec(spec)
    assert message in caught.value.message
    assert "--codec" in caught.value.hint
    assert caught.value.exit_code == 2
    with pytest.raises(CodecUnknownError) as stored:
        stored_codec(spec, where="w/delta")
    assert stored.value.message.startswith(f"w/delta is encoded by {spec!r}")
    assert stored.value.exit_code == 53


def test_a_package_has_codecs_among_its_entry_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from deltastore.codecs.exact import ExactCodec\n"
        "class Mine(ExactCodec):\n"
        "    name = 'mine'\n"
    )
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[deltastore.codecs]\nmine = mine:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert codec_names() == ("exact", "mine", "stepped")
    assert get_codec("mine").name == "mine"
