"""What all families share: the environment of a job, random numbers, and baselines of valid commands."""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.fixture import Overlay
from tests.chaos.outcomes import Outcome
from tests.chaos.processes import CommandResult, CommandSettings, run_command

NUM_MEASUREMENTS = 2
"""Number of undisturbed runs of a command; the largest memory counts."""


@dataclass(frozen=True)
class Measurement:
    """Time in seconds and peak memory in bytes of a command with valid input."""

    seconds: float
    peak_bytes: int


@dataclass
class Workplace:
    """The folders of one job, and measurements of valid commands that all jobs share."""

    overlay: Overlay
    seed: int

    def run(self, argv: list[str], settings: CommandSettings | None = None) -> CommandResult:
        """Run a command in the copy of the fixture."""
        return run_command(argv, self.overlay.folder, self.overlay.output, settings)

    def stream(self, family: str, index: int) -> random.Random:
        """Return the random numbers of one scenario."""
        return random.Random(f"{self.seed}/{family}/{index}")

    def measure_command(self, command: str, parts: tuple[str, ...]) -> Measurement:
        """Return the time and memory of a command with valid input; run it if no job has done so yet.

        Call this before the copy of a scenario is created. Raises AssertionError if the command fails.
        """
        name = hashlib.sha256(command.encode()).hexdigest()[:16]
        store = self.overlay.folder.with_name(f"measured-{name}.json")
        if not store.exists():
            results = []
            for _ in range(NUM_MEASUREMENTS):
                self.overlay.create_copy(parts)
                results.append(self.run(command.split()))
                assert results[-1].exit_code == 0, f"{command}: fails with valid input: {results[-1]}"
            measured = [min(result.seconds for result in results), max(result.peak_bytes for result in results)]
            partial = store.with_name(f"{store.name}.{self.overlay.folder.name}")
            partial.write_text(json.dumps(measured))
            partial.rename(store)
        seconds, peak_bytes = json.loads(store.read_text())
        return Measurement(seconds, int(peak_bytes))


RunScenario = Callable[[Workplace, int], Outcome]


@dataclass(frozen=True)
class Family:
    """A kind of scenario. Scenario `index` of a seed is always the same."""

    name: str
    run_scenario: RunScenario
    weight: float
    """Share of the time."""
    find_obstacle: Callable[[], str] = lambda: ""
    """Returns why the family cannot run on this machine, or nothing."""


def list_parts(folder: Path) -> tuple[str, ...]:
    """Return the names of all parts of the fixture."""
    return tuple(sorted(path.name for path in folder.iterdir()))
