"""Measures several commands in turn, so that a change of the machine's mood meets them all."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.measure import Usage, measure


@dataclass(frozen=True, slots=True)
class Command:
    """One thing to measure.

    Attributes:
        name: as it appears in the table.
        argv: the command line, given a fresh path that it may create; removed after the run.
        check: looks at what the untimed warm-up run created.
        env: variables to set.
    """

    name: str
    argv: Callable[[Path], list[str]]
    check: Callable[[Path], None] = lambda _: None
    env: dict[str, str] = field(default_factory=dict)


def take_turns(commands: list[Command], *, runs: int, scratch: Path) -> dict[str, list[Usage]]:
    """Run each command once in a warm-up round and then once in each of `runs` timed rounds.

    The first command is the yardstick: it runs again before each of the others.

    Raises:
        CommandFailedError: a command exited with an error.
    """
    yardstick, *others = commands
    usages: dict[str, list[Usage]] = {command.name: [] for command in commands}
    for turn in range(runs + 1):
        for command in [c for other in others for c in (yardstick, other)]:
            out = scratch / f"out-{command.name}"
            # Neither the dirty pages of the last command nor its deletion are this one's cost.
            os.sync()
            usage = measure(command.argv(out), output=scratch / "stdout", env=command.env)
            if turn:
                usages[command.name].append(usage)
            else:
                command.check(out)
            shutil.rmtree(out, ignore_errors=True)
    return usages
