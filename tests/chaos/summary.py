"""Tables of the outcomes: for the terminal, and in Markdown for docs/reliability.md."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from rich.markup import escape
from rich.table import Table

from tests.chaos.outcomes import DEFECTS, OUTCOMES, Outcome


def count_outcomes(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], Counter[str]]:
    """Return the number of each outcome by family and group."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: (outcome.family, outcome.group)):
        counts.setdefault((outcome.family, outcome.group), Counter())[outcome.outcome] += 1
    return counts


def list_columns(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the outcomes that occur, and the defects that must not."""
    present = {outcome.outcome for outcome in outcomes}
    return [name for name in OUTCOMES if name in present or name in DEFECTS]


ALL_GROUPS = "all"
"""Group of the rows with the totals of a family."""


def build_rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Return the cells of all rows; the last row of a family has its totals."""
    columns, rows = list_columns(outcomes), []
    for family, groups in groupby(count_outcomes(outcomes).items(), key=lambda item: item[0][0]):
        counters = {group: counter for (_, group), counter in groups}
        for group, counter in {**counters, ALL_GROUPS: sum(counters.values(), Counter[str]())}.items():
            blank = "0" if group == ALL_GROUPS else ""
            rows.append([family, group, str(counter.total()), *(str(counter[name] or blank) for name in columns)])
    return rows


def build_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the summary for the terminal."""
    table = Table(title="outcomes", title_justify="left")
    for name in ("family", "group"):
        table.add_column(name, no_wrap=True)
    for name in ("runs", *list_columns(outcomes)):
        table.add_column(name, justify="right")
    for row in build_rows(outcomes):
        table.add_row(*map(escape, row), end_section=row[1] == ALL_GROUPS)
    return table


def build_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the summary as a Markdown table."""
    header = ["family", "group", "runs", *list_columns(outcomes)]
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 2)]
    lines += ["| " + " | ".join(row) + " |" for row in build_rows(outcomes)]
    return "\n".join(lines) + "\n"


def find_defects(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes that must not occur."""
    return [outcome for outcome in outcomes if outcome.outcome in DEFECTS]


def describe_defect(outcome: Outcome, seed: int) -> str:
    """Return what happened, and how to run it again."""
    lines = [
        f"{outcome.family}:{outcome.index} {outcome.outcome}: {outcome.group}",
        f"  command: {outcome.command}",
        f"  change:  {outcome.change}",
        f"  again:   python -m tests.chaos --only {outcome.family}:{outcome.index} --seed {seed}",
    ]
    return "\n".join([*lines, *(f"    {line}" for line in outcome.detail.strip().splitlines()[-12:])])
