"""`python -m launch`: submit training, evaluation and rendering, look after them, evaluate on a schedule."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic_core import PydanticUndefined
from rich.console import Console

from featgan.cli import InOrder, run_command
from featgan.config import load_config
from featgan.errors import UserError
from featgan.schedule import check_folder
from launch.claims import Claim
from launch.cluster import Cluster, load_cluster
from launch.jobs import EvaluateJob, ExtractJob, Job, RenderJob, TrainJob

Command = TypeVar("Command", bound=Callable[..., Any])
folder = click.Path(path_type=Path)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Submit featgan's jobs to SLURM, or run them in the background, and look after them."""


def cluster_options(command: Command) -> Command:
    """--cluster, --dry-run, and one option for each field of a cluster."""
    for name, field in reversed(Cluster.model_fields.items()):
        if name == "executor":
            continue
        many = name in ("setup", "parameters")
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            multiple=many,
            metavar="NAME[=VALUE]" if name == "parameters" else "LINE" if many else "VALUE",
            help=(field.description or "").split("\n")[0] + default_of(field.default),
        )(command)
    dry = click.option("--dry-run", is_flag=True, help="Print the sbatch script; submit nothing.")
    where = click.option("--cluster", default="slurm", show_default=True, help="configs/cluster/NAME.yaml, or a file.")
    after = click.option("--after", help="Id of a job that must have succeeded before.")
    return where(after(dry(command)))


def default_of(value: Any) -> str:
    shown = value not in (None, PydanticUndefined, (), {}, 0)
    return f"  [default: {value}]" if shown else ""


def read_cluster(cluster: str, given: dict[str, Any]) -> Cluster:
    """The cluster with the command line's options on top."""
    fields = {name: value for name, value in given.items() if name in Cluster.model_fields}
    pairs = [pair.partition("=") for pair in fields.pop("parameters", ())]
    # One without a value is a flag, as `exclusive`.
    return load_cluster(cluster, fields | {"parameters": {key: value if sign else True for key, sign, value in pairs}})


def alone(cluster: Cluster) -> Cluster:
    """For jobs of one process."""
    gpus = min(cluster.gpus_per_node, 1)
    return cluster.model_copy(update={"nodes": 1, "tasks_per_node": 1, "gpus_per_node": gpus})


def send(job: Job, cluster: Cluster, home: Path, kind: str, after: str | None, dry_run: bool) -> str:
    """Submit a job of a run, or print its script; returns its id."""
    from launch.submit import sbatch_script, submit

    name = f"featgan-{kind}-{home.name}"
    if dry_run:
        click.echo(sbatch_script(cluster, home.absolute() / "jobs" / f"NNN-{kind}", name, after and f"afterok:{after}"))
        return f"{kind.upper()}_ID"
    number, where = submit(job, cluster, home / "jobs", kind, name, after)
    click.echo(f"{kind}: job {number}, in {where}")
    return number


@cli.command()
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@cluster_options
def train(
    config: str, overrides: tuple[str, ...], cluster: str, after: str | None, dry_run: bool, **given: Any
) -> None:
    """Train; a signal or a crash queues the job again, and it goes on from its last checkpoint."""
    send(
        train_job(config, overrides),
        *train_place(config, overrides, cluster, given, bool(after) or dry_run),
        "train",
        after,
        dry_run,
    )


def train_job(config: str, overrides: tuple[str, ...]) -> TrainJob:
    return TrainJob(load_config(config, overrides).model_dump(mode="json"))


def train_place(
    config: str, overrides: tuple[str, ...], cluster: str, given: dict[str, Any], waits: bool
) -> tuple[Cluster, Path]:
    """Where a training runs, once it is sure that its processes can share the batch and that, unless it waits for
    another job or is not submitted, nothing else trains the run."""
    loaded, where = load_config(config, overrides), read_cluster(cluster, given)
    check_folder(loaded)
    if where.executor == "slurm" and not waits and not where.dependency:
        check_queue(loaded.run)
    processes, parts = where.nodes * where.tasks, loaded.distribution.accumulation
    if loaded.training.batch_size % (processes * parts):
        raise UserError(
            f"training.batch_size: {loaded.training.batch_size} cannot be shared by {processes} processes"
            f" ({where.nodes} nodes of {where.tasks})" + (f" in {parts} parts" if parts > 1 else "")
        )
    return where, loaded.run


def check_queue(run: Path) -> None:
    """UserError when a job that waits or runs trains the run already: two would undo each other's checkpoints."""
    from launch.snapshot import read_card
    from launch.status import queue

    known = queue([str(read_card(folder).get("id")) for folder in run.glob("jobs/*-train")])
    for job, (state, _) in (known or {}).items():
        raise UserError(
            f"{run}: job {job} ({state}) trains it already; wait until it is gone, or `scancel {job}` first"
        )


