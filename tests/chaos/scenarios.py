"""What all families share: the environment of a job, random numbers, and baselines of valid commands."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.fixture import Overlay
from tests.chaos.outcomes import Outcome
from tests.chaos.processes import CommandResult, CommandSettings, run_command


@dataclass
class Workplace:
    """The folders of one job, and measurements of valid commands that all jobs share."""

    overlay: Overlay
    seed: int
    baselines: dict[str, CommandResult] = field(default_factory=dict)
    """Valid command => its result, measured before the scenarios start."""

    def run(self, argv: list[str], settings: CommandSettings | None = None) -> CommandResult:
        """Run a command in the copy of the fixture."""
        return run_command(argv, self.overlay.folder, self.overlay.output, settings)

    def stream(self, family: str, index: int) -> random.Random:
        """Return the random numbers of one scenario."""
        return random.Random(f"{self.seed}/{family}/{index}")

    def baseline_bytes(self, command: str) -> int:
        """Return the peak memory of a command with valid input."""
        return self.baselines[command].peak_bytes if command in self.baselines else 0


RunScenario = Callable[[Workplace, int], Outcome]


@dataclass(frozen=True)
class Family:
    """A kind of scenario. Scenario `index` of a seed is always the same."""

    name: str
    run_scenario: RunScenario
    weight: float
    """Share of the time."""
    valid_commands: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Commands whose undisturbed result is needed, and the parts of the fixture that they need."""
    find_obstacle: Callable[[], str] = lambda: ""
    """Returns why the family cannot run on this machine, or nothing."""


def list_parts(folder: Path) -> tuple[str, ...]:
    """Return the names of all parts of the fixture."""
    return tuple(sorted(path.name for path in folder.iterdir()))
