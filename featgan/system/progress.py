"""Progress bars with time left, one look for every long step."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")

console = Console(stderr=True)
"""Progress and remarks go to standard error; standard output is for results."""


class Meter:
    """One running bar: `advance(n)` after n items, `note(text)` for a figure beside it."""

    def __init__(self, progress: Progress, description: str, total: int | None) -> None:
        self.progress = progress
        self.task = progress.add_task(description, total=total, note="")

    def advance(self, count: int = 1) -> None:
        self.progress.advance(self.task, count)

    def note(self, text: str) -> None:
        self.progress.update(self.task, note=text)


@contextmanager
def meter(
    description: str, total: int | None, unit: str = "", completed: int = 0, shown: bool = True
) -> Iterator[Meter]:
    """A bar for a loop that counts by itself; it starts at `completed` when work is resumed."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, speed_estimate_period=60, disable=not shown) as progress:
        bar = Meter(progress, description, total)
        bar.advance(completed)
        yield bar


def track(items: Iterable[Item], description: str, total: int | None = None, unit: str = "") -> Iterator[Item]:
    """Iterate with a bar; `total` is needed where `items` has no length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with meter(description, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()
