"""`python -m launch`: submit jobs, monitor them, and evaluate the checkpoints of all runs."""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featgan.cli.click_helpers import (
    CONTEXT_SETTINGS,
    LOCATION_TYPE,
    PATH_TYPE,
    OrderedGroup,
    choose_feature_cache,
    evaluator_options,
    extract_options,
    metric_options,
    render_options,
    resume_options,
    run_command,
    split_names,
    trust_callables_option,
)
from featgan.config.trusted_callables import callable_names, trust_given_specs
from featgan.errors import UserError
from featgan.run.evaluation_options import EvaluationOptions
from featgan.system.locations import Location
from featgan.system.os_errors import TRANSIENT_ERRORS, describe_os_error
from featgan.system.plain_text import print_line
from launch.cli_options import ClusterCommand, SubmitOptions, read_cluster, read_pipeline_stage, read_stage
from launch.jobs import EvaluateJob, ExtractJob, Job, RenderJob, TrainJob
from launch.preflight import check_run, check_shards, check_training, choose_job_folder

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from featgan.config.schema import Config
    from featgan.run.evaluation_claims import EvaluationClaim
    from launch.cluster import ClusterConfig

step_option = click.option(
    "--step", type=click.IntRange(0), help="Training step of the checkpoint to use; the newest by default."
)


