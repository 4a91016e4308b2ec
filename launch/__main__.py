"""`python -m launch`: submit training, evaluation and rendering, look after them, evaluate on a schedule."""

import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featgan.cli.main import OUTPUT_KINDS, SUITES, InOrder, existing, run_command
from featgan.errors import UserError
from launch.cli_options import ClusterCommand, alone, read_cluster, taking
from launch.jobs import EvaluateJob, ExtractJob, Job, RenderJob, TrainJob
from launch.preflight import check_run, check_shards, check_training

if TYPE_CHECKING:
    from featgan.config.schema import Config
    from featgan.run.evaluation_claims import Claim
    from launch.cluster import Cluster

folder = click.Path(path_type=Path)

beginning = taking(
    click.option("--resume-from", type=folder, help="A checkpoint folder to start a new run from."),
    click.option(
        "--fresh-optimizer", is_flag=True, help="Take that checkpoint's weights, not its optimisers' moments."
    ),
)
judging = taking(
    click.option("--suite", default="standard", show_default=True, type=click.Choice(SUITES)),
    click.option("--blackbox", "blackboxes", multiple=True, help="SPEC of the box where it has moved, or a judge."),
    click.option("--probe", help="A box fitted on the true factors of drawn faces."),
    click.option("--witness", help="SPEC of a second box, that took no part in training."),
)
components = click.option(
    "--components", "num_components", default=10, show_default=True, type=click.IntRange(1), help="Swept."
)
step_option = click.option("--step", type=int, help="A step with a checkpoint; the newest by default.")


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Submit featgan's jobs to SLURM, or run them in the background, and look after them."""


def send(job: Job, cluster: "Cluster", home: Path, kind: str, after: str | None, dry_run: bool) -> str:
    """Submit a job of a run, or print its script; returns its id."""
    from launch.submit import local_script, sbatch_script, submit

    name = f"featgan-{kind}-{home.name}"
    if dry_run:
        place = home.absolute() / "jobs" / f"NNN-{kind}"
        waiting = after and f"afterok:{after}"
        is_local = cluster.executor == "local"
        click.echo(local_script(cluster, place) if is_local else sbatch_script(cluster, place, name, waiting))
        return f"{kind.upper()}_ID"
    number, where = submit(job, cluster, home / "jobs", kind, name, after)
    click.echo(f"{kind}: job {number}, in {where}")
    return number


@cli.command(cls=ClusterCommand)
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@beginning
def train(
    config: str, overrides: tuple[str, ...], cluster: str, after: str | None, dry_run: bool, **given: Any
) -> None:
    """Train; a signal or a crash queues the job again, and it goes on from its last checkpoint."""
    loaded, where = training_of(config, overrides, cluster, given, bool(after) or dry_run)
    send(train_job(loaded, given), where, loaded.run, "train", after, dry_run)


def training_of(
    config: str, overrides: tuple[str, ...], cluster: str, given: dict[str, Any], waits: bool
) -> "tuple[Config, Cluster]":
    """The configuration and the cluster, once they fit each other."""
    from featgan.config.loading import load_config

    loaded, where = load_config(config, overrides), read_cluster(cluster, given)
    check_training(loaded, where, waits)
    return loaded, where


def train_job(config: "Config", given: dict[str, Any]) -> TrainJob:
    """UserError when a checkpoint to begin from is none, or fresh moments are asked for without one."""
    from featgan.run.paths import MANIFEST

    origin, fresh = given["resume_from"], given["fresh_optimizer"]
    if fresh and origin is None:
        raise UserError("--fresh-optimizer: is for the checkpoint that --resume-from names")
    if origin is not None and not (origin / MANIFEST).is_file():
        raise UserError(f"--resume-from {origin}: no checkpoint folder (RUN/checkpoints/step-...)")
    return TrainJob(config.model_dump(mode="json"), str(origin.absolute()) if origin else None, fresh)


