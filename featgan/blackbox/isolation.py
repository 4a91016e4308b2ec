"""Check a TorchScript or ONNX file: run it once in a separate process with limits, before this process runs it.

The process has limits on memory, time and written bytes. A file that passes is remembered by its content, so that
only the first command starts the process.
"""

import hashlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch

from featgan import __version__
from featgan.blackbox.spec import PREPROCESSING_OPTIONS, BlackBoxSpec
from featgan.errors import UserError
from featgan.system.files import atomic_write, sha256_of
from featgan.system.json_files import parse_json, read_json_object

logger = logging.getLogger(__name__)

CHECK_MODULE = "featgan.blackbox.isolated_check"

DEFAULT_SECONDS, DEFAULT_GIBIBYTES = 60.0, 4.0
SECONDS_VARIABLE, GIBIBYTES_VARIABLE = "FEATGAN_CHECK_SECONDS", "FEATGAN_CHECK_GIB"
"""Limits of time and memory for one image, and the environment variables that change them."""

MAX_MODEL_BYTES = {"onnx": 2 << 30, "torchscript": 16 << 30}
"""Maximum file size, for ONNX that of the format. A file with holes can have any size without taking any space."""

BYTES_PER_SECOND = 20e6
"""Reading and compiling a large file takes longer; this speed adds to the time limit."""

COPIES_OF_WEIGHTS = 8
"""The runtimes keep several copies of the weights while they load and optimize a file; this adds to the memory."""

START_SECONDS = 300.0
"""Time until the process has imported its packages, possibly from a slow network file system."""

MAX_RESULT_BYTES = 1 << 20


def check_foreign_model(spec: BlackBoxSpec) -> None:
    """Run the file of the SPEC in a process with limits, unless a file of this content has passed before.

    Raises UserError if the file is rejected, or if the process exceeds a limit or crashes. After an error of the
    network on the test image, this function returns: the network may run with other options or on another device.
    """
    path, max_bytes = Path(spec.location), MAX_MODEL_BYTES[spec.kind]
    if path.stat().st_size > max_bytes:
        raise UserError(f"{spec.name}: larger than {max_bytes >> 30} GiB; export a smaller network")
    record_path = find_record_path(spec, sha256_of(path))
    if is_approved(record_path, path.parent):
        return
    result = run_isolated_check(spec)
    if result.get("status") == "rejected":
        raise UserError(str(result.get("message")))
    if result.get("status") == "completed":
        record_approval(record_path, result)


def find_record_path(spec: BlackBoxSpec, sha256: str) -> Path:
    """Return the file that records that a model of this content, with these options and versions, has passed."""
    runtime = f"featgan {__version__}, torch {torch.__version__}"
    if spec.kind == "onnx":
        runtime += f", onnxruntime {read_package_version('onnxruntime')}"
    names = (*PREPROCESSING_OPTIONS, "output") if spec.kind == "onnx" else PREPROCESSING_OPTIONS
    options = [[name, spec.options.get(name)] for name in names]  # onnxruntime computes only the selected output
    identity = json.dumps([sha256, spec.kind, options, runtime])
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache_home / "featgan" / "checked_models" / f"{hashlib.sha256(identity.encode()).hexdigest()}.json"


