"""Worker processes that compute batches ahead of time, in a fixed order: batch i comes from worker i modulo W."""

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor

from featgan.data.shared_tensors import SharedSlots
from featgan.errors import TrainingInterrupted, UserError
from featgan.system.signals import block_stop_signals, defer_stop_signals, find_stop_signal
from featgan.system.worker_processes import describe_exit, end_with_parent

BATCHES_AHEAD = 4
"""Number of batches that each worker computes before the first of them is used."""

EXIT_TIMEOUT = 60.0
"""Seconds to wait for the end of a worker that has closed its connection."""

POLL_SECONDS = 1.0
"""Seconds between two looks for a stop signal while a batch is awaited."""

STOP_SECONDS = 10.0
"""Seconds to wait for the batch of the current step after a stop signal."""

SLOT_IS_FREE = b""
"""Message to a worker: the batch in its oldest slot was read."""

Computation = Callable[[int], tuple[Mapping[str, Tensor], Any]]
"""Returns the tensors of the batch of a step, and a small value that can be pickled."""


@dataclass(frozen=True)
class WorkerFailure:
    """An exception that was raised in a worker."""

    error: Exception


@dataclass(frozen=True)
class BatchWorker:
    """A worker process, its end of the connection, and the memory of its batches."""

    process: BaseProcess
    connection: Connection
    slots: SharedSlots


@contextmanager
def compute_ahead(
    compute: Computation,
    steps: range,
    num_workers: int,
    num_bytes: int,
    on_wait: Callable[[], None] | None = None,
) -> Iterator[Iterator[tuple[dict[str, Tensor], Any]]]:
    """Iterate over `compute(step)` for all steps, computed in worker processes; they end with the block.

    The tensors of a batch have at most `num_bytes` bytes. The workers are forked, so `compute` is not pickled. An
    exception in a worker is raised in this process. `on_wait` is called about once per second while a batch is awaited.
    Raises UserError if a worker is killed.
    """
    workers: list[BatchWorker] = []
    try:
        with block_stop_signals():
            for index in range(num_workers):
                workers.append(start_worker(compute, steps[index::num_workers], num_bytes))
        yield receive_batches(workers, len(steps), on_wait)
    finally:
        # Workers own no files and no locks, so they can be killed at any time.
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.connection.close()


def start_worker(compute: Computation, steps: range, num_bytes: int) -> BatchWorker:
    """Fork a worker. Raises UserError if there is too little memory."""
    context = multiprocessing.get_context("fork")
    slots = SharedSlots(BATCHES_AHEAD, num_bytes)
    # A pair of sockets instead of a queue: queues have semaphores, which are files in /dev/shm.
    connection, worker_connection = context.Pipe()
    process = context.Process(target=run_worker, args=(compute, steps, slots, worker_connection), daemon=True)
    try:
        process.start()
    except OSError as error:
        connection.close()
        raise UserError(
            f"a data worker cannot be started: {(error.strerror or str(error)).lower()}; lower training.num_workers"
        ) from None
    finally:
        worker_connection.close()  # so that the connection breaks when the worker ends
    return BatchWorker(process, connection, slots)


def run_worker(compute: Computation, steps: range, slots: SharedSlots, connection: Connection) -> None:
    """Compute batches in a worker, with one thread; a stop signal to the process group does not end it.

    Each batch is written to the next slot. From the second use of a slot on, the worker waits until it has been read.
    """
    end_with_parent()
    torch.set_num_threads(1)
    defer_stop_signals()
    for index, step in enumerate(steps):
        if index >= BATCHES_AHEAD:
            connection.recv_bytes()
        try:
            tensors, rest = compute(step)
            message = slots.write(index % BATCHES_AHEAD, tensors), rest
        except Exception as error:
            connection.send(describe_failure(error))
            return
        connection.send(message)


def receive_batches(
    workers: Sequence[BatchWorker], count: int, on_wait: Callable[[], None] | None
) -> Iterator[tuple[dict[str, Tensor], Any]]:
    """Yield `count` batches in order."""
    for index in range(count):
        round_index, worker_index = divmod(index, len(workers))
        worker = workers[worker_index]
        try:
            wait_for_message(worker.connection, on_wait)
            message = worker.connection.recv()
        except (EOFError, ConnectionError):
            raise worker_death(worker.process, worker_index, len(workers)) from None
        if isinstance(message, WorkerFailure):
            raise message.error
        layouts, rest = message
        tensors = worker.slots.read(round_index % BATCHES_AHEAD, layouts)
        if index + BATCHES_AHEAD * len(workers) < count:
            with suppress(ConnectionError):  # the next read from this worker will raise the error
                worker.connection.send_bytes(SLOT_IS_FREE)
        yield tensors, rest


def wait_for_message(connection: Connection, on_wait: Callable[[], None] | None) -> None:
    """Wait until a worker has sent a batch, or has ended.

    Raises TrainingInterrupted if this takes too long after a stop signal, for example because a server is down.
    """
    stop_time: float | None = None
    while not connection.poll(POLL_SECONDS):
        if on_wait is not None:
            on_wait()
        stop_signal = find_stop_signal()
        if stop_signal is None or stop_signal.received_signal is None:
            continue
        stop_time = stop_time or time.monotonic() + STOP_SECONDS
        if time.monotonic() >= stop_time:
            raise TrainingInterrupted(
                "data workers: stopped while training waited for the next batch; run the same command again to resume "
                "from the last checkpoint",
                stop_signal.received_signal,
            )


def worker_death(process: BaseProcess, index: int, num_workers: int) -> UserError:
    """Return the error that explains how a worker process ended."""
    process.join(EXIT_TIMEOUT)
    return UserError(
        f"data worker {index + 1} of {num_workers} (process {process.pid}) {describe_exit(process)}; lower "
        "training.num_workers or request more memory, then run the same command again to resume"
    )


def describe_failure(error: Exception) -> WorkerFailure:
    """Return an exception of a worker in a form that can be pickled, with its traceback as a note."""
    traceback_text = "in a data worker:\n" + "".join(traceback.format_exception(error))
    copy: Exception = RuntimeError(traceback_text)
    if isinstance(error, UserError | MemoryError):
        copy = type(error)(str(error))
    elif isinstance(error, OSError):
        copy = OSError(error.errno, error.strerror or str(error), error.filename)
    copy.add_note(traceback_text)
    return WorkerFailure(copy)
