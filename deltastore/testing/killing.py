"""Child processes that are killed at a named step, or race.

Children are forks: they share what the caller has set up, and must not be started while another
thread holds a lock that they need.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from deltastore.system import steps
from deltastore.system.steps import OutputStep, Step

AnyStep = Step | OutputStep


def start(action: Callable[[], object]) -> int:
    """Run ``action`` in a child; its process id."""
    with warnings.catch_warnings():
        # Other threads of the test runner hold no lock that a child here needs.
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        _run(action)
    return pid


def killed_at(step: AnyStep, action: Callable[[], object]) -> None:
    """Run ``action`` in a child that is killed where it reaches ``step``."""
    assert is_killed_at(step, action), f"{step} was not reached"


def is_killed_at(step: AnyStep, action: Callable[[], object]) -> bool:
    """The same, where ``action`` may end before it reaches ``step``; whether it was killed."""

    def doomed() -> None:
        def reached(where: object) -> None:
            if where is step:
                os.kill(os.getpid(), signal.SIGKILL)

        _tell(reached)
        action()

    _, status = os.waitpid(start(doomed), 0)
    assert status in (0, signal.SIGKILL), f"the child ended with status {status}"
    return status == signal.SIGKILL


def traced(directory: Path, action: Callable[[], object]) -> set[str]:
    """The names of the steps that ``action`` reaches, run in a child."""
    seen = directory / "steps"
    seen.touch()

    def watched() -> None:
        def reached(where: AnyStep) -> None:
            with seen.open("a") as file:
                file.write(f"{where.name}\n")

        _tell(reached)
        action()

    succeeds(start(watched))
    return set(seen.read_text().split())


def succeeds(*pids: int) -> None:
    """Wait for children; none may have failed."""
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"child {pid} ended with status {status}"


def together(directory: Path, actions: list[Callable[[], object]]) -> None:
    """Run all actions in children of their own, at the same instant as nearly as can be."""
    gate = directory / "gate"

    def waiting(action: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            while not gate.exists():
                time.sleep(0.001)
            action()

        return run

    pids = [start(waiting(action)) for action in actions]
    time.sleep(0.05)
    gate.touch()
    succeeds(*pids)


def _tell(reached: Callable[[AnyStep], None]) -> None:
    """Have every step that is reached told to ``reached``; for ever, so in a child only."""
    steps.__dict__["reached"] = reached


def _run(action: Callable[[], object]) -> NoReturn:
    status = 1
    try:
        action()
        status = 0
    except BaseException:  # noqa: BLE001 - told to whoever reads the child's output
        traceback.print_exc()
    finally:
        # Not sys.exit: the child must not run the test runner's own clean-up.
        os._exit(status)
