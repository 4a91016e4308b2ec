"""Run scenarios in parallel: each is a fork of this process, so that a crash of one cannot affect the others."""

import contextlib
import json
import os
import signal
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.fixture import Overlay
from tests.chaos.outcomes import HARNESS, SKIPPED, Outcome
from tests.chaos.scenarios import Family, Workplace

MAX_SCENARIO_SECONDS = 900


@dataclass
class RunningScenario:
    """A forked scenario, and the slot whose folders it uses."""

    family: Family
    index: int
    slot: int
    start: float


class Scheduler:
    """Chooses the next scenario, and runs `jobs` scenarios at the same time."""

    def __init__(self, folder: Path, families: list[Family], seed: int, jobs: int) -> None:
        self.folder, self.families, self.seed, self.jobs = folder, families, seed, jobs
        self.running: dict[int, RunningScenario] = {}
        self.seconds_used = dict.fromkeys((family.name for family in families), 0.0)
        self.pending: dict[str, Iterator[int]] = {}
        self.next_index: dict[str, int | None] = {}

    def run(self, plan: Mapping[str, Iterable[int]], deadline: float | None) -> Iterator[Outcome]:
        """Yield outcomes until the scenarios in the plan (family => indices) have run, or the deadline has passed."""
        free_slots = list(range(self.jobs))
        self.pending = {name: iter(indices) for name, indices in plan.items()}
        self.next_index = {name: next(indices, None) for name, indices in self.pending.items()}
        while True:
            family = self.choose_family(deadline)
            if family is not None and free_slots:
                self.start_scenario(family, free_slots.pop(0))
            elif self.running:
                outcome, slot = self.wait_for_scenario()
                free_slots.append(slot)
                yield outcome
            elif family is None:
                return

    def choose_family(self, deadline: float | None) -> Family | None:
        """Return the family that has used the smallest part of its share of the time."""
        if deadline is not None and time.monotonic() > deadline:
            return None
        open_families = [family for family in self.families if self.next_index[family.name] is not None]
        return min(open_families, key=lambda family: self.seconds_used[family.name] / family.weight, default=None)

    def start_scenario(self, family: Family, slot: int) -> None:
        """Fork a process that runs the next scenario of a family."""
        index = self.next_index[family.name]
        assert index is not None
        self.next_index[family.name] = next(self.pending[family.name], None)
        self.seconds_used[family.name] += 0.05  # so that parallel jobs choose different families
        pid = os.fork()
        if pid == 0:
            self.run_in_fork(family, index, slot)
        self.running[pid] = RunningScenario(family, index, slot, time.monotonic())

    def run_in_fork(self, family: Family, index: int, slot: int) -> None:
        """Run a scenario, write its outcome to a file, and exit."""
        try:
            workplace = make_workplace(self.folder, slot, self.seed)
            outcome = family.run_scenario(workplace, index)
            result_path(self.folder, slot).write_text(json.dumps(outcome.to_json()))
        except BaseException:
            message = traceback.format_exc()[-3000:]
            outcome = Outcome(family.name, index, "harness", "", "", HARNESS, message)
            result_path(self.folder, slot).write_text(json.dumps(outcome.to_json()))
        finally:
            os._exit(0)

    def wait_for_scenario(self) -> tuple[Outcome, int]:
        """Wait until a scenario ends, and return its outcome and slot."""
        while True:
            for pid, scenario in list(self.running.items()):
                elapsed = time.monotonic() - scenario.start
                if elapsed > MAX_SCENARIO_SECONDS:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if os.waitpid(pid, os.WNOHANG)[0]:
                    del self.running[pid]
                    self.seconds_used[scenario.family.name] += elapsed
                    return self.read_outcome(scenario), scenario.slot
            time.sleep(0.002)

    def read_outcome(self, scenario: RunningScenario) -> Outcome:
        """Return the outcome that a scenario has written."""
        path = result_path(self.folder, scenario.slot)
        try:
            outcome = Outcome(**json.loads(path.read_text()))
            path.unlink()
        except (OSError, ValueError) as error:
            outcome = Outcome(scenario.family.name, scenario.index, "harness", "", "", HARNESS, f"no outcome: {error}")
        return outcome


def result_path(folder: Path, slot: int) -> Path:
    """Return the file to which a scenario writes its outcome."""
    return folder / f"result-{slot}.json"


def make_workplace(folder: Path, slot: int, seed: int) -> Workplace:
    """Return the folders of a slot. All copies have paths of the same length."""
    return Workplace(Overlay(folder / "fixture", folder / f"copy{slot:03d}"), seed)


def skipped_outcome(family: Family, reason: str) -> Outcome:
    """Return the outcome of a family that cannot run on this machine."""
    return Outcome(family.name, 0, "all", "", "", SKIPPED, reason)
