"""Classify how a command ended."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from tests.chaos.processes import CommandResult

MEMORY_LIMIT = 200_000_000
"""Growth of the memory beyond that of the valid input, in bytes, above which a rejected input is a defect."""

OK, ONE_LINE, MANY_LINES, TRACEBACK, HANG, MEMORY, KILLED, LOST, ORPHAN, OTHER_EXIT, SKIPPED, HARNESS = (
    "ok",
    "one line",
    "several lines",
    "traceback",
    "hang",
    "memory",
    "signal",
    "lost result",
    "orphan",
    "other exit",
    "skipped",
    "harness error",
)
OUTCOMES = (OK, ONE_LINE, MANY_LINES, OTHER_EXIT, TRACEBACK, HANG, MEMORY, KILLED, LOST, ORPHAN, HARNESS, SKIPPED)
"""All outcomes, in the order of the columns of the summary."""

DEFECTS = (TRACEBACK, HANG, MEMORY, KILLED, LOST, ORPHAN, HARNESS)
"""Outcomes that make the harness fail."""

TRACEBACK_MARKS = ("Traceback (most recent call last)", "Exception ignored in", "Fatal Python error")
PROGRESS_LINE = re.compile(r"\u2501|\d+/\d+ .* left ")
"""A progress bar, which is not a part of an error."""
TAIL_CHARACTERS = 1500
STACK_CHARACTERS = 12_000

USER_ERROR_EXIT = 2


@dataclass(frozen=True)
class Outcome:
    """The result of one scenario, with what is needed to reproduce it."""

    family: str
    index: int
    group: str
    """What was damaged or interrupted: a file format, a command, a kind of request."""
    command: str
    change: str
    """What the harness did."""
    outcome: str
    detail: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)


def classify_result(result: CommandResult, baseline_bytes: int) -> tuple[str, str]:
    """Return the outcome of a command and its explanation; `baseline_bytes` is the peak memory with valid input."""
    text = result.stderr + result.log
    tail = (result.stderr or result.log)[-TAIL_CHARACTERS:]
    growth = result.peak_bytes - baseline_bytes
    if result.stopped_because:
        return result.stopped_because, f"ended by the harness after {result.seconds:.0f} s; {text[-STACK_CHARACTERS:]}"
    if result.exit_code < 0:
        return KILLED, f"signal {-result.exit_code}; {tail}"
    if any(mark in text or mark in result.stdout for mark in TRACEBACK_MARKS):
        return TRACEBACK, text[-TAIL_CHARACTERS:]
    if result.exit_code and growth > MEMORY_LIMIT:
        return MEMORY, f"{growth / 1e6:.0f} MB more than with the valid input; {tail}"
    if result.orphans:
        return ORPHAN, "; ".join(result.orphans)
    if result.exit_code == 0:
        return OK, tail
    if result.exit_code != USER_ERROR_EXIT:
        return OTHER_EXIT, f"exit code {result.exit_code}; {tail}"
    return (ONE_LINE if has_one_error_line(result.stderr) else MANY_LINES), tail


def has_one_error_line(stderr: str) -> bool:
    """Return whether the text is one line, or the two or three lines of a usage error and one line."""
    lines = [line for line in stderr.splitlines() if line.strip() and not PROGRESS_LINE.search(line)]
    if lines and lines[0].startswith("Usage: "):
        lines = [line for line in lines[1:] if not line.startswith(("Try '", " "))]
    return len(lines) == 1
