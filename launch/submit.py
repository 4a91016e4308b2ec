"""From a job and a cluster to sbatch: the script, the job's folder, the submission."""

import shlex
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import _make_sbatch_string

from featgan.errors import UserError
from launch.cluster import Cluster, minutes
from launch.jobs import ENDED, Job
from launch.snapshot import copy_code, make_job_folder, write_card

BEFORE = '[ "${{SLURM_RESTART_COUNT:-0}}" -eq 0 ] || {python} -m launch.requeue {folder} || exit'
"""A job that starts again first looks at how its former start ended."""

AFTER = """\
featgan_after() {{
  code=$?
  trap - EXIT
  [ "$code" -eq 0 ] || {python} -m launch.requeue {folder} "$code"
  exit "$code"
}}
trap featgan_after EXIT"""
"""Looks at how srun ended; the script's own exit code stays what it was."""


def setup_lines(cluster: Cluster, folder: Path) -> list[str]:
    """Shell lines before the command: the site's, then the snapshot's code, then what follows the end."""
    code = shlex.quote(str(folder / "code"))
    lines = [
        *cluster.setup,
        # The folder that the job starts in may hold newer code, so it stays off Python's path.
        f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1",
    ]
    if cluster.executor == "slurm":
        # Left by a former start that was ended before anybody read it.
        lines.append(f"rm -f {shlex.quote(str(folder / ENDED))}")
        lines.append(f"export FEATGAN_MAX_FAILURES={cluster.max_failures}")
        lines.append(BEFORE.format(python=interpreter(cluster), folder=shlex.quote(str(folder))))
        lines.append(AFTER.format(python=interpreter(cluster), folder=shlex.quote(str(folder))))
    return lines


def interpreter(cluster: Cluster) -> str:
    return cluster.python or shlex.quote(sys.executable)


def sbatch_parameters(cluster: Cluster, folder: Path, name: str, dependency: str | None) -> dict[str, Any]:
    """What submitit is told; what the cluster leaves out is not mentioned."""
    extra: dict[str, Any] = {"requeue" if cluster.requeue else "no-requeue": True, **cluster.parameters}
    dependency = ",".join(wish for wish in (dependency, cluster.dependency) if wish) or None
    if cluster.reservation:
        extra["reservation"] = cluster.reservation
    if dependency:
        # A job whose predecessor failed can never start: it must not wait in the queue for ever.
        extra["kill-on-invalid-dep"] = "yes"
    given = {
        "job_name": name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": cluster.time,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.tasks,
        "gpus_per_node": cluster.gpus_per_node or None,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": cluster.mem,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "dependency": dependency,
        "signal_delay_s": cluster.signal_delay,
        "setup": setup_lines(cluster, folder),
        # A step does not inherit the cores of the job's tasks, and one dead process ends the step.
        "srun_args": [f"--cpus-per-task={cluster.cpus_per_task}", "--kill-on-bad-exit=1"],
        "additional_parameters": extra,
    }
    return {key: value for key, value in given.items() if value is not None} | {"wckey": cluster.wckey}


def sbatch_script(cluster: Cluster, folder: Path, name: str, dependency: str | None = None) -> str:
    """The script that `submit` would hand to sbatch."""
    command = f"{interpreter(cluster)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return _make_sbatch_string(command=command, folder=folder, **sbatch_parameters(cluster, folder, name, dependency))


def local_script(cluster: Cluster, folder: Path) -> str:
    """What `submit` would run on this machine."""
    command = f"{interpreter(cluster)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return "\n".join([f"# {cluster.tasks} times at once, in the background:", *setup_lines(cluster, folder), command])


def submit(job: Job, cluster: Cluster, jobs: Path, kind: str, name: str, after: str | None = None) -> tuple[str, Path]:
    """Submit; returns the job's id and its folder JOBS/NNN-KIND. `after` is the id of a job that must succeed first.

    UserError where the cluster's scheduler is not here or refuses.
    """
    if cluster.executor == "local" and (cluster.nodes > 1 or after):
        raise UserError("local: jobs run on this machine alone and wait for no others; use --cluster slurm")
    folder = make_job_folder(jobs.absolute(), kind)
    copy_code(folder)
    dependency = f"afterok:{after}" if after else None
    try:
        executor = make_executor(cluster, folder, name, dependency)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # submitit misses sacct where there is no accounting
            submitted = executor.submit(job)
    except (RuntimeError, ValueError, submitit.core.utils.FailedJobError) as error:
        clear_away(folder)
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{cluster.executor}: cannot submit ({reason}); see the script with --dry-run") from error
    card = {"id": str(submitted.job_id), "kind": kind, "name": name, "submitted": time.time(), "after": after}
    for document, text in job.documents().items():
        (folder / document).write_text(text)
    write_card(folder, card | {"cluster": cluster.model_dump(mode="json"), "command": sys.argv})
    return str(submitted.job_id), folder


def clear_away(folder: Path) -> None:
    """Remove a job's folder, and what was made for it."""
    shutil.rmtree(folder)
    for parent in folder.parents[:2]:
        if not any(parent.iterdir()):
            parent.rmdir()


def make_executor(
    cluster: Cluster, folder: Path, name: str, dependency: str | None
) -> submitit.core.core.PicklingExecutor:
    """submitit's executor for the cluster."""
    if cluster.executor == "local":
        local = submitit.LocalExecutor(folder, python=interpreter(cluster))
        local.update_parameters(
            tasks_per_node=cluster.tasks,
            gpus_per_node=cluster.gpus_per_node,
            timeout_min=minutes(cluster.time),
            signal_delay_s=cluster.signal_delay,
            setup=setup_lines(cluster, folder),
        )
        return local
    slurm = submitit.SlurmExecutor(folder, python=interpreter(cluster))
    slurm.update_parameters(**sbatch_parameters(cluster, folder, name, dependency))
    return slurm
