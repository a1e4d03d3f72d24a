"""What is said of an output is bounded, whatever stands in the documents it was made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_files_world import composed, plan_of, read

from deltastore.errors import CheckpointError
from deltastore.execution.progress import Silent, Staged
from deltastore.output.assemble import provenance
from deltastore.output.ledger import MAX_LEFT, Ledger, joined, quoted
from deltastore.text import MAX_MESSAGE_CHARS, is_shown_as_it_is
from deltastore.tokenizer.matching import Added, Vocabulary

HUGE = "\x1b[31m\u202e" + "A" * 5_000_000


def said(ledger: Ledger) -> bytes:
    """The provenance of an output, with nothing but what is said of its files."""
    plan = plan_of("new", ("a\u202eb\x7f\u3164", None))
    return provenance(plan.with_files({}, ledger.report(), ledger.left()), restored=False)


def test_a_special_token_of_5_mb(tmp_path: Path) -> None:
    tokenizer = json.dumps({"model": {"vocab": {"a": 0}}})
    own = {"tokenizer.json": tokenizer, "tokenizer_config.json": "{}"}
    tokens = {f"x{i}_token": f"{i}{HUGE}" for i in range(20)}
    post = {"tokenizer.json": tokenizer, "tokenizer_config.json": json.dumps(tokens)}
    out, made = composed(tmp_path, own, post, own)
    assert read(out / "tokenizer_config.json") == {}
    assert len(made.ledger.warnings) == 1
    assert made.ledger.warnings[0].endswith("and 12 more.")
    assert all(is_shown_as_it_is(warning) for warning in made.ledger.warnings)
    assert len("".join(made.ledger.warnings)) < 2000
    assert len(said(made.ledger)) < 5000


def test_fields_of_post_that_are_many_and_long(tmp_path: Path) -> None:
    before = {f"f{i}": 1 for i in range(3 * MAX_LEFT)} | {HUGE: 1}
    after = dict.fromkeys(before, 2)
    _, made = composed(
        tmp_path,
        {"config.json": json.dumps(before)},
        {"config.json": json.dumps(after)},
        {"config.json": "{}"},
    )
    rows = made.ledger.left()
    assert len(rows) == MAX_LEFT + 1
    assert rows[-1]["field"] == f"~ and {2 * MAX_LEFT + 1} more"
    assert len(said(made.ledger)) < 200_000


def test_notes_and_warnings_are_bounded() -> None:
    ledger = Ledger(origins={"config.json": "both"})
    for _ in range(100):
        ledger.warn("config.json", HUGE)
    assert all(len(text) <= MAX_MESSAGE_CHARS for text in ledger.warnings)
    assert len(ledger.report()[0]["note"]) <= MAX_MESSAGE_CHARS
    assert joined(["a", "b"]) == "a, b"
    assert joined(map(str, range(60))).endswith("49 and 10 more")
    assert quoted([HUGE] * 9).count("...") == 8
    assert quoted([HUGE] * 9).endswith(" and 1 more")


def test_provenance_hides_nothing() -> None:
    text = said(Ledger()).decode()
    assert all(is_shown_as_it_is(line) for line in text.splitlines())
    assert json.loads(text)["deltas"][0]["post"] == "a\u202eb\x7f\u3164"


def test_tokens_in_figures_are_bounded() -> None:
    words = Vocabulary(
        "matched", added=(Added(HUGE, 0, 0),), renamed=((HUGE, HUGE),), lost=(HUGE, "a")
    )
    assert len(json.dumps(words.report())) < 3000
    assert words.report()["lost"]["tokens"][1] == "a"  # type: ignore[index]


def test_whoever_watches_is_told_in_bounds() -> None:
    told: list[str] = []

    class Watcher(Silent):
        def start(self, label: str, total_bytes: int) -> None:
            told.append(label)

        def warn(self, message: str) -> None:
            told.append(message)

    watched = Staged(Watcher())
    watched.warn(HUGE)
    watched.start(HUGE, 1)
    watched.begin_download(HUGE, 1)
    assert len(told) == 3
    assert all(len(text) <= MAX_MESSAGE_CHARS and is_shown_as_it_is(text) for text in told)


def test_files_that_would_be_too_large_to_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = {"generation_config.json": json.dumps({"x": [1] * 100, "use_cache": False})}
    base = {"config.json": "{}"}
    composed(tmp_path / "well", base, post, base)
    owner = "deltastore.output.assemble"
    monkeypatch.setattr(f"{owner}.MAX_SMALL_FILE_BYTES", 500)
    with pytest.raises(CheckpointError, match=r"generation_config\.json would have"):
        composed(tmp_path / "one", base, post, base)
    monkeypatch.setattr(f"{owner}.MAX_SMALL_FILE_BYTES", 5000)
    monkeypatch.setattr(f"{owner}.MAX_SMALL_FILES_BYTES", 500)
    with pytest.raises(CheckpointError, match="together"):
        composed(tmp_path / "all", base, post, base)
    monkeypatch.setattr(f"{owner}.MAX_CONFIG_JSON_BYTES", 1)
    with pytest.raises(CheckpointError, match=r"config\.json would have"):
        composed(tmp_path / "config", base, post, base)


def test_licences_that_some_file_systems_take_for_one(tmp_path: Path) -> None:
    own = {"LICENSE": "A", "post-LICENSE": "B"}
    post = {"License": "C", "LICENSE": "A", "post-LICENSE": "D", "notice": "E"}
    out, _ = composed(tmp_path, {}, post, own)
    found = {path.name: path.read_text() for path in out.iterdir()}
    assert found.pop("notice") == "E"
    assert {name: found.pop(name) for name in own} == own
    assert sorted(found.items()) == [("post-2-License", "C"), ("post-3-LICENSE", "D")]
