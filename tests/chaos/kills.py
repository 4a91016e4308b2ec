"""Family `kills`: a signal at a random moment of every command; running it again must give the undisturbed result."""

import contextlib
import os
import random
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.fixture import digest_tree
from tests.chaos.outcomes import LOST, OK, ORPHAN, STACK_CHARACTERS, TRACEBACK, TRACEBACK_MARKS, Outcome
from tests.chaos.processes import CommandResult, CommandSettings, describe_process, kill_session, list_session
from tests.chaos.scenarios import Family, Workplace

MAX_RERUNS = 3
"""A command that was interrupted may have to be run again more than once, for example after a stale lock."""
TAIL = 1200


@dataclass(frozen=True)
class Task:
    """A command that is interrupted, the parts of the fixture that it needs, and the results to compare."""

    name: str
    command: str
    parts: tuple[str, ...]
    results: tuple[str, ...]
    """Folders or files with the results."""
    removed: tuple[str, ...] = ()
    """Parts of the copy that are removed first, so that the command has something to do."""
    allows_background: bool = False


RUN_PARTS = ("config.yaml", "shards", "classifier", "runs")
TASKS = (
    Task(
        "pack",
        "featgan pack affectnet affectnet --out new --image-size 16 --images-per-shard 10 --workers 1",
        ("affectnet",),
        ("new",),
    ),
    Task(
        "pack, 2 workers",
        "featgan pack affectnet affectnet --out new --image-size 16 --images-per-shard 10 --workers 2",
        ("affectnet",),
        ("new",),
    ),
    Task("synthesize", "featgan synthesize new --num-images 60 --image-size 32", (), ("new",)),
    Task(
        "blackbox fit", "featgan blackbox fit --shards shards --out new --epochs 2 --width 0.125", ("shards",), ("new",)
    ),
    Task(
        "extract",
        "featgan extract --shards shards --blackbox classifier --cache-name new --batch-size 8 --num-components 3",
        ("shards", "classifier"),
        ("shards/features/new",),
    ),
    Task("train", "featgan train config.yaml training.steps=6", RUN_PARTS, ("new/checkpoints",)),
    Task(
        "train, 1 data worker",
        "featgan train config.yaml training.steps=6 training.num_workers=1",
        RUN_PARTS,
        ("new/checkpoints",),
    ),
    Task("resume", "featgan train config.yaml run_dir=runs/a training.steps=6", RUN_PARTS, ("runs/a/checkpoints",)),
    Task(
        "evaluate",
        "featgan evaluate runs/a --suite quick",
        RUN_PARTS,
        ("runs/a/evaluations/step-00000003-quick.json",),
        ("runs/a/evaluations/step-00000003-quick.json",),
    ),
    Task(
        "render",
        "featgan render runs/a --num-images 2 --num-components 2 --video gif",
        RUN_PARTS,
        ("runs/a/report.html", "runs/a/renders"),
        ("runs/a/report.html", "runs/a/renders"),
    ),
    Task("watch", "launch watch runs --once", RUN_PARTS, ("runs/a/evaluations/step-00000003-quick.json",)),
)
LOCAL_JOB = Task(
    "local job",
    "launch extract --shards shards --blackbox classifier --cache-name new --num-components 3 --cluster local",
    ("shards", "classifier"),
    ("shards/features/new",),
    allows_background=True,
)
LOCAL_JOB_PERIOD, LOCAL_JOB_SECONDS = 45, 8.0
"""One of this number of scenarios interrupts a local job, a new process that takes about this number of seconds."""

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class KillPlan:
    """Sends one signal to a command after a delay: to its session, to its main process, or to one worker."""

    def __init__(self, delay: float, number: signal.Signals, receiver: str, position: float) -> None:
        """`position` from 0 to 1 chooses the worker."""
        self.delay, self.number, self.receiver, self.position = delay, number, receiver, position
        self.is_sent = False

    def choose_worker(self, workers: list[int]) -> int:
        """Return the worker that receives the signal."""
        return workers[int(self.position * len(workers))]

    def poll(self, pid: int, seconds: float) -> None:
        """Send the signal when the time has come."""
        if self.is_sent or seconds < self.delay:
            return
        workers = list_workers(pid)
        if self.receiver == "one worker" and not workers:
            return
        self.is_sent = True
        with contextlib.suppress(ProcessLookupError):
            if self.receiver == "all processes":
                kill_session(pid, self.number)
            else:
                os.kill(self.choose_worker(workers) if self.receiver == "one worker" else pid, self.number)


def list_workers(pid: int) -> list[int]:
    """Return the processes of a command except for the main one and Python's own process for semaphores."""
    return [
        worker for worker in list_session(pid) if worker != pid and "resource_tracker" not in describe_process(worker)
    ]


def run_kill(workplace: Workplace, index: int) -> Outcome:
    """Interrupt a command, check what is left, run it again, and compare the results with undisturbed ones."""
    rng = workplace.stream("kills", index)
    task = LOCAL_JOB if index % LOCAL_JOB_PERIOD == LOCAL_JOB_PERIOD - 1 else TASKS[index % len(TASKS)]
    seconds = LOCAL_JOB_SECONDS if task is LOCAL_JOB else workplace.measure_command(task.command, task.parts).seconds
    expected = measure_expected(workplace, task)
    folder = workplace.overlay.create_copy(task.parts)
    remove_parts(folder, task)
    if task is LOCAL_JOB:
        return interrupt_local_job(workplace, index, expected)
    plan, change = make_plan(seconds, rng)
    result = workplace.run(task.command.split(), CommandSettings(on_poll=plan.poll))
    if not plan.is_sent:
        change += ", but it ended before"
    outcome, detail = check_interrupted(result)
    if outcome == OK:
        outcome, detail = check_rerun(workplace, task, expected)
    return Outcome(
        "kills", index, task.name, task.command, change, outcome, detail, result.seconds, result.peak_bytes / 1e6
    )


