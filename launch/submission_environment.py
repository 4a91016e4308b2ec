"""The environment in which a job is submitted: without the variables of the allocation that the command runs in."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

KEPT_VARIABLES = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
"""SLURM_ variables that configure SLURM's commands instead of describing an allocation."""

LAUNCHER_PREFIXES = ("PMI_", "PMI2_", "PMIX_")
"""Prefixes of the variables that srun sets for MPI; submitit removes those of SLURM and torch.distributed."""

ALLOCATION_VARIABLES = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
"""Variables that SLURM sets in an allocation with GPUs. A job gets its own, but only if it requests GPUs."""

BINDING_PREFIXES = ("SBATCH_CPU_BIND", "SBATCH_MEM_BIND")
"""Prefixes of the only SBATCH_ variables that SLURM sets in an allocation; all others come from the user."""

CONFLICTING_VARIABLES = {
    "array": ("SBATCH_ARRAY_INX",),
    "container": ("SBATCH_CONTAINER",),
    "no-kill": ("SBATCH_NO_KILL",),
    "wait": ("SBATCH_WAIT",),
    "job-name": ("SBATCH_JOB_NAME",),
    "signal": ("SBATCH_SIGNAL",),
    "output": ("SBATCH_OUTPUT",),
    "error": ("SBATCH_ERROR",),
    "open-mode": ("SBATCH_OPEN_MODE",),
    "requeue": ("SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"),
    "time": ("SBATCH_TIMELIMIT",),
    "partition": ("SBATCH_PARTITION",),
    "account": ("SBATCH_ACCOUNT",),
    "qos": ("SBATCH_QOS",),
    "constraint": ("SBATCH_CONSTRAINT",),
    "reservation": ("SBATCH_RESERVATION",),
    "wckey": ("SBATCH_WCKEY",),
    "gpus-per-node": ("SBATCH_GPUS", "SBATCH_GPUS_PER_NODE", "SBATCH_GPUS_PER_TASK", "SBATCH_GRES"),
    "mem": ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"),
}
"""Variables by the sbatch option whose value in the job script they would replace or contradict."""

ALWAYS_SET = (
    "array",
    "container",
    "no-kill",
    "wait",
    "job-name",
    "signal",
    "output",
    "error",
    "open-mode",
    "requeue",
    "time",
)
"""Options that every job script sets, or that no job may have."""


@contextmanager
def submission_environment(options: Iterable[str], is_local: bool = False) -> Iterator[None]:
    """Remove the variables that must not reach a job, and restore them afterward.

    sbatch passes the environment on, so the variables of an allocation (a shell of `srun --pty`, a watch) would bind
    the new job to the cores and the memory of the old one. The user's SBATCH_ variables are kept, except those that
    would replace one of the `options` of the job script: sbatch prefers its variables to the script.
    """
    from submitit.helpers import clean_env

    saved = dict(os.environ)
    is_in_allocation = "SLURM_JOB_ID" in saved
    conflicts = {name for option in (*ALWAYS_SET, *options) for name in CONFLICTING_VARIABLES.get(option, ())}
    kept = {
        name: value
        for name, value in saved.items()
        if name in KEPT_VARIABLES
        or (
            name.startswith("SBATCH_")
            and name not in conflicts
            and not (is_in_allocation and name.startswith(BINDING_PREFIXES))
        )
    }
    removed = [name for name in saved if name.startswith(LAUNCHER_PREFIXES)]
    if is_in_allocation and not is_local:
        removed += ALLOCATION_VARIABLES
    with clean_env(removed):
        os.environ.update(kept)
        yield
