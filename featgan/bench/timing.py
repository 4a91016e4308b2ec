"""Measuring: sides in turn after a warm-up in this process, or one function's time and peak memory in a new one."""

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
class Costs:
    """What one side cost in each turn: seconds, megabytes or a share, smaller is better."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.quantile(self.values, (0.25, 0.75))
        return float(low), float(high)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, as a share of the median."""
        low, high = self.quartiles
        return (high - low) / 2 / self.median if self.median else 0.0

    def over(self, other: "Costs") -> float:
        """Median of self / other, pair by pair where both were measured in the same turns."""
        if len(self.values) == len(other.values):
            return float(np.median([mine / its for mine, its in zip(self.values, other.values, strict=True)]))
        return self.median / other.median


def scaled(costs: Costs, factor: float) -> Costs:
    """Every cost times a factor, for instance one part of what was measured together."""
    return Costs(tuple(value * factor for value in costs.values))


def in_turn(
    sides: Mapping[str, Callable[[], object]],
    repeats: int,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Costs]:
    """Seconds of each side, in turn (A B A B), so that a machine that slows down slows all of them.

    A side on a device waits for it before it returns. `clock` may be `time.process_time`: seconds of a core.
    """
    assert repeats >= 1
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warmups + repeats):
        for name, side in sides.items():
            before = clock()
            side()
            seconds = clock() - before
            if turn >= warmups:
                found[name].append(seconds)
    return {name: Costs(tuple(values)) for name, values in found.items()}


@dataclass(frozen=True)
class Spent:
    """What a function cost in a process of its own, after its module was imported."""

    seconds: float
    megabytes: float  # most resident memory above what the imports had left
    import_seconds: float  # from the interpreter's start to the end of the imports
    result: Any


class Elsewhere:
    """A side in a process of its own, so that no side works in the memory that another has left.

    `package.module:function` is called there with arguments that JSON can hold and returns the work; each call here
    does it once there. `megabytes` is the most memory that it has taken so far, above what the imports had left.
    """

    def __init__(self, function: str, *arguments: Any) -> None:
        self.function = function
        self.megabytes = 0.0
        code = "from featgan.bench.timing import serve; serve()"
        called = [sys.executable, "-c", code]
        self.process = subprocess.Popen(called, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask(json.dumps([function, arguments]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()

    def __call__(self) -> None:
        self.megabytes = float(self.ask("once more"))

    def ask(self, line: str) -> str:
        """Its answer; RuntimeError when the process has ended."""
        with suppress(BrokenPipeError):
            print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline() if self.process.stdout else ""
        if not answer:
            raise RuntimeError(f"{self.function} ended with {self.process.wait()} in its own process; see above")
        return answer


def serve() -> None:
    """The other side of `Elsewhere`: prepares the work, then does it for every line on standard input."""
    answers, sys.stdout = sys.stdout, sys.stderr  # nobody else shall answer
    name, arguments = json.loads(sys.stdin.readline())
    function = imported(name)
    gc.collect()
    zero = forget_peak()
    work = function(*arguments)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        work()
        print(max(0.0, peak_memory() - zero), file=answers, flush=True)


def imported(name: str) -> Callable[..., Any]:
    """`package.module:function`."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def in_new_process(function: str, *arguments: Any) -> Spent:
    """Call `package.module:function` there with arguments, and for a result, that JSON can hold."""
    code = "from featgan.bench.timing import answer; answer()"
    asked = json.dumps([function, time.time(), arguments])
    done = subprocess.run([sys.executable, "-c", code], input=asked, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{function} ended with {done.returncode} in its own process; its error is above")
    return Spent(**json.loads(done.stdout.splitlines()[-1]))


def answer() -> None:
    """The other side of `in_new_process`: what is asked on standard input, measured, on standard output."""
    name, started, arguments = json.loads(sys.stdin.read())
    work = imported(name)
    import_seconds = time.time() - started
    gc.collect()
    before_memory = forget_peak()
    before = time.perf_counter()
    result = work(*arguments)
    seconds = time.perf_counter() - before
    megabytes = max(0.0, peak_memory() - before_memory)
    print(json.dumps(vars(Spent(seconds, megabytes, import_seconds, result))))


def forget_peak() -> float:
    """Start the peak anew where the system can, and return the memory that is the zero of what follows, in MB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_memory()
    return status_memory("VmRSS") or peak_memory()


def peak_memory() -> float:
    """Most resident memory of this process, in MB.

    Linux hands ru_maxrss of a large parent on to its children, so its own count is asked first.
    """
    known = status_memory("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return known if known is not None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE


def status_memory(field: str) -> float | None:
    """A line of /proc/self/status in MB; None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 / MEGABYTE if found else None