@cli.command(cls=ClusterCommand)
@click.argument("run", type=folder)
@step_option
@judging
@click.option("--inception", type=existing, help="Weights of Inception-v3, for FID and KID in its space.")
@click.option("--lpips", type=existing, help="Weights of torchvision's alexnet or vgg16, for LPIPS.")
@click.option("--count", type=click.IntRange(2), help="At most so many pairs, and an eighth as many images swept.")
@components
def evaluate(run: Path, cluster: str, after: str | None, dry_run: bool, **given: Any) -> None:
    """Evaluate a checkpoint, which is kept until that is done."""
    named = ("step", "suite", "blackboxes", "probe", "witness", "count", "num_components")
    options = {name: given.pop(name) for name in named}
    weights = {name: given.pop(name) for name in ("inception", "lpips")}
    options |= {name: str(path.absolute()) if path else None for name, path in weights.items()}
    where = alone(read_cluster(cluster, given))
    check_run(run, options["step"], where, after)
    job = EvaluateJob(str(run.absolute()), **options)
    if after or dry_run or where.dependency:
        send(job, where, run, "evaluate", after, dry_run)
        return
    from featgan.run.evaluation_claims import take_by_hand
    from featgan.run.paths import committed_steps

    step = max(committed_steps(run)) if job.step is None else job.step
    claim = take_by_hand(run.absolute(), step, job.suite)
    hand_over(claim, replace(job, step=step, token=claim.token), where)


@cli.command(cls=ClusterCommand)
@click.argument("run", type=folder)
@step_option
@click.option("--images", type=folder, help="A folder of any images.")
@click.option("--directions", help="Names, separated by commas; all that fit the condition by default.")
@click.option("--num-images", default=6, show_default=True, type=click.IntRange(1, 64), help="Source images.")
@components
@click.option("--name", "names", multiple=True, metavar="NUMBER=NAME", help="Name a component; kept in RUN/names.yaml.")
@click.option(
    "--video",
    multiple=True,
    type=click.Choice(("gif", "webp", "mp4", "none")),
    help="Animations of the sweeps, gif and webp by default.",
)
def render(run: Path, images: Path | None, cluster: str, after: str | None, dry_run: bool, **given: Any) -> None:
    """Render the report of a checkpoint."""
    options = {name: given.pop(name) for name in ("step", "num_images", "num_components", "names", "video")}
    wanted = tuple(name.strip() for name in (given.pop("directions") or "").split(",") if name.strip())
    where = alone(read_cluster(cluster, given))
    check_run(run, options["step"], where, after)
    shown = str(images.absolute()) if images else None
    send(
        RenderJob(str(run.absolute()), images=shown, directions=wanted, **options), where, run, "render", after, dry_run
    )


@cli.command(cls=ClusterCommand)
@click.option("--shards", required=True, type=folder, help="Folder made by `featgan pack`.")
@click.option("--blackbox", required=True, help="SPEC of the box (docs/blackbox.md).")
@click.option("--name", default="blackbox", show_default=True, help="The cache's name.")
@click.option("--layer", help="Where the features are taken.")
@click.option("--components", type=int, help="Keep so many whitened principal components.")
@click.option("--output-kind", type=click.Choice(OUTPUT_KINDS), help="Of a foreign box.")
@click.option("--batch-size", default=64, show_default=True, type=int, help="Images at once.")
def extract(shards: Path, cluster: str, after: str | None, dry_run: bool, **given: Any) -> None:
    """Cache a black box's features of every image."""
    names = ("blackbox", "name", "layer", "components", "output_kind", "batch_size")
    job = ExtractJob(str(shards.absolute()), **{name: given.pop(name) for name in names})
    where = alone(read_cluster(cluster, given))
    check_shards(shards, where, after)
    send(job, where, shards, "extract", after, dry_run)


