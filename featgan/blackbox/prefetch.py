"""Compute the next items in threads while the caller processes the current one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_PENDING_PER_THREAD = 2
"""Maximum number of finished results for each thread that wait for the caller."""


def prefetch_map(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int = 1) -> Iterator[Result]:
    """Return `map(function, items)` in order, with some results computed ahead in threads.

    An exception of `function` is raised when its result is due. `items` is iterated in the caller's thread.
    """
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(max_workers=num_threads)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > MAX_PENDING_PER_THREAD * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
