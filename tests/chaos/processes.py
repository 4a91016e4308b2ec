"""Run a featgan command in a forked process with limits, and measure how it ended.

The harness imports torch and featgan once. Every command is a fork of that process, so it starts in milliseconds. The
fork is a session of its own. A process that survives its command is therefore found and ended.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import gc
import importlib
import io
import os
import pkgutil
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""Requests of prctl(2)."""

HANG_SECONDS = 20.0
"""CPU time, or time without any progress, after which a command counts as hanging."""
STALL_SECONDS = 10.0
"""Without CPU time over this period, a command that runs for more than HANG_SECONDS counts as hanging."""
MAX_WALL_SECONDS = 180.0
STACK_SECONDS = 1.0
"""Time in which a process that hangs prints the stacks of its threads."""
MAX_RESIDENT_BYTES = 1_500_000_000
"""Growth of the resident memory at which a command is ended."""
MAX_ADDRESS_SPACE = 12 << 30
"""Growth of the address space that a command may reserve."""
MAX_FILE_BYTES = 2 << 30
ORPHAN_GRACE_SECONDS = 5.0
"""Time that the remaining processes of a command have to exit."""
MAX_OUTPUT_BYTES = 1 << 20
EXTENSION_LIST = re.compile(r"^Extension modules: .*\n", re.MULTILINE)
"""The last line of the stacks of a process, longer than all others."""
IGNORED_MODULES = ("__main__", "deepspeed", "claimed_evaluation", "sbatch_entry")
"""Parts of the names of modules that are not imported in advance."""

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class CommandResult:
    """How a command ended, and what it printed."""

    exit_code: int
    """Exit code, or minus the number of the signal that ended the process."""
    seconds: float
    peak_bytes: int
    """Peak of the resident memory of the largest process."""
    stdout: str
    stderr: str
    log: str
    """Log messages, which a command prints to standard error as well."""
    stopped_because: str = ""
    """`hang` or `memory` if the harness ended the process."""
    orphans: tuple[str, ...] = ()
    """Command lines of processes that were left behind."""


@dataclass
class CommandSettings:
    """How a command is run."""

    allows_background: bool = False
    """Wait for processes that the command leaves behind, as local jobs are meant to do."""
    background_signal: tuple[float, int] | None = None
    """Delay in seconds, and the number of the signal to send to the processes that the command leaves behind."""
    on_start: Callable[[], None] | None = None
    """Called in the new process before the command."""
    on_poll: Callable[[int, float], None] | None = None
    """Called several times per second with the process ID and the seconds since the start."""
    environment: dict[str, str] = field(default_factory=dict)


