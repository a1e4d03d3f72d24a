"""The command line of the benchmark."""

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.case import Case, run_case
from benchmark.listing import time_listing
from benchmark.measure import CommandFailedError
from benchmark.peers import ENVIRONMENT_BYTES, install_mergekit, mergekit_version
from benchmark.report import Results, correct, document, table
from benchmark.synthetic import Recipe, make_triple, read_recipe

HEAVY_CHANGE = 0.24


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write.

    Returns:
        0, or 1 where a result was wrong or a command failed. A missed budget is no failure:
        times on a shared machine prove nothing by themselves.
    """
    given = _parser().parse_args(arguments)
    if not given.deltastore.is_file():
        print(f"{given.deltastore} does not exist: give --deltastore", file=sys.stderr)
        return 2
    try:
        with _work_directory(given.work) as work:
            results = _measure(given, work)
    except (CommandFailedError, _NoSpaceError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    print(table(results))
    if given.json:
        given.json.write_text(json.dumps(document(results), indent=1) + "\n")
    if given.plot:
        from benchmark.plot import plot  # matplotlib is needed for nothing else

        plot(results, given.plot)
    return 0 if all(correct(case) for case in results.cases) else 1


class _NoSpaceError(Exception):
    """The work directory is too small."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures deltastore on synthetic checkpoints, in turn with cp, and checks "
        "what it makes. The ratios mean nothing on a file system where cp shares blocks.",
    )
    add = parser.add_argument
    add("--size-gb", type=float, action="append", help="repeatable; default: 0.5 and 2.2")
    add("--heavy-size-gb", type=float, default=0.5, metavar="GB", help="heavy fine-tune; 0: none")
    add("--list-artifacts", type=int, default=10_000, metavar="N", help="for list; 0: none")
    add("--runs", type=_at_least_one, default=5, help="timed rounds (default: 5)")
    add("--work", type=Path, help="keeps checkpoints here for the next run; default: temporary")
    add("--mergekit", metavar="VENV|auto", help="measure it too; auto installs it beside WORK")
    add("--deltastore", type=_program, default=Path(sys.executable).with_name("deltastore"))
    add("--json", type=Path, metavar="FILE")
    add("--plot", type=Path, metavar="FILE")
    return parser


def _at_least_one(text: str) -> int:
    runs = int(text)
    if runs < 1:
        raise ValueError(text)
    return runs


def _program(text: str) -> Path:
    """Absolute, as a bare word would be looked up in PATH; links of an environment are kept."""
    return Path(text).absolute()


@contextlib.contextmanager
def _work_directory(given: Path | None) -> Iterator[Path]:
    if given:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="deltastore-bench-") as made:
            yield Path(made) / "work"


def _measure(given: argparse.Namespace, work: Path) -> Results:
    timed = [Recipe(size) for size in sorted(set(given.size_gb or [0.5, 2.2]))]
    heavy = [Recipe(given.heavy_size_gb, relative_change=HEAVY_CHANGE)]
    recipes = timed + heavy * bool(given.heavy_size_gb)
    mergekit = _mergekit_environment(given.mergekit, work)
    _check_space(work, recipes, mergekit)
    if mergekit:
        _say("installing mergekit, unless it is there")
        install_mergekit(mergekit)
    environment = _describe(given, mergekit)
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=work) as made:
        scratch = Path(made)
        # Nothing of the user's own is read, and nobody asks a network about local paths.
        env = {"DELTASTORE_HOME": str(scratch / "home"), "HF_HUB_OFFLINE": "1"}
        for recipe in recipes:
            triple = _triple(work, recipe)
            _say(f"making {triple.name}, unless it is there")
            make_triple(triple, recipe, os.cpu_count() or 1)
            _say(f"measuring {triple.name}")
            case = run_case(
                recipe,
                triple,
                deltastore=given.deltastore,
                mergekit=mergekit if recipe in timed else None,
                runs=given.runs if recipe in timed else 0,
                scratch=scratch,
                env=env,
            )
            cases.append(case)
        listing = []
        if given.list_artifacts:
            _say(f"listing {given.list_artifacts} artifacts")
            listing = time_listing(
                given.deltastore,
                artifacts=given.list_artifacts,
                runs=given.runs,
                scratch=scratch,
                env=env,
            )
    return Results(environment, cases, listing, given.list_artifacts)


def _triple(work: Path, recipe: Recipe) -> Path:
    change = "" if recipe == Recipe(recipe.size_gb) else f"-{100 * recipe.relative_change:g}pct"
    return work / f"{recipe.size_gb:g}gb{change}"


def _mergekit_environment(given: str | None, work: Path) -> Path | None:
    if given == "auto":
        return work.with_name(work.name + "-mergekit")
    return Path(given).absolute() if given else None


def _check_space(work: Path, recipes: list[Recipe], mergekit: Path | None) -> None:
    """Refuse before anything is made: the triples, and what one command at a time writes."""
    missing = [r.size_gb for r in recipes if read_recipe(_triple(work, r)) != r]
    needed = 1e9 * (3 * sum(missing) + 3 * max(r.size_gb for r in recipes))
    if mergekit and not mergekit.exists():
        needed += ENVIRONMENT_BYTES
    work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free
    if needed > free:
        raise _NoSpaceError(
            f"{work} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: "
            "give --work on another file system, or smaller --size-gb"
        )


def _describe(given: argparse.Namespace, mergekit: Path | None) -> dict[str, Any]:
    version = [str(given.deltastore), "--version"]
    said = subprocess.run(version, check=True, capture_output=True, text=True).stdout
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "deltastore": said.strip(),
        "mergekit": mergekit_version(mergekit) if mergekit else None,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "memory_gb": round(pages * page_bytes / 1e9, 1),
        "load_at_start": os.getloadavg()[0],
        "runs": given.runs,
    }


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
