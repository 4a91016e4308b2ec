"""Timing of variants in turn, after a warm-up, and of the time and peak memory of one call in a new process."""

import gc
import importlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

MEGABYTE = 1e6


@dataclass(frozen=True)
class CostSamples:
    """The cost of a variant in each repetition, in seconds, megabytes or as a share; smaller is better."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the samples."""
        return float(np.median(self.values))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile."""
        low, high = np.quantile(self.values, (0.25, 0.75))
        return float(low), float(high)

    @property
    def spread(self) -> float:
        """Half the interquartile range, as a share of the median."""
        low, high = self.quartiles
        return (high - low) / 2 / self.median if self.median else 0.0

    def ratio_to(self, other: "CostSamples") -> float:
        """Return the median of self / other over pairs of samples, or the ratio of medians if the counts differ."""
        if len(self.values) == len(other.values):
            return float(
                np.median([value / other_value for value, other_value in zip(self.values, other.values, strict=True)])
            )
        return self.median / other.median


def scale_samples(samples: CostSamples, factor: float) -> CostSamples:
    """Multiply every sample by a factor."""
    return CostSamples(tuple(value * factor for value in samples.values))


def time_interleaved(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, CostSamples]:
    """Time the variants in turn (A B A B), so that a change in the machine's speed affects all of them.

    A variant must wait for its GPU. With `time.process_time` as `clock`, the result is in CPU seconds.
    """
    assert repeats >= 1
    seconds_by_name: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(warmups + repeats):
        for name, run_variant in variants.items():
            start_time = clock()
            run_variant()
            seconds = clock() - start_time
            if repetition >= warmups:
                seconds_by_name[name].append(seconds)
    return {name: CostSamples(tuple(values)) for name, values in seconds_by_name.items()}


@dataclass(frozen=True)
class ResourceUsage:
    """The time and memory of one call in a new process, after the imports."""

    seconds: float
    megabytes: float  # peak resident memory above the memory after the imports
    import_seconds: float  # from the start of the interpreter to the end of the imports
    result: Any


class SubprocessWorker:
    """A variant in its own process, so that variants do not share memory.

    `function` is `package.module:function`. It is called once with `arguments`, which must be JSON values, and returns
    the work; each call of the worker does the work once. `megabytes` is the peak memory so far, without the imports.
    """

    def __init__(self, function: str, *arguments: Any) -> None:
        self.function = function
        self.megabytes = 0.0
        code = "from featgan.bench.timing import serve_calls; serve_calls()"
        command = [sys.executable, "-c", code]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.exchange_line(json.dumps([function, arguments]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()

    def __call__(self) -> None:
        self.megabytes = float(self.exchange_line("run"))

    def exchange_line(self, line: str) -> str:
        """Send a line to the process and return its reply.

        Raises RuntimeError if the process has ended.
        """
        with suppress(BrokenPipeError):
            print(line, file=self.process.stdin, flush=True)
        reply = self.process.stdout.readline() if self.process.stdout else ""
        if not reply:
            raise RuntimeError(
                f"{self.function}: its process ended with status {self.process.wait()}; see the error above"
            )
        return reply


def serve_calls() -> None:
    """Serve a SubprocessWorker: prepare the work, then do it once for every line on standard input."""
    reply_stream, sys.stdout = sys.stdout, sys.stderr  # only the replies may use standard output
    name, arguments = json.loads(sys.stdin.readline())
    function = import_function(name)
    gc.collect()
    base_megabytes = reset_peak_memory()
    run_work = function(*arguments)
    print("ready", file=reply_stream, flush=True)
    for _ in sys.stdin:
        run_work()
        print(max(0.0, peak_memory() - base_megabytes), file=reply_stream, flush=True)


def import_function(name: str) -> Callable[..., Any]:
    """Import a function by its name `package.module:function`."""
    module, _, function_name = name.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), function_name)
    return function


def run_in_new_process(function: str, *arguments: Any) -> ResourceUsage:
    """Call `package.module:function` in a new process; arguments and result must be JSON values.

    Raises RuntimeError if the process fails.
    """
    code = "from featgan.bench.timing import answer_one_call; answer_one_call()"
    payload = json.dumps([function, time.time(), arguments])
    command = [sys.executable, "-c", code]
    completed = subprocess.run(command, check=False, input=payload, stdout=subprocess.PIPE, text=True)
    if completed.returncode:
        raise RuntimeError(f"{function}: its process ended with status {completed.returncode}; see the error above")
    return ResourceUsage(**json.loads(completed.stdout.splitlines()[-1]))


def answer_one_call() -> None:
    """Serve `run_in_new_process`: read the call from standard input, write its cost and result to standard output."""
    name, start_time, arguments = json.loads(sys.stdin.read())
    function = import_function(name)
    import_seconds = time.time() - start_time
    gc.collect()
    base_megabytes = reset_peak_memory()
    work_start_time = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - work_start_time
    megabytes = max(0.0, peak_memory() - base_megabytes)
    print(json.dumps(vars(ResourceUsage(seconds, megabytes, import_seconds, result))))


def reset_peak_memory() -> float:
    """Reset the peak memory if the system supports it, and return the current memory in MB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_memory()
    return read_status_memory("VmRSS") or peak_memory()


def peak_memory() -> float:
    """Return the peak resident memory of this process in MB.

    VmHWM is preferred, since on Linux ru_maxrss also includes the memory of the parent process.
    """
    high_water_mark = read_status_memory("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return (
        high_water_mark
        if high_water_mark is not None
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE
    )


def read_status_memory(field: str) -> float | None:
    """Return a field of /proc/self/status in MB, or None if it is not available."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(values[0]) * 1024 / MEGABYTE if values else None
