"""Profile training: a trace of some steps for Perfetto and TensorBoard, and the most expensive operations."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

logger = logging.getLogger(__name__)

WAIT_STEPS, TRACED_STEPS = 5, 10
"""Steps before the trace starts, in which memory is allocated and kernels are selected; and steps in the trace."""

MAX_OPERATIONS = 10


@contextmanager
def profile_steps(run_dir: Path) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each step; write RUN/profile/trace.pt.trace.json and log the table.

    The trace opens in ui.perfetto.dev and in TensorBoard's profile tab.
    """
    step_count = 0

    def on_step() -> None:
        nonlocal step_count
        step_count += 1
        trace.step()

    def write_trace(trace: Any) -> None:
        steps = min(TRACED_STEPS, step_count - WAIT_STEPS)
        if steps < 1:
            return
        folder = run_dir / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "trace.pt.trace.json"
        trace.export_chrome_trace(str(path))
        logger.info(f"{path}: trace of {steps} steps. The most expensive operations, per step:")
        for name, share, milliseconds, calls in top_operations(trace, steps):
            short_name = name.removeprefix("aten::")[:40]
            logger.info(f"  {short_name:<40} {share:>6.1%} {milliseconds:>9.1f} ms {calls:>6} calls")

    with profile(
        activities=profiler_activities(),
        schedule=schedule(wait=WAIT_STEPS - 1, warmup=1, active=TRACED_STEPS, repeat=1),
        on_trace_ready=write_trace,
        acc_events=True,
    ) as trace:
        yield on_step
    if step_count <= WAIT_STEPS:
        logger.warning(f"--profile: no trace was written; it starts after {WAIT_STEPS} steps, so train for more steps")


def profiler_activities() -> list[ProfilerActivity]:
    """Return the activities to profile: the CPU, and the GPU if present."""
    return [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])


def top_operations(trace: Any, steps: int, max_operations: int = MAX_OPERATIONS) -> list[tuple[str, float, float, int]]:
    """Return the most expensive operations: name, share of the total time, milliseconds and calls per step.

    The times are those of the GPU if present, else of the CPU.
    """
    events = [event for event in trace.key_averages() if not event.key.startswith("ProfilerStep")]
    time_by_operation = {event.key: (self_time(event), event.count) for event in events}
    total = sum(time for time, _ in time_by_operation.values()) or 1.0
    costliest = sorted(time_by_operation.items(), key=lambda item: -item[1][0])[:max_operations]
    return [(name, time / total, time / 1000 / steps, round(calls / steps)) for name, (time, calls) in costliest]


def self_time(event: Any) -> float:
    """Return the microseconds spent in the operation itself, without the operations that it calls."""
    on_device = torch.cuda.is_available()
    return float(event.self_device_time_total if on_device else event.self_cpu_time_total)
