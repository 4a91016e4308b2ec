"""A queue that runs one request at a time and keeps only the newest pending request of each client."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")

MAX_PENDING_REQUESTS = 16
"""Maximum number of clients with a pending request."""


class SupersededError(Exception):
    """The same client has sent a newer request."""


class QueueFullError(Exception):
    """Too many clients have a pending request."""


@dataclass(frozen=True)
class PendingRequest:
    """A function to call and the future that receives its result."""

    compute: Callable[[], Any]
    future: "asyncio.Future[Any]"


class LatestRequestQueue:
    """Runs requests in one worker thread, so that the server stays responsive.

    There is only one thread because torch already uses every core.
    """

    def __init__(self, max_pending: int = MAX_PENDING_REQUESTS) -> None:
        self.max_pending = max_pending
        self.pending: dict[str, PendingRequest] = {}
        self.worker_task: asyncio.Task[None] | None = None
        self.executor = ThreadPoolExecutor(1, "explore")

    async def submit(self, client_id: str, compute: Callable[[], Result]) -> Result:
        """Return the result of `compute`.

        Raises SupersededError if the same client submits a newer request first, and QueueFullError if `max_pending`
        other clients are waiting.
        """
        previous_request = self.pending.pop(client_id, None)
        if previous_request is None and len(self.pending) >= self.max_pending:
            raise QueueFullError
        if previous_request is not None and not previous_request.future.done():
            previous_request.future.set_exception(SupersededError())
        pending_request = PendingRequest(compute, asyncio.get_running_loop().create_future())
        self.pending[client_id] = pending_request
        if self.worker_task is None or self.worker_task.done():
            self.worker_task = asyncio.create_task(self.run_pending())
        result: Result = await pending_request.future
        return result

    async def run_pending(self) -> None:
        """Run the pending requests, the oldest first, until none is left."""
        while self.pending:
            pending_request = self.pending.pop(next(iter(self.pending)))
            if pending_request.future.done():  # the client has disconnected
                continue
            try:
                result = await asyncio.get_running_loop().run_in_executor(self.executor, pending_request.compute)
            except Exception as error:
                if not pending_request.future.done():
                    pending_request.future.set_exception(error)
            else:
                if not pending_request.future.done():
                    pending_request.future.set_result(result)
