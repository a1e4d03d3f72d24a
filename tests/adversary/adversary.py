"""Two users on one store, one of them malicious with everything that a group member may do.

A case begins with an honest store. The adversary does one to three acts (``acts.py``), the victim
types one to three commands (``victim.py``), with more acts between them and, in some cases, while
they run. After each command:

- nothing of the victim's outside the store has changed: content, mode, owner, time, existence;
- what exit 0 gave is right, and a failure left no output (``victim.py`` has the rules);
- the exit code is documented and not 1, there is no traceback, no signal, no control character;
- it took at most 30 seconds, without what it waited for a processor;
- no file that the adversary may read has a secret of the victim's in it.

Commands run in a process that has imported deltastore before and is the victim; there they wait
for others' locks and leases for moments only. One of fifty waits as long as it does, in a process
of its own where the victim may run Python. What fails is written to a directory: the case's acts
and commands, and archives of the tree before (where the case gives the same again) and after.

A case's acts and commands depend on the seed and its number alone. When acts happen while a command
runs does not.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import io
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import acts
import judging
import other_users
import pytest
from judging import Ended, Fault
from other_users import TEAM, public_directory, readable_package, run_as
from victim import COMMANDS, Typed, draw_command
from worker import Answer, Handler, Worker
from worker import Ended as Gone
from world import World, remove

from deltastore.blobs.owner import owner_token
from deltastore.catalog import sqlite
from deltastore.cli.main import main as deltastore_main
from deltastore.store import claims, collecting, leases

SKIPPED = 77
"""The exit code where users cannot be made; as other test runners have it."""

KILL_AFTER_S = 31.0
ACTS_S = 20.0
MEMORY_BYTES = 2 << 30
MAX_KEPT = 2
"""Of each kind of fault."""


@dataclass
class Case:
    """What was done in a case, for people and for the record."""

    number: int
    log: list[str] = field(default_factory=list)
    steps: int = 0


@dataclass(frozen=True)
class Kinds:
    """What the two may do: acts and races, and commands."""

    adversary: list[str]
    victim: list[str]


class Driver:
    """Runs cases and counts what is wrong."""

    def __init__(self, world: World, seed: int, kinds: Kinds, found: Path, patient: float) -> None:
        self.world = world
        self.seed = seed
        self._kinds = kinds
        self._acts = [kind for kind in kinds.adversary if kind in acts.ACTS]
        self._races = [kind for kind in kinds.adversary if kind in acts.RACES]
        self._commands = kinds.victim
        self._found = found
        self._patient = patient
        self._own_processes = _can_run_python(world)
        scene = world.scene(_tokens())
        self._environment = environment = _environment(world)
        # Python's own output is written to what the next command's is read from.
        self._streams = streams = (os.memfd_create("out"), os.memfd_create("err"))
        self._mallory = Worker(world.mallory, lambda: _mallory_begins(scene))
        self._victim = Worker(
            world.victim, lambda: _victim_begins(environment, world.home, streams)
        )
        self.codes: Counter[int] = Counter()
        self.commands: Counter[str] = Counter()
        self.faults: Counter[Fault] = Counter()
        self.first: dict[Fault, str] = {}
        self.keeps = True
        self.raced = self.patient = 0
        self.longest = Ended((), 0, "", "", 0.0, 0.0)

    def close(self) -> None:
        """End the processes."""
        for worker in (self._mallory, self._victim):
            worker.kill()
        for stream in self._streams:
            os.close(stream)

    # --- a case -----------------------------------------------------------------------------

    def run(self, number: int, *, stop: int | None = None) -> Case:
        """Run a case; with ``stop``, until that step is about to run, so that it can be kept."""
        draw = random.Random(f"{self.seed} {number}")
        case = Case(number)
        self.world.reset()
        if self._acts:
            self._act(draw, case, draw.choice((0, 1, 1, 1, 2, 3)))
        for step in range(draw.choice((1, 2, 3))):
            if step and self._acts and draw.random() < 0.6:
                self._act(draw, case, 1)
            typed = draw_command(draw, self.world, self._commands)
            race = ""
            if self._races and (not self._acts or draw.random() < 0.4):
                race = draw.choice(self._races)
            patient, seed = draw.random() < self._patient, draw.random()
            if step == stop:
                return case
            self._step(case, step, typed, race, seed, patient=patient)
            case.steps += 1
        return case

    def _act(self, draw: random.Random, case: Case, count: int) -> None:
        """Have the adversary do acts, each of a kind drawn at random."""
        seeds = [(draw.choice(self._acts), draw.random()) for _ in range(count)]
        if not seeds:
            return

        self._mallory.ask(["acts", seeds])
        try:
            if (said := self._mallory.answer(ACTS_S)) is None:
                self._mallory.kill()
            case.log += said or ["acts that did not end"]
        except Gone as gone:
            case.log.append(f"acts that ended with {gone.code}")

    def _step(
        self, case: Case, step: int, typed: Typed, race: str, seed: float, *, patient: bool
    ) -> None:
        world = self.world
        command = judging.command(typed.argv)
        began_ns = time.time_ns()
        case.log.append("$ deltastore " + " ".join(typed.argv))
        if patient and self._own_processes:
            run = self._run_real
        else:
            run = functools.partial(self._run_forked, patient=patient)
        if race:
            case.log.append(f"meanwhile {race}: {self._begin_race(race, seed)}")
        ended = run(typed.argv)
        if race:
            self._end_race()
        case.log.append(f"exit {ended.code}, {ended.seconds:.2f} s")
        self.codes[ended.code] += 1
        self.commands[command] += 1
        self.raced += bool(race)
        self.patient += patient
        self.longest = max(self.longest, ended, key=lambda one: one.seconds)
        wrong = list(judging.faults(ended))
        try:
            wrong += typed.judge(ended, bool(race))
        except Exception as error:
            wrong.append(Fault("WRONG", f"{command}: {type(error).__name__} as it is looked at"))
        if said := judging.differences(world.canaries, world.survey()):
            wrong.append(Fault("ESCAPE", command, "; ".join(said)))
        if found := world.leaks(began_ns):
            wrong.append(Fault("LEAK", command, ", ".join(map(repr, found[:5]))))
        self._count(case, step, wrong, ended, race)
        # Names of outputs are used again; whoever wants to look has the archive.
        world.clear_outputs()
        if said:
            world.restore_home()

    # --- what is wrong ------------------------------------------------------------------------

    def _new(self, wrong: list[Fault]) -> bool:
        return any(self.faults[fault] < MAX_KEPT for fault in wrong)

    def _place(self, case: Case, step: int) -> Path:
        place = self._found / f"{self.seed}-{case.number}-{step}"
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _count(self, case: Case, step: int, wrong: list[Fault], ended: Ended, race: str) -> None:
        if not wrong:
            return
        new = self._new(wrong)
        for fault in dict.fromkeys(wrong):
            self.faults[fault] += 1
            if self.first.setdefault(fault, f"case {case.number}") and self.faults[fault] == 1:
                print(f"  {fault.kind} {fault.where}: {fault.details[:300]}", flush=True)
                print(f"    case {case.number}: {' | '.join(case.log)[:600]}", flush=True)
        if not (new and self.keeps):
            return
        place = self._place(case, step)
        self.world.keep(place / "after.tar.gz")
        document = {
            "seed": self.seed,
            "case": case.number,
            "step": step,
            "kinds": self._kinds.adversary,
            "commands": self._kinds.victim,
            "log": case.log,
            "faults": [[fault.kind, fault.where, fault.details] for fault in wrong],
            "argv": ended.argv,
            "code": ended.code,
            "seconds": ended.seconds,
            "cpu_s": ended.cpu_s,
            "out": ended.out[-20_000:],
            "err": ended.err[-20_000:],
            "raced": race,
        }
        (place / "case.json").write_text(json.dumps(document, indent=1))
        if not any("meanwhile" in line for line in case.log):
            counted = (self.codes.copy(), self.commands.copy(), self.faults.copy())
            again = Driver(self.world, self.seed, self._kinds, place, self._patient)
            again.keeps = False
            with contextlib.redirect_stdout(io.StringIO()):
                again.run(case.number, stop=step)
            again.close()
            self.world.keep(place / "before.tar.gz")
            self.codes, self.commands, self.faults = counted

    # --- processes ----------------------------------------------------------------------------

    def _begin_race(self, kind: str, seed: float) -> str:
        self._mallory.ask(["race", kind, seed])
        with suppress(Gone):
            if said := self._mallory.answer(ACTS_S):
                return str(said)
            self._mallory.kill()
        return "not begun"

    def _end_race(self) -> None:
        self._mallory.ask(["stop"])
        try:
            if self._mallory.answer(ACTS_S) is None:
                self._mallory.kill()
        except Gone:
            pass

    def _run_forked(self, argv: list[str], *, patient: bool) -> Ended:
        """Run a command in a process that has imported everything and is the victim.

        Args:
            argv: The command.
            patient: Wait for others as long as a process of its own would.
        """
        victim = self._victim
        out, err = self._streams
        victim.ask([argv, patient])
        began, waited, killed = time.monotonic(), victim.waited(), False
        code, cpu_s = 0, 0.0
        try:
            while (answer := victim.answer(KILL_AFTER_S)) is None:
                # A machine may have other things to do.
                if time.monotonic() - began - (victim.waited() - waited) >= KILL_AFTER_S:
                    killed = True
                    os.kill(victim.pid, signal.SIGUSR1)
                    time.sleep(0.5)
                    break
            else:
                code, cpu_s = answer
        except Gone as gone:
            code = gone.code
        seconds = time.monotonic() - began - (victim.waited() - waited if victim.pid else 0)
        if killed or code == 1:
            victim.kill()
            code = code or -signal.SIGKILL
        return Ended(tuple(argv), code, _text(out), _text(err), seconds, cpu_s, killed)

    def _run_real(self, argv: list[str]) -> Ended:
        """Run a command as a process of its own."""
        out, err = (os.memfd_create(name) for name in ("out", "err"))
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "deltastore", *argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=self.world.home,
            env=self._environment | {"PYTHONPATH": str(other_users._copies[-1])},
            user=self.world.victim,
            group=self.world.victim,
            extra_groups=[TEAM],
            umask=0o002,
        )
        ended = _follow(process.pid, tuple(argv), out, err)
        process.returncode = ended.code
        return ended


def _victim_begins(environment: dict[str, str], home: Path, streams: tuple[int, int]) -> Handler:
    """What a process does that runs the victim's commands."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(home)
    os.fsync = lambda _: None
    sqlite.SYNCHRONOUS = "OFF"
    for stream, number in zip(streams, (1, 2), strict=True):
        os.dup2(stream, number)
    usual = [(module, name, getattr(module, name)) for module, name, _ in _WAITS]
    _limit_memory()
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)

    def handle(question: Any, answer: Answer, _more: Callable[[], bool]) -> None:
        argv, patient = question
        for number in (1, 2):
            os.ftruncate(number, 0)
            os.lseek(number, 0, os.SEEK_SET)
        for module, name, seconds in usual if patient else _WAITS:
            setattr(module, name, seconds)
        before = time.process_time()
        try:
            code = deltastore_main(argv)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        answer([code, time.process_time() - before])

    return handle


