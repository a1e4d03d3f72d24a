"""What the victim types, and what its commands must have given.

Right answers: an artifact that either user extracted is known by its digest, and so are the bytes
of its outputs, by arithmetic that shares nothing with the package. Who names a digest must get that
artifact. Who names a name, a version or a tag gets what the adversary may have put there, as a
member of the group publishes, tags and removes: any known artifact is an answer, if the output's
``deltastore.json`` names its digest, and the bytes are that artifact's. A digest that nobody
extracted is no answer.

An output in the shared directory belongs to a group that may write to it: its bytes are judged only
where nothing of the adversary's runs meanwhile. An output in a directory of the victim's is judged
always.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import judging
import tiny
from judging import Ended, Fault
from world import World, small_files

Judge = Callable[[Ended, bool], Iterator[Fault]]


@dataclass(frozen=True)
class Typed:
    """A command of the victim's: its arguments, and who judges it, told whether it was raced."""

    argv: list[str]
    judge: Judge


def draw_command(draw: random.Random, world: World, kinds: Sequence[str]) -> Typed:
    """A command of one of these kinds at random."""
    kind = draw.choices(kinds, [COMMANDS[kind][0] for kind in kinds])[0]
    typed = COMMANDS[kind][1](draw, world)
    return Typed([*typed.argv, "--store", str(world.store)], typed.judge)


def _ref(draw: random.Random, world: World) -> str:
    digest = draw.choice([known.digest for known in world.known.values()])
    return draw.choice(
        ("w", "w:v1", "w:v2", "w:prod", "w:new", "x", "x:best", "evil", digest, digest, digest[:20])
    )


def _unjudged(_ended: Ended, _raced: bool) -> Iterator[Fault]:
    yield from ()


def _plain(*argv: str) -> Callable[[random.Random, World], Typed]:
    return lambda _draw, _world: Typed(list(argv), _unjudged)


def _about(*argv: str) -> Callable[[random.Random, World], Typed]:
    return lambda draw, world: Typed([argv[0], _ref(draw, world), *argv[1:]], _unjudged)


def _apply(draw: random.Random, world: World) -> Typed:
    new, ref = draw.choice("ab"), _ref(draw, world)
    shared = draw.random() < 0.35
    out = (world.shared if shared else world.work) / "out"
    argv = ["apply", ref, "--base", str(world.home / "models" / new), "--out", str(out)]
    argv += ["--jobs", draw.choice("12"), "-q"]

    def judge(ended: Ended, raced: bool) -> Iterator[Fault]:
        if shared and raced:
            return
        if ended.code == 0:
            yield from _judge_output(world, out, ref, new)
        elif not shared:
            yield from _judge_nothing(world, ended)

    return Typed(argv, judge)


def _judge_output(world: World, out: Path, ref: str, new: str) -> Iterator[Fault]:
    if not out.is_dir():
        yield Fault("WRONG", "apply: no output")
        return
    try:
        said = json.loads((out / "deltastore.json").read_bytes())["deltas"][0]["digest"]
        found, files = tiny.read(out), small_files(out)
    except Exception as error:
        yield Fault("WRONG", f"apply: an output that cannot be read: {type(error).__name__}")
        return
    known = world.known.get(said)
    if known is None:
        yield Fault("WRONG", "apply: an artifact that nobody extracted", said)
        return
    if ref.startswith("sha256:") and not said.startswith(ref):
        yield Fault("WRONG", "apply: another artifact than was named", f"{said} for {ref}")
    if found != known.outputs[new]:
        yield Fault("WRONG", "apply: bytes of tensors", f"{said} on {new}")
    if files != known.files[new]:
        differ = {
            name
            for name in files | known.files[new]
            if files.get(name) != known.files[new].get(name)
        }
        yield Fault("WRONG", "apply: small files", f"{said} on {new}: {sorted(differ)}")
    yield from _judge_owner(world, out, "apply")


