"""Checks before a job is submitted, so that an error is reported at once and not hours later in a log."""

from pathlib import Path
from typing import TYPE_CHECKING

from featgan.errors import UserError
from featgan.system.locations import Location

if TYPE_CHECKING:
    from featgan.config.schema import Config
    from launch.cluster import ClusterConfig


def check_training(config: "Config", cluster: "ClusterConfig", has_dependency: bool) -> None:
    """Raise UserError unless the run can be trained by the job.

    The run folder must match the configuration, the processes must be able to split the batch, and no other job may be
    training the run. The last check is skipped if the job starts after another one (`has_dependency`).
    """
    from featgan.run.paths import check_run_folder

    check_run_folder(config)
    config.check_batch_split(cluster.nodes * cluster.num_tasks_per_node)
    if not has_dependency and not cluster.dependency:
        check_not_training(config.run_dir)


def check_not_training(run_dir: Path) -> None:
    """Raise UserError if a job or a process is training the run: two would overwrite each other's checkpoints."""
    from featgan.run.paths import TRAINING_LOCK
    from featgan.system.file_lease import FileLease
    from launch.job_folder import read_job_info
    from launch.status import query_queue

    job_ids = {str(read_job_info(folder).get("id")) for folder in run_dir.glob("jobs/*-train")}
    queue = query_queue() if job_ids else None
    for job_id in job_ids.intersection(queue or {}):
        raise UserError(
            f"{run_dir}: is already being trained by job {job_id} ({(queue or {})[job_id].state});"
            f" wait for it to finish, or cancel it with `scancel {job_id}`"
        )
    lock_owner = FileLease(run_dir / TRAINING_LOCK).live_owner()
    if lock_owner:
        raise UserError(f"{run_dir}: is already being trained by {lock_owner}; wait for it to finish, or stop it")


def check_run(run_dir: Path, step: int | None, cluster: "ClusterConfig", after_job: str | None) -> None:
    """Raise UserError unless the run has a checkpoint of the step, or any checkpoint if `step` is None.

    The check is skipped if the job starts after another one, which may write the checkpoint.
    """
    from featgan.run.paths import checkpoint_steps

    if after_job or cluster.dependency:
        return
    if not (run_dir / "config.yaml").is_file():
        raise UserError(
            f"{run_dir}: no such run; train it with `python -m launch train CONFIG run_dir={run_dir}`,"
            " or name the job that trains it with --after-job"
        )
    steps = checkpoint_steps(run_dir)
    if not steps:
        raise UserError(f"{run_dir}: no checkpoint yet; name the job that trains it with --after-job")
    if step is not None and step not in steps:
        raise UserError(f"{run_dir}: no checkpoint of step {step}; its checkpoints are {', '.join(map(str, steps))}")


def check_shards(shards: Location, cluster: "ClusterConfig", after_job: str | None) -> None:
    """Raise UserError unless the shards exist, or the job starts after another one, which may write them.

    The files of a URL are checked in the job; the URL must not contain a password.
    """
    if shards.has_secret:
        raise UserError(
            f"{shards}: contains a password or a query, which would be stored with the job; use ~/.netrc or the "
            "variables of the environment instead"
        )
    if not (after_job or cluster.dependency or shards.is_remote or (shards.path / "manifest.json").is_file()):
        raise UserError(
            f"{shards}: no shards; write them with `featgan pack`, or name the job that writes them with --after-job"
        )


def choose_job_folder(shards: Location, out: Location | None) -> Path:
    """Return the folder for the files of an extraction: that of the features, or the shards.

    Raises UserError if the shards are behind a URL, to which nothing can be written.
    """
    if out is None and shards.is_remote:
        raise UserError(f"{shards}: features cannot be written to a URL; choose a local folder with --out")
    return (out or shards).path
