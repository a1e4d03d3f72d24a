"""The budgets, and the results as a table and as JSON."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from benchmark.case import Case
from benchmark.measure import Usage

RATIO_LIMITS = {"apply": 4.0, "extract": 8.0}
RATIO_FROM_GB = 2.0  # the budgets are for 2.2 GB; below, start-up is most of the time
MEMORY_LIMIT_MB = 400.0
GROWTH_LIMIT = 1.25  # of memory from the smallest to the largest checkpoint
LIST_LIMIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Results:
    """Everything a run has found.

    Attributes:
        environment: versions and machine, for the reader of the figures.
        cases: the timed ones first, each size once, then those for size only.
        listing: runs of `list`, empty if not measured.
        artifacts: how many it listed.
    """

    environment: dict[str, Any]
    cases: list[Case]
    listing: list[Usage]
    artifacts: int


@dataclass(frozen=True, slots=True)
class Check:
    """A budget, or a promise without tolerance, and what was measured."""

    what: str
    measured: float
    limit: float
    unit: str

    @property
    def passed(self) -> bool:
        """Whether the budget is kept."""
        return self.measured <= self.limit


def size_limit(relative_change: float) -> float:
    """The allowed overhead over the joint entropy: 4 % near a change of 1 %, 16 % at 24 %."""
    return 0.04 if relative_change < 0.1 else 0.16


def correct(case: Case) -> bool:
    """Whether the results are right bit for bit; not a budget, there is nothing to trade."""
    return case.restored and case.wrong["apply"] == 0


def checks(results: Results) -> Iterator[Check]:
    """Every budget that this run says something about."""
    timed = [case for case in results.cases if case.usages]
    for case in timed:
        for command, limit in RATIO_LIMITS.items():
            if case.recipe.size_gb >= RATIO_FROM_GB:
                what = f"time of {command}, {title(case)}"
                yield Check(what, case.ratio(command), limit, "x cp")
    for case in timed:
        for command in RATIO_LIMITS:
            what = f"memory of {command}, {title(case)}"
            yield Check(what, case.peak_mb(command), MEMORY_LIMIT_MB, "MB")
    small, large = (pick(timed, key=lambda case: case.recipe.size_gb) for pick in (min, max))
    if small is not large:
        for command in RATIO_LIMITS:
            what = f"growth of the memory of {command}"
            yield Check(what, large.peak_mb(command) / small.peak_mb(command), GROWTH_LIMIT, "x")
    for case in results.cases:
        limit = 100 * size_limit(case.recipe.relative_change)
        yield Check(f"size over entropy, {title(case)}", 100 * case.overhead, limit, "%")
    if results.listing:
        median = statistics.median(usage.wall_s for usage in results.listing)
        yield Check(f"list of {results.artifacts:,} artifacts", median, LIST_LIMIT_S, "s")


def title(case: Case) -> str:
    """The name of a case in tables."""
    return f"{case.recipe.size_gb:g} GB, change {100 * case.recipe.relative_change:g} %"


def table(results: Results) -> str:
    """The results for a terminal."""
    lines: list[str] = []
    for case in results.cases:
        lines += [title(case), *_timings(case), *_findings(case), ""]
    lines.append("Budgets")
    for check in checks(results):
        mark = "pass" if check.passed else "FAIL"
        figures = f"{check.measured:8.2f} {check.unit:<4}  (limit {check.limit:g})"
        lines.append(f"  {mark}  {check.what:<44} {figures}")
    return "\n".join(lines)


def document(results: Results) -> dict[str, Any]:
    """The results for JSON: every run, the summaries, and the budgets."""
    cases = []
    for case in results.cases:
        summary = {
            command: {
                "median_s": case.median_s(command),
                "ratio_to_cp": case.ratio(command),
                "peak_mb": case.peak_mb(command),
            }
            for command in case.usages
        }
        derived = {"overhead": case.overhead, "correct": correct(case), "summary": summary}
        cases.append(asdict(case) | derived)
    return {
        "environment": results.environment,
        "cases": cases,
        "list": {"artifacts": results.artifacts, "runs": [asdict(u) for u in results.listing]},
        "budgets": [asdict(check) | {"passed": check.passed} for check in checks(results)],
    }


def _timings(case: Case) -> Iterator[str]:
    if not case.usages:
        return
    yield f"  {'':<10}{'median s':>9}{'min':>8}{'max':>8}{'x cp':>8}{'CPU s':>8}{'peak MB':>9}"
    for command, usages in case.usages.items():
        walls = [usage.wall_s for usage in usages]
        cpu_s = statistics.median(usage.cpu_s for usage in usages)
        yield (
            f"  {command:<10}{case.median_s(command):>9.2f}{min(walls):>8.2f}{max(walls):>8.2f}"
            f"{case.ratio(command):>8.2f}{cpu_s:>8.2f}{case.peak_mb(command):>9.0f}"
        )


def _findings(case: Case) -> Iterator[str]:
    share = case.stored_bytes / case.raw_bytes
    yield f"  stored {case.stored_bytes / 1e9:.3f} of {case.raw_bytes / 1e9:.3f} GB ({share:.1%})"
    yield (
        f"  {case.bits_per_weight:.3f} bits per weight, "
        f"{case.overhead:+.1%} of the joint entropy of {case.joint_entropy:.3f}"
    )
    yield f"  onto its own base: {'post, bit for bit' if case.restored else 'NOT post'}"
    for command, count in case.wrong.items():
        differing = f"{count:,} elements ({count / case.elements:.2%})" if count else "no element"
        yield f"  {command} onto the new base: {differing} other than the float32 expression gives"
