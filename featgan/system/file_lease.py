"""Lease files: a lock file that names its owner (a process or SLURM job) and becomes stale when the owner ends.

Leases work on file systems shared by several machines. A lease file is created atomically, so exactly one of several
processes acquires it. The owner updates the modification time of the file as a heartbeat. A stale lease is removed by
the next process that acquires it.
"""

import errno
import json
import os
import socket
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from featgan.errors import UserError
from featgan.system.files import name_file_in_errors, read_regular_file
from featgan.system.json_files import JsonError, parse_json
from featgan.system.slurm import current_job, has_slurm, job_state

OWNER_TIMEOUT = 1800.0
"""Seconds without a heartbeat after which an owner on another machine, which cannot be queried, counts as ended."""

HEARTBEAT_INTERVAL = 60.0
"""Seconds between two heartbeats of an owner."""

LEASE_FILE_BYTES = 512
"""Size of every lease file; a constant, since the file is rewritten in place."""

MAX_LEASE_FILE_BYTES = 16 << 10
"""Size above which a file is not a lease file."""

NO_HARD_LINK_ERRORS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class LeaseOwner:
    """A process, a SLURM job, or a process of a job; the token distinguishes successive owners."""

    token: str
    host: str = ""
    boot: str = ""
    pid: int = 0
    started: str = ""
    job: str = ""
    restart: str = ""

    @classmethod
    def current_process(cls, token: str = "") -> "LeaseOwner":
        """Return this process as owner, with its job if it is part of one."""
        return cls.for_process(os.getpid(), token, *current_job())

    @classmethod
    def for_process(cls, pid: int, token: str, job: str = "", restart: str = "") -> "LeaseOwner":
        """Return a process of this machine as owner."""
        return cls(
            token or uuid.uuid4().hex, socket.gethostname(), boot_id(), pid, process_start_time(pid), job, restart
        )

    @classmethod
    def for_job(cls, job: str, token: str) -> "LeaseOwner":
        """Return a pending or running job as owner."""
        return cls(token, job=job)

    def is_alive(self, heartbeat_age: Callable[[], float]) -> bool:
        """Return whether the owner still runs or waits to run; `heartbeat_age` returns seconds."""
        job, restart = current_job()
        if self.job and self.job == job:
            if self.restart and self.restart != restart:
                return False  # an earlier start of the job that this process belongs to
        elif self.job:
            state = job_state(self.job)
            return has_slurm() or heartbeat_age() < OWNER_TIMEOUT if state is None else bool(state)
        if self.host == socket.gethostname():
            return self.boot == boot_id() and process_start_time(self.pid) == self.started != ""
        return heartbeat_age() < OWNER_TIMEOUT

    def is_completing(self) -> bool:
        """Return whether the owner is a job that has ended, except for its last processes."""
        return bool(self.job) and job_state(self.job) == "completing"

    def __str__(self) -> str:
        return f"job {self.job}" if self.job else f"process {self.pid} on {self.host}"


FIELD_TYPES = {name: int if name == "pid" else str for name in LeaseOwner.__dataclass_fields__}
"""Types of the values in a lease file."""


