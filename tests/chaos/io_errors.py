"""Family `io`: a system call on the files of a command fails, as on a failing disk or a network file system.

A small library is compiled and preloaded, so that calls of every library fail, not only those of Python.
"""

import ctypes
import errno
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.chaos.kills import TASKS, check_rerun, measure_expected, remove_parts
from tests.chaos.outcomes import OK, ONE_LINE, OTHER_EXIT, Outcome, classify_result
from tests.chaos.processes import CommandSettings
from tests.chaos.scenarios import Family, Workplace

SOURCE = Path(__file__).with_suffix(".c")
LIBRARY_VARIABLE = "FEATGAN_CHAOS_LIBRARY"

OPERATIONS = {"open": 1, "write": 2, "sync": 4, "rename": 8, "read": 16, "make": 32, "remove": 64}
"""Kinds of system calls, as in io_errors.c."""
ERRORS = (
    errno.EIO,
    errno.EIO,
    errno.ENOSPC,
    errno.ESTALE,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EMFILE,
    errno.ENOMEM,
    errno.ETIMEDOUT,
    errno.EINTR,
)
LIGHT_TASKS = tuple(task for task in TASKS if task.name != "watch")
MAX_CALL_NUMBER = 300


def compile_library() -> str:
    """Compile the library; return its path, or why that is impossible."""
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("g++")
    if compiler is None:
        return "no C compiler"
    folder = Path(tempfile.mkdtemp(prefix="chaos-library-"))
    library = folder / "io_errors.so"
    command = [compiler, "-x", "c", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return f"{SOURCE.name} cannot be compiled: {result.stderr.strip()[:200]}"
    return str(library)


def remove_library() -> None:
    """Remove the compiled library; a loaded library stays in memory."""
    if os.environ.get(LIBRARY_VARIABLE):
        shutil.rmtree(Path(os.environ[LIBRARY_VARIABLE]).parent, ignore_errors=True)


def find_library_obstacle() -> str:
    """Return why the library is not loaded, or nothing."""
    return "" if os.environ.get(LIBRARY_VARIABLE) else "the library of io_errors.c is not loaded (is gcc installed?)"


def arm_library(folder: Path, operations: int, number: int, error: int, repeat: bool) -> None:
    """Make system calls of this process fail."""
    library = ctypes.CDLL(os.environ[LIBRARY_VARIABLE])
    library.chaos_arm.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int)
    library.chaos_arm(os.fsencode(folder), operations, number, error, repeat)


def run_io_error(workplace: Workplace, index: int) -> Outcome:
    """Run a command with a failing system call, then without, and compare the results."""
    rng = workplace.stream("io", index)
    task = LIGHT_TASKS[index % len(LIGHT_TASKS)]
    baseline = workplace.measure_command(task.command, task.parts)
    expected = measure_expected(workplace, task)
    folder = workplace.overlay.create_copy(task.parts)
    remove_parts(folder, task)
    name, error, number = rng.choice(list(OPERATIONS)), rng.choice(ERRORS), choose_number(rng)
    repeat = rng.random() < 0.5 and error != errno.EINTR
    change = f"{name} number {number}{' and all later ones' if repeat else ''}: {errno.errorcode[error]}"
    settings = CommandSettings(on_start=lambda: arm_library(folder, OPERATIONS[name], number, error, repeat))
    result = workplace.run(task.command.split(), settings)
    outcome, detail = classify_result(result, baseline.peak_bytes)
    if outcome in (OK, ONE_LINE, OTHER_EXIT):
        again, explanation = check_rerun(workplace, task, expected)
        outcome, detail = (outcome, detail) if again == OK else (again, f"{explanation}; before: {detail}")
    return Outcome(
        "io", index, task.name, task.command, change, outcome, detail, result.seconds, result.peak_bytes / 1e6
    )


def choose_number(rng: random.Random) -> int:
    """Return the number of the call that fails; small numbers are more likely."""
    return int(MAX_CALL_NUMBER ** rng.random())


IO_ERRORS = Family("io", run_io_error, 0.12, find_library_obstacle)
