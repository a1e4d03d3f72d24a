"""One triple of checkpoints, measured and checked."""

import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmark.measure import Usage, measure
from benchmark.oracle import joint_entropy, same_bits, wrong_elements
from benchmark.peers import mergekit_command, write_recipe
from benchmark.shards import read_tensors
from benchmark.synthetic import Recipe
from benchmark.turns import Command, take_turns

NAME = "bench"


@dataclass(frozen=True, slots=True)
class Case:
    """What was found on one triple.

    Attributes:
        recipe: what the checkpoints were made from.
        elements: the elements of one checkpoint.
        raw_bytes: the size of post's tensors.
        stored_bytes: the size of the artifact.
        bits_per_weight: as the tool reports it.
        joint_entropy: its floor, in bits per weight.
        restored: whether applying to base gives post, bit for bit.
        wrong: elements of the new model that differ from the float32 expression, by command.
        usages: the timed runs by command; empty where only the size was of interest.
    """

    recipe: Recipe
    elements: int
    raw_bytes: int
    stored_bytes: int
    bits_per_weight: float
    joint_entropy: float
    restored: bool
    wrong: dict[str, int]
    usages: dict[str, list[Usage]]

    @property
    def overhead(self) -> float:
        """How much more is stored than the floor, as a fraction."""
        return self.bits_per_weight / self.joint_entropy - 1

    def median_s(self, command: str) -> float:
        """The median wall time of a command, in seconds."""
        return statistics.median(usage.wall_s for usage in self.usages[command])

    def ratio(self, command: str) -> float:
        """The median wall time of a command in terms of `cp`'s."""
        return self.median_s(command) / self.median_s("cp")

    def peak_mb(self, command: str) -> float:
        """The highest peak of resident memory over all runs, in 10^6 bytes."""
        return max(usage.peak_bytes for usage in self.usages[command]) / 1e6


def deltastore_argv(program: Path, store: Path, *words: str | Path) -> list[str]:
    """A command line of the tool under test that prints JSON."""
    return [str(program), "--store", str(store), *map(str, words), "--json"]


def run_case(
    recipe: Recipe,
    triple: Path,
    *,
    deltastore: Path,
    mergekit: Path | None,
    runs: int,
    scratch: Path,
    env: dict[str, str],
) -> Case:
    """Check what the tool makes of a triple, then time it.

    Args:
        recipe: what the triple was made from.
        triple: the directory of base, post and new-base.
        deltastore: the program under test.
        mergekit: an environment that has it, to be measured as well.
        runs: timed rounds; with 0 the results are only checked.
        scratch: an empty directory on the file system to measure.
        env: variables to set for every command.

    Raises:
        CommandFailedError: a command exited with an error.
    """
    base, post, new_base = (triple / name for name in ("base", "post", "new-base"))
    store, output = scratch / "store", scratch / "stdout"
    wrong: dict[str, int] = {}

    def extract(into: Path) -> list[str]:
        words = ("--base", base, "--post", post, "--name", NAME)
        return deltastore_argv(deltastore, into, "extract", *words)

    def apply(onto: Path, out: Path) -> list[str]:
        return deltastore_argv(deltastore, store, "apply", NAME, "--base", onto, "--out", out)

    def count_wrong(command: str) -> Callable[[Path], None]:
        def check(out: Path) -> None:
            wrong[command] = wrong_elements(out, new_base, base, post)

        return check

    measure(extract(store), output=output, env=env)
    extracted = json.loads(output.read_text())
    measure(apply(base, scratch / "restored"), output=output, env=env)
    restored = same_bits(scratch / "restored", post)
    shutil.rmtree(scratch / "restored")

    commands = [
        Command("cp", lambda out: ["cp", "-r", str(new_base), str(out)]),
        Command("extract", extract, env=env),
        Command("apply", lambda out: apply(new_base, out), count_wrong("apply"), env),
        Command("verify", lambda _: deltastore_argv(deltastore, store, "verify"), env=env),
    ]
    if mergekit:
        environment, steps = mergekit, scratch / "recipe.yaml"
        write_recipe(steps, new_base=new_base, base=base, post=post)
        commands.append(
            Command(
                "mergekit",
                lambda out: mergekit_command(environment, steps, out),
                count_wrong("mergekit"),
                env,
            )
        )
    usages = take_turns(commands, runs=runs, scratch=scratch)
    shutil.rmtree(store)
    return Case(
        recipe=recipe,
        elements=sum(tensor.size for tensor in read_tensors(post).values()),
        raw_bytes=extracted["raw_bytes"],
        stored_bytes=extracted["stored_bytes"],
        bits_per_weight=extracted["bits_per_weight"],
        joint_entropy=joint_entropy(base, post),
        restored=restored,
        wrong=wrong,
        usages=usages if runs else {},
    )
