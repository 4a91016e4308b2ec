"""Progress bars with the remaining time."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from featgan.system.console import PlainConsole
from featgan.system.plain_text import escape_control_characters

Item = TypeVar("Item")

console = PlainConsole(stderr=True)
"""Progress bars and messages go to standard error; standard output is for results."""


class ProgressBar:
    """A progress bar: call `advance(n)` after n items, and `set_note(text)` to show a text next to it."""

    def __init__(self, progress: Progress, description: str, total: int | None) -> None:
        self.progress = progress
        self.task_id = progress.add_task(escape_control_characters(description), total=total, note="")

    @property
    def is_hidden(self) -> bool:
        """Whether the bar is not shown."""
        return self.progress.disable

    def advance(self, count: int = 1) -> None:
        self.progress.advance(self.task_id, count)

    def set_note(self, text: str) -> None:
        self.progress.update(self.task_id, note=escape_control_characters(text))


@contextmanager
def progress_bar(
    description: str, total: int | None, unit: str = "", completed: int = 0, is_shown: bool = True
) -> Iterator[ProgressBar]:
    """Yield a progress bar that the caller advances; it starts at `completed` if the work is resumed."""
    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, speed_estimate_period=60, disable=not is_shown) as progress:
        bar = ProgressBar(progress, description, total)
        bar.advance(completed)
        yield bar


def track_progress(items: Iterable[Item], description: str, total: int | None = None, unit: str = "") -> Iterator[Item]:
    """Iterate over `items` with a progress bar; pass `total` if `items` has no length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()