def _mallory_begins(scene: acts.Scene) -> Handler:
    """What the adversary's process does."""
    os.chdir(scene.own)
    os.nice(2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def handle(question: Any, answer: Answer, more: Callable[[], bool]) -> None:
        match question:
            case ["acts", seeds]:
                answer([_act(kind, seed) for kind, seed in seeds])
            case ["race", kind, seed]:
                draw = random.Random(seed)
                try:
                    race = acts.RACES[kind](draw, scene)
                except Exception as error:
                    answer(f"not begun, {type(error).__name__}: {error}")
                    return
                answer(race.said)
                while not more():
                    with suppress(Exception):
                        race.step(draw)
                    time.sleep(0.0005)
            case ["stop"]:
                answer("stopped")

    def _act(kind: str, seed: float) -> str:
        try:
            return f"{kind}: {acts.ACTS[kind](random.Random(seed), scene)}"
        except Exception as error:
            return f"{kind}: not done, {type(error).__name__}: {error}"

    return handle


def _follow(pid: int, argv: tuple[str, ...], out: int, err: int) -> Ended:
    """Wait for a command; kill it where it does not end, and have it say where it was."""
    began, killed = time.monotonic(), False
    descriptor = os.pidfd_open(pid)
    try:
        while not select.select([descriptor], [], [], KILL_AFTER_S)[0]:
            if _own_seconds(pid, began) < KILL_AFTER_S:
                continue  # a machine that has other things to do
            killed = True
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.5)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            break
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        seconds = _own_seconds(pid, began)
        _, status, used = os.wait4(pid, 0)
    finally:
        os.close(descriptor)
    code = os.waitstatus_to_exitcode(status)
    cpu = used.ru_utime + used.ru_stime
    ended = Ended(argv, code, _text(out), _text(err), seconds, cpu, killed)
    for memory in (out, err):
        os.close(memory)
    return ended