def read_package_version(name: str) -> str:
    """Return the installed version of a package, or an empty text."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def is_approved(record_path: Path, folder: Path) -> bool:
    """Return whether a model has passed before, and the files in `folder` that it refers to are unchanged.

    A record that another user could have written is ignored.
    """
    try:
        statuses = [record_path.stat(), record_path.parent.stat()]
        if any(status.st_uid != os.geteuid() or status.st_mode & 0o022 for status in statuses):
            return False
        files = read_json_object(record_path, MAX_RESULT_BYTES)["files"]
        return all(sha256_of(folder / name) == sha256 for name, sha256 in files.items())
    except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def record_approval(record_path: Path, result: dict[str, Any]) -> None:
    """Record that a model has passed, with the hashes of the files that it refers to; without a cache, do nothing."""
    try:
        record_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        record_path.parent.chmod(0o700)
        atomic_write(record_path, json.dumps({"files": result.get("files", {})}).encode())
        record_path.chmod(0o600)
    except OSError as error:
        logger.debug(f"{record_path}: not written: {error}")


def run_isolated_check(spec: BlackBoxSpec) -> dict[str, Any]:
    """Run the check in a separate process and return its result.

    Raises UserError if the process cannot start, exceeds a limit or crashes.
    """
    file_bytes = Path(spec.location).stat().st_size
    seconds = read_limit(SECONDS_VARIABLE, DEFAULT_SECONDS) + file_bytes / BYTES_PER_SECOND
    memory = int(read_limit(GIBIBYTES_VARIABLE, DEFAULT_GIBIBYTES) * 2**30) + COPIES_OF_WEIGHTS * file_bytes
    # The import of onnxruntime crashes in a process whose command line is long: at 49 KB, but not at 24 KB.
    options = {name: value for name, value in spec.options.items() if name not in ("classes", "task")}
    short_spec = replace(spec, options=options)
    request = {"spec": str(short_spec), "seconds": seconds, "memory": memory, "threads": torch.get_num_threads()}
    request["parent"] = os.getpid()
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", buffering=0) as results, tempfile.TemporaryFile() as messages:
        try:
            process = start_check(request, write_end, messages)
        except OSError as error:
            raise UserError(f"{spec.name}: cannot start a process to check it ({error}); free some memory") from None
        finally:
            os.close(write_end)
        try:
            lines = ResultReader(results)
            if lines.read_line(START_SECONDS) is None:
                raise start_error(spec, process, messages)
            line = lines.read_line(seconds)
        finally:
            process.kill()
            process.wait()
    if line:
        result = parse_json(line)
        return result if isinstance(result, dict) else {}
    raise limit_error(spec, lines.is_open, process.returncode, seconds, memory)


def read_limit(name: str, default: float) -> float:
    """Return a limit from an environment variable, or the default."""
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise UserError(f"{name}={text}: not a positive number; remove it or give a number such as {default:g}")
    return value


def start_check(request: dict[str, Any], write_end: int, messages: BinaryIO) -> subprocess.Popen[bytes]:
    """Start the process, without the GPU, and without the current folder in the path from which it imports."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(request["threads"]),
        "MALLOC_ARENA_MAX": "1",  # each arena reserves memory, which would count
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-m", CHECK_MODULE, json.dumps(request), str(write_end)],
        env=environment, pass_fds=[write_end], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=messages,
    )  # fmt: skip


class ResultReader:
    """Reads lines from the pipe of the process, with a time limit for each."""

    def __init__(self, results: BinaryIO) -> None:
        self.results = results
        self.buffer = b""
        self.is_open = True
        """False after the process has closed the pipe, which it does when it ends."""

    def read_line(self, seconds: float) -> bytes | None:
        """Return the next line; None if the process ends or does not write one in time."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self.buffer and len(self.buffer) < MAX_RESULT_BYTES:
            ready, _, _ = select.select([self.results], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            data = self.results.read(65536)
            if not data:
                self.is_open = False
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line


def start_error(spec: BlackBoxSpec, process: subprocess.Popen[bytes], messages: BinaryIO) -> UserError:
    """Create the error for a process that did not start to check the file."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)  # the pipe is closed shortly before the process ends
    messages.seek(0)
    last_line = (messages.read(1 << 16).decode(errors="replace").strip().splitlines() or ["no message"])[-1]
    return UserError(
        f"{spec.name}: the process that checks it did not start (exit code {process.poll()}: {last_line[:200]}); "
        "free some memory and run the command again"
    )


def limit_error(spec: BlackBoxSpec, is_running: bool, code: int, seconds: float, memory: int) -> UserError:
    """Create the error for a process that ended, or had to be ended, without a result."""
    if is_running or code == -signal.SIGXCPU:
        problem = f"did not process one image in {seconds:.0f} seconds"
        remedy = f"if the network is only slow, set {SECONDS_VARIABLE} to more seconds"
    elif code == -signal.SIGKILL:
        problem = f"needed more memory than is free (at most {memory / 2**30:.1f} GiB) to process one image"
        remedy = "free some memory, or use a smaller network"
    else:
        name = signal.Signals(-code).name if -code in {item.value for item in signal.Signals} else f"exit code {code}"
        problem, remedy = f"crashed while it processed one image ({name})", "do not use it, or save it again"
    return UserError(f"{spec.name}: {problem}, in a separate process; {remedy}")