@cli.command(cls=ClusterCommand)
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@beginning
@judging
def pipeline(
    config: str, overrides: tuple[str, ...], cluster: str, after: str | None, dry_run: bool, **given: Any
) -> None:
    """Train, then evaluate, then render: each waits for the success of the one before."""
    loaded, where = training_of(config, overrides, cluster, given, bool(after) or dry_run)
    if where.executor == "local":
        raise UserError("pipeline: local jobs cannot wait for each other; run train, evaluate, render one by one")
    run, options = loaded.run, {name: given[name] for name in ("suite", "blackboxes", "probe", "witness")}
    first = send(train_job(loaded, given), where, run, "train", after, dry_run)
    following = alone(where).model_copy(update={"dependency": None})  # the first one waits for that
    second = send(EvaluateJob(str(run.absolute()), **options), following, run, "evaluate", first, dry_run)
    send(RenderJob(str(run.absolute())), following, run, "render", second, dry_run)


@cli.command(cls=ClusterCommand, explained=("after", "dry_run"))
@click.argument("runs", type=folder)
@click.option("--once", is_flag=True, help="One look, for cron, scrontab or a job; else a look every --every seconds.")
@click.option("--every", default=300, show_default=True, type=click.IntRange(1), help="Seconds between two looks.")
@click.option("--most", default=100, show_default=True, type=click.IntRange(1), help="Evaluations of one look.")
@click.option("--submit", "as_jobs", is_flag=True, help="Submit each evaluation as a job, in place of running it here.")
def watch(
    runs: Path,
    once: bool,
    every: int,
    most: int,
    as_jobs: bool,
    cluster: str,
    after: str | None,
    dry_run: bool,
    **given: Any,
) -> None:
    """Evaluate every checkpoint that is due (evaluation.every of each run) and write the leaderboard."""
    from launch.watch import evaluate_here, tick

    if dry_run:
        raise UserError("watch: --dry-run shows the script of a job; use it with evaluate")
    if after or (given["dependency"] and not as_jobs):
        raise UserError(
            "watch: looks at once and waits for no job; "
            "`sbatch --dependency=afterany:ID slurm/watch.sbatch RUNS` is a look that does"
        )
    idle = [name for name, value in given.items() if value not in (None, ())]
    if idle and not as_jobs:  # they would do nothing
        raise UserError(f"watch: --{idle[0].replace('_', '-')} is for jobs, and without --submit it evaluates here")
    start = partial(submit_evaluation, alone(read_cluster(cluster, given))) if as_jobs else evaluate_here
    while True:
        tick(runs.absolute(), start, most)
        if once:
            return
        time.sleep(every)


def submit_evaluation(cluster: "Cluster", claim: "Claim") -> None:
    """Hand a claim of the watch to a job."""
    from submitit.helpers import clean_env

    job = EvaluateJob(str(claim.run), claim.step, claim.suite, token=claim.token, scheduled=True)
    where_slurm_is = {name: value for name, value in os.environ.items() if name == "SLURM_CONF"}
    # Inside a job, that job's own SLURM variables would be taken for wishes of the new one.
    with clean_env():
        os.environ.update(where_slurm_is)
        hand_over(claim, job, cluster.model_copy(update={"max_failures": 1}))  # the watch is who tries again


def hand_over(claim: "Claim", job: EvaluateJob, cluster: "Cluster") -> None:
    """Submit the evaluation of a claim, which is the job's from then on; given back where the scheduler refuses."""
    try:
        number = send(job, cluster, claim.run, "evaluate", None, dry_run=False)
    except BaseException:
        claim.give_back()
        raise
    if cluster.executor == "local":
        claim.pass_to_process(int(number))
    else:
        claim.pass_to_job(number)


@cli.command()
@click.argument("run", type=folder)
def status(run: Path) -> None:
    """Show each job of a run, or of every run in a folder."""
    from rich.console import Console

    from launch.status import status_table

    found = [run] if (run / "jobs").is_dir() else sorted(path.parent for path in run.glob("*/jobs"))
    if not found:
        raise UserError(
            f"{run}: no run with jobs in it" + (f"; `featgan info {run}` tells of it" if run.exists() else "")
        )
    for each in found:
        Console().print(status_table(each))


if __name__ == "__main__":
    run_command(cli, "python -m launch", sys.argv[1:])
