"""The memory and the cores of this process: those of its container or job on this node, divided by its processes."""

import math
import os
import re
import resource
from collections.abc import Mapping
from pathlib import Path

from featgan.system.control_groups import read_cgroup_cores, read_cgroup_memory, read_text_file

LOCAL_SIZE_VARIABLES = (
    "LOCAL_WORLD_SIZE",
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "SUBMITIT_LOCAL_NTASKS",
)
"""Variables with the number of processes on this node: torchrun and accelerate, MPI, and submitit on this machine."""

TASKS_PER_NODE_VARIABLES = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE")
"""Variables with the tasks on each node of a step, such as `8(x2),4`; the first one is the most specific."""

WORKER_BYTES = 512 << 20
"""Memory that one worker of `pack` and `synthesize` may need, with a large image."""

MEMORY_UNITS = {"": 2**20, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
"""Bytes per unit of SLURM's memory variables; without a unit, the number is in megabytes."""


MIN_OPEN_FILES, MAX_OPEN_FILES = 128, 16_384
"""Range of the number of open files that is assumed; Linux limits the number of memory maps to 65,530."""


def share_of_open_files(share: float) -> int:
    """Return a share of the number of files that this process may open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limit = MAX_OPEN_FILES if limit == resource.RLIM_INFINITY else limit
    return int(share * min(max(limit, MIN_OPEN_FILES), MAX_OPEN_FILES))


def is_slurm_task(env: Mapping[str, str]) -> bool:
    """Return whether this process is one of the tasks of a step (srun), in contrast to a script or a shell of a job."""
    return "SLURM_STEP_ID" in env and not os.isatty(0)


def count_local_processes(env: Mapping[str, str] = os.environ) -> int:
    """Return the number of processes on this node that run together and share its memory and cores."""
    for name in LOCAL_SIZE_VARIABLES:
        if count := parse_count(env.get(name, "")):
            return count
    return count_slurm_tasks(env)


def count_slurm_tasks(env: Mapping[str, str] = os.environ) -> int:
    """Return the number of tasks of this process's step on this node; 1 outside of a step."""
    if not is_slurm_task(env):
        return 1
    node = parse_count(env.get("SLURM_NODEID", ""))
    for name in TASKS_PER_NODE_VARIABLES:
        if counts := parse_task_counts(env.get(name, "")):
            return max(1, counts[min(node, len(counts) - 1)])
    return 1


def parse_count(text: str) -> int:
    """Return a number of at most nine digits; 0 for any other text."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0


def parse_task_counts(text: str) -> list[int]:
    """Return one number per node for a list such as `8(x2),4`, here 8, 8, 4; empty if it is not such a list."""
    counts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,5})\))?", part.strip())
        if not match:
            return []
        counts += [int(match[1])] * int(match[2] or "1")
    return counts


def read_node_memory(env: Mapping[str, str] = os.environ, system_root: Path = Path("/")) -> int | None:
    """Return the memory that the processes on this node may use together, in bytes; None if it is unknown.

    It is the smallest of the available memory of the machine, the limits of the control groups and that of the job.
    """
    lines = read_text_file(system_root / "proc/meminfo").splitlines()
    available = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    if not available:
        return None
    limits = (read_cgroup_memory(system_root), read_slurm_memory(env))
    return min([*available, *(limit for limit in limits if limit)])


def read_slurm_memory(env: Mapping[str, str] = os.environ) -> int | None:
    """Return the memory of this SLURM job on this node, in bytes; None outside of a job, or if it has no limit.

    SLURM sets one of three variables, also if the memory is a default of the site (DefMemPerCPU and others).
    """
    if "SLURM_JOB_ID" not in env:
        return None
    cpus = parse_count(env.get("SLURM_CPUS_ON_NODE", ""))
    gpu_list = env.get("SLURM_STEP_GPUS") or env.get("SLURM_JOB_GPUS", "")
    gpus = parse_count(env.get("SLURM_GPUS_ON_NODE", "")) or len([name for name in gpu_list.split(",") if name])
    limits = [
        count * parse_memory(env.get(name, ""))
        for name, count in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", cpus), ("SLURM_MEM_PER_GPU", gpus))
    ]
    return min((limit for limit in limits if limit), default=None)


def parse_memory(text: str) -> int:
    """Return an amount of memory in SLURM's notation (64000, 64G) in bytes; 0, no limit, for any other text."""
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)B?", text.strip().upper())
    return int(match[1]) * MEMORY_UNITS[match[2]] if match else 0


def share_of_memory(env: Mapping[str, str] = os.environ, system_root: Path = Path("/")) -> int | None:
    """Return the memory of the node for this process, in bytes; None if it is unknown."""
    memory = read_node_memory(env, system_root)
    return memory // count_local_processes(env) if memory is not None else None


def count_cores(env: Mapping[str, str] = os.environ, system_root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use; at least 1."""
    allowed, processes = count_allowed_cores(), count_local_processes(env)
    node_limits = [read_cgroup_cores(system_root) or math.inf, count_slurm_cores(env) or math.inf]
    # SLURM may have bound each task to its own cores. Otherwise, all processes share the allowed ones.
    is_bound = is_slurm_task(env) and allowed < parse_count(env.get("SLURM_CPUS_ON_NODE", ""))
    own_limit = allowed if is_bound else allowed / processes
    return max(1, int(min(own_limit, *(limit / processes for limit in node_limits))))


def count_allowed_cores() -> int:
    """Return the number of cores on which the scheduler of the system may run this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_slurm_cores(env: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of cores of this SLURM job or step on this node; None outside of a job."""
    if "SLURM_JOB_ID" not in env:
        return None
    counts = [parse_count(env.get("SLURM_CPUS_ON_NODE", ""))]
    if is_slurm_task(env):
        counts.append(parse_count(env.get("SLURM_CPUS_PER_TASK", "")) * count_slurm_tasks(env))
    return min((count for count in counts if count), default=None)


def count_workers() -> int:
    """Return the default number of worker processes: one per core, if the memory is sufficient for them."""
    cores, memory = count_cores(), share_of_memory()
    return cores if memory is None else max(1, min(cores, memory // WORKER_BYTES))


def count_threads(max_threads: int, cores_per_thread: int = 1) -> int:
    """Return a number of threads for work of the CPU: at least 1, at most `max_threads`."""
    return max(1, min(max_threads, count_cores() // cores_per_thread))
