"""Child processes that are killed, race, or have no permissions."""

from __future__ import annotations

import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from deltastore.blobs import steps
from deltastore.blobs.steps import Step
from deltastore.checkpoint import steps as output_steps

NOBODY = 65534


def start(action: Callable[[], None]) -> int:
    """Run ``action`` in a child; its process id."""
    with warnings.catch_warnings():
        # Other threads of the test runner hold no lock that a child here needs.
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        _run(action)
    return pid


def killed_at(step: Step | output_steps.Step, action: Callable[[], None]) -> None:
    """Run ``action`` in a child that is killed where it reaches ``step``."""

    def doomed() -> None:
        def reached(where: object) -> None:
            if where is step:
                os.kill(os.getpid(), signal.SIGKILL)

        steps.reached = output_steps.reached = reached
        action()

    _, status = os.waitpid(start(doomed), 0)
    assert os.WIFSIGNALED(status), f"{step} was not reached"
    assert os.WTERMSIG(status) == signal.SIGKILL


def traced(directory: Path, action: Callable[[], None]) -> set[str]:
    """The names of the steps that ``action`` reaches, run in a child."""
    seen = directory / "steps"
    seen.touch()

    def watched() -> None:
        def reached(where: Step | output_steps.Step) -> None:
            with seen.open("a") as file:
                file.write(f"{where.name}\n")

        steps.reached = output_steps.reached = reached
        action()

    succeeds(start(watched))
    return set(seen.read_text().split())


def succeeds(*pids: int) -> None:
    """Wait for children; none may have failed."""
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"child {pid} ended with status {status}"


def together(directory: Path, actions: list[Callable[[], None]]) -> None:
    """Run all actions in children of their own, at the same instant as nearly as can be."""
    gate = directory / "gate"

    def waiting(action: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            while not gate.exists():
                time.sleep(0.001)
            action()

        return run

    pids = [start(waiting(action)) for action in actions]
    time.sleep(0.05)
    gate.touch()
    succeeds(*pids)


def without_privileges(action: Callable[[], None]) -> None:
    """Run ``action`` in a child that permissions hold for: root may write anywhere."""

    def unprivileged() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        action()

    succeeds(start(unprivileged))


def _run(action: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit: the child must not run the test runner's own clean-up.
        os._exit(status)
