"""Measure what a call costs in a child process, beyond the start of the process."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

MEASURE = """
import json, sys, time
from pathlib import Path
{setup}
from featgan.errors import UserError
def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak so far, during the imports, is forgotten
before, start, message = peak(), time.process_time(), None
try:
    {call}
except UserError as error:
    message = str(error)
print(json.dumps([peak() - before, time.process_time() - start, message]))
"""


@dataclass(frozen=True)
class MeasuredCall:
    """Peak memory in MB and CPU time in seconds of a call, and the message of its UserError, or None."""

    megabytes: float
    seconds: float
    message: str | None

    def is_cheap(self) -> bool:
        """Return whether the call needed less than 200 MB and 2 s; the time limit allows for a slow machine."""
        return self.megabytes < 200 and self.seconds < 8


def measure_call(setup: str, call: str) -> MeasuredCall:
    """Run the statement `call` after `setup` in a child process; a call that waits for a minute fails the test."""
    command = [sys.executable, "-c", MEASURE.format(setup=setup, call=call)]
    completed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert completed.returncode == 0, completed.stderr[-2000:]
    return MeasuredCall(*json.loads(completed.stdout.splitlines()[-1]))


def measure_command(
    command: list[str], environment: Mapping[str, str]
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command; return its result and the CPU time in seconds of the command and of its own children.

    `RUSAGE_CHILDREN` would also count processes of earlier tests that end at the same time.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        stdout, stderr = child.stdout.read(), child.stderr.read()  # type: ignore[union-attr]
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    result = subprocess.CompletedProcess(command, child.returncode, stdout, stderr)
    return result, usage.ru_utime + usage.ru_stime
