"""Submit a job: write the job folder and the sbatch script, and pass the script to SLURM or to this machine."""

import os
import shlex
import shutil
import sys
import time
import warnings
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import _make_sbatch_string

from featgan.errors import UserError
from featgan.system.files import write_text
from launch.cluster import ClusterConfig
from launch.job_folder import (
    CODE_ARCHIVE,
    REQUEUE_SCRIPT,
    copy_code,
    make_job_folder,
    write_job_info,
    write_requeue_script,
)
from launch.jobs import Job
from launch.notation import parse_minutes
from launch.private_folders import make_content_private
from launch.submission_environment import submission_environment

MAX_LOCAL_MINUTES = 60 * 24 * 3650
"""Time limit of a job on this machine if the configuration sets none."""


def setup_lines(cluster: ClusterConfig, folder: Path) -> list[str]:
    """Return the shell lines before the command: the site's setup, the path of the copied code, the requeue trap."""
    code = shlex.quote(str(folder / CODE_ARCHIVE))
    lines = [
        *cluster.setup,
        # PYTHONSAFEPATH excludes the working directory, which may contain newer code.
        f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1",
    ]
    if cluster.executor == "slurm":
        lines += [f"export FEATGAN_MAX_FAILURES={cluster.max_failures}", *requeue_lines(cluster, folder)]
    return lines


def requeue_lines(cluster: ClusterConfig, folder: Path) -> list[str]:
    """Return the shell lines that check a restarted job, and requeue the job after srun if it has failed."""
    job, python = shlex.quote(str(folder)), python_command(cluster)
    lines = [f"featgan_job={job}", f'featgan_python() {{ {python} "$@"; }}']
    if cluster.srun_args:
        # srun may start a container, and Python may exist only there.
        arguments = shlex.join(["--overlap", "--export=ALL", "--nodes=1", "--ntasks=1", *cluster.srun_args])
        lines.append(f'featgan_step() {{ srun {arguments} {python} "$@"; }}')
    return [*lines, *owner_check(folder), f'. "$featgan_job/{REQUEUE_SCRIPT}"']


def owner_check(folder: Path) -> list[str]:
    """Return the shell line that refuses to run a folder of another user, who has replaced the folder since.

    Without it, everyone who can write the run could replace the code of a pending job. Some file systems do not show
    the owner of a file; there, the check is left out.
    """
    if folder.exists() and folder.stat().st_uid != os.geteuid():
        return []
    message = "featgan: the job folder belongs to another user, so the job is not run: $featgan_job"
    return [f'[ -O "$featgan_job" ] || {{ echo "{message}" >&2; exit 2; }}']


def python_command(cluster: ClusterConfig) -> str:
    """Return the Python interpreter of the job."""
    return cluster.python or shlex.quote(sys.executable)


def sbatch_parameters(cluster: ClusterConfig, folder: Path, name: str, dependency: str | None) -> dict[str, Any]:
    """Return the parameters for submitit; options that are not set are left out."""
    extra_parameters: dict[str, Any] = {"requeue" if cluster.requeue else "no-requeue": True, **cluster.parameters}
    dependency = ",".join(condition for condition in (dependency, cluster.dependency) if condition) or None
    if cluster.reservation:
        extra_parameters["reservation"] = cluster.reservation
    if dependency:
        # Without this, a job would stay in the queue forever after the job before it has failed.
        extra_parameters["kill-on-invalid-dep"] = "yes"
    parameters = {
        "job_name": name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": cluster.time,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.num_tasks_per_node,
        "gpus_per_node": cluster.gpus_per_node or None,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": cluster.mem,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "dependency": dependency,
        "signal_delay_s": cluster.signal_delay,
        "setup": setup_lines(cluster, folder),
        # srun does not inherit --cpus-per-task, nor, on sites with SBATCH_EXPORT=NONE, the variables of the setup. One
        # process that fails must end the others.
        "srun_args": [
            "--export=ALL",
            f"--cpus-per-task={cluster.cpus_per_task}",
            "--kill-on-bad-exit=1",
            *cluster.srun_args,
        ],
        "additional_parameters": extra_parameters,
    }
    return {key: value for key, value in parameters.items() if value is not None} | {"wckey": cluster.wckey}


