"""Benchmark results: rows with goals, and tables, printed to the terminal, as Markdown and as JSON."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable

from featgan.bench.timing import CostSamples
from featgan.system.console import PlainConsole
from featgan.system.files import atomic_write

Unit = Literal["s", "MB", "%"]
GoalKind = Literal["speedup", "efficiency", "overhead", "cost_ratio", "value"]

MAX_IDLE_LOAD = 0.5
"""Load average per core above which the machine counts as busy."""


@dataclass(frozen=True)
class Goal:
    """A goal of a row.

    speedup: naive / fast, at least. efficiency: upper bound / fast, at least. overhead: fast / upper bound, at most.
    cost_ratio: fast / naive, at most. value: the fast cost itself in the row's unit, at most.
    """

    kind: GoalKind
    threshold: float

    @property
    def is_minimum(self) -> bool:
        """Whether the threshold is a minimum, not a maximum."""
        return self.kind in ("speedup", "efficiency")

    def is_met_by(self, value: float) -> bool:
        """Return whether a value meets the goal."""
        return value >= self.threshold if self.is_minimum else value <= self.threshold


@dataclass(frozen=True)
class BenchmarkRow:
    """Costs of one task: featgan's code, the reference implementation (`naive`), and the upper bound of the machine."""

    name: str
    fast: CostSamples
    naive: CostSamples | None = None
    upper_bound: CostSamples | None = None
    goals: tuple[Goal, ...] = ()
    unit: Unit = "s"
    num_items: int = 0  # items processed in one measured time; if not 0, times are shown as items per second
    item_name: str = "images"
    upper_bound_name: str = ""
    note: str = ""  # how the time is spent

    def format_samples(self, samples: CostSamples | None) -> str:
        """Format the median with its unit, and the spread if there are several samples."""
        if samples is None:
            return ""
        spread = f" ±{100 * samples.spread:.0f}%" if len(samples.values) > 1 else ""
        return self.format_value(samples.median) + spread

    def format_value(self, value: float) -> str:
        """Format a cost in the row's unit, or as a rate."""
        if self.unit == "s" and self.num_items:
            return f"{self.num_items / value:,.0f}/s"
        if self.unit == "s" and value < 1:
            return f"{format_3_digits(1000 * value)} ms"
        return f"{100 * value:.2f} %" if self.unit == "%" else f"{format_3_digits(value)} {self.unit}"

    def goal_value(self, kind: GoalKind) -> float | None:
        """Return the value that is compared with a goal; None if a variant was not measured."""
        if kind == "value":
            return self.fast.median
        baseline = self.naive if kind in ("speedup", "cost_ratio") else self.upper_bound
        if baseline is None:
            return None
        return baseline.ratio_to(self.fast) if kind in ("speedup", "efficiency") else self.fast.ratio_to(baseline)

    def format_goal_value(self, kind: GoalKind, value: float | None) -> str:
        """Format a value that is compared with a goal; empty if it was not measured."""
        if value is None:
            return ""
        if kind == "value":
            return self.format_value(value)
        return f"{format_3_digits(value)} x" if kind in ("speedup", "overhead") else f"{100 * value:.0f} %"

    def format_goal(self, goal: Goal) -> str:
        """Format a goal, such as `at least 4.00 x`."""
        return f"{'at least' if goal.is_minimum else 'at most'} {self.format_goal_value(goal.kind, goal.threshold)}"

    def goal_result(self, goal: Goal) -> str:
        """Format a goal with its result, such as `at least 4.00 x: 5.20 x, met`."""
        value = self.goal_value(goal.kind)
        reached_text = "not measured" if value is None else self.format_goal_value(goal.kind, value)
        return f"{self.format_goal(goal)}: {reached_text}, {'met' if value and goal.is_met_by(value) else 'missed'}"

    def to_cells(self) -> list[str]:
        """Return the cells of COLUMNS."""
        speedup = self.format_goal_value("speedup", self.goal_value("speedup"))
        efficiency = self.format_goal_value("efficiency", self.goal_value("efficiency"))
        return [
            self.name,
            self.format_samples(self.naive),
            self.format_samples(self.fast),
            speedup,
            self.format_samples(self.upper_bound),
            efficiency,
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the row with every sample, for JSON."""
        variants = {"naive": self.naive, "fast": self.fast, "upper_bound": self.upper_bound}
        return {
            "name": self.name,
            "unit": self.unit,
            "num_items": self.num_items,
            "item_name": self.item_name,
            **{name: samples_to_json(samples) for name, samples in variants.items()},
            "upper_bound_name": self.upper_bound_name,
            "speedup": self.goal_value("speedup"),
            "efficiency": self.goal_value("efficiency"),
            "goals": [self.goal_to_json(goal) for goal in self.goals],
            "note": self.note,
        }

    def goal_to_json(self, goal: Goal) -> dict[str, Any]:
        """Return a goal with its result, for JSON."""
        value = self.goal_value(goal.kind)
        is_met = value is not None and goal.is_met_by(value)
        return {"kind": goal.kind, "threshold": goal.threshold, "value": value, "is_met": is_met}


@dataclass(frozen=True)
class ResultTable:
    """A table of formatted cells, such as the time of each stage or the growth of a cost."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class BenchmarkResults:
    """All results of one benchmark."""

    name: str
    rows: Sequence[BenchmarkRow]
    settings: Mapping[str, Any] = field(default_factory=dict)
    tables: Sequence[ResultTable] = ()
    notes: Sequence[str] = ()

    def to_json(self, command: str, load: float) -> dict[str, Any]:
        """Return the results with the command, the machine and its load average before the benchmark, for JSON."""
        return {
            "benchmark": self.name,
            "command": command,
            "machine": describe_machine() | {"load_before": round(load, 2)},
            "settings": dict(self.settings),
            "rows": [row.to_json() for row in self.rows],
            "tables": [vars(table) for table in self.tables],
            "notes": list(self.notes),
        }


COLUMNS = ("name", "naive", "fast", "speedup", "upper bound", "efficiency")
"""Columns of the terminal table; `naive` is the reference implementation and `fast` is featgan's code."""


def print_results(results: BenchmarkResults, load: float, console: PlainConsole) -> None:
    """Print the rows, their goals and notes, the tables, and the machine."""
    console.print(build_terminal_table(ResultTable(f"featgan bench {results.name}", COLUMNS, result_cells(results))))
    for row in results.rows:
        for goal in row.goals:
            console.print(f"goal  {row.name}: {row.goal_result(goal)}")
    for row in results.rows:
        if row.upper_bound_name or row.note:
            note = "; ".join(
                text for text in (row.upper_bound_name and f"upper bound: {row.upper_bound_name}", row.note) if text
            )
            console.print(f"note  {row.name}: {note}")
    for table in results.tables:
        console.print(build_terminal_table(table))
    for line in (*results.notes, format_machine(load)):
        console.print(line)


def result_cells(results: BenchmarkResults) -> tuple[tuple[str, ...], ...]:
    """Return the cells of every row."""
    return tuple(tuple(row.to_cells()) for row in results.rows)


def build_terminal_table(table: ResultTable) -> TerminalTable:
    """Return a rich table without vertical lines."""
    terminal_table = TerminalTable(
        title=table.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1)
    )
    for index, name in enumerate(table.columns):
        terminal_table.add_column(name, justify="right" if index else "left", no_wrap=bool(index), overflow="fold")
    for row in table.rows:
        terminal_table.add_row(*row)
    return terminal_table


