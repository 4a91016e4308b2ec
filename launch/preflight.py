"""What is looked at before a job is submitted, so that a mistake is told here and not hours later in a log."""

from pathlib import Path
from typing import TYPE_CHECKING

from featgan.errors import UserError

if TYPE_CHECKING:
    from featgan.config.schema import Config
    from launch.cluster import Cluster


def check_training(config: "Config", cluster: "Cluster", waits: bool) -> None:
    """UserError unless the processes can share the batch and nobody trains the run (unless it `waits` for that)."""
    from featgan.run.paths import check_folder

    check_folder(config)
    config.check_processes(cluster.nodes * cluster.tasks)
    if not waits and not cluster.dependency:
        check_queue(config.run)


def check_queue(run: Path) -> None:
    """UserError when a job or a process trains the run: two would undo each other's checkpoints."""
    from featgan.run.paths import LOCK
    from featgan.system.file_lease import Hold
    from launch.snapshot import read_card
    from launch.status import queue

    known = queue([str(read_card(folder).get("id")) for folder in run.glob("jobs/*-train")])
    for job, place in (known or {}).items():
        raise UserError(
            f"{run}: job {job} ({place.state}) trains it already; wait until it is gone, or `scancel {job}` first"
        )
    trainer = Hold(run / LOCK).living()
    if trainer:
        raise UserError(f"{run}: {trainer} trains it already; wait until it is done, or end it first")


def check_run(run: Path, step: int | None, cluster: "Cluster", after: str | None) -> None:
    """UserError unless the run has the checkpoint (any by default), or the job waits for another that may make it."""
    from featgan.run.paths import committed_steps

    if after or cluster.dependency:
        return
    if not (run / "config.yaml").is_file():
        raise UserError(
            f"{run}: no run; `python -m launch train CONFIG run={run}` makes one (or wait for it: --after ID)"
        )
    steps = committed_steps(run)
    if not steps or (step is not None and step not in steps):
        wanted = "no checkpoint yet" if step is None else f"no checkpoint of step {step}"
        raise UserError(f"{run}: {wanted}; it has {', '.join(map(str, steps)) or 'none'} (or wait for it: --after ID)")


def check_shards(shards: Path, cluster: "Cluster", after: str | None) -> None:
    """UserError unless the shards are there, or the job waits for another that may make them."""
    if not (after or cluster.dependency or (shards / "manifest.json").is_file()):
        raise UserError(f"{shards}: no shards; `featgan pack` makes them (or wait for them: --after ID)")