def stage_option(stage: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option that sets the resources of one stage of a pipeline."""
    return click.option(
        f"--{stage}-option",
        multiple=True,
        metavar="NAME=VALUE",
        help=f"Option of the {stage} job only, for example time=1:00:00 or gpus-per-node=1; may be repeated.",
    )


@click.group(cls=OrderedGroup, context_settings=CONTEXT_SETTINGS)
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
def cli(debug: bool) -> None:
    """Submit featgan jobs to SLURM, or run them in the background, and monitor them."""


def submit_or_print(
    job: Job, cluster: "ClusterConfig", base_dir: Path, kind: str, after_job: str | None, dry_run: bool
) -> str:
    """Submit a job and return its ID, or print its script if `dry_run` is set."""
    from launch.submit import local_script, sbatch_script, submit_job

    name = f"featgan-{kind}-{base_dir.name}"
    if dry_run:
        example_folder = base_dir.absolute() / "jobs" / f"NNN-{kind}"
        dependency = after_job and f"afterok:{after_job}"
        is_local = cluster.executor == "local"
        print_line(
            local_script(cluster, example_folder)
            if is_local
            else sbatch_script(cluster, example_folder, name, dependency)
        )
        return f"{kind.upper()}_ID"
    job_id, job_folder = submit_job(job, cluster, base_dir / "jobs", kind, name, after_job)
    print_line(f"{kind}: job {job_id}, in {job_folder}")
    return job_id


@cli.command(cls=ClusterCommand)
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@resume_options
def train(
    config: str, overrides: tuple[str, ...], init_from: Path | None, reset_optimizer: bool, submit: SubmitOptions
) -> None:
    """Submit a training job.

    After a signal or a crash the job is requeued and resumes from its last checkpoint.
    """
    from featgan.run.approved_callables import record_callables
    from launch.watch_trust import submitted_callables

    loaded_config, cluster = load_config_and_cluster(config, overrides, submit)
    job = make_train_job(loaded_config, init_from, reset_optimizer)
    submit_or_print(job, cluster, loaded_config.run_dir, "train", submit.after_job, submit.dry_run)
    if not submit.dry_run:
        record_callables(loaded_config.run_dir, submitted_callables(config, loaded_config))


def load_config_and_cluster(
    config: str, overrides: tuple[str, ...], submit: SubmitOptions
) -> "tuple[Config, ClusterConfig]":
    """Load the configuration and the cluster, and check that they match."""
    from featgan.config.loading import load_config

    loaded_config, cluster = load_config(config, overrides), read_cluster(submit)
    check_training(loaded_config, cluster, has_dependency=bool(submit.after_job) or submit.dry_run)
    return loaded_config, cluster


def make_train_job(config: "Config", init_from: Path | None, reset_optimizer: bool) -> TrainJob:
    """Return the training job. Raises UserError if `init_from` is not a checkpoint, or is missing but required."""
    from featgan.run.paths import CHECKPOINT_MANIFEST

    if reset_optimizer and init_from is None:
        raise UserError("--reset-optimizer: no checkpoint given; name it with --init-from")
    if init_from is not None and not (init_from / CHECKPOINT_MANIFEST).is_file():
        raise UserError(f"--init-from {init_from}: not a checkpoint folder; give RUN/checkpoints/step-NNNNNNNN")
    checkpoint = str(init_from.absolute()) if init_from else None
    return TrainJob(config.model_dump(mode="json"), checkpoint, reset_optimizer)


@cli.command(cls=ClusterCommand, is_stage=True)
@click.argument("run", type=PATH_TYPE)
@step_option
@evaluator_options
@metric_options
def evaluate(
    run: Path,
    step: int | None,
    suite: str,
    classifiers: tuple[str, ...],
    factor_probe: str | None,
    second_classifier: str | None,
    trust_callables: bool,
    inception: Path | None,
    lpips: Path | None,
    max_pairs: int | None,
    num_components: int,
    submit: SubmitOptions,
) -> None:
    """Submit the evaluation of a checkpoint.

    The checkpoint is kept until the evaluation is complete. The job runs as one process; by default on at most one GPU
    and for at most 4 hours.
    """
    from launch.watch_trust import check_run_callables

    cluster = read_stage(submit, "evaluate")
    check_run(run, step, cluster, submit.after_job)
    options = EvaluationOptions(
        classifiers,
        factor_probe,
        second_classifier,
        inception.absolute() if inception else None,
        lpips.absolute() if lpips else None,
        max_pairs,
        num_components,
        trust_given_specs([*classifiers, factor_probe, second_classifier], trust_callables),
    )
    check_run_callables(run, step, options)
    job = EvaluateJob(str(run.absolute()), step, suite, options)
    if submit.after_job or submit.dry_run or cluster.dependency:
        submit_or_print(job, cluster, run, "evaluate", submit.after_job, submit.dry_run)
        return
    from featgan.run.evaluation_claims import claim_interactively
    from featgan.run.paths import checkpoint_steps

    claimed_step = max(checkpoint_steps(run)) if step is None else step
    claim = claim_interactively(run.absolute(), claimed_step, suite)
    submit_claimed(claim, replace(job, step=claimed_step, token=claim.token), cluster)


@cli.command(cls=ClusterCommand, is_stage=True)
@click.argument("run", type=PATH_TYPE)
@step_option
@render_options
def render(
    run: Path,
    step: int | None,
    blackbox: str | None,
    trust_callables: bool,
    images: Path | None,
    directions: str,
    num_images: int,
    num_components: int,
    component_names: tuple[str, ...],
    video: tuple[str, ...],
    submit: SubmitOptions,
) -> None:
    """Submit the rendering of a checkpoint's report.

    The job runs as one process; by default on at most one GPU and for at most 4 hours.
    """
    from launch.watch_trust import check_model_callable

    cluster = read_stage(submit, "render")
    check_run(run, step, cluster, submit.after_job)
    trusted = trust_given_specs([blackbox], trust_callables)
    if blackbox is None:
        check_model_callable(run, step, trusted)
    job = RenderJob(
        str(run.absolute()),
        step,
        blackbox=blackbox,
        trusted=trusted,
        images=str(images.absolute()) if images else None,
        directions=tuple(split_names(directions)),
        num_images=num_images,
        num_components=num_components,
        component_names=component_names,
        video=video,
    )
    submit_or_print(job, cluster, run, "render", submit.after_job, submit.dry_run)


@cli.command(cls=ClusterCommand)
@click.option(
    "--shards",
    required=True,
    type=LOCATION_TYPE,
    help="Path or URL of a folder written by `featgan pack` or `featgan index`.",
)
@click.option(
    "--blackbox", required=True, metavar="SPEC", help="SPEC of the classifier to explain (see docs/blackbox.md)."
)
@extract_options
def extract(
    shards: Location,
    blackbox: str,
    layer: str | None,
    cache_name: str,
    out: Location | None,
    num_components: int | None,
    task: str | None,
    batch_size: int,
    submit: SubmitOptions,
) -> None:
    """Submit the extraction of a classifier's features.

    The processes of the job, one per GPU, divide the images among themselves. A restarted job resumes with the
    remaining images, also with another number of processes.
    """
    from featgan.run.approved_callables import record_callables

    cluster = read_cluster(submit)
    check_shards(shards, cluster, submit.after_job)
    cache = choose_feature_cache(cache_name, out)
    folder = choose_job_folder(shards, out)
    job = ExtractJob(shards.absolute().raw, blackbox, cache, layer, num_components, task, batch_size=batch_size)
    submit_or_print(job, cluster, folder, "extract", submit.after_job, submit.dry_run)
    if not submit.dry_run:
        record_callables(folder, callable_names([blackbox]))


@cli.command(cls=ClusterCommand)
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@resume_options
@evaluator_options
@stage_option("evaluate")
@stage_option("render")
def pipeline(
    config: str,
    overrides: tuple[str, ...],
    init_from: Path | None,
    reset_optimizer: bool,
    suite: str,
    classifiers: tuple[str, ...],
    factor_probe: str | None,
    second_classifier: str | None,
    trust_callables: bool,
    evaluate_option: tuple[str, ...],
    render_option: tuple[str, ...],
    submit: SubmitOptions,
) -> None:
    """Submit training, evaluation and rendering.

    Each job starts once the previous one has succeeded. The options of the job are those of the training. Evaluation
    and rendering run as one process each, by default on at most one GPU, with the memory of one process, and for at
    most 4 hours.
    """
    from featgan.run.approved_callables import record_callables
    from launch.watch_trust import submitted_callables, trust_pipeline

    loaded_config, cluster = load_config_and_cluster(config, overrides, submit)
    if cluster.executor == "local":
        raise UserError("pipeline: local jobs cannot wait for each other; run train, evaluate and render one by one")
    run_dir, dry_run = loaded_config.run_dir, submit.dry_run
    train_job = make_train_job(loaded_config, init_from, reset_optimizer)
    given = trust_given_specs([*classifiers, factor_probe, second_classifier], trust_callables)
    trusted = trust_pipeline(config, loaded_config, given)
    options = EvaluationOptions(classifiers, factor_probe, second_classifier, trusted=trusted)
    evaluate_job = EvaluateJob(str(run_dir.absolute()), suite=suite, options=options)
    is_feature_conditioned = loaded_config.dataset.condition.kind == "features"
    blackbox = classifiers[0] if classifiers and is_feature_conditioned else None
    render_job = RenderJob(str(run_dir.absolute()), blackbox=blackbox, trusted=trusted)
    evaluate_cluster = read_pipeline_stage(submit, "evaluate", evaluate_option)
    render_cluster = read_pipeline_stage(submit, "render", render_option)
    train_id = submit_or_print(train_job, cluster, run_dir, "train", submit.after_job, dry_run)
    evaluate_id = submit_or_print(evaluate_job, evaluate_cluster, run_dir, "evaluate", train_id, dry_run)
    submit_or_print(render_job, render_cluster, run_dir, "render", evaluate_id, dry_run)
    if not dry_run:
        record_callables(run_dir, submitted_callables(config, loaded_config))


@cli.command(cls=ClusterCommand, hidden_options=("after_job", "dry_run"), is_stage=True)
@click.argument("runs", type=PATH_TYPE)
@click.option(
    "--once",
    is_flag=True,
    help="Check once and exit (for cron, scrontab or a job) instead of checking every --poll-seconds.",
)
@click.option(
    "--poll-seconds", default=300, show_default=True, type=click.IntRange(1), help="Seconds between two checks."
)
@click.option(
    "--max-evaluations",
    default=100,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of evaluations started per check.",
)
@click.option("--as-jobs", is_flag=True, help="Submit each evaluation as a job instead of running it on this machine.")
@trust_callables_option
def watch(
    runs: Path,
    once: bool,
    poll_seconds: int,
    max_evaluations: int,
    as_jobs: bool,
    trust_callables: bool,
    submit: SubmitOptions,
) -> None:
    """Evaluate the checkpoints of all runs.

    For each run in RUNS, evaluate the checkpoints without a result: the multiples of `evaluation.every`, the newest one
    and, with `evaluation.best_suite`, the best one. Repeat every --poll-seconds. Each evaluation job runs as one
    process.

    The leaderboard is updated after every check: RUNS/leaderboard.html and leaderboard.csv.
    """
    from launch.watch import evaluate_in_subprocess, poll_once

    check_watch_options(submit, as_jobs)
    start_evaluation = partial(evaluate_in_subprocess, trusts_all=trust_callables)
    if as_jobs:
        start_evaluation = partial(submit_evaluation, read_stage(submit, "evaluate"), trusts_all=trust_callables)
    while True:
        try:
            poll_once(runs.absolute(), start_evaluation, max_evaluations, trust_callables)
        except OSError as error:  # of the folder of the runs; the next check may succeed
            if once or error.errno not in TRANSIENT_ERRORS:
                raise
            logger.warning(describe_os_error(error))
        if once:
            return
        time.sleep(poll_seconds)


def check_watch_options(submit: SubmitOptions, as_jobs: bool) -> None:
    """Raise UserError for cluster options that have no effect on a watch."""
    if submit.dry_run:
        raise UserError("watch: --dry-run prints the script of one job; use it with evaluate")
    if submit.after_job or (submit.fields["dependency"] and not as_jobs):
        raise UserError(
            "watch: starts at once and cannot wait for a job;"
            " submit it with `sbatch --dependency=afterany:ID slurm/watch.sbatch RUNS` instead"
        )
    if submit.given_fields and not as_jobs:
        option = submit.given_fields[0].replace("_", "-")
        raise UserError(f"watch: --{option} applies to jobs only; add --as-jobs to submit the evaluations as jobs")


def submit_evaluation(cluster: "ClusterConfig", claim: "EvaluationClaim", trusts_all: bool = False) -> None:
    """Submit a job for a checkpoint that the watch has claimed."""
    from featgan.run.paths import load_run_config
    from launch.watch_trust import trust_own_run

    options = EvaluationOptions(trusted=trust_own_run(claim.run, claim.step, load_run_config(claim.run), trusts_all))
    job = EvaluateJob(str(claim.run), claim.step, claim.suite, options, token=claim.token, scheduled=True)
    submit_claimed(claim, job, cluster.model_copy(update={"max_failures": 1}))  # the watch does the retries


def submit_claimed(claim: "EvaluationClaim", job: EvaluateJob, cluster: "ClusterConfig") -> None:
    """Submit the evaluation of a claimed checkpoint, and transfer the claim to the job.

    The claim is released if the job cannot be submitted.
    """
    try:
        job_id = submit_or_print(job, cluster, claim.run, "evaluate", None, dry_run=False)
    except BaseException:
        claim.release()
        raise
    if cluster.executor == "local":
        claim.transfer_to_process(int(job_id))
    else:
        claim.transfer_to_job(job_id)


@cli.command()
@click.argument("run", type=PATH_TYPE)
def status(run: Path) -> None:
    """Show the jobs of a run, or of every run in a folder."""
    from launch.status import print_status

    run_dirs = [run] if (run / "jobs").is_dir() else sorted(path.parent for path in run.glob("*/jobs"))
    if not run_dirs:
        remedy = f"describe the folder with `featgan info {run}`" if run.exists() else "check the path"
        raise UserError(f"{run}: no run with jobs; {remedy}")
    print_status(run_dirs)


if __name__ == "__main__":
    run_command(cli, "python -m launch", sys.argv[1:])
