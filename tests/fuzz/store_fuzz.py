"""Mutates a store's database and small files, and has every command look at it.

    scripts/fuzz_store [--cases N] [--seed N] [--only CASE] [--from CASE]

A case is a store in which one to three things are changed: a column of a row by storage class,
rows, the schema, bytes of ``catalog.db`` or of the user's own index, or a record, tombstone, tag,
lease, claim, ``store.json`` or ``local-index``. Commands then run on it in this process, as on a
command line. Each must end as docs/cli.md says, in 5 seconds; nothing outside the store may change;
an output is there only if the command succeeded, and then its bytes are right. A case is the same
whenever its seed and number are.

Where a command does not end, the process that runs it is killed, and another goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import judging
import tiny
from judging import Ended, Fault
from store_mutations import mutate_database, mutate_document

import deltastore
from deltastore.blobs.owner import owner_token
from deltastore.catalog import sqlite
from deltastore.cli.completion import complete_ref
from deltastore.cli.main import main as deltastore_main
from deltastore.store import claims, collecting, leases

MAX_COMMAND_S = 5.0
HANG_S = 12.0
"""How long a command may compute; and how often as long it may wait, as on a busy machine."""

_STARVED = 5
MEMORY_BYTES = 2 << 30


# --- the store ---------------------------------------------------------------------------------


class World:
    """A directory with two checkpoints, a store with what is mutated, and what is outside."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.index = directory / "index"
        self.out = directory / "out"
        self.outside = [directory / name for name in ("home", "base", "post", "new")]
        self.digests: list[str] = []
        self._files: dict[Path, bytes] = {}

    def prepare(self) -> None:
        """Make everything, and keep the store's bytes."""
        (self.directory / "home").mkdir()
        (self.directory / "home" / "notes.json").write_text("{}")
        base = tiny.make_base(1)
        posts = [tiny.trained(base, seed) for seed in (2, 3)]
        tiny.save(self.directory / "base", base, README__md="# base\n")
        for name, tensors in zip(("post", "new"), posts, strict=True):
            tiny.save(self.directory / name, tensors, chat_template__jinja="{{ messages }}")
        # Files that changed within two seconds are not remembered.
        time.sleep(2.1)
        self.expected = tiny.expected(base, base, posts[0])
        with deltastore.open(self.store) as store:
            for name, tags in (("w", ("prod", "best")), ("x", ())):
                made = store.extract(
                    self.directory / "base", self.directory / "post", name=name, tags=tags, jobs=1
                )
                self.digests.append(made.digest)
            store.extract(self.directory / "base", self.directory / "new", name="x", jobs=1)
            store.rm("x:v2")
            store.extract(self.directory / "base", self.directory / "new", name="x", jobs=1)
        with deltastore.open(self.store, index=str(self.index)) as store:
            store.list()
        (self.store / "local-index").unlink()
        for place in (self.store, self.index):
            for path in place.rglob("*"):
                if path.is_file():
                    self._files[path] = path.read_bytes()
        # What is imported late, and kernels, are loaded before anything is measured.
        looking, changing = _commands(self, random.Random(0))
        for argv in looking + changing:
            _run(self, argv)
            shutil.rmtree(self.out, ignore_errors=True)

    def reset(self) -> None:
        """Have the store as it was."""
        for place in (self.store, self.index):
            shutil.rmtree(place)
        for name in ("tmp", "leases", "names", "blobs/sha256"):
            (self.store / name).mkdir(parents=True)
        self.index.mkdir()
        for path, data in self._files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


# --- what is mutated ---------------------------------------------------------------------------


def _mutate(world: World, draw: random.Random, *, local: bool) -> str:
    if draw.random() < 0.6:
        if local:
            return "index " + mutate_database(draw, draw.choice(list(world.index.glob("*.db"))))
        return mutate_database(draw, world.store / "catalog.db")
    kind = draw.choice(list(_SMALL))
    path, data = _SMALL[kind](world, draw)
    changed = mutate_document(draw, data)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(changed)
    return f"{kind} {path.name}: {changed[:60]!r}"


def _record(world: World, draw: random.Random) -> tuple[Path, bytes]:
    path = draw.choice(sorted(world.store.glob("names/*/v*.json")))
    return path, path.read_bytes()


def _new_record(world: World, draw: random.Random) -> tuple[Path, bytes]:
    """A version, or something like one, that is not there."""
    path, data = _record(world, draw)
    name = draw.choice(_VERSIONS)
    number = name[1:-5]
    if number.isdecimal():
        # An earlier change may have left no document of it.
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            document = json.loads(data)
            document["version"] = int(number[:300])
            data = json.dumps(document).encode()
    return path.with_name(name), data