def to_markdown(results: BenchmarkResults, command: str) -> str:
    """Return the rows for the table in docs/performance.md, followed by the other tables."""
    lines = [
        format_markdown_row([row.name, f"`{command}`", *row.to_cells()[1:], format_goals(row), row.note])
        for row in results.rows
    ]
    for table in results.tables:
        lines += [
            "",
            f"{table.title}:",
            "",
            format_markdown_row(table.columns),
            format_markdown_row(["---"] * len(table.columns)),
        ]
        lines += [format_markdown_row(row) for row in table.rows]
    return "\n".join(lines)


def format_markdown_row(cells: Sequence[str]) -> str:
    """Return one row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def format_goals(row: BenchmarkRow) -> str:
    """Return all goals of a row with their results."""
    return "; ".join(row.goal_result(goal) for goal in row.goals)


def write_json(results: BenchmarkResults, command: str, load: float, path: Path) -> None:
    """Write the results as JSON; `load` is the load average before the benchmark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(results.to_json(command, load), indent=1).encode() + b"\n")


def format_3_digits(value: float) -> str:
    """Format a number with at least three digits: 1.23, 12.3 or 1,230."""
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def samples_to_json(samples: CostSamples | None) -> dict[str, Any] | None:
    """Return the median, the quartiles and all samples, for JSON."""
    if samples is None:
        return None
    low, high = samples.quartiles
    return {"median": samples.median, "quartiles": [low, high], "values": list(samples.values)}


def describe_machine() -> dict[str, Any]:
    """Return the properties of the machine that the results depend on."""
    import torch

    has_gpu = torch.cuda.is_available()
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }


def cpu_name() -> str:
    """Return the model name of the CPU, or its architecture if the name is not available."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def format_machine(load: float) -> str:
    """Describe the machine in one line, with a warning if it was busy before the benchmark."""
    machine = describe_machine()
    line = (
        f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"torch {machine['torch']}"
    )
    is_busy = load > MAX_IDLE_LOAD * machine["cores"]
    return line + (f"; the machine was busy (load {load:.1f}), so do not quote these results" if is_busy else "")
