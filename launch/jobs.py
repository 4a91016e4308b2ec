"""What runs inside a job: one call of a featgan command, that leaves with a code the job's script understands."""

import os
import signal
import sys
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

    def checkpoint(self) -> Any:
        """For a signal before the call above is reached: submitit's wish for the same job again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def leave(code: int) -> NoReturn:
    """End with a code that `launch.after` understands.

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
            try:
                evaluate_claimed(Claim(folder, self.step, self.suite), self.blackboxes, self.probe)
            except Exception:
                traceback.print_exc()
                leave(MISTAKE)  # the watch tries again, so the scheduler must not
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