_VERSIONS = (
    "v2.json",
    "v9.json",
    "v999999999.json",
    "v9223372036854775807.json",
    "v9223372036854775808.json",
    f"v{'9' * 200}.json",
    "v0.json",
    "v01.json",
    "v-1.json",
    "v1.json.json",
    "V1.json",
    "v١.json",
    "v²3.json",
    "v1\n.json",
    "\udcff.json",
)


def _tag(world: World, draw: random.Random) -> tuple[Path, bytes]:
    path = draw.choice(sorted(world.store.glob("names/*/tags/*.json")))
    data = path.read_bytes()
    name = draw.choice((path.name, path.name, "new.json", "v1.json", "PROD.json", "-q.json", "a b"))
    return path.with_name(name), data


def _lease(world: World, draw: random.Random) -> tuple[Path, bytes]:
    document = {
        "purpose": draw.choice(("extract", "tag", "gc", "rm", "\x1b[2J", "other")),
        "name": draw.choice(("w", "x", None, "../w", "nothing")),
        "host": "elsewhere",
        "pid": draw.choice((1, 999_999, os.getpid())),
        "created": "2025-01-31T12:00:00.000000Z",
    }
    return world.store / "leases" / f"{_token(draw)}-0-abcd.json", json.dumps(document).encode()


def _claim(world: World, draw: random.Random) -> tuple[Path, bytes]:
    name = draw.choice(("w.v1", "x.v1", "x.v3", "w.v999999999", "nothing.v1", "odd"))
    return world.store / "leases" / f"{name}.rm", _token(draw).encode()


def _token(draw: random.Random) -> str:
    """Of this process, of one that is dead, on this machine or elsewhere; or of none."""
    mine = owner_token()
    return draw.choice(
        (mine, f"{mine[:24]}-4194999-1", f"{'0' * 24}-1-1", f"{'a' * 24}-1-1", "none", f"{mine}9")
    )


def _temporary(world: World, draw: random.Random) -> tuple[Path, bytes]:
    return world.store / "tmp" / f"{_token(draw)}-0-abcd", b"{}"


_SMALL: dict[str, Callable[[World, random.Random], tuple[Path, bytes]]] = {
    "record": _record,
    "other record": _record,
    "new record": _new_record,
    "tag": _tag,
    "lease": _lease,
    "claim": _claim,
    "temporary": _temporary,
    "store.json": lambda world, _: (
        world.store / "store.json",
        (world.store / "store.json").read_bytes(),
    ),
    "local-index": lambda world, _: (world.store / "local-index", b"Every user has one.\n"),
}


# --- what is run -------------------------------------------------------------------------------


def _commands(world: World, draw: random.Random) -> tuple[list[list[str]], list[list[str]]]:
    """All commands once: those that look, and those that change the store."""
    base = ["--base", str(world.directory / "base")]
    ref = draw.choice(("w", "w:v1", "w:prod", "x", "x:v1", world.digests[0], world.digests[0][:15]))
    looking = [
        ["list"],
        ["list", "--json"],
        ["list", "-q"],
        ["show", ref],
        ["show", ref, "--json"],
        ["resolve", *base],
        ["verify"],
        ["verify", "--quick", ref],
        ["doctor"],
        ["du"],
        ["gc", "--dry-run"],
        ["apply", ref, *base, "--out", str(world.out), "--dry-run"],
        ["apply", world.digests[0], *base, "--out", str(world.out), "--jobs", "1"],
        ["compare", ref, "x:v3", "--jobs", "1"],
        ["complete", draw.choice(("", "w:", "x:v"))],
    ]
    changing = [
        ["extract", *base, "--post", str(world.directory / "new"), "--name", "w", "--jobs", "1"],
        ["extract", *base, "--post", str(world.directory / "post"), "--tag", "t", "--jobs", "1"],
        ["tag", ref, "fresh"],
        ["untag", "w", "prod"],
        ["rm", ref],
        ["gc", "--grace", "0"],
        ["reindex"],
        ["migrate"],
    ]
    return looking, changing


def _run(world: World, argv: list[str]) -> Ended:
    """Run a command line here; what a bug prints shows in what it says."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    waited, began, cpu = _waited(), time.monotonic(), time.process_time()
    with redirect_stdout(out), redirect_stderr(err):
        if argv[0] == "complete":
            code = _complete(world, argv[1])
        else:
            code = deltastore_main([*argv, "--store", str(world.store)])
    seconds = time.monotonic() - began - (_waited() - waited)
    texts = []
    for stream in (out, err):
        stream.flush()
        data = stream.detach().getvalue()
        texts.append(data.decode("utf-8", "backslashreplace"))
    return Ended(tuple(argv), code, texts[0], texts[1], seconds, time.process_time() - cpu)


def _complete(world: World, begun: str) -> int:
    import click

    from deltastore.cli.session import Session

    with click.Context(click.Command("list"), obj=Session(store=str(world.store))) as context:
        for ref in complete_ref(context, click.Argument(["ref"]), begun):
            print(ref)
    return 0


def _waited() -> float:
    """How many seconds this thread has waited for a processor so far."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


