"""Processes that divide the work of one command, such as an extraction; started by torchrun, srun or submitit.

The processes exchange only short messages between their CPUs. An error in one process ends the command in all of them,
each with one line.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from featgan.distributed.rendezvous import check_launcher_env, init_env_from_slurm
from featgan.distributed.store_discovery import join_processes
from featgan.errors import LostPeerError, PeerError, UserError
from featgan.system.os_errors import user_error_message
from featgan.system.progress import console
from featgan.system.resources import parse_count

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

MAX_MESSAGE_BYTES = 2000
"""Size in bytes of a message of one process to all others; a longer one is cut."""

POLL_SECONDS = 0.05
"""Seconds between two checks whether the other processes have arrived."""

COLLECTIVE_TIMEOUT = timedelta(days=365)
"""Time to wait for the other processes: one may have hours of work left. A process that ends is noticed at once."""

ERROR_KEY = "featgan/work_group/error"
"""Key of the first error in the store of the processes."""


def do_nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class WorkGroup:
    """Rank and number of the processes of a command, and the device of this process."""

    rank: int = 0
    world_size: int = 1
    device: torch.device | None = None
    """The GPU of this process if there are several processes and a GPU; None for the default device."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process of rank 0, which writes the results and the messages."""
        return self.rank == 0

    def run_on_main(self, action: Callable[[], bool]) -> bool:
        """Run an action in the process of rank 0, and return its result in all processes.

        The other processes wait. If the action raises an exception, they raise PeerError.
        """
        result = False
        with self.joined():
            if self.is_main:
                result = action()
        return self.exchange("1" if result else "")[0] == "1"

    @contextmanager
    def joined(self, while_waiting: Callable[[], None] = do_nothing) -> Iterator[None]:
        """Let all processes leave the context together; if one raises an exception, all others raise PeerError.

        `while_waiting` is called repeatedly until the last process has arrived.
        """
        if self.world_size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
            self.publish_error(error)
        try:
            messages = self.exchange("" if error is None else describe_error(error), while_waiting)
        except LostPeerError:
            if error is not None:
                raise error from None
            raise
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message:
                raise PeerError(f"rank {rank}: {message}")

    def publish_error(self, error: Exception) -> None:
        """Let the other processes find an error with `check_peers`."""
        store = dist.distributed_c10d._get_default_store()
        try:
            store.compare_set(ERROR_KEY, "", f"rank {self.rank}: {describe_error(error)}")
        except dist.DistError as store_error:
            logger.debug(f"the error was not published ({store_error})")

    def check_peers(self) -> None:
        """Raise PeerError if another process has failed, or LostPeerError if rank 0 has ended; for use in long work."""
        if self.world_size == 1:
            return
        store = dist.distributed_c10d._get_default_store()
        try:
            message = store.get(ERROR_KEY).decode(errors="replace") if store.check([ERROR_KEY]) else ""
        except (dist.DistError, RuntimeError) as error:
            raise lost_peer_error() from error
        if message:
            raise PeerError(message)

    def map_batches(self, compute: Callable[[Item], tuple[Tensor, ...]], batches: Sequence[Item]) -> list[list[Tensor]]:
        """Compute tensors from each batch; the processes divide the batches, and all return all results in order.

        The results of several processes are on the CPU. All processes must pass the same batches. If one of them fails,
        the others raise PeerError.
        """
        if self.world_size == 1:
            return [list(compute(batch)) for batch in batches]
        own: list[list[Tensor]] = []
        with self.joined():
            own = [[tensor.cpu() for tensor in compute(batch)] for batch in batches[self.rank :: self.world_size]]
        parts: list[list[list[Tensor]]] = [[] for _ in range(self.world_size)]
        try:
            dist.all_gather_object(parts, own)
        except RuntimeError as error:
            raise lost_peer_error() from error
        return [parts[number % self.world_size][number // self.world_size] for number in range(len(batches))]

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Print progress bars, messages and warnings in the process of rank 0 only, if all do the same in the block."""
        featgan_logger, previous_level = logging.getLogger("featgan"), logging.getLogger("featgan").level
        if not self.is_main:
            console.quiet = True
            featgan_logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            console.quiet = False
            featgan_logger.setLevel(previous_level)

    def exchange(self, message: str, while_waiting: Callable[[], None] = do_nothing) -> list[str]:
        """Return the messages of all processes, in the order of their ranks. Raises LostPeerError if one has ended."""
        if self.world_size == 1:
            return [message]
        sent = encode_message(message)
        received = [torch.empty_like(sent) for _ in range(self.world_size)]
        try:
            work = dist.all_gather(received, sent, async_op=True)
            # Waiting in Python, and not in torch, lets a signal end this process.
            while not work.is_completed():
                while_waiting()
                time.sleep(POLL_SECONDS)
            work.wait()
        except RuntimeError as error:
            raise lost_peer_error() from error
        return [decode_message(row) for row in received]


SINGLE_PROCESS = WorkGroup()
"""The group of a command that runs as one process."""


@contextmanager
def open_work_group() -> Iterator[WorkGroup]:
    """Connect the processes that a launcher has started for this command; one process needs no connection.

    Raises UserError if the processes cannot connect.
    """
    check_launcher_env()
    rendezvous = init_env_from_slurm()
    world_size = parse_count(os.environ.get("WORLD_SIZE", ""))
    if world_size <= 1:
        yield SINGLE_PROCESS
        return
    with join_processes(rendezvous, 0):
        dist.init_process_group("gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        yield WorkGroup(dist.get_rank(), dist.get_world_size(), choose_group_device())
    finally:
        dist.destroy_process_group()


def choose_group_device() -> torch.device | None:
    """Return the GPU of this process; None without a GPU. Processes share the GPUs if there are fewer."""
    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda", parse_count(os.environ.get("LOCAL_RANK", "")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def lost_peer_error() -> LostPeerError:
    """Return the error for a process that has ended without a message to the others."""
    return LostPeerError(
        "another process of this command has ended; read its output, and run the command again to resume"
    )


def describe_error(error: Exception) -> str:
    """Return an error as one line."""
    text = str(error) if isinstance(error, UserError) else user_error_message(error)
    return " ".join((text or f"{type(error).__name__}: {error}").split())


def encode_message(text: str) -> torch.Tensor:
    """Return a text as uint8 [MAX_MESSAGE_BYTES]: UTF-8, filled up with zeros."""
    content = text.encode(errors="replace")[:MAX_MESSAGE_BYTES]
    return torch.frombuffer(bytearray(content.ljust(MAX_MESSAGE_BYTES, b"\0")), dtype=torch.uint8)


def decode_message(row: torch.Tensor) -> str:
    """Return the text of a message."""
    return bytes(row.numpy()).rstrip(b"\0").decode(errors="replace")