def _judge_owner(world: World, out: Path, what: str) -> Iterator[Fault]:
    """A file of somebody else's in an output can still be changed by its owner."""
    for path, owner in judging.owner_names(out):
        if owner != world.victim:
            yield Fault("OWNER", f"{what}: another's file in the output", str(path))
            return


def _judge_nothing(world: World, ended: Ended) -> Iterator[Fault]:
    if not ended.killed and ended.code >= 0 and (left := sorted(world.work.iterdir())):
        names = [re.sub(r"[0-9a-f]{6,}|\d{3,}", "N", path.name) for path in left]
        yield Fault("LEFT", f"{judging.command(ended.argv)}: {', '.join(names)}", str(ended.err))


def _dry(draw: random.Random, world: World) -> Typed:
    typed = _apply(draw, world)

    def judge(ended: Ended, _raced: bool) -> Iterator[Fault]:
        yield from _judge_nothing(world, ended)

    return Typed([*typed.argv, "--dry-run"], judge)


def _extract(draw: random.Random, world: World) -> Typed:
    post = draw.choice("pqrr")
    models = world.home / "models"
    argv = ["extract", "--base", str(models / "a"), "--post", str(models / post)]
    argv += ["--name", draw.choice(("w", "x", "fresh", "evil")), "--jobs", "1", "--json"]

    def judge(ended: Ended, _raced: bool) -> Iterator[Fault]:
        if ended.code == 0:
            digest = json.loads(ended.out)["digest"]
            if digest != world.pairs["a", post].digest:
                yield Fault("WRONG", "extract: another artifact", f"{digest} for {post}")

    return Typed(argv, judge)


def _export(draw: random.Random, world: World) -> Typed:
    out = world.work / "out"

    def judge(ended: Ended, _raced: bool) -> Iterator[Fault]:
        if ended.code != 0:
            yield from _judge_nothing(world, ended)
            return
        for path in (out / "blobs" / "sha256").iterdir():
            if path.is_symlink() or hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
                yield Fault("WRONG", "export: a blob", str(path))
        yield from _judge_owner(world, out, "export")

    return Typed(["export", _ref(draw, world), str(out)], judge)


def _verify(_draw: random.Random, world: World) -> Typed:
    def judge(ended: Ended, raced: bool) -> Iterator[Fault]:
        if ended.code == 0 and not raced and not world.sound():
            yield Fault("WRONG", "verify: content with a damaged store")

    return Typed(["verify", "--jobs", "1"], judge)


def _resolve(draw: random.Random, world: World) -> Typed:
    return Typed(["resolve", "--base", str(world.home / "models" / draw.choice("ab"))], _unjudged)


def _compare(draw: random.Random, world: World) -> Typed:
    return Typed(["compare", _ref(draw, world), _ref(draw, world), "--jobs", "1"], _unjudged)


COMMANDS: dict[str, tuple[float, Callable[[random.Random, World], Typed]]] = {
    "list": (2, _plain("list")),
    "list --json": (0.5, _plain("list", "--json")),
    "list -q": (1, _plain("list", "-q")),
    "show": (1, _about("show")),
    "apply": (5, _apply),
    "apply --dry-run": (0.5, _dry),
    "extract": (2, _extract),
    "export": (1.5, _export),
    "verify": (2, _verify),
    "verify --quick": (0.5, _plain("verify", "--quick")),
    "tag": (1, _about("tag", "mine")),
    "untag": (0.5, _plain("untag", "w", "prod")),
    "rm": (1, _about("rm")),
    "gc": (1, _plain("gc")),
    "gc --grace 0": (1.5, _plain("gc", "--grace", "0")),
    "gc --dry-run": (0.5, _plain("gc", "--dry-run")),
    "reindex": (1, _plain("reindex")),
    "doctor": (1, _plain("doctor")),
    "du": (0.5, _plain("du")),
    "resolve": (1, _resolve),
    "compare": (0.5, _compare),
    "migrate": (0.3, _plain("migrate")),
}
