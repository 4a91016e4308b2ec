"""The stop signal of a training job, which records in the job folder what `launch.requeue` must know."""

import signal
from pathlib import Path
from types import FrameType

from featgan.system.signals import StopSignal
from launch.attempts import record_signal, record_start
from launch.jobs import count_processes, is_rank_zero


class JobStopSignal(StopSignal):
    """A stop signal that records itself, so that an attempt that is killed while it saves does not count as failed."""

    def __init__(self, folder: Path, restart: str) -> None:
        super().__init__()
        self.folder = folder
        self.restart = restart

    def mark_ready(self) -> None:
        if is_rank_zero():
            record_start(self.folder, self.restart)

    def handle_signal(self, signal_number: int, frame: FrameType | None) -> None:
        super().handle_signal(signal_number, frame)
        # If one of several processes crashes, srun sends SIGTERM to the others: this signal says nothing about them.
        if is_rank_zero() and (signal_number != signal.SIGTERM or count_processes() == 1):
            record_signal(self.folder, self.restart)