def import_everything() -> None:
    """Import all modules that a command may use, so that forks start fast, and keep their pages shared."""
    import featgan
    import launch

    for package in (featgan, launch):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not any(part in module.name for part in IGNORED_MODULES):
                importlib.import_module(module.name)
    for name in ("launch.__main__", "featgan.__main__", "onnx", "onnxruntime", "timm", "submitit", "uvicorn"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def run_command(argv: list[str], cwd: Path, output: Path, settings: CommandSettings | None = None) -> CommandResult:
    """Run `featgan` or `launch` (the first word of `argv`) in a fork, and wait for it and its processes.

    The output is written to files in the folder `output`.
    """
    settings = settings or CommandSettings()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    output.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    start = time.monotonic()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until the new process has its own handler
    pid = os.fork()
    if pid == 0:
        run_in_fork(argv, cwd, output, settings)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    exit_code, peak_bytes, stopped_because = wait_for_command(pid, start, settings)
    seconds = time.monotonic() - start
    if settings.background_signal is not None:
        signal_children(*settings.background_signal)
    orphans = collect_orphans(MAX_WALL_SECONDS if settings.allows_background else ORPHAN_GRACE_SECONDS)
    stdout, stderr, log = (read_output(output / name) for name in ("stdout", "stderr", "log"))
    return CommandResult(exit_code, seconds, peak_bytes, stdout, stderr, log, stopped_because, orphans)


def read_output(path: Path) -> str:
    """Return the text of an output file; its middle is left out if it is very long."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        content = file.read(MAX_OUTPUT_BYTES)
        return EXTENSION_LIST.sub("", content.decode(errors="backslashreplace"))
    return ""


def wait_for_command(pid: int, start: float, settings: CommandSettings) -> tuple[int, int, str]:
    """Wait for the process; end it if it hangs or grows. Return exit code, peak memory, and why it was ended."""
    stopped_because, monitor = "", ProgressMonitor(pid, start)
    while True:
        waited_pid, status, usage = os.wait4(pid, os.WNOHANG)
        if waited_pid == pid:
            return os.waitstatus_to_exitcode(status), max(usage.ru_maxrss << 10, monitor.peak_bytes), stopped_because
        now = time.monotonic() - start
        if settings.on_poll is not None:
            settings.on_poll(pid, now)
        if not stopped_because and (stopped_because := monitor.find_problem()) == "hang":
            kill_session(pid, signal.SIGABRT)  # the processes print where each thread is
            time.sleep(STACK_SECONDS)
        if stopped_because:
            kill_session(pid)
        time.sleep(0.002 if now < 0.5 else 0.02)


class ProgressMonitor:
    """Measures CPU time and memory of the processes of a session."""

    def __init__(self, session: int, start: float) -> None:
        self.session, self.start = session, start
        self.last_check = self.last_progress = start
        self.cpu_at_progress = 0.0
        self.peak_bytes = self.first_bytes = 0

    def find_problem(self) -> str:
        """Return `hang`, `memory` or nothing; measure at most 20 times per second."""
        now = time.monotonic()
        if now - self.last_check < 0.05:
            return ""
        self.last_check = now
        processes = [usage for pid in list_session(self.session) if (usage := measure_process(pid))]
        resident = max((resident for _, resident in processes), default=0)
        self.peak_bytes, self.first_bytes = max(self.peak_bytes, resident), self.first_bytes or resident
        if resident - self.first_bytes > MAX_RESIDENT_BYTES:
            return "memory"
        cpu_seconds = sum(cpu for cpu, _ in processes)
        if cpu_seconds > self.cpu_at_progress + 0.1:
            self.cpu_at_progress, self.last_progress = cpu_seconds, now
        elapsed = now - self.start
        has_stalled = elapsed > HANG_SECONDS and now - self.last_progress > STALL_SECONDS
        return "hang" if has_stalled or cpu_seconds > HANG_SECONDS or elapsed > MAX_WALL_SECONDS else ""


def list_session(session: int) -> list[int]:
    """Return the processes of a session."""
    pids = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.getsid(int(entry.name)) == session:
                    pids.append(int(entry.name))
    return pids


def measure_process(pid: int) -> tuple[float, int] | None:
    """Return the CPU time in seconds and the resident memory in bytes of a process, or None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(fields[21]) * resource.getpagesize()


def kill_session(session: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to every process of a session."""
    for pid in list_session(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def collect_orphans(grace_seconds: float) -> tuple[str, ...]:
    """Wait for processes whose command has ended, and end the rest; return the command lines of the rest.

    This process is their parent because it is a subreaper; it must have no other children.
    """
    deadline = time.monotonic() + grace_seconds
    while (children := list_children()) and time.monotonic() < deadline:
        reap_children()
        time.sleep(0.01)
    orphans = [describe_process(pid) for pid in children]
    while children := list_children():
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap_children()
        time.sleep(0.005)
    return tuple(filter(None, orphans))


def signal_children(delay: float, number: int) -> None:
    """Send a signal to the remaining processes of a command after a delay, unless they end before."""
    deadline = time.monotonic() + delay
    while list_children() and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in list_children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def list_children() -> list[int]:
    """Return the children of this process that have not been waited for."""
    reap_children()
    me, children = os.getpid(), []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry.name}/stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == me:
                    children.append(int(entry.name))
    return children


def reap_children() -> None:
    """Collect the exit status of all children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def describe_process(pid: int) -> str:
    """Return the start of the command line of a process; empty if it has ended."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return " ".join(words)[:200] or "a process without a command line"
    return ""


def run_in_fork(argv: list[str], cwd: Path, output: Path, settings: CommandSettings) -> None:
    """Run a command as a new process would, then exit; never returns."""
    code = 70
    try:
        prepare_fork(cwd, output, settings)
        code = call_command(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        finish_process(code)


def prepare_fork(cwd: Path, output: Path, settings: CommandSettings) -> None:
    """Set up session, signals, limits, output files and working folder of a new process."""
    os.setsid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    gc.callbacks.clear()  # hypothesis, which only the harness imports, has one, and Ctrl-C can interrupt it
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    os.environ["PYTHONFAULTHANDLER"] = "1"  # in workers that are spawned
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (address_space + MAX_ADDRESS_SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    redirect_output(output)
    faulthandler.enable(sys.stderr)
    os.environ["XDG_CACHE_HOME"] = str(output / "cache")  # records of checked files must not outlive a scenario
    os.environ.update(settings.environment)
    os.chdir(cwd)
    if settings.on_start is not None:
        settings.on_start()


def redirect_output(output: Path) -> None:
    """Redirect the standard streams to files, and log messages to a file of their own."""
    from featgan.cli.log_handler import PREFIXES, ConsoleHandler

    descriptors = [os.open(os.devnull, os.O_RDONLY)]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    descriptors += [os.open(output / name, flags, 0o644) for name in ("stdout", "stderr", "log")]
    log_descriptor = os.dup(descriptors[3])
    for target, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, target)
    for descriptor in descriptors:
        os.close(descriptor)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), errors="strict", write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), errors="backslashreplace", write_through=True)

    def write_record(handler: object, record: object) -> None:
        text = PREFIXES.get(record.levelno, "") + record.getMessage()  # type: ignore[attr-defined]
        os.write(log_descriptor, (text + "\n").encode(errors="backslashreplace"))

    ConsoleHandler.emit = write_record  # type: ignore[method-assign,assignment]


def call_command(argv: list[str]) -> int:
    """Call the entry point of `featgan` or `python -m launch` and return the exit code."""
    name = "launch.__main__" if argv[0] == "launch" else "featgan.__main__"
    main_module = sys.modules["__main__"] = importlib.import_module(name)
    sys.argv = argv
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as at the start of the interpreter
        if argv[0] == "launch":
            from featgan.cli.click_helpers import run_command as run_click_command

            run_click_command(main_module.cli, "python -m launch", argv[1:])
        else:
            main_module.main()
    except SystemExit as exit_request:
        if isinstance(exit_request.code, str):
            print(exit_request.code, file=sys.stderr)
            return 1
        return exit_request.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def finish_process(code: int) -> None:
    """End the process as the interpreter does: join its threads, and call its exit functions."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the exit functions is not an error of the command
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        code = code or 1
    finally:
        os._exit(code)