def _text(memory: int) -> str:
    """What was written into a file of memory."""
    return os.pread(memory, 1 << 25, 0).decode("utf-8", "backslashreplace")


def _own_seconds(pid: int, began: float) -> float:
    """How long a process has run, without what it waited for a processor."""
    waited = 0.0
    with suppress(OSError, IndexError, ValueError):
        waited = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return time.monotonic() - began - waited


_WAITS = (
    (sqlite, "BUSY_TIMEOUT_S", 0.5),
    (claims, "WAIT_S", 0.3),
    (leases, "GATE_WAIT_S", 0.3),
    (collecting, "DRAIN_S", 0.05),
)
"""How long commands wait for others that are made up, where they are not to wait as usual."""


def _limit_memory() -> None:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, now + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _tokens() -> dict[str, str]:
    """Tokens of processes: one that has ended, one that runs, and others that cannot be asked."""
    mine = owner_token()
    machine, boot, space = mine[:8], mine[8:16], mine[16:24]
    return {
        "dead": f"{machine}{boot}{space}-4194999-1",
        "alive": mine,
        "rebooted": f"{machine}{'b' * 8}{space}-1-1",
        "elsewhere": f"{'a' * 24}-1-1",
        "unknown": f"{'0' * 24}-1-0",
        "none": "old",
    }


