"""Prepare the fixture, run the scenarios of the families, and print the summary."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console

from tests.chaos.disks import DISKS
from tests.chaos.fixture import build_fixture
from tests.chaos.http_requests import HTTP_REQUESTS
from tests.chaos.inputs import INPUTS
from tests.chaos.io_errors import IO_ERRORS
from tests.chaos.kills import KILLS
from tests.chaos.outcomes import DEFECTS, Outcome
from tests.chaos.processes import import_everything
from tests.chaos.scenarios import Family
from tests.chaos.schedule import Scheduler, skipped_outcome
from tests.chaos.summary import build_table, describe_defect, find_defects
from tests.chaos.values import draw_json_values

FAMILIES = (INPUTS, KILLS, IO_ERRORS, DISKS, HTTP_REQUESTS)

MAX_PRINTED_DEFECTS = 40
SUMMARY_WIDTH = 180
"""Characters per line of the summary, which is often read in the log of a job."""
PROGRESS_SECONDS = 30


def choose_families(chosen: Iterable[str]) -> list[Family]:
    """Return the families with these names. Exits if a name is unknown."""
    known = {family.name: family for family in FAMILIES}
    chosen = list(chosen)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise SystemExit(f"no family {unknown[0]!r}; the families are {', '.join(known)}")
    return [known[name] for name in chosen]


def run_harness(
    folder: Path, plan: Mapping[str, Iterable[int]], seed: int, jobs: int, max_seconds: float | None
) -> tuple[list[Outcome], list[Outcome]]:
    """Run scenarios (family => indices) and print their summary; return all outcomes, and those that are defects.

    No scenario starts when `max_seconds` have passed since the preparation was complete.
    """
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True, width=SUMMARY_WIDTH)
    start = time.monotonic()
    chosen = choose_families(plan)
    obstacles = {family.name: family.find_obstacle() for family in chosen}
    outcomes = [skipped_outcome(family, obstacles[family.name]) for family in chosen if obstacles[family.name]]
    for outcome in outcomes:
        console.print(f"{outcome.family}: skipped: {outcome.detail}")
    families = [family for family in chosen if not obstacles[family.name]]
    import_everything()
    draw_json_values()
    build_fixture(folder / "fixture")
    console.print(f"seed {seed}: ready after {time.monotonic() - start:.0f} s")
    deadline = None if max_seconds is None else time.monotonic() + max_seconds
    printed, last_report = Counter[str](), time.monotonic()
    for outcome in Scheduler(folder, families, seed, jobs).run(
        {family.name: plan[family.name] for family in families}, deadline
    ):
        outcomes.append(outcome)
        if outcome.outcome in DEFECTS:
            printed["defects"] += 1
            if printed["defects"] <= MAX_PRINTED_DEFECTS:
                console.print(describe_defect(outcome, seed))
        if time.monotonic() - last_report > PROGRESS_SECONDS:
            last_report = time.monotonic()
            console.print(f"{len(outcomes)} runs after {last_report - start:.0f} s, {printed['defects']} defects")
    defects = find_defects(outcomes)
    console.print(build_table(outcomes))
    rate = len(outcomes) / max(time.monotonic() - start, 1)
    console.print(f"{len(outcomes)} runs, {len(defects)} defects, {rate:.1f} runs per second, seed {seed}")
    return outcomes, defects
