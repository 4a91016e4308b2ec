"""What one process must know of the others; every function also works alone."""

import os
import re
import subprocess

from featgan.errors import UserError

FIRST_PORT, NUM_PORTS = 20_000, 12_000
"""Where processes meet: below the ports that systems hand out by themselves."""

LAUNCHER_WISHES = {
    "ACCELERATE_USE_DEEPSPEED": "distribution.strategy=deepspeed does that",
    "ACCELERATE_USE_FSDP": "FSDP frees weights that the penalty's second derivative needs",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM splits networks of another kind",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "each process holds whole networks",
    "ACCELERATE_DYNAMO_BACKEND": "compiled networks have no second derivative for the penalty",
}
"""What `accelerate launch` asks of a script by the environment, and why featgan does not take it from there."""


def refuse_launcher() -> None:
    """UserError where the launcher wants the networks wrapped otherwise than the configuration says.

    Accelerate would obey it without a word, and under some wishes exchange no gradients at all.
    """
    for name, reason in LAUNCHER_WISHES.items():
        if os.environ.get(name, "").lower() not in ("", "0", "no", "false"):
            raise UserError(f"{name}={os.environ[name]}: leave it out of the launcher's configuration; {reason}")


def adopt_scheduler() -> None:
    """Let the processes of one `srun` (one a GPU, no launcher between) find each other; a launcher goes first.

    Who types at a terminal that `salloc` or `srun --pty` opened has one process, whatever the job could hold.
    """
    inside = os.environ.get
    if "RANK" not in os.environ and int(inside("SUBMITIT_LOCAL_NTASKS", "1")) > 1:
        adopt_local()
    tasks = inside("SLURM_STEP_NUM_TASKS") or inside("SLURM_NTASKS", "1")
    if "RANK" in os.environ or "SLURM_STEP_ID" not in os.environ or int(tasks) == 1 or os.isatty(0):
        return
    os.environ["RANK"] = inside("SLURM_PROCID", "0")
    os.environ["WORLD_SIZE"] = tasks
    os.environ["LOCAL_RANK"] = inside("SLURM_LOCALID", "0")
    os.environ.setdefault("MASTER_ADDR", first_node(inside("SLURM_JOB_NODELIST", "")))
    # A requeued job must not meet on the port that its former self may still hold.
    place = int(inside("SLURM_JOB_ID", "0")) * 7 + int(inside("SLURM_RESTART_COUNT", "0"))
    os.environ.setdefault("MASTER_PORT", str(FIRST_PORT + place % NUM_PORTS))


def adopt_local() -> None:
    """The same for the processes that submitit starts on one machine."""
    inside = os.environ.get
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = inside("SUBMITIT_LOCAL_GLOBALID", "0")
    os.environ["WORLD_SIZE"] = inside("SUBMITIT_LOCAL_NTASKS", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(FIRST_PORT + int(inside("SUBMITIT_LOCAL_JOB_ID", "0")) % NUM_PORTS))


def first_node(nodes: str) -> str:
    """The first name of SLURM's list, for example n07 of `n[07-09,12]`."""
    if "[" not in nodes:
        return nodes.split(",")[0] or "127.0.0.1"
    try:
        named = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=30)
        if named.returncode == 0:
            return named.stdout.split()[0]
    except OSError:
        pass  # no scontrol on the node: the list's common form is read below
    found = re.match(r"([^\[,]+)(?:\[(\w+))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else "127.0.0.1"
