"""Waiting for a server that cannot be reached, with one log message for each outage."""

import logging
import os
import random
from time import monotonic, sleep

from featgan.data.remote.fetch_errors import TransientError
from featgan.errors import UserError
from featgan.system.locations import Location

logger = logging.getLogger(__name__)

MAX_WAIT = 60.0
"""Seconds between two attempts, at most."""

WAIT_SPREAD = 0.25
"""Share by which waits differ, so that the processes of a job do not all try at the same time."""


class Outage:
    """The failed attempts to read one file. An outage ends as soon as the file is read further than before."""

    def __init__(self, location: Location, retry_seconds: float) -> None:
        self.location = location
        self.retry_seconds = retry_seconds
        self.start: float | None = None
        self.num_waits = 0
        self.random = random.Random(os.urandom(8))  # not a stream of the data order

    def wait(self, error: TransientError) -> None:
        """Wait before the next attempt. Raises UserError if the time for attempts is over."""
        now = monotonic()
        if self.start is None:
            self.start = now
            if self.retry_seconds:
                logger.warning(f"{self.location}: {error}; trying again for up to {self.retry_seconds:.0f} s")
        remaining = self.start + self.retry_seconds - now
        if remaining <= 0:
            raise UserError(self.describe_end(error))
        seconds = min(2.0 ** min(self.num_waits, 10), MAX_WAIT) * (1 + self.random.uniform(-WAIT_SPREAD, WAIT_SPREAD))
        self.num_waits += 1
        sleep(min(max(seconds, min(error.delay, MAX_WAIT)), remaining))

    def describe_end(self, error: TransientError) -> str:
        """Return the message of the last failed attempt."""
        period = f" for {self.retry_seconds:.0f} s" if self.retry_seconds else ""
        return f"{self.location}: {error}{period}; check the server and the network, then run the same command again"

    def end(self) -> None:
        """Note that the file can be read again."""
        if self.start is not None:
            logger.warning(f"{self.location}: available again after {monotonic() - self.start:.0f} s")
        self.start = None
        self.num_waits = 0
