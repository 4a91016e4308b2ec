"""Run a function in several processes of one work group."""

import multiprocessing
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import torch

from featgan.distributed.work_group import WorkGroup, open_work_group
from featgan.errors import UserError

MAX_SECONDS = 180.0
"""Time after which a group counts as hung; slow machines need a part of it."""

KILLED = "killed"
"""The result of a process that ended without an error message."""


def run_group(num_processes: int, action: Callable[[WorkGroup], object], folder: Path) -> list[str]:
    """Run an action in a group of new processes; return for each one the line of its UserError, or "".

    Raises AssertionError if a process does not end.
    """
    context = multiprocessing.get_context("fork")
    folder.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    results = [folder / f"{name}-{rank}.txt" for rank in range(num_processes)]
    processes = [
        context.Process(target=run_member, args=(rank, num_processes, name, action, results[rank]))
        for rank in range(num_processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(MAX_SECONDS)
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
    assert not hung, f"{len(hung)} processes have not ended"
    return [path.read_text() if path.exists() else KILLED for path in results]


def run_member(rank: int, num_processes: int, name: str, action: Callable[[WorkGroup], object], result: Path) -> None:
    """Run an action in this process, which submitit has started, and write the line of its error to a file."""
    for variable in [variable for variable in os.environ if variable.startswith(("SLURM_", "MASTER_", "RANK"))]:
        del os.environ[variable]
    os.environ["SUBMITIT_LOCAL_GLOBALID"] = str(rank)
    os.environ["SUBMITIT_LOCAL_NTASKS"] = str(num_processes)
    os.environ["SUBMITIT_LOCAL_JOB_ID"] = name
    torch.set_num_threads(1)
    message = ""
    try:
        with open_work_group() as group:
            action(group)
    except UserError as error:
        message = str(error)
    result.write_text(message)
    sys.stdout.flush()
    os._exit(0)