def _environment(world: World) -> dict[str, str]:
    """The victim's."""
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": str(world.home),
        "XDG_CACHE_HOME": str(world.home / ".cache"),
        "NUMBA_CACHE_DIR": str(world.home / ".cache" / "numba"),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(world.work),
    }


def _can_run_python(world: World) -> bool:
    """Whether the victim may run this Python, and import the package, in a process of its own."""
    with suppress(OSError):
        ended = subprocess.run(
            [sys.executable, "-c", "import deltastore.cli.main, numpy"],
            user=world.victim,
            group=world.victim,
            extra_groups=[TEAM],
            cwd="/",
            env=_environment(world) | {"PYTHONPATH": str(other_users._copies[-1])},
            capture_output=True,
            check=False,
        )
        return ended.returncode == 0
    return False


# --- the run ------------------------------------------------------------------------------------


def summary(driver: Driver, seconds: float) -> Iterator[str]:
    """What was done and what was found."""
    steps = sum(driver.commands.values())
    yield (
        f"{steps} commands in {seconds:.0f} s, {steps / max(seconds, 1e-9):.1f} a second; "
        f"{driver.raced} raced, {driver.patient} as patient as ever"
    )
    yield "commands: " + ", ".join(f"{n} {what}" for what, n in driver.commands.most_common())
    yield "exit codes: " + ", ".join(f"{n} x {c}" for c, n in sorted(driver.codes.items()))
    longest = driver.longest
    if longest.argv:
        yield (
            f"longest: {judging.command(longest.argv)}, {longest.seconds:.1f} s, "
            f"{longest.cpu_s:.1f} s of them computing"
        )
    for fault, count in driver.faults.most_common():
        yield f"{count:6} {fault.kind} {fault.where} (first: {driver.first[fault]})"


