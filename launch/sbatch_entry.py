"""A training that was submitted by hand (slurm/train.sbatch), looked after as one that the launcher submits.

`python -m launch.sbatch_entry CONFIG [KEY=VALUE]...` prints its job folder, RUN/jobs/NNN-train.
`python -m launch.sbatch_entry --run FOLDER` trains what is written there, in every process.
"""

import os
import sys
import time
from pathlib import Path

from featgan.cli.main import explain, train
from featgan.config.loading import load_config
from featgan.errors import UserError
from featgan.run.paths import check_folder
from launch.jobs import ENDED, TrainJob, is_first
from launch.snapshot import DONE, make_job_folder, read_card, write_card


def find_folder(arguments: list[str]) -> Path:
    """The folder of this SLURM job, with the configuration of its first start."""
    given = train.make_context("train.sbatch", list(arguments)).params
    unfit = [name for name in ("dry_run", "profile") if given[name]]
    if unfit:
        raise UserError(f"--{unfit[0].replace('_', '-')}: not in a job; `featgan train` does that")
    config = load_config(given["config"], given["overrides"])
    job, jobs = os.environ["SLURM_JOB_ID"], (config.run / "jobs").absolute()
    for folder in jobs.glob("*-train"):
        if str(read_card(folder).get("id")) == job:
            return folder  # goes on as it was submitted, whatever the file says by now
    check_folder(config)
    folder, origin = make_job_folder(jobs, "train"), given["resume_from"]
    wishes = {"resume_from": str(origin.absolute()) if origin else None, "fresh_optimizer": given["fresh_optimizer"]}
    work = TrainJob(config.model_dump(mode="json"), **wishes)
    for document, text in work.documents().items():
        (folder / document).write_text(text)
    log = Path.cwd() / f"{os.environ.get('SLURM_JOB_NAME', 'featgan-train')}-{job}.log"
    card = {"id": job, "kind": "train", "name": "by hand", "submitted": time.time(), "log": str(log), **wishes}
    write_card(folder, card | {"cluster": {"executor": "slurm"}, "command": arguments})
    return folder


def run(folder: Path) -> None:
    """Train as the folder says; leaves with a code that `launch.requeue` understands."""
    os.environ["SUBMITIT_FOLDER"] = str(folder)
    card = read_card(folder)
    config = load_config(str(folder / "config.yaml")).model_dump(mode="json")
    TrainJob(config, card.get("resume_from"), bool(card.get("fresh_optimizer")))()
    if is_first():
        (folder / DONE).touch()


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--run"]:
        run(Path(arguments[1]))
        return
    try:
        folder = find_folder(arguments)
        (folder / ENDED).unlink(missing_ok=True)
        print(folder)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"featgan: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
