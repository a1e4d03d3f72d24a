"""Text of strangers: in sight, on one line, bounded."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltastore.errors import DeltastoreError, shown
from deltastore.text import MAX_MESSAGE_CHARS, escaped, excerpt, is_shown_as_it_is, sentence


@pytest.mark.parametrize(
    "text", ["", "model.layers.0", "größe", "中文", "עברית", "a b", "e\u0301", "हिन्दी", "ก็", "👍"]
)
def test_what_people_write_stays(text: str) -> None:
    assert is_shown_as_it_is(text)
    assert escaped(text) == excerpt(text) == text


@pytest.mark.parametrize(
    "hidden",
    [
        *("\x1b", "\n", "\x7f", "\x85", "\u2028", "\ud800", "\U000e0041"),
        *("\u202a", "\u202e", "\u2066", "\u2069", "\u200e", "\u200f", "\u061c", "\ufeff", "\u200b"),
        *("\u3164", "\u115f", "\u1160", "\uffa0", "\u2800", "\u034f", "\ufe0f", "\U000e0101"),
        *("\u180b", "\u17b4", "\u00ad", "\U0001d159", "\u00a0", "\u3000"),
    ],
    ids=ascii,
)
def test_what_nobody_sees_is_escaped(hidden: str) -> None:
    for text in (hidden, f"a{hidden}b"):
        assert not is_shown_as_it_is(text)
        assert hidden not in escaped(text)
        assert is_shown_as_it_is(escaped(text))


def test_spaces_alone_are_a_name_that_nobody_sees() -> None:
    assert escaped("  ") == "\\x20\\x20"
    assert escaped(" a ") == " a "


def test_a_pile_of_marks_covers_no_other_line() -> None:
    text = escaped("a" + "\u0301" * 900)
    assert text.startswith("a" + "\u0301" * 8 + "\\u0301")
    assert text.count("\u0301") == 8


@given(st.text())
def test_all_that_is_escaped_is_seen(text: str) -> None:
    for made in (escaped(text), sentence(text), excerpt(text), shown(text)):
        assert not made or is_shown_as_it_is(made)
        assert not [c for c in made if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert escaped(escaped(text)) == escaped(text)


def test_messages_are_bounded_as_a_whole() -> None:
    began = time.monotonic()
    for text in ("a" * 10**7, "\x1b" * 10**7, "\u0301" * 10**7):
        error = DeltastoreError(f"Of {text}.", hint=text)
        for said in (str(error), error.message, error.hint):
            assert len(said) == MAX_MESSAGE_CHARS
            assert is_shown_as_it_is(said)
        assert len(shown(text)) <= 80
    assert time.monotonic() - began < 5
