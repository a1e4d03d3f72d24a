"""A store with many artifacts, and the time to list it."""

import json
from pathlib import Path

from benchmark.case import deltastore_argv
from benchmark.measure import Usage, measure
from benchmark.synthetic import Recipe, make_triple

PAIRS = 20
PAIR_GB = 0.001


def time_listing(
    deltastore: Path, *, artifacts: int, runs: int, scratch: Path, env: dict[str, str]
) -> list[Usage]:
    """Fill a store and list it, once untimed and then `runs` times.

    Raises:
        CommandFailedError: a command exited with an error.
        ValueError: `list` did not print every artifact.
    """
    store, output = scratch / "listed", scratch / "stdout"

    def run(*words: str | Path) -> Usage:
        return measure(deltastore_argv(deltastore, store, *words), output=output, env=env)

    for number in range(min(PAIRS, artifacts)):
        pair = scratch / f"pair-{number}"
        make_triple(pair, Recipe(PAIR_GB, seed=number), jobs=1)
        name = f"name-{number}"
        run("extract", "--base", pair / "base", "--post", pair / "post", "--name", name)
    _copy_records(store / "names", artifacts)
    run("reindex")
    usages = [run("list") for _ in range(runs + 1)]
    listed = len(json.loads(output.read_text()))
    if listed != artifacts:
        raise ValueError(f"list printed {listed} artifacts of {artifacts}")
    return usages[1:]


def _copy_records(names: Path, artifacts: int) -> None:
    """Give the artifacts more names, as the store's layout documents it.

    A process, or an fsync, for each of 10,000 names would take a quarter of an hour.
    """
    for number in range(PAIRS, artifacts):
        record = json.loads((names / f"name-{number % PAIRS}" / "v1.json").read_text())
        record["name"] = f"name-{number}"
        (names / record["name"]).mkdir()
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        (names / record["name"] / "v1.json").write_text(text)
