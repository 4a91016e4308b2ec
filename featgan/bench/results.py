"""What a bench has found: rows with goals and tables, for the terminal, for Markdown and as JSON."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as TerminalTable

from featgan.bench.timing import Costs
from featgan.system.files import write_whole

Unit = Literal["s", "MB", "%"]
Relation = Literal["ratio", "share", "multiple", "part", "value"]

BUSY = 0.5
"""Load for each core from which a machine is not called idle."""


@dataclass(frozen=True)
class Goal:
    """What a row should reach.

    ratio: plain / fast, at least. share: ceiling / fast, at least. multiple: fast / ceiling, at most.
    part: fast / plain, at most. value: the fast cost itself in the row's unit, at most.
    """

    relation: Relation
    limit: float

    @property
    def is_least(self) -> bool:
        return self.relation in ("ratio", "share")

    def met_by(self, value: float) -> bool:
        return value >= self.limit if self.is_least else value <= self.limit


@dataclass(frozen=True)
class Row:
    """One thing measured: the fast path, the plain one it replaces, the ceiling of this machine in the same run."""

    what: str
    fast: Costs
    plain: Costs | None = None
    ceiling: Costs | None = None
    goals: tuple[Goal, ...] = ()
    unit: Unit = "s"
    items: int = 0  # of one cost in seconds: shown as a rate where it is not 0
    item_name: str = "images"
    ceiling_name: str = ""
    rest: str = ""  # where the rest of the time goes

    def show(self, costs: Costs | None) -> str:
        """A side's median with its unit, and its spread where there is one."""
        if costs is None:
            return ""
        spread = f" ±{100 * costs.spread:.0f}%" if len(costs.values) > 1 else ""
        return self.show_value(costs.median) + spread

    def show_value(self, value: float) -> str:
        if self.unit == "s" and self.items:
            return f"{self.items / value:,.0f}/s"
        if self.unit == "s" and value < 1:
            return f"{three_digits(1000 * value)} ms"
        return f"{100 * value:.2f} %" if self.unit == "%" else f"{three_digits(value)} {self.unit}"

    def value_of(self, relation: Relation) -> float | None:
        """What a goal is compared with; None where a side was not measured."""
        if relation == "value":
            return self.fast.median
        other = self.plain if relation in ("ratio", "part") else self.ceiling
        if other is None:
            return None
        return other.over(self.fast) if relation in ("ratio", "share") else self.fast.over(other)

    def show_relation(self, relation: Relation, value: float | None) -> str:
        if value is None:
            return ""
        if relation == "value":
            return self.show_value(value)
        return f"{three_digits(value)} x" if relation in ("ratio", "multiple") else f"{100 * value:.0f} %"

    def show_goal(self, goal: Goal) -> str:
        return f"{'at least' if goal.is_least else 'at most'} {self.show_relation(goal.relation, goal.limit)}"

    def verdict(self, goal: Goal) -> str:
        """`at least 4 x: 5.2 x, met`."""
        value = self.value_of(goal.relation)
        reached = "not measured" if value is None else self.show_relation(goal.relation, value)
        return f"{self.show_goal(goal)}: {reached}, {'met' if value and goal.met_by(value) else 'missed'}"

    def cells(self) -> list[str]:
        """What, plain, fast, plain / fast, ceiling, share of the ceiling."""
        ratio = self.show_relation("ratio", self.value_of("ratio"))
        share = self.show_relation("share", self.value_of("share"))
        return [self.what, self.show(self.plain), self.show(self.fast), ratio, self.show(self.ceiling), share]

    def to_json(self) -> dict[str, Any]:
        sides = {"plain": self.plain, "fast": self.fast, "ceiling": self.ceiling}
        return {
            "what": self.what,
            "unit": self.unit,
            "items": self.items,
            "item_name": self.item_name,
            **{name: costs_json(costs) for name, costs in sides.items()},
            "ceiling_name": self.ceiling_name,
            "ratio": self.value_of("ratio"),
            "share_of_ceiling": self.value_of("share"),
            "goals": [self.goal_json(goal) for goal in self.goals],
            "rest": self.rest,
        }

    def goal_json(self, goal: Goal) -> dict[str, Any]:
        value = self.value_of(goal.relation)
        met = value is not None and goal.met_by(value)
        return {"relation": goal.relation, "limit": goal.limit, "value": value, "met": met}


