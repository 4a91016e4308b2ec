"""What runs inside a job: one call of a featgan command, that leaves with a code the job's script understands."""

import os
import signal
import sys
import time
import traceback
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

AGAIN = 75
"""Exit code of a job that saved itself and wants to be started again (EX_TEMPFAIL of sysexits.h)."""

MISTAKE = 2
"""Exit code of a mistake that starting again cannot mend."""

ENDED = "ended"
"""File in the job's folder that holds such a code."""


BETWEEN_LOOKS = 10.0
"""Seconds between two looks at an evaluation that is waited for."""


class Job(ABC):
    """A function of its fields, called in every process of the job."""

    def __call__(self) -> None:
        from featgan.errors import Stopped, UserError

        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda *received: leave(AGAIN))  # nothing to save: begin anew
        try:
            self.run()
        except Stopped as stopped:
            if not is_first():
                sys.exit(0)
            print(f"featgan: {stopped}", file=sys.stderr)
            leave(AGAIN)
        except UserError as error:
            print(f"featgan: {error}", file=sys.stderr)
            leave(MISTAKE)
        except Exception:
            # Else submitit would write a result: where there is one, the job has succeeded.
            traceback.print_exc()
            sys.exit(1)

    @abstractmethod
    def run(self) -> None:
        """The work."""

    def documents(self) -> dict[str, str]:
        """Files that show people what was submitted, by name."""
        return {}

    def checkpoint(self) -> Any:
        """For a signal before the call above is reached: submitit's wish for the same job again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def leave(code: int) -> NoReturn:
    """End with a code that `launch.requeue` understands.

    Processes that are a moment slower are ended by srun, whose code then speaks of them; so it is left in writing.
    """
    (Path(os.environ["SUBMITIT_FOLDER"]) / ENDED).write_text(str(code))
    sys.exit(code)


def is_first() -> bool:
    """Whether this is the job's process of rank 0."""
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "SUBMITIT_LOCAL_GLOBALID"))


@dataclass(frozen=True)
class TrainJob(Job):
    """`featgan train` of a configuration by value; a signal saves and leaves."""

    config: dict[str, Any]
    resume_from: str | None = None
    fresh_optimizer: bool = False

    def run(self) -> None:
        from featgan.system.signals import StopRequest

        with StopRequest() as request:
            from featgan.config.loading import validate
            from featgan.training.train import train

            origin = Path(self.resume_from) if self.resume_from else None
            train(validate(self.config, "the job's configuration"), origin, request, self.fresh_optimizer)

    def documents(self) -> dict[str, str]:
        from featgan.config.loading import to_yaml, validate

        return {"config.yaml": to_yaml(validate(self.config, "the job's configuration"))}


@dataclass(frozen=True)
class EvaluateJob(Job):
    """`featgan evaluate`; with a token its checkpoint is claimed, by the watch (`scheduled`) or for a person."""

    run_folder: str
    step: int | None = None
    suite: str = "standard"
    blackboxes: tuple[str, ...] = ()
    probe: str | None = None
    witness: str | None = None
    inception: str | None = None
    lpips: str | None = None
    count: int | None = None
    num_components: int = 10
    token: str = ""
    scheduled: bool = False

    def run(self) -> None:
        from featgan.run.evaluation_claims import Claim
        from launch.claimed_evaluation import evaluate_claimed

        folder = Path(self.run_folder)
        names = ("blackboxes", "probe", "witness", "inception", "lpips", "count", "num_components")
        options = {name: getattr(self, name) for name in names}
        if self.token:
            assert self.step is not None
            try:
                evaluate_claimed(Claim(folder, self.step, self.suite, self.token), options, self.scheduled)
            except Exception:
                if not self.scheduled:
                    raise
                traceback.print_exc()
                leave(MISTAKE)  # the watch tries again, so the scheduler must not
        else:
            self.evaluate(folder, options)

    def evaluate(self, folder: Path, options: dict[str, Any]) -> None:
        """Evaluate, unless a watch is at the same: then its result is waited for, so that what follows can start."""
        from featgan.evaluation.evaluate import evaluate_run, find_evaluation
        from featgan.run.checkpoint import newest_step
        from featgan.run.evaluation_claims import BusyError, claimed
        from featgan.run.schedule import with_judges

        waited = False
        while True:
            try:
                wanted = newest_step(folder) if self.step is None else self.step
                with claimed(folder, wanted, self.suite) as step:
                    if not (waited and step is not None and find_evaluation(folder, step, self.suite, self.count)):
                        evaluate_run(folder, step, self.suite, **with_judges(folder, options))
                return
            except BusyError as busy:
                if not waited:
                    print(f"featgan: {busy}", file=sys.stderr)
                waited = True
                time.sleep(BETWEEN_LOOKS)


@dataclass(frozen=True)
class RenderJob(Job):
    """`featgan render`."""

    run_folder: str
    step: int | None = None
    images: str | None = None
    directions: tuple[str, ...] = ()
    num_images: int = 6
    num_components: int = 10
    names: tuple[str, ...] = ()
    video: tuple[str, ...] = ()

    def run(self) -> None:
        from featgan.report.render import VIDEO, render_run

        images = Path(self.images) if self.images else None
        kinds = [kind for kind in self.video or VIDEO if kind != "none"]
        render_run(
            Path(self.run_folder),
            self.step,
            images,
            list(self.directions),
            num_images=self.num_images,
            num_components=self.num_components,
            names=self.names,
            video=kinds,
        )


@dataclass(frozen=True)
class ExtractJob(Job):
    """`featgan extract`; started again, it goes on with the images that are left."""

    shards: str
    blackbox: str
    name: str = "blackbox"
    layer: str | None = None
    components: int | None = None
    output_kind: str | None = None
    batch_size: int = 64

    def run(self) -> None:
        from featgan.blackbox.extraction import extract

        fields = asdict(self)
        extract(Path(fields.pop("shards")), fields.pop("blackbox"), fields.pop("name"), **fields)
