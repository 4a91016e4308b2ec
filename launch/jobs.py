"""What runs inside a job: one call of a featgan command, that leaves with a code the job's script understands."""

import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

AGAIN = 75
"""Exit code of a job that saved itself and wants to be started again (EX_TEMPFAIL of sysexits.h)."""

IN_ORDER = "in-order"
"""File in the job's folder that says the same."""

MISTAKE = 2
"""Exit code of a mistake that starting again cannot mend."""


class Job:
    """A function of its fields, called in every process of the job."""

    def __call__(self) -> None:
        from featgan.errors import Stopped, UserError

        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, leave_for_now)
        try:
            self.run()
        except Stopped as stopped:
            if not is_first():
                sys.exit(0)
            print(f"featgan: {stopped}", file=sys.stderr)
            leave_for_now()
        except UserError as error:
            print(f"featgan: {error}", file=sys.stderr)
            sys.exit(MISTAKE)

    def run(self) -> None:
        """The work."""
        raise NotImplementedError

    def checkpoint(self) -> Any:
        """For a signal before the call above is reached: submitit's wish for the same job again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def leave_for_now(number: int = 0, frame: FrameType | None = None) -> NoReturn:
    """End in order: everything is saved, or there is nothing to save.

    Processes that are a moment slower are ended by srun, whose code then speaks of them; so it is also left in writing.
    """
    (Path(os.environ["SUBMITIT_FOLDER"]) / IN_ORDER).touch()
    sys.exit(AGAIN)


def is_first() -> bool:
    """Whether this is the job's process of rank 0."""
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "SUBMITIT_LOCAL_GLOBALID"))


@dataclass(frozen=True)
class TrainJob(Job):
    """`featgan train` of a configuration by value; a signal saves and leaves."""

    config: dict[str, Any]

    def run(self) -> None:
        from featgan.interruption import StopRequest

        with StopRequest() as request:
            from featgan.config import validate
            from featgan.train import train

            train(validate(self.config, "the job's configuration"), request=request)


@dataclass(frozen=True)
class EvaluateJob(Job):
    """`featgan evaluate`; `claimed` by the watch that submitted it, or asked for by a person."""

    run_folder: str
    step: int | None = None
    suite: str = "standard"
    blackboxes: tuple[str, ...] = ()
    probe: str | None = None
    claimed: bool = False

    def run(self) -> None:
        folder = Path(self.run_folder)
        if self.claimed:
            from launch.claims import Claim, evaluate_claimed

            assert self.step is not None
            evaluate_claimed(Claim(folder, self.step, self.suite), self.blackboxes, self.probe)
        else:
            from featgan.evaluate import evaluate_run

            evaluate_run(folder, self.step, self.suite, self.blackboxes, self.probe)


@dataclass(frozen=True)
class RenderJob(Job):
    """`featgan render`."""

    run_folder: str
    images: str | None = None

    def run(self) -> None:
        from featgan.render import render_run

        render_run(Path(self.run_folder), images=Path(self.images) if self.images else None)


@dataclass(frozen=True)
class ExtractJob(Job):
    """`featgan extract`; started again, it goes on with the images that are left."""

    shards: str
    blackbox: str
    name: str = "blackbox"
    layer: str | None = None
    components: int | None = None
    batch_size: int = 64

    def run(self) -> None:
        from featgan.blackbox.extract import extract

        fields = asdict(self)
        extract(Path(fields.pop("shards")), fields.pop("blackbox"), fields.pop("name"), **fields)