@dataclass(frozen=True)
class Table:
    """Anything else worth a table, ready to be shown: where the time goes, how a cost grows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Bench:
    """Everything one bench has found."""

    name: str
    rows: Sequence[Row]
    settings: Mapping[str, Any] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    remarks: Sequence[str] = ()

    def to_json(self, command: str, load: float) -> dict[str, Any]:
        return {
            "bench": self.name,
            "command": command,
            "machine": describe_machine() | {"load_before": round(load, 2)},
            "settings": dict(self.settings),
            "rows": [row.to_json() for row in self.rows],
            "tables": [vars(table) for table in self.tables],
            "remarks": list(self.remarks),
        }


COLUMNS = ("what", "plain", "fast", "ratio", "ceiling", "share")


def print_bench(bench: Bench, load: float, console: Console) -> None:
    """The rows, the goals below them, the tables, the remarks and the machine."""
    console.print(terminal_table(Table(f"featgan bench {bench.name}", COLUMNS, cells_of(bench))))
    for row in bench.rows:
        for goal in row.goals:
            console.print(f"goal  {row.what}: {row.verdict(goal)}", markup=False, highlight=False)
    for row in bench.rows:
        if row.ceiling_name or row.rest:
            said = "; ".join(
                text for text in (row.ceiling_name and f"the ceiling is {row.ceiling_name}", row.rest) if text
            )
            console.print(f"note  {row.what}: {said}", markup=False, highlight=False)
    for table in bench.tables:
        console.print(terminal_table(table))
    for remark in (*bench.remarks, machine_line(load)):
        console.print(remark, markup=False, highlight=False)


def cells_of(bench: Bench) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(row.cells()) for row in bench.rows)


def terminal_table(table: Table) -> TerminalTable:
    shown = TerminalTable(title=table.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for index, name in enumerate(table.columns):
        shown.add_column(name, justify="right" if index else "left", no_wrap=bool(index), overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    return shown


def markdown(bench: Bench, command: str) -> str:
    """The rows of the table in docs/performance.md, then the other tables, each whole."""
    lines = [markdown_row([row.what, f"`{command}`", *row.cells()[1:], goals_of(row), row.rest]) for row in bench.rows]
    for table in bench.tables:
        lines += ["", f"{table.title}:", "", markdown_row(table.columns), markdown_row(["---"] * len(table.columns))]
        lines += [markdown_row(row) for row in table.rows]
    return "\n".join(lines)


def markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def goals_of(row: Row) -> str:
    return "; ".join(row.verdict(goal) for goal in row.goals)


def write_json(bench: Bench, command: str, load: float, path: Path) -> None:
    """`load` is the machine's before the bench began."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(bench.to_json(command, load), indent=1).encode() + b"\n")


def three_digits(value: float) -> str:
    """12.3, 1.23, 1,230."""
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def costs_json(costs: Costs | None) -> dict[str, Any] | None:
    if costs is None:
        return None
    low, high = costs.quartiles
    return {"median": costs.median, "quartiles": [low, high], "values": list(costs.values)}


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
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
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine_line(load: float) -> str:
    """The machine in one line, with a warning where it was not idle."""
    found = describe_machine()
    line = f"{found['gpu'] or found['cpu']}, {found['cores']} cores, {found['threads']} threads, torch {found['torch']}"
    busy = load > BUSY * found["cores"]
    return line + (f"; it was busy before (load {load:.1f}): no figure here is worth quoting" if busy else "")
