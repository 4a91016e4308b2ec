"""Where a training's time goes: a trace of some steps for Perfetto and TensorBoard, and the costliest operations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile, schedule

WAIT, STEPS = 5, 10
"""Steps before the trace begins, when memory has been allocated and kernels chosen; and steps that it shows."""

TOP = 10


@contextmanager
def profiled(run: Path, console: Console) -> Iterator[Callable[[], None]]:
    """Trace some of the steps counted by what is yielded; write RUN/profile/trace.pt.trace.json and print the table.

    The trace opens in ui.perfetto.dev and in TensorBoard's profile tab.
    """
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1
        trace.step()

    def finish(trace: Any) -> None:
        steps = min(STEPS, counted - WAIT)
        if steps < 1:
            return
        folder = run / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "trace.pt.trace.json"
        trace.export_chrome_trace(str(path))
        console.print(f"{path}: {steps} steps. The costliest operations, by step:", markup=False)
        for name, share, milliseconds, calls in top_operations(trace, steps):
            short = name.removeprefix("aten::")[:40]
            console.print(f"  {short:<40} {share:>6.1%} {milliseconds:>9.1f} ms {calls:>6} calls", markup=False)

    with profile(
        activities=activities(),
        schedule=schedule(wait=WAIT - 1, warmup=1, active=STEPS, repeat=1),
        on_trace_ready=finish,
        acc_events=True,
    ) as trace:
        yield count
    if counted <= WAIT:
        console.print(f"--profile: nothing was traced, since that begins after {WAIT} steps", markup=False)


def activities() -> list[ProfilerActivity]:
    """The host's, and the device's where there is one."""
    return [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])


def top_operations(trace: Any, steps: int, count: int = TOP) -> list[tuple[str, float, float, int]]:
    """The costliest operations: name, share of all, milliseconds and calls a step; the device's where there is one."""
    events = [event for event in trace.key_averages() if not event.key.startswith("ProfilerStep")]
    found = {event.key: (own_time(event), event.count) for event in events}
    total = sum(time for time, _ in found.values()) or 1.0
    costliest = sorted(found.items(), key=lambda item: -item[1][0])[:count]
    return [(name, time / total, time / 1000 / steps, round(calls / steps)) for name, (time, calls) in costliest]


def own_time(event: Any) -> float:
    """Microseconds in the operation itself, without those that it calls."""
    on_device = torch.cuda.is_available()
    return float(event.self_device_time_total if on_device else event.self_cpu_time_total)
