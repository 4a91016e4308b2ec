"""Additional sbatch parameters (`--parameters`): which of them break the launcher, and why."""

from collections.abc import Mapping
from typing import Any

FLAGS = ("exclusive", "contiguous", "overcommit", "oversubscribe", "spread-job", "use-min-nodes", "reboot", "hold")
"""Parameters without a value, for which a cluster file may say `yes` or `on`."""

LOG_REASON = "the logs must be in the job folder, where `status` reads them"
GPU_REASON = "set the GPUs with --gpus-per-node: each process uses one, and must be able to access those of its node"
TASK_REASON = "set the number of processes with --tasks-per-node"

REJECTED_PARAMETERS = {
    "array": "a job trains, evaluates or renders one run; submit one job per run",
    "batch": "the job script must run on the first node of the job",
    "chdir": "relative paths of the configuration start in the folder in which the job is submitted",
    "clusters": "the launcher also queries the queue; set the variable SLURM_CLUSTERS, which all commands read",
    "container": "the job script needs SLURM's commands; use --srun-args, or a container as --python",
    "cpus-per-gpu": "set the number of cores with --cpus-per-task",
    "cpus-per-task": "use --cpus-per-task",
    "dependency": "use --dependency",
    "error": LOG_REASON,
    "gpus": GPU_REASON,
    "gpus-per-node": "use --gpus-per-node",
    "gpus-per-socket": GPU_REASON,
    "gpus-per-task": GPU_REASON,
    "mem": "use --mem",
    "no-kill": "a training cannot continue without one of its nodes",
    "no-requeue": "use --requeue false",
    "nodes": "use --nodes",
    "ntasks": TASK_REASON,
    "ntasks-per-core": TASK_REASON,
    "ntasks-per-gpu": TASK_REASON,
    "ntasks-per-node": TASK_REASON,
    "ntasks-per-socket": TASK_REASON,
    "open-mode": LOG_REASON,
    "output": LOG_REASON,
    "parsable": "the launcher reads the job ID from the usual output of sbatch",
    "quiet": "the launcher reads the job ID from the usual output of sbatch",
    "requeue": "use --requeue true",
    "signal": "the job is signaled --signal-delay seconds before its time limit, to save a checkpoint",
    "test-only": "no job would be submitted; print the script with --dry-run",
    "time": "use --time",
    "wait": "the launcher returns when the job is submitted; use --after-job for a job that follows",
    "wrap": "the launcher writes the job script",
}
"""Parameters that are rejected, and the reason."""

SRUN_REASONS = {
    name: REJECTED_PARAMETERS[name] for name in ("error", "output", "ntasks", "ntasks-per-node", "gpus-per-task")
} | {
    "nodes": "the job uses all its nodes",
    "cpus-per-task": "use the option of the same name",
    "pty": "a job has no terminal",
    "test-only": "the job would not run",
}
"""Arguments of srun that are rejected, and the reason."""

SRUN_SHORT_NAMES = {"-e": "error", "-o": "output", "-n": "ntasks", "-N": "nodes", "-c": "cpus-per-task"}

ONE_NODE_CONFLICTS = ("contiguous", "nodefile", "nodelist", "spread-job", "switches")
"""Parameters that describe several nodes; jobs on one node do not inherit them from the training."""


def clean_parameters(parameters: Mapping[str, Any]) -> dict[str, str | bool]:
    """Return the parameters by long name; values are text, or True for a flag.

    Raises ValueError for a parameter that breaks the launcher.
    """
    cleaned: dict[str, str | bool] = {}
    for given_name, given_value in parameters.items():
        name = str(given_name).strip().removeprefix("--").replace("_", "-")
        check_parameter(name, given_value)
        value = clean_value(name, given_value)
        if value is not False:
            cleaned[name] = value
    return cleaned


def clean_value(name: str, value: Any) -> str | bool:
    """Return the value of a parameter as text; True for a flag that is on, False for one that is off."""
    if isinstance(value, bool) or value is None:
        return value is not False
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if name in FLAGS and str(value).lower() in ("yes", "on", "no", "off"):
        return str(value).lower() in ("yes", "on")
    return str(value)


def check_parameter(name: str, value: Any) -> None:
    """Raise ValueError for a parameter that breaks the launcher; sbatch also accepts the start of a name."""
    if len(name) < 2 or not name[0].isalpha():
        raise ValueError(f"{name!r} is not the long name of an sbatch parameter, for example mail-type=END")
    if name == "gres" and "gpu" in str(value):
        raise ValueError(f"'gres={value}' is not allowed: {GPU_REASON}")
    for rejected_name, reason in REJECTED_PARAMETERS.items():
        if rejected_name.startswith(name):
            raise ValueError(f"{rejected_name!r} is not allowed: {reason}")


def check_srun_arguments(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Return the arguments of srun. Raises ValueError for one that breaks the launcher."""
    for argument in arguments:
        name = argument.partition("=")[0]
        long_name = SRUN_SHORT_NAMES.get(argument[:2]) if not name.startswith("--") else name[2:]
        if long_name in SRUN_REASONS:
            raise ValueError(f"{argument!r} is not allowed: {SRUN_REASONS[long_name]}")
    return arguments
