"""Map a function over items in threads, to encode images in parallel: Pillow releases the global interpreter lock."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from featgan.system.resources import count_threads

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_THREADS = 8


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return the results in order; the first error is raised."""
    with ThreadPoolExecutor(count_threads(MAX_THREADS)) as pool:
        return list(pool.map(function, items))