# --- cases ---------------------------------------------------------------------------------------


@dataclass
class Case:
    """A case and what was found: which changes, which command, what was wrong with it."""

    number: int
    changes: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    found: list[tuple[list[str], Fault]] = field(default_factory=list)


def run_case(
    world: World, seed: int, number: int, *, told: Callable[[Case, list[str]], None]
) -> Case:
    """Make a case, run commands on it, look at what they did.

    Args:
        world: Where.
        seed: Of all cases.
        number: Of this one.
        told: Called before each command.
    """
    draw = random.Random(f"{seed} {number}")
    case = Case(number)
    world.reset()
    local = draw.random() < 0.15
    os.environ.pop("DELTASTORE_INDEX", None)
    if local:
        os.environ["DELTASTORE_INDEX"] = str(world.index)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        case.changes.append(_mutate(world, draw, local=local))
    before = judging.survey(world.outside)
    looking, changing = _commands(world, draw)
    for argv in [*draw.sample(looking, 4), *draw.sample(changing, 1)]:
        told(case, argv)
        ended = _run(world, argv)
        case.codes.append(ended.code)
        wrong = list(judging.faults(ended))
        if ended.seconds > MAX_COMMAND_S:
            wrong.append(
                Fault("SLOW", argv[0], f"{ended.seconds:.1f} s, {ended.cpu_s:.1f} computing")
            )
        wrong += _judge_complete(ended)
        wrong += _judge_output(world, ended)
        after = judging.survey(world.outside)
        if said := judging.differences(before, after):
            wrong.append(Fault("ESCAPE", argv[0], "; ".join(said)))
            before = after
        case.found += [(argv, fault) for fault in wrong]
    return case


def _judge_complete(ended: Ended) -> Iterator[Fault]:
    if ended.argv[0] == "complete":
        for line in ended.out.splitlines():
            if (
                not line.replace(":", "", 1)
                .replace(".", "")
                .replace("_", "")
                .replace("-", "")
                .isalnum()
            ):
                yield Fault("RAW", "complete: no ref", repr(line[:200]))
                return


def _judge_output(world: World, ended: Ended) -> Iterator[Fault]:
    what = judging.command(ended.argv)
    made = sorted(path.name for path in world.directory.glob("*out*"))
    try:
        if what == "apply" and ended.code == 0:
            if tiny.read(world.out) != world.expected:
                yield Fault("WRONG", "apply")
        elif made:
            yield Fault("LEFT", what, ", ".join(made))
    finally:
        for name in made:
            shutil.rmtree(world.directory / name, ignore_errors=True)


# --- processes ------------------------------------------------------------------------------------


def _work(world: World, seed: int, numbers: range, pipe: int) -> None:
    """Run cases, and say through ``pipe`` which, a line of JSON each."""

    def say(document: dict[str, Any]) -> None:
        os.write(pipe, json.dumps(document).encode() + b"\n")

    def told(case: Case, argv: list[str]) -> None:
        say({"number": case.number, "changes": case.changes, "argv": argv})

    for number in numbers:
        case = run_case(world, seed, number, told=told)
        say({"codes": case.codes})
        for argv, fault in case.found:
            say(
                {
                    "number": number,
                    "changes": case.changes,
                    "argv": argv,
                    "fault": [fault.kind, fault.where, fault.details],
                }
            )
    say({"done": True})


class Findings:
    """What was found, each kind with its first case."""

    def __init__(self) -> None:
        self.counts: Counter[Fault] = Counter()
        self.codes: Counter[int] = Counter()
        self.first: dict[Fault, dict[str, Any]] = {}

    def add(self, fault: Fault, at: dict[str, Any]) -> None:
        """Count a fault."""
        self.counts[fault] += 1
        if self.first.setdefault(fault, at) is at:
            print(f"  {fault.kind} {fault.where} {fault.details[:300]}", flush=True)

    def summary(self) -> Iterator[str]:
        """A line per kind, the commonest first."""
        for fault, count in self.counts.most_common():
            at = self.first[fault]
            yield (
                f"{count:6} {fault.kind} {fault.where} {fault.details[:200]}\n"
                f"       first: case {at['number']}, {' '.join(at['argv'])[:100]}; "
                f"{' | '.join(at['changes'])[:300]}"
            )


