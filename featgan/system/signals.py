"""Stop signals, which make the training loop save and exit, and a watchdog that detects hangs."""

import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from featgan.errors import TrainingInterrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, `kill`, the time limit of a job, and the warning before it (sbatch --signal)."""


class StopSignal:
    """Context manager that stores the first stop signal received; a second Ctrl-C raises KeyboardInterrupt.

    Enter it in the main thread as early as possible. A signal before the training loop then takes effect after the
    first step. An instance that is not entered never receives a signal.
    """

    def __init__(self) -> None:
        self.received_signal: signal.Signals | None = None

    def __enter__(self) -> "StopSignal":
        self.previous_handlers = {
            signal_number: signal.signal(signal_number, self.handle_signal) for signal_number in STOP_SIGNALS
        }
        return self

    def __exit__(self, *exception_info: object) -> None:
        for signal_number, handler in self.previous_handlers.items():
            signal.signal(signal_number, handler)

    def handle_signal(self, signal_number: int, frame: FrameType | None) -> None:
        """Store the signal."""
        if self.received_signal is not None and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received_signal = self.received_signal or signal.Signals(signal_number)

    def mark_ready(self) -> None:
        """Note that every process of the run handles signals from now on; a job records it."""


def find_stop_signal() -> StopSignal | None:
    """Return the StopSignal that receives the stop signals of this process."""
    stop_signal = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return stop_signal if isinstance(stop_signal, StopSignal) else None


@contextmanager
def interrupt_waiting(message: str) -> Iterator[None]:
    """Raise TrainingInterrupted with a message as soon as a stop signal arrives in the block.

    This matters only in the main thread of a process with a StopSignal, which stores a signal until a step is complete.
    """
    stop_signal = find_stop_signal()
    if stop_signal is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signal_number: int, frame: FrameType | None) -> None:
        stop_signal.handle_signal(signal_number, frame)
        raise TrainingInterrupted(message, signal_number)

    if stop_signal.received_signal is not None:
        raise TrainingInterrupted(message, stop_signal.received_signal)
    previous_handlers = {signal_number: signal.signal(signal_number, interrupt) for signal_number in STOP_SIGNALS}
    try:
        yield
    finally:
        for signal_number, previous_handler in previous_handlers.items():
            signal.signal(signal_number, previous_handler)


class Watchdog:
    """Context manager that ends the process if `reset` is not called for `timeout_seconds` (0 turns it off).

    The process then prints the stacks of all its threads and exits. If one process of a run hangs, the others wait for
    it, so all of them exit.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds

    def __enter__(self) -> "Watchdog":
        self.reset()
        return self

    def __exit__(self, *exception_info: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def reset(self) -> None:
        """Restart the timeout; call this after each step."""
        if self.timeout_seconds:
            faulthandler.dump_traceback_later(self.timeout_seconds, exit=True, file=sys.__stderr__ or 2)


GRACE_SECONDS = 600
"""Seconds that a helper process waits for its parent to finish the current step."""


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Block stop signals while a process is started; the new process unblocks them in `defer_stop_signals`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def defer_stop_signals() -> None:
    """Ignore stop signals in a helper process, so that its parent can finish the current step."""
    for signal_number in STOP_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    # A parent that exits early ends its helpers with SIGTERM, so it must not be ignored forever.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_SECONDS))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # blocked since before this process started
