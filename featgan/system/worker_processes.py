"""Worker processes: they end together with the process that started them, and an early end is one clear line."""

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from featgan.errors import UserError
from featgan.system.os_errors import SHARED_MEMORY_REMEDY, os_error_reason

PR_SET_PDEATHSIG = 1
"""Option of prctl(2): the signal that this process receives when its parent ends."""


def end_with_parent(parent_pid: int | None = None) -> None:
    """Let the system kill this process when the one that started it ends, even by SIGKILL.

    Call this first in a process that was started from a thread that lives as long as its process. `parent_pid` is
    required if multiprocessing did not start it.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    parent = multiprocessing.parent_process()
    expected_pid = parent.pid if parent is not None else parent_pid
    if expected_pid is not None and expected_pid != os.getppid():
        os._exit(1)  # the parent ended before the call above


def init_pool_worker() -> None:
    """Prepare a worker of a pool: it ends with its parent, which alone handles Ctrl-C."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class SpawnedPool(ProcessPoolExecutor):
    """A pool of spawned workers; a worker that is killed at any time breaks the pool, and never blocks it.

    Python's own pool can wait forever in three cases:

    - A worker ends while another one starts. Here, all workers start before the first task.
    - A worker is killed while it holds the lock of the tasks and the pool ends, so that the others wait for the lock.
      Here, the others are killed.
    - A worker is killed while it sends a result, so that the pool waits for the rest. Here, only workers can send.
    """

    def __init__(self, num_workers: int) -> None:
        super().__init__(num_workers, multiprocessing.get_context("spawn"), init_pool_worker)
        self._safe_to_dynamically_spawn_children = False  # as for forked workers

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        with start_without_signals():
            is_first = not self._processes
            future = super().submit(function, *arguments, **options)
            if is_first:
                self._result_queue._writer.close()  # type: ignore[attr-defined]
                workers = list(self._processes.values())
                threading.Thread(target=kill_all_after_one, args=(workers,), daemon=True).start()
            return future

    def end_workers(self) -> None:
        """End the pool without waiting for the tasks that are running."""
        for worker in list((self._processes or {}).values()):
            worker.kill()
        self.shutdown(cancel_futures=True)


def kill_all_after_one(workers: list[BaseProcess]) -> None:
    """Wait for the end of all workers; kill the others as soon as one of them does not end in the regular way."""
    running = {worker.sentinel: worker for worker in workers}
    while running:
        for sentinel in multiprocessing.connection.wait(list(running)):
            if read_exit_code(running.pop(sentinel)) != 0:  # type: ignore[arg-type]
                for worker in running.values():
                    worker.kill()


def read_exit_code(process: BaseProcess) -> int:
    """Return the exit code of a process that has ended, which another thread may have collected a moment ago."""
    while (exit_code := process.exitcode) is None:
        time.sleep(0.001)
    return exit_code


@contextmanager
def start_without_signals() -> Iterator[None]:
    """Deliver SIGINT and SIGTERM after the block, so that a worker that starts in it receives what it waits for.

    Otherwise, the worker prints a traceback. For the same reason, SIGINT is blocked in a worker from its start.
    """
    received: list[int] = []
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    is_main_thread = threading.current_thread() is threading.main_thread()  # only this thread can set a handler
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main_thread else ()
    handlers = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for received_number in received[:1]:
            signal.raise_signal(received_number)


def open_process_pool(num_workers: int) -> SpawnedPool:
    """Return a pool of spawned workers; a fork would inherit the threads of this process.

    Raises UserError if the system cannot create the semaphores of the pool, which are files in /dev/shm.
    """
    try:
        return SpawnedPool(num_workers)
    except OSError as error:
        raise UserError(
            f"/dev/shm: cannot be written: {os_error_reason(error)}; {SHARED_MEMORY_REMEDY}; or use one process"
        ) from None


def describe_exit(process: BaseProcess) -> str:
    """Return how a process that has ended was ended, as the end of a sentence."""
    exit_code = process.exitcode
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"was killed by {name}" + (", probably because memory ran out" if exit_code == -signal.SIGKILL else "")
