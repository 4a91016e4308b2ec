"""The desk where edits are carried out, one at a time: of each open page only its newest wish waits."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

Outcome = TypeVar("Outcome")

MOST_WAITING = 16
"""Pages whose wish waits; the next one is told to come again."""


class SupersededError(Exception):
    """A newer wish of the same page has come."""


class BusyError(Exception):
    """Too many pages wait already."""


@dataclass(frozen=True)
class Wish:
    """Something to compute and where its outcome is awaited."""

    compute: Callable[[], Any]
    outcome: "asyncio.Future[Any]"


class Desk:
    """Computes in a thread, so that the server goes on listening; a second thread would only slow the first down."""

    def __init__(self, most_waiting: int = MOST_WAITING) -> None:
        self.most_waiting = most_waiting
        self.waiting: dict[str, Wish] = {}
        self.worker: asyncio.Task[None] | None = None
        self.thread = ThreadPoolExecutor(1, "explore")

    async def ask(self, session: str, compute: Callable[[], Outcome]) -> Outcome:
        """The outcome of `compute`; SupersededError once the same session asks anew, BusyError when too many wait."""
        older = self.waiting.pop(session, None)
        if older is None and len(self.waiting) >= self.most_waiting:
            raise BusyError
        if older is not None and not older.outcome.done():
            older.outcome.set_exception(SupersededError())
        wish = Wish(compute, asyncio.get_running_loop().create_future())
        self.waiting[session] = wish
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self.work())
        result: Outcome = await wish.outcome
        return result

    async def work(self) -> None:
        """Carry out what waits, the longest-waiting page first, until nothing does."""
        while self.waiting:
            wish = self.waiting.pop(next(iter(self.waiting)))
            if wish.outcome.done():  # whoever asked has left
                continue
            try:
                result = await asyncio.get_running_loop().run_in_executor(self.thread, wish.compute)
            except Exception as error:
                if not wish.outcome.done():
                    wish.outcome.set_exception(error)
            else:
                if not wish.outcome.done():
                    wish.outcome.set_result(result)