class FileLease:
    """A lease file with at most one live owner at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_owner(self) -> LeaseOwner | None:
        """Return the owner written in the file, alive or not; None if there is no owner in it.

        Raises PermissionError if this user may not read the file: its owner may be alive.
        """
        return read_lease_file(self.path)

    def live_owner(self) -> LeaseOwner | None:
        """Return the owner if it is alive, else None."""
        owner = self.read_owner()
        return owner if owner is not None and owner.is_alive(self.heartbeat_age) else None

    def heartbeat_age(self) -> float:
        """Return the seconds since the owner's last heartbeat, by the clock of the file system; 0 if there is no file.

        A file server may have another time than this machine, so a new file in the same folder is compared. A time in
        the future, which no heartbeat sets, is as old as it is far away; a corrected clock makes a small difference.
        """
        try:
            heartbeat = self.path.stat().st_mtime
            age = time.time() - heartbeat
            if not 0 <= age < HEARTBEAT_INTERVAL:
                age = file_system_time(self.path) - heartbeat
        except OSError:
            return 0.0
        return abs(age)

    def is_stale(self, owner: LeaseOwner | None) -> bool:
        """Return whether the owner is no longer alive. An unreadable new file may be in creation: it is not stale."""
        return self.heartbeat_age() > HEARTBEAT_INTERVAL if owner is None else not owner.is_alive(self.heartbeat_age)

    def acquire(self, owner: LeaseOwner) -> bool:
        """Acquire the lease, replacing a stale one; return False if another owner has it.

        Raises UserError if the path is a folder, a pipe, a socket or a device.
        """
        with suppress(FileNotFoundError):
            mode = self.path.stat().st_mode
            if not stat.S_ISREG(mode):
                kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
                raise UserError(f"{self.path}: is {kind}, not the lock file of featgan; remove it")
        if self.path.exists() and not self.remove_if_stale():
            return False
        return create_exclusive(self.path, serialize_owner(owner))

    def remove_if_stale(self) -> bool:
        """Remove the file if its owner is stale; return whether this call removed it."""
        stale_owner = self.read_owner()
        return self.is_stale(stale_owner) and self.remove_if_owner(lambda owner: owner == stale_owner)

    def transfer_to(self, new_owner: LeaseOwner) -> bool:
        """Write another owner with the same token. Return False if the lease was lost or released; never create it."""
        for delay in (0.2, 0.0):  # another process may have moved the file for a moment, to check for a stale owner
            with suppress(FileNotFoundError), self.path.open("r+b", buffering=0) as file:
                is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                previous_owner = parse_owner(file.read(MAX_LEASE_FILE_BYTES)) if is_file else None
                if previous_owner is None or previous_owner.token != new_owner.token:
                    return False
                os.pwrite(file.fileno(), serialize_owner(new_owner), 0)
                return True
            time.sleep(delay)
        return False

    def release(self, token: str) -> None:
        """Remove the file, unless another owner has the lease."""
        if is_owned_by(self.read_owner(), token):
            self.remove_if_owner(lambda owner: is_owned_by(owner, token))

    def remove_if_owner(self, is_expected_owner: Callable[[LeaseOwner | None], bool]) -> bool:
        """Remove the file of the expected owner, but not that of a new owner; return whether this call removed it."""
        moved_path = temporary_sibling(self.path)
        try:
            self.path.rename(moved_path)
        except FileNotFoundError:
            return False
        owner = read_lease_file(moved_path)
        moved_path.unlink()
        if not is_expected_owner(owner):
            if owner is not None:
                create_exclusive(
                    self.path, serialize_owner(owner)
                )  # fails if a third process has acquired the lease meanwhile
            return False
        return True

    @contextmanager
    def keep_alive(self) -> Iterator[None]:
        """Send heartbeats from a thread while the context is active."""
        stop_event = threading.Event()
        thread = threading.Thread(target=self.send_heartbeats, args=(stop_event,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop_event.set()
            thread.join()

    def send_heartbeats(self, stop_event: threading.Event) -> None:
        """Update the modification time of the file every HEARTBEAT_INTERVAL seconds until `stop_event` is set."""
        while not stop_event.wait(HEARTBEAT_INTERVAL):
            with suppress(OSError):
                os.utime(self.path)


def is_owned_by(owner: LeaseOwner | None, token: str) -> bool:
    """Return whether the owner has the token."""
    return owner is not None and owner.token == token


def serialize_owner(owner: LeaseOwner) -> bytes:
    """Encode an owner as JSON, padded to LEASE_FILE_BYTES."""
    return json.dumps(asdict(owner)).encode().ljust(LEASE_FILE_BYTES)


def parse_owner(content: bytes) -> LeaseOwner | None:
    """Decode an owner; return None if the content is incomplete or invalid."""
    try:
        owner = LeaseOwner(**parse_json(content))
    except (JsonError, TypeError):
        return None
    return owner if all(type(value) is FIELD_TYPES[name] for name, value in vars(owner).items()) else None


def read_lease_file(path: Path) -> LeaseOwner | None:
    """Return the owner in a lease file; None if there is no such file or no owner in it. Raises PermissionError."""
    try:
        return parse_owner(read_regular_file(path, MAX_LEASE_FILE_BYTES))
    except PermissionError:
        raise
    except (OSError, UserError):
        return None


def file_system_time(path: Path) -> float:
    """Return the current time of a file's file system in seconds; that of this machine if its folder is read-only."""
    temporary_path = temporary_sibling(path)
    try:
        temporary_path.touch(exist_ok=False)
        now = temporary_path.stat().st_mtime
        temporary_path.unlink()
    except OSError:
        return time.time()
    return now


def temporary_sibling(path: Path) -> Path:
    """Return a unique path in the same folder."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def create_exclusive(path: Path, content: bytes) -> bool:
    """Create a file atomically with its content; return False if it exists already."""
    temporary_path = temporary_sibling(path)
    with name_file_in_errors(path):
        temporary_path.write_bytes(content)
    try:
        os.link(temporary_path, path)
    except FileExistsError:
        return temporary_path.stat().st_nlink == 2  # created, but the file server's first response was lost
    except OSError as error:
        if error.errno not in NO_HARD_LINK_ERRORS:
            raise
        return create_exclusive_without_links(path, content)
    finally:
        temporary_path.unlink()
    return True


def create_exclusive_without_links(path: Path, content: bytes) -> bool:
    """Create a file on a file system without hard links, where readers may see it empty for a moment."""
    try:
        with name_file_in_errors(path), path.open("xb", buffering=0) as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def process_start_time(pid: int) -> str:
    """Return the start time of a process of this machine, in ticks since boot; empty if it does not run."""
    try:
        if not Path("/proc/self/stat").exists():
            os.kill(pid, 0)  # without /proc, only the existence of the process can be checked
            return "unknown"
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def boot_id() -> str:
    """Return an identifier of the machine's current boot; empty if there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