@cli.command()
@click.argument("run", type=folder)
@click.option("--step", type=int, help="A step with a checkpoint; the newest by default.")
@click.option("--suite", default="standard", show_default=True, type=click.Choice(["quick", "standard"]))
@click.option("--blackbox", "blackboxes", multiple=True, help="SPEC of the box where it has moved, or a judge.")
@click.option("--probe", help="A box fitted on the true factors of drawn faces.")
@cluster_options
def evaluate(run: Path, cluster: str, after: str | None, dry_run: bool, **given: Any) -> None:
    """Evaluate a checkpoint."""
    options = {name: given.pop(name) for name in ("step", "suite", "blackboxes", "probe")}
    job = EvaluateJob(str(run.absolute()), **options)
    send(job, alone(read_cluster(cluster, given)), run, "evaluate", after, dry_run)


@cli.command()
@click.argument("run", type=folder)
@click.option("--images", type=folder, help="A folder of any images.")
@cluster_options
def render(run: Path, images: Path | None, cluster: str, after: str | None, dry_run: bool, **given: Any) -> None:
    """Render the report of a run's newest checkpoint."""
    job = RenderJob(str(run.absolute()), str(images.absolute()) if images else None)
    send(job, alone(read_cluster(cluster, given)), run, "render", after, dry_run)


@cli.command()
@click.option("--shards", required=True, type=folder, help="Folder made by `featgan pack`.")
@click.option("--blackbox", required=True, help="SPEC of the box (docs/blackbox.md).")
@click.option("--name", default="blackbox", show_default=True, help="The cache's name.")
@click.option("--layer", help="Where the features are taken.")
@click.option("--components", type=int, help="Keep so many whitened principal components.")
@click.option("--batch-size", default=64, show_default=True, type=int, help="Images at once.")
@cluster_options
def extract(shards: Path, cluster: str, after: str | None, dry_run: bool, **given: Any) -> None:
    """Cache a black box's features of every image."""
    options = {name: given.pop(name) for name in ("blackbox", "name", "layer", "components", "batch_size")}
    job = ExtractJob(str(shards.absolute()), **options)
    send(job, alone(read_cluster(cluster, given)), shards, "extract", after, dry_run)


@cli.command()
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@cluster_options
def pipeline(
    config: str, overrides: tuple[str, ...], cluster: str, after: str | None, dry_run: bool, **given: Any
) -> None:
    """Train, then evaluate, then render: each waits for the success of the one before."""
    where, run = train_place(config, overrides, cluster, given, bool(after) or dry_run)
    if where.executor == "local":
        raise UserError("pipeline: local jobs cannot wait for each other; run train, evaluate, render one by one")
    first = send(train_job(config, overrides), where, run, "train", after, dry_run)
    second = send(EvaluateJob(str(run.absolute())), alone(where), run, "evaluate", first, dry_run)
    send(RenderJob(str(run.absolute())), alone(where), run, "render", second, dry_run)


@cli.command()
@click.argument("runs", type=folder)
@click.option("--once", is_flag=True, help="One look, for cron, scrontab or a job; else a look every --every seconds.")
@click.option("--every", default=300, show_default=True, type=click.IntRange(1), help="Seconds between two looks.")
@click.option("--most", default=100, show_default=True, type=click.IntRange(1), help="Evaluations of one look.")
@click.option("--submit", "as_jobs", is_flag=True, help="Submit each evaluation as a job, in place of running it here.")
@cluster_options
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
    start = partial(submit_evaluation, alone(read_cluster(cluster, given))) if as_jobs else evaluate_here
    while True:
        tick(runs.absolute(), start, most)
        if once:
            return
        time.sleep(every)


def submit_evaluation(cluster: Cluster, claim: Claim) -> None:
    """Hand a claim to a job; given back where the scheduler refuses."""
    from submitit.helpers import clean_env

    job = EvaluateJob(str(claim.run), claim.step, claim.suite, claimed=True)
    cluster = cluster.model_copy(update={"max_failures": 1})  # the watch is who tries again
    where_slurm_is = {name: value for name, value in os.environ.items() if name == "SLURM_CONF"}
    try:
        # Inside a job, that job's own SLURM variables would be taken for wishes of the new one.
        with clean_env():
            os.environ.update(where_slurm_is)
            claim.pass_to(send(job, cluster, claim.run, "evaluate", None, dry_run=False))
    except (UserError, OSError, subprocess.SubprocessError):
        claim.give_back()
        raise


@cli.command()
@click.argument("run", type=folder)
def status(run: Path) -> None:
    """Show each job of a run, or of every run in a folder."""
    from launch.status import status_table

    found = [run] if (run / "jobs").is_dir() else sorted(path.parent for path in run.glob("*/jobs"))
    if not found:
        raise UserError(f"{run}: no run with jobs in it")
    for each in found:
        Console().print(status_table(each))


if __name__ == "__main__":
    run_command(cli, "python -m launch", sys.argv[1:])