def main() -> int:
    """Parse, run, report."""
    kinds = [*acts.ACTS, *acts.RACES]
    parser = argparse.ArgumentParser(
        prog="scripts/adversary",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="how long [60]")
    parser.add_argument("--seed", type=int, default=None, help="for the same acts and commands")
    parser.add_argument(
        "--as-users",
        nargs=2,
        type=int,
        default=(other_users.ANN, other_users.BOB),
        metavar=("UID1", "UID2"),
        help=f"the victim and the adversary [{other_users.ANN} {other_users.BOB}]",
    )
    parser.add_argument(
        "--kinds", default=",".join(kinds), metavar="A,B,…", help=f"of: {', '.join(kinds)} [all]"
    )
    parser.add_argument(
        "--commands",
        default=",".join(COMMANDS),
        metavar="A,B,…",
        help=f"of: {', '.join(COMMANDS)} [all]",
    )
    parser.add_argument("--case", type=int, default=None, metavar="N", help="only this one")
    parser.add_argument("--found", type=Path, default=Path(".adversary"), help="for what fails")
    parser.add_argument(
        "--patient", type=float, default=0.02, metavar="SHARE", help="of all commands [0.02]"
    )
    chosen = parser.parse_args()
    chosen_kinds = Kinds(chosen.kinds.split(","), chosen.commands.split(","))
    unknown = {*chosen_kinds.adversary} - {*kinds} | {*chosen_kinds.victim} - {*COMMANDS}
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        print("skipped: only root can be two other users")
        return SKIPPED
    seed = random.randrange(10**6) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    try:
        with readable_package(), public_directory() as directory:
            try:
                return _run(chosen, directory, seed, chosen_kinds)
            finally:
                for path in directory.iterdir():
                    remove(path)
    except (pytest.skip.Exception, PermissionError) as error:
        print(f"skipped: {error}")
        return SKIPPED


def _run(chosen: argparse.Namespace, directory: Path, seed: int, kinds: Kinds) -> int:
    world = World(directory, *chosen.as_users)
    world.prepare(run_as)
    driver = Driver(world, seed, kinds, chosen.found.absolute(), chosen.patient)
    began = time.monotonic()
    if chosen.case is not None:
        case = driver.run(chosen.case)
        print("\n".join(case.log))
    else:
        number = 0
        while time.monotonic() - began < 60 * chosen.minutes:
            driver.run(number)
            number += 1
    driver.close()
    print("\n".join(summary(driver, time.monotonic() - began)))
    if driver.faults:
        print(f"failed; each with its first cases is in {driver._found}", file=sys.stderr)
        print("one again: scripts/adversary --seed SEED --case N --kinds KINDS", file=sys.stderr)
        return 1
    print("nothing found")
    return 0


def _unwanted() -> None:
    """Forget the settings of whoever runs this."""
    for name in ("DELTASTORE_CONFIG", "DELTASTORE_INDEX", "DELTASTORE_STORE", "COLUMNS"):
        os.environ.pop(name, None)


if __name__ == "__main__":
    tempfile.tempdir = None
    _unwanted()
    sys.exit(main())
