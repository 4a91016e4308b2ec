"""Who holds what only one may have: a file names a process or a job, and holds for as long as that is alive.

It works on file systems that machines share: a file appears whole, of two takers one gets it, and what a killed process
left is taken over.
"""

import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from featgan.system.slurm import has_slurm, job_state, own_job

SILENCE = 1800.0
"""Seconds after which a holder that nobody here can ask for is taken for gone: a process of another machine."""

BEAT = 60.0
"""Seconds between a holder's signs of life."""

ROOM = 512
"""Bytes of a file, always as many: it is rewritten in place."""

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Holder:
    """A process, a job, or the process of a job; the token tells those apart that hold one after the other."""

    token: str
    host: str = ""
    boot: str = ""
    pid: int = 0
    started: str = ""
    job: str = ""
    restart: str = ""

    @classmethod
    def here(cls, token: str = "") -> "Holder":
        """This process, and the job that it is part of, if any."""
        return cls.of_process(os.getpid(), token, *own_job())

    @classmethod
    def of_process(cls, pid: int, token: str, job: str = "", restart: str = "") -> "Holder":
        """A process of this machine."""
        return cls(token or uuid.uuid4().hex, socket.gethostname(), boot_id(), pid, birth(pid), job, restart)

    @classmethod
    def of_job(cls, job: str, token: str) -> "Holder":
        """A job that waits, or runs somewhere."""
        return cls(token, job=job)

    def is_alive(self, silence: float) -> bool:
        """Whether it still runs or waits to run; `silence` is how long nothing was heard of it, in seconds."""
        job, restart = own_job()
        if self.job and self.job == job:
            if self.restart and self.restart != restart:
                return False  # a former start of the job that asks
        elif self.job:
            state = job_state(self.job)
            return has_slurm() or silence < SILENCE if state is None else bool(state)
        if self.host == socket.gethostname():
            return self.boot == boot_id() and birth(self.pid) == self.started != ""
        return silence < SILENCE

    def is_ending(self) -> bool:
        """Whether it is a job that has ended, but for its last processes."""
        return bool(self.job) and job_state(self.job) == "completing"

    def __str__(self) -> str:
        return f"job {self.job}" if self.job else f"process {self.pid} on {self.host}"


class Hold:
    """A file that one living holder at a time has."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def holder(self) -> Holder | None:
        """Who is written there, alive or not; None where nobody is."""
        with suppress(OSError):
            return parse(self.path.read_bytes())
        return None

    def living(self) -> Holder | None:
        """Who has it."""
        holder = self.holder()
        return holder if holder is not None and holder.is_alive(self.silence()) else None

    def silence(self) -> float:
        """Seconds since the holder's last sign of life."""
        try:
            return time.time() - self.path.stat().st_mtime
        except OSError:
            return 0.0

    def is_free(self) -> bool:
        """Whether a file is there that holds no longer; one that is just being written does."""
        holder = self.holder()
        return self.silence() > BEAT if holder is None else not holder.is_alive(self.silence())

    def take(self, holder: Holder) -> bool:
        """Whether it could be taken; a file that is free gives way."""
        if self.path.exists() and not self.clear():
            return False
        return place(self.path, compose(holder))

    def clear(self) -> bool:
        """Remove what holds no longer; whether it was removed, and by us."""
        former = self.holder()
        return self.is_free() and self.remove(lambda found: found == former)

    def pass_to(self, holder: Holder) -> bool:
        """Write another holder of the same token; False where the token has lost it. What is gone stays gone."""
        for pause in (0.2, 0.0):  # one that looks whether it is free may have it in its hands
            with suppress(FileNotFoundError), self.path.open("r+b", buffering=0) as file:
                former = parse(file.read())
                if former is None or former.token != holder.token:
                    return False
                os.pwrite(file.fileno(), compose(holder), 0)
                return True
            time.sleep(pause)
        return False

    def give_back(self, token: str) -> None:
        """Nobody's from now on, unless another has it."""
        if belongs(self.holder(), token):
            self.remove(lambda found: belongs(found, token))

    def remove(self, is_right: Callable[[Holder | None], bool]) -> bool:
        """Remove the file of the right holder, and of no other that has come in between; whether we did."""
        grave = beside(self.path)
        try:
            os.rename(self.path, grave)
        except FileNotFoundError:
            return False
        content = grave.read_bytes()
        grave.unlink()
        if not is_right(parse(content)):
            place(self.path, content)  # fails where a third one has taken it since
            return False
        return True

    @contextmanager
    def kept(self) -> Iterator[None]:
        """While entered, the file shows signs of life to other machines."""
        ended = threading.Event()
        thread = threading.Thread(target=self.beat, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            with suppress(OSError):
                os.utime(self.path)


def belongs(holder: Holder | None, token: str) -> bool:
    return holder is not None and holder.token == token


def compose(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode().ljust(ROOM)


def parse(content: bytes) -> Holder | None:
    """None for what is half-written or nobody's."""
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def beside(path: Path) -> Path:
    """A name in the same folder that nobody else uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def place(path: Path, content: bytes) -> bool:
    """Make a file, whole and only where there is none; whether it was made."""
    written = beside(path)
    written.write_bytes(content)
    try:
        os.link(written, path)
    except FileExistsError:
        return written.stat().st_nlink == 2  # made, but the server's first answer was lost
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return place_without_links(path, content)
    finally:
        written.unlink()
    return True


def place_without_links(path: Path, content: bytes) -> bool:
    """The same where the file system has no hard links: others may see it empty for a moment."""
    try:
        with path.open("xb", buffering=0) as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def birth(pid: int) -> str:
    """When a process of this machine began, in ticks since the machine did; empty where it is gone."""
    try:
        if not Path("/proc/self/stat").exists():
            os.kill(pid, 0)  # a system that tells no more than whether one of this number runs
            return "unknown"
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def boot_id() -> str:
    """Tells this start of the machine from those before."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
