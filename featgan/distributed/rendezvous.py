"""Environment variables that let the processes of a run find each other; everything also works for one process."""

import os
import re
import subprocess

from featgan.errors import UserError

MIN_PORT, NUM_PORTS = 20_000, 12_000
"""Range of MASTER_PORT: below the ports that operating systems assign automatically."""

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


def init_env_from_slurm() -> None:
    """Set RANK, WORLD_SIZE and MASTER_* for the tasks of one `srun`, one per GPU and without another launcher.

    Variables set by a launcher are kept. An interactive shell opened by `salloc` or `srun --pty` is a single process,
    whatever the size of the job.
    """
    getenv = os.environ.get
    if "RANK" not in os.environ and int(getenv("SUBMITIT_LOCAL_NTASKS", "1")) > 1:
        init_env_from_submitit()
    tasks = getenv("SLURM_STEP_NUM_TASKS") or getenv("SLURM_NTASKS", "1")
    if "RANK" in os.environ or "SLURM_STEP_ID" not in os.environ or int(tasks) == 1 or os.isatty(0):
        return
    os.environ["RANK"] = getenv("SLURM_PROCID", "0")
    os.environ["WORLD_SIZE"] = tasks
    os.environ["LOCAL_RANK"] = getenv("SLURM_LOCALID", "0")
    os.environ.setdefault("MASTER_ADDR", first_node(getenv("SLURM_JOB_NODELIST", "")))
    # A requeued job must not use the port that its previous start may still hold.
    port_offset = int(getenv("SLURM_JOB_ID", "0")) * 7 + int(getenv("SLURM_RESTART_COUNT", "0"))
    os.environ.setdefault("MASTER_PORT", str(MIN_PORT + port_offset % NUM_PORTS))


def init_env_from_submitit() -> None:
    """Set the same variables for the processes that submitit starts on one machine."""
    getenv = os.environ.get
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = getenv("SUBMITIT_LOCAL_GLOBALID", "0")
    os.environ["WORLD_SIZE"] = getenv("SUBMITIT_LOCAL_NTASKS", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(MIN_PORT + int(getenv("SUBMITIT_LOCAL_JOB_ID", "0")) % NUM_PORTS))


def first_node(nodes: str) -> str:
    """Return the first node of a SLURM node list, for example n07 for `n[07-09,12]`."""
    if "[" not in nodes:
        return nodes.split(",", maxsplit=1)[0] or "127.0.0.1"
    try:
        result = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=30, check=False
        )
        if result.returncode == 0:
            return result.stdout.split()[0]
    except OSError:
        pass  # scontrol is not installed on the node; the common form of the list is parsed below
    match = re.match(r"([^\[,]+)(?:\[(\w+))?", nodes)
    return "".join(group or "" for group in match.groups()) if match else "127.0.0.1"
