"""The suites can fail: each of many broken stores and codecs is told from a sound one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import broken_blobs
import broken_codecs
import pytest

HERE = Path(__file__).parent

# The test that is there for the promise.
CAUGHT = {
    "broken_blobs": {
        "LosesTheLastByte": "what_is_put_is_read_back",
        "TakesTheFirstPieceOnly": "many_pieces_are_joined",
        "NeverReuses": "putting_again_is_reuse",
        "TrustsTheSize": "damage_is_found_and_putting_again_heals_it",
        "TrustsTheName": "a_blob_of_another_length_is_found_and_healed",
        "BelievesTheCaller": "another_digest_than_expected_is_refused",
        "DoesNotHash": "damage_is_found_and_putting_again_heals_it",
        "IgnoresTheStatedSize": "another_size_than_the_manifest_says_is_damage",
        "IgnoresTheLimit": "what_is_over_the_limit_is_not_read",
        "RaisesWhatTheSystemRaises": "a_put_that_fails_leaves_nothing",
        "LeavesItsTemporaryFiles": "a_put_that_fails_leaves_nothing",
        "WritesInPlace": "pieces_that_fail_leave_nothing",
        "DeletesEverything": "deleting_is_idempotent",
        "DeletesNothing": "deleting_is_idempotent",
        "ListsNothing": "blobs_do_not_mix",
        "SaysEverythingIsThere": "what_is_not_there_is_missing",
        "SharesAPosition": "threads_share_a_reader",
        "MovesOutWithoutABin": "nothing_is_moved_out_without_a_bin",
        "MovesOutTwice": "what_is_moved_out_is_gone",
        "DoesNotTouch": "entries_are_the_blobs",
    },
    "broken_codecs": {
        "LosesSignsOfZero": "what_is_encoded_is_decoded",
        "AddsToWhatIsThere": "what_is_encoded_is_decoded",
        "IsNotDeterministic": "the_same_chunk_gives_the_same_frame",
        "SpoilsItsInput": "the_same_chunk_gives_the_same_frame",
        "MakesEmptyFrames": "what_is_encoded_is_decoded",
        "SharesABuffer": "threads_encode_and_decode_at_once",
        "RaisesIndexErrors": "damaged_frames_are_refused_or_decode_to_something",
        "SwallowsDamage": "a_frame_that_is_no_frame_is_refused",
        "SaysItCostsNothing": "bytes_per_element_are_about_right",
        "SaysItCostsTooMuch": "bytes_per_element_are_about_right",
        "MakesOtherTokens": "tokens_are_the_same_chunk",
        "SeesNoTokens": "tokens_are_the_same_chunk",
        "IsNotRegistered": "it_says_what_it_is",
        "IsBoundedWithoutABound": "it_says_what_it_is",
        "HasParametersThatAreNoJson": "a_decoder_needs_no_more_than_what_is_stored",
    },
}


@pytest.fixture(scope="module")
def failed() -> dict[str, set[tuple[str, str]]]:
    """For each file, the classes and tests that failed."""
    found = {}
    for module, cases in CAUGHT.items():
        options = ["-q", "--tb=no", "-rf", "-p", "no:cacheprovider", "-W", "ignore"]
        file = HERE / f"{module}.py"
        # The sound one shows that it is not the test that fails.
        tests = [f"{file}::TestSound::test_{test}" for test in set(cases.values())]
        tests += [f"{file}::Test{kind}::test_{test}" for kind, test in cases.items()]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            capture_output=True,
            text=True,
            check=False,
            cwd=HERE.parents[1],
        )
        assert done.returncode == 1, done.stdout + done.stderr
        found[module] = set(
            re.findall(r"^FAILED \S+::Test(\w+)::test_(\w+)", done.stdout, re.MULTILINE)
        )
    return found


def test_every_broken_one_has_a_case() -> None:
    assert set(broken_blobs.BROKEN) == set(CAUGHT["broken_blobs"])
    assert set(broken_codecs.BROKEN) == set(CAUGHT["broken_codecs"])


@pytest.mark.parametrize("module", CAUGHT)
def test_a_sound_one_passes(failed: dict[str, set[tuple[str, str]]], module: str) -> None:
    assert [test for kind, test in failed[module] if kind == "Sound"] == []


@pytest.mark.parametrize(
    ("module", "kind", "test"),
    [(module, kind, test) for module, table in CAUGHT.items() for kind, test in table.items()],
)
def test_a_broken_promise_is_noticed(
    failed: dict[str, set[tuple[str, str]]], module: str, kind: str, test: str
) -> None:
    assert (kind, test) in failed[module], failed[module]
