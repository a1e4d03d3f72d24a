"""Every hint leads out: each is shown in the state that it is for, and the command in it is run.

See README.md.
"""

from __future__ import annotations

import hints_of_checkpoints
import hints_of_commands
import hints_of_damage
import hints_of_models
import hints_of_outputs
import hints_of_stores
import hints_of_surroundings
import pytest
from hints_collected import collected
from hints_without_a_command import REASONS
from hints_world import CASES, World

# They fill the table when they are imported.
MODULES = (
    hints_of_checkpoints,
    hints_of_commands,
    hints_of_damage,
    hints_of_models,
    hints_of_outputs,
    hints_of_stores,
    hints_of_surroundings,
)


def test_each_hint_has_a_case_or_a_reason() -> None:
    done = {key for _, keys in CASES.values() for key in keys}
    known = set(collected())
    assert known - done - REASONS.keys() == set(), "new hints: give each a case, or a reason"
    assert (done | REASONS.keys()) - known == set(), "no such hints"
    assert done & REASONS.keys() == set(), "these have a case: their reasons can go"


@pytest.mark.parametrize("name", CASES)
def test_hint(world: World, name: str) -> None:
    run, keys = CASES[name]
    with world.watched():
        run(world)
    assert set(keys) - world.shown() == set()