def sbatch_script(cluster: ClusterConfig, folder: Path, name: str, dependency: str | None = None) -> str:
    """Return the script that `submit_job` passes to sbatch."""
    command = f"{python_command(cluster)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return _make_sbatch_string(command=command, folder=folder, **sbatch_parameters(cluster, folder, name, dependency))


def local_script(cluster: ClusterConfig, folder: Path) -> str:
    """Return what `submit_job` runs on this machine, as a shell script."""
    command = f"{python_command(cluster)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return "\n".join(
        [f"# In the background, {cluster.num_tasks_per_node} processes:", *setup_lines(cluster, folder), command]
    )


def submit_job(
    job: Job, cluster: ClusterConfig, jobs_folder: Path, kind: str, name: str, after_job: str | None = None
) -> tuple[str, Path]:
    """Submit a job and return its ID and its folder JOBS/NNN-KIND.

    `after_job` is the ID of a job that must succeed first.
    Raises UserError if the scheduler is not available or rejects the job.
    """
    if cluster.executor == "local" and (cluster.nodes > 1 or after_job):
        raise UserError("local: jobs run on one machine and cannot wait for other jobs; use --cluster slurm")
    folder = make_job_folder(jobs_folder.absolute(), kind)
    copy_code(folder)
    write_requeue_script(folder)
    dependency = f"afterok:{after_job}" if after_job else None
    try:
        executor = make_executor(cluster, folder, name, dependency)
        options = [option.replace("_", "-") for option in (*executor.parameters, *cluster.parameters)]
        with (
            submission_environment(options, cluster.executor == "local"),
            warnings.catch_warnings(),
            redirect_stderr(StringIO()),  # submitit prints the errors of sbatch, which the error below contains
        ):
            warnings.simplefilter("ignore")  # submitit warns if sacct is missing, which featgan does not need
            submitted_job = executor.submit(job)
    except (RuntimeError, ValueError, submitit.core.utils.FailedJobError) as error:
        remove_job_folder(folder)
        reason = describe_rejection(str(error))
        raise UserError(f"{cluster.executor}: cannot submit ({reason}); print the script with --dry-run") from error
    job_info = {
        "id": str(submitted_job.job_id),
        "kind": kind,
        "name": name,
        "submitted": time.time(),
        "after_job": after_job,
    }
    for file_name, text in job.files_to_write().items():
        write_text(folder / file_name, text)
    submission = {"cluster": cluster.model_dump(mode="json"), "command": sys.argv, "cwd": str(Path.cwd())}
    write_job_info(folder, job_info | submission)
    make_content_private(folder)
    return str(submitted_job.job_id), folder


def describe_rejection(message: str) -> str:
    """Return the output of sbatch as one line; a site may explain its rejection in several lines."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines)) or "no message"


def remove_job_folder(folder: Path) -> None:
    """Remove a job folder, and the parent folders that were created for it."""
    shutil.rmtree(folder)
    for parent in folder.parents[:2]:
        if not any(parent.iterdir()):
            parent.rmdir()


def make_executor(
    cluster: ClusterConfig, folder: Path, name: str, dependency: str | None
) -> submitit.core.core.PicklingExecutor:
    """Return the submitit executor for the cluster."""
    if cluster.executor == "local":
        local_executor = submitit.LocalExecutor(folder, python=python_command(cluster))
        local_executor.update_parameters(
            tasks_per_node=cluster.num_tasks_per_node,
            gpus_per_node=cluster.num_gpus_per_node,
            timeout_min=min(parse_minutes(cluster.time), MAX_LOCAL_MINUTES),
            signal_delay_s=cluster.signal_delay,
            setup=setup_lines(cluster, folder),
        )
        return local_executor
    slurm_executor = submitit.SlurmExecutor(folder, python=python_command(cluster))
    slurm_executor.update_parameters(**sbatch_parameters(cluster, folder, name, dependency))
    return slurm_executor
