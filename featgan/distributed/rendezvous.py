"""Environment variables that let the processes of a run find each other; everything also works for one process."""

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from featgan.errors import UserError
from featgan.system.resources import count_slurm_tasks, is_slurm_task, parse_count

MIN_PORT, NUM_PORTS = 20_000, 12_000
"""Range of MASTER_PORT: below the ports that operating systems assign automatically."""

NUM_CANDIDATES = 16
"""Number of ports that are tried before the processes give up."""

UNSUPPORTED_LAUNCHER_SETTINGS = {
    "ACCELERATE_USE_DEEPSPEED": "set distributed.strategy=deepspeed instead",
    "ACCELERATE_USE_FSDP": "FSDP frees weights that the gradient penalty reads outside of `forward`",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM supports transformers only",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "each process holds the complete networks",
    "ACCELERATE_DYNAMO_BACKEND": "a compiled network would hide the DDP wrapper that the training step uses",
}
"""Settings of `accelerate launch` that featgan rejects, and the reason."""


def check_launcher_env() -> None:
    """Raise UserError if the launcher would wrap the networks in another way than the configuration.

    Accelerate would apply such a setting without a message, and with some settings the gradients would not be reduced.
    """
    for name, reason in UNSUPPORTED_LAUNCHER_SETTINGS.items():
        if os.environ.get(name, "").lower() not in ("", "0", "no", "false"):
            raise UserError(
                f"{name}={os.environ[name]}: not supported ({reason}); remove it from the configuration of the launcher"
            )


def is_superfluous_process() -> bool:
    """Return whether torchrun has started this process in addition to rank 0, for a command that runs as one process.

    The tasks of srun do not count: each of them may run a command of its own.
    """
    getenv = os.environ.get
    return parse_count(getenv("WORLD_SIZE", "")) > 1 and getenv("RANK", "0") != "0"


@dataclass(frozen=True)
class Rendezvous:
    """What the processes of one training know about each other before they connect."""

    identity: str
    """The same in all processes of this training, and different in any other, even one of the same job and step."""

    def candidate_ports(self) -> list[int]:
        """Return the ports to try, in the order in which every process tries them."""
        digests = (hashlib.sha256(f"{self.identity} {index}".encode()).digest() for index in range(NUM_CANDIDATES))
        return [MIN_PORT + int.from_bytes(digest[:8], "big") % NUM_PORTS for digest in digests]


def init_env_from_slurm() -> Rendezvous | None:
    """Set RANK, WORLD_SIZE and MASTER_* for the tasks of one `srun`, one per GPU and without another launcher.

    Variables set by a launcher are kept. An interactive shell opened by `salloc` or `srun --pty` is a single process,
    even in a job with several tasks. Returns None for a single process, or if the variables or the port are set.
    """
    getenv = os.environ.get
    if "RANK" in os.environ:
        return None
    if parse_count(getenv("SUBMITIT_LOCAL_NTASKS", "")) > 1:
        return init_env_from_submitit()
    tasks = getenv("SLURM_STEP_NUM_TASKS") or getenv("SLURM_NTASKS", "1")
    if not is_slurm_task(os.environ) or parse_count(tasks) <= 1:
        return None
    os.environ["LOCAL_WORLD_SIZE"] = str(count_slurm_tasks(os.environ))
    os.environ["RANK"] = getenv("SLURM_PROCID", "0")
    os.environ["WORLD_SIZE"] = tasks
    os.environ["LOCAL_RANK"] = getenv("SLURM_LOCALID", "0")
    # Another step of the same job may use other nodes.
    nodes = getenv("SLURM_STEP_NODELIST") or getenv("SLURM_JOB_NODELIST", "")
    os.environ.setdefault("MASTER_ADDR", first_node(nodes))
    # A requeued job must not use the port that its previous start may still hold.
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    return init_port(*(getenv(name, "0") for name in names))


def init_env_from_submitit() -> Rendezvous | None:
    """Set the same variables for the processes that submitit starts on one machine."""
    getenv = os.environ.get
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = getenv("SUBMITIT_LOCAL_GLOBALID", "0")
    os.environ["WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = getenv("SUBMITIT_LOCAL_NTASKS", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    return init_port("submitit", getenv("SUBMITIT_LOCAL_JOB_ID", "0"))


def init_port(*parts: str) -> Rendezvous | None:
    """Set MASTER_PORT to the first candidate, unless the user has set it. `parts` identify the processes.

    The arguments of the command are part of the identity, since one step can run two trainings on the same node.
    """
    if "MASTER_PORT" in os.environ:
        return None
    rendezvous = Rendezvous("/".join([*parts, describe_arguments(sys.argv[1:])]))
    os.environ["MASTER_PORT"] = str(rendezvous.candidate_ports()[0])
    return rendezvous


def describe_arguments(arguments: Sequence[str]) -> str:
    """Return a hash of the arguments of a command, which differ between two trainings."""
    return hashlib.sha256("\0".join(arguments).encode(errors="surrogateescape")).hexdigest()[:32]


def first_node(nodes: str) -> str:
    """Return the first node of a SLURM node list, for example r1n07 for `r[1-2]n[07-09,12],z3`.

    `scontrol show hostnames` does the same, but may not exist in the container of the job.
    """
    first_entry = re.split(r",(?![^\[]*\])", nodes, maxsplit=1)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first_entry) or "127.0.0.1"