def interrupt_local_job(workplace: Workplace, index: int, expected: dict[str, str]) -> Outcome:
    """Interrupt a background job, submit it again, and compare the results."""
    rng = workplace.stream("local job", index)
    delay, number = rng.uniform(0, LOCAL_JOB_SECONDS), rng.choice(SIGNALS)
    settings = CommandSettings(allows_background=True, background_signal=(delay, number))
    result = workplace.run(LOCAL_JOB.command.split(), settings)
    change = f"{number.name} to the job after {delay:.1f} s"
    outcome, detail = check_interrupted(result)
    if outcome == OK:
        outcome, detail = check_rerun(workplace, LOCAL_JOB, expected)
    return Outcome("kills", index, LOCAL_JOB.name, LOCAL_JOB.command, change, outcome, detail, result.seconds)


def make_plan(seconds: float, rng: random.Random) -> tuple[KillPlan, str]:
    """Choose the moment, the signal and the receiver."""
    delay, number = rng.uniform(0, seconds), rng.choice(SIGNALS)
    receiver = rng.choice(("all processes", "the main process", "the main process", "one worker"))
    return KillPlan(delay, number, receiver, rng.random()), f"{number.name} to {receiver} after {delay:.3f} s"


def remove_parts(folder: Path, task: Task) -> None:
    """Remove the results of an earlier command."""
    for name in task.removed:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def measure_expected(workplace: Workplace, task: Task) -> dict[str, str]:
    """Return the digests of the undisturbed results; they are measured once and stored next to the copies."""
    store = workplace.overlay.folder.with_name(
        f"expected-{task.name.replace(' ', '-')}-{workplace.overlay.folder.name}"
    )
    if not store.is_dir():
        workplace.overlay.create_copy(task.parts)
        remove_parts(workplace.overlay.folder, task)
        result = workplace.run(task.command.split(), CommandSettings(allows_background=task.allows_background))
        assert result.exit_code == 0, f"{task.command}: {result.stderr}{result.log}"
        partial = store.with_suffix(".partial")
        for name in task.results:
            copy_result(workplace.overlay.folder / name, partial / name)
        partial.rename(store)
    return digest_results(store, task)


def copy_result(source: Path, target: Path) -> None:
    """Copy a file or folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def digest_results(folder: Path, task: Task) -> dict[str, str]:
    """Return the digests of the results of a task."""
    names = [name for name in task.results if (folder / name).exists()]
    digests: dict[str, str] = {}
    for name in names:
        path = folder / name
        if path.is_dir():
            digests |= {f"{name}/{key}": value for key, value in digest_tree(path).items()}
        else:
            digests |= {name: digest_tree(path.parent).get(path.name, "")}
    return digests


TRACKER_FRAME = re.compile(r'  File "[^"]*multiprocessing/resource_tracker\.py", line \d+, in main\n')


def read_messages(result: CommandResult) -> str:
    """Return the messages of a command, without those of Python's own process for semaphores.

    A process that has just been forked looks like a worker, so a scenario can kill this one. Its messages can be mixed
    with those of other processes.
    """
    text = result.stderr + result.log
    if "resource_tracker: process died unexpectedly" not in text:
        return text
    text, num_frames = TRACKER_FRAME.subn("", text)
    return text.replace("Traceback (most recent call last):\n", "", num_frames)


def check_interrupted(result: CommandResult) -> tuple[str, str]:
    """Return the outcome of the interrupted command: it must not hang, print a traceback or leave processes behind."""
    text = read_messages(result)
    if result.stopped_because:
        return result.stopped_because, f"after the signal: {text[-STACK_CHARACTERS:]}"
    if result.orphans:
        return ORPHAN, "; ".join(result.orphans)
    if any(mark in text for mark in TRACEBACK_MARKS):
        return TRACEBACK, text[-TAIL:]
    return OK, ""


def check_rerun(workplace: Workplace, task: Task, expected: dict[str, str]) -> tuple[str, str]:
    """Run the command again until it succeeds, and compare its results."""
    for _ in range(MAX_RERUNS):
        result = workplace.run(task.command.split(), CommandSettings(allows_background=task.allows_background))
        text = result.stderr + result.log
        if result.stopped_because:
            return result.stopped_because, f"when run again: {text[-STACK_CHARACTERS:]}"
        if any(mark in text for mark in TRACEBACK_MARKS):
            return TRACEBACK, f"when run again: {text[-TAIL:]}"
        if result.exit_code == 0:
            break
        time.sleep(0.3)
    else:
        return LOST, f"the command fails when run again: exit code {result.exit_code}; {text[-TAIL:]}"
    found = digest_results(workplace.overlay.folder, task)
    differences = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differences:
        states = [describe_difference(name, expected, found) for name in differences[:5]]
        return LOST, f"{len(differences)} results differ from an undisturbed run: {', '.join(states)}"
    return OK, ""


def describe_difference(name: str, expected: dict[str, str], found: dict[str, str]) -> str:
    """Return how a result differs."""
    return (
        f"{name} {'is missing' if name not in found else 'is extra' if name not in expected else 'has other content'}"
    )


KILLS = Family("kills", run_kill, 0.2)
