"""Train in a job submitted with sbatch (slurm/train.sbatch), with the same bookkeeping as a job of the launcher.

`python -m launch.sbatch_entry CONFIG [KEY=VALUE]...` creates the job folder RUN/jobs/NNN-train and prints it.
`python -m launch.sbatch_entry --job-folder FOLDER` trains what the job folder describes; every process calls it.
"""

import os
import sys
import time
from pathlib import Path

import click

from featgan.cli.click_helpers import CONTEXT_SETTINGS, PATH_TYPE, resume_options, run_command
from featgan.config.loading import load_config
from featgan.errors import UserError
from featgan.run.paths import check_run_folder
from featgan.system.files import write_text
from featgan.system.plain_text import print_line
from launch.job_folder import DONE_FILE, make_job_folder, read_job_info, write_job_info, write_requeue_script
from launch.jobs import TrainJob, is_rank_zero
from launch.private_folders import check_owner, make_content_private, make_private_folder


@click.command(context_settings=CONTEXT_SETTINGS)
@click.argument("config", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@resume_options
@click.option("--job-folder", type=PATH_TYPE, help="Job folder to train; without it, the folder is created.")
def cli(
    config: str | None,
    overrides: tuple[str, ...],
    init_from: Path | None,
    reset_optimizer: bool,
    job_folder: Path | None,
) -> None:
    """Train in a job submitted with sbatch, with the same bookkeeping as a job of the launcher.

    Without --job-folder, the arguments are those of `featgan train`; the job folder is created and printed.
    """
    if job_folder is not None:
        run_train_job(job_folder)
        return
    if config is None:
        raise UserError("sbatch_entry: no configuration; give a YAML file or the name of a preset")
    folder = find_or_create_job_folder(config, overrides, init_from, reset_optimizer)
    write_requeue_script(folder)
    print_line(folder)


def find_or_create_job_folder(
    config_name: str, overrides: tuple[str, ...] = (), init_from: Path | None = None, reset_optimizer: bool = False
) -> Path:
    """Return the folder of this SLURM job. The first start of the job creates it and stores the configuration.

    Raises UserError outside a job.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError("sbatch_entry: not in a job; submit it with `sbatch slurm/train.sbatch CONFIG [KEY=VALUE]...`")
    config = load_config(config_name, overrides)
    job_id, jobs_folder = os.environ["SLURM_JOB_ID"], (config.run_dir / "jobs").absolute()
    if jobs_folder.is_dir():
        make_private_folder(jobs_folder)
    # A restarted job uses the stored configuration, even if the file has changed. A job that has not been restarted
    # may be a shell or a notebook, in which several trainings are started.
    is_restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    for folder in sorted(jobs_folder.glob("*-train"), reverse=True) if is_restarted else ():
        if str(read_job_info(folder).get("id")) == job_id:
            check_owner(folder)
            return folder
    check_run_folder(config)
    folder = make_job_folder(jobs_folder, "train")
    checkpoint = str(init_from.absolute()) if init_from else None
    train_job = TrainJob(config.model_dump(mode="json"), checkpoint, reset_optimizer)
    for file_name, text in train_job.files_to_write().items():
        write_text(folder / file_name, text)
    log_path = Path.cwd() / f"{os.environ.get('SLURM_JOB_NAME', 'featgan-train')}-{job_id}.log"
    job_info = {
        "id": job_id,
        "kind": "train",
        "name": "sbatch",
        "submitted": time.time(),
        "log": str(log_path),
        "init_from": checkpoint,
        "reset_optimizer": reset_optimizer,
        "cluster": {"executor": "slurm"},
        "command": sys.argv,
        "cwd": str(Path.cwd()),
    }
    write_job_info(folder, job_info)
    make_content_private(folder)
    return folder


def run_train_job(folder: Path) -> None:
    """Train what the job folder describes, and exit with a code for `launch.requeue`."""
    os.environ["SUBMITIT_FOLDER"] = str(folder)
    job_info = read_job_info(folder)
    config = load_config(str(folder / "config.yaml")).model_dump(mode="json")
    TrainJob(config, job_info.get("init_from"), bool(job_info.get("reset_optimizer")))()
    if is_rank_zero():
        (folder / DONE_FILE).touch()


if __name__ == "__main__":
    run_command(cli, "python -m launch.sbatch_entry", sys.argv[1:])