def drive(world: World, seed: int, numbers: range, findings: Findings) -> None:
    """Run cases in a process of their own; where it does not go on, in another one."""
    begin = numbers.start
    while begin < numbers.stop:
        reading, writing = os.pipe()
        dump = world.directory / "stack"
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _limit(dump)
            status = 1
            try:
                _work(world, seed, range(begin, numbers.stop), writing)
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writing)
        begin = _follow(pid, reading, dump, findings, begin)
        os.close(reading)


def _computed_s(pid: int) -> float:
    """How many seconds of processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _follow(pid: int, reading: int, dump: Path, findings: Findings, begin: int) -> int:
    """Read what a process says until it ends or stops saying anything; where to go on."""
    last: dict[str, Any] = {"number": begin, "argv": ["nothing"], "changes": []}
    buffer = b""
    computed, silent = _computed_s(pid), 0
    while True:
        ready, _, _ = select.select([reading], [], [], HANG_S)
        silent = 0 if ready else silent + 1
        if not ready and silent < _STARVED and _computed_s(pid) - computed < HANG_S / 2:
            continue
        if ready:
            computed = _computed_s(pid)
        else:
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            stack = dump.read_text() if dump.exists() else ""
            frames = [line.strip() for line in stack.splitlines() if line.startswith("  File")]
            own = [line for line in frames if "deltastore/" in line]
            where = own[0].rpartition("deltastore/")[2] if own else " < ".join(frames[:3]) or "?"
            findings.add(Fault("HANG", f"{judging.command(last['argv'])}: {where}"), last)
            return int(last["number"]) + 1
        data = os.read(reading, 1 << 16)
        if not data:
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            findings.add(Fault("SIGNAL", f"{judging.command(last['argv'])}: {code}"), last)
            return int(last["number"]) + 1
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "done" in said:
                os.waitpid(pid, 0)
                return sys.maxsize
            if "codes" in said:
                findings.codes.update(said["codes"])
            elif "fault" in said:
                findings.add(Fault(*said["fault"]), said)
            else:
                last = said


def _limit(dump: Path) -> None:
    """Bound this process's memory, and have it say where it is on SIGUSR1."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, now + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.register(signal.SIGUSR1, file=open(dump, "w"), all_threads=False)  # noqa: SIM115


def _hurry() -> None:
    """Wait for nobody: who is waited for here is made up."""
    os.fsync = lambda _: None
    for module, name, seconds in (
        (sqlite, "BUSY_TIMEOUT_S", 0.2),
        (claims, "WAIT_S", 0.05),
        (leases, "GATE_WAIT_S", 0.05),
        (collecting, "DRAIN_S", 0.02),
    ):
        assert hasattr(module, name), name
        setattr(module, name, seconds)
    sqlite.SYNCHRONOUS = "OFF"


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz_store",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=20_000, metavar="N", help="[20000]")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="for the same cases")
    parser.add_argument("--from", dest="begin", type=int, default=0, metavar="N", help="[0]")
    parser.add_argument("--only", type=int, metavar="N", help="one case, and keep its directory")
    chosen = parser.parse_args()
    seed = random.randrange(10**6) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="fuzz-store-"))
    for name in ("DELTASTORE_CONFIG", "DELTASTORE_STORE", "DELTASTORE_INDEX", "COLUMNS"):
        os.environ.pop(name, None)
    home = str(directory / "home")
    os.environ |= {"HOME": home, "DELTASTORE_HOME": f"{home}/store", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"XDG_CACHE_HOME": str(directory / "cache"), "NO_COLOR": "1"}
    _hurry()
    world = World(directory)
    world.prepare()
    findings = Findings()
    if chosen.only is not None:
        case = run_case(world, seed, chosen.only, told=lambda _, argv: print(" ".join(argv)))
        for change in case.changes:
            print(change)
        for argv, fault in case.found:
            findings.add(fault, {"number": chosen.only, "argv": argv, "changes": case.changes})
        print(f"kept in {directory}")
        return 1 if findings.counts else 0
    began = time.monotonic()
    numbers = range(chosen.begin, chosen.begin + chosen.cases)
    try:
        drive(world, seed, numbers, findings)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    took = time.monotonic() - began
    print(f"{len(numbers)} cases in {took:.0f} s, {len(numbers) / took:.1f} a second")
    codes = ", ".join(f"{count} x {code}" for code, count in sorted(findings.codes.items()))
    print(f"exit codes: {codes}")
    for line in findings.summary():
        print(line)
    if findings.counts:
        print(f"failed; one again: scripts/fuzz_store --seed {seed} --only CASE", file=sys.stderr)
        return 1
    print("no findings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
