"""Family `disks`: a small disk that fills up, a read-only disk, and a shared memory folder of 1 MB.

A private mount namespace hides the small disk from all other processes. This requires root.
"""

import ctypes
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.chaos.kills import TASKS, Task, check_rerun, measure_expected, remove_parts
from tests.chaos.outcomes import OK, ONE_LINE, Outcome, classify_result
from tests.chaos.processes import libc, run_command
from tests.chaos.scenarios import Family, Workplace

CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 32, 1 << 14, 1 << 18

PAGE = 4096
LARGE_DISK = "512m"
LIGHT_TASKS = tuple(task for task in TASKS if task.name != "watch")
MAX_EXTRA_BYTES = 1_500_000
"""More than any of the tasks writes."""


def find_mount_obstacle() -> str:
    """Return why disks cannot be mounted here, or nothing."""
    if os.geteuid() != 0:
        return "mounting a small disk requires root"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            enter_mount_namespace()
            mount_disk(Path("/mnt"), "64k")
            code = 0
        except OSError:
            pass
        finally:
            os._exit(code)
    failed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return "this machine does not allow mounts" if failed else ""


def check_call(result: int, what: str) -> None:
    """Raise OSError if a system call has failed."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def enter_mount_namespace() -> None:
    """Make later mounts of this process and of its children private."""
    check_call(libc.unshare(CLONE_NEWNS), "unshare")
    check_call(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount --make-rprivate")


def mount_disk(folder: Path, size: str, flags: int = 0) -> None:
    """Mount an empty disk in memory, or change the size or flags of one that is mounted."""
    options = f"size={size},mode=755".encode()
    check_call(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options), f"mount {folder}")


def run_disk(workplace: Workplace, index: int) -> Outcome:
    """Run a command on a disk with a problem, then on the same disk without it, and compare the results."""
    rng = workplace.stream("disks", index)
    task, kind = (
        LIGHT_TASKS[index % len(LIGHT_TASKS)],
        rng.choice(("full", "full", "full", "read-only", "shared memory")),
    )
    baseline = workplace.measure_command(task.command, task.parts)
    expected = measure_expected(workplace, task)
    folder = workplace.overlay.create_copy(task.parts)
    remove_parts(folder, task)
    enter_mount_namespace()
    change, repair = DISK_PROBLEMS[kind](workplace, task, folder, rng)
    result = run_command(task.command.split(), folder, workplace.overlay.output)
    outcome, detail = classify_result(result, baseline.peak_bytes)
    if outcome in (OK, ONE_LINE):
        repair()
        again, explanation = check_rerun(workplace, task, expected)
        outcome, detail = (outcome, detail) if again == OK else (again, f"{explanation}; before: {detail}")
    return Outcome(
        "disks",
        index,
        f"{kind}: {task.name}",
        task.command,
        change,
        outcome,
        detail,
        result.seconds,
        result.peak_bytes / 1e6,
    )


def copy_to_disk(workplace: Workplace, task: Task, folder: Path) -> int:
    """Mount a large disk on the folder of the copy, fill it with the parts, and return the bytes in use."""
    for entry in list(folder.iterdir()):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    mount_disk(folder, LARGE_DISK)
    source = workplace.overlay.fixture
    for name in task.parts:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
        else:
            shutil.copy2(source / name, folder / name)
    workplace.overlay.adapt_paths()
    remove_parts(folder, task)
    usage = os.statvfs(folder)
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize


def fill_disk(workplace: Workplace, task: Task, folder: Path, rng: random.Random) -> tuple[str, Callable[[], None]]:
    """Leave a random number of free bytes on the disk."""
    used = copy_to_disk(workplace, task, folder)
    free = int(MAX_EXTRA_BYTES * rng.random() ** 2) // PAGE * PAGE + PAGE  # a size of 0 would be no limit
    mount_disk(folder, str(used + free), MS_REMOUNT)
    return f"{free >> 10} KiB free", lambda: mount_disk(folder, LARGE_DISK, MS_REMOUNT)


def lock_disk(workplace: Workplace, task: Task, folder: Path, rng: random.Random) -> tuple[str, Callable[[], None]]:
    """Make the disk read-only."""
    copy_to_disk(workplace, task, folder)
    mount_disk(folder, LARGE_DISK, MS_REMOUNT | MS_RDONLY)
    return "the disk is read-only", lambda: mount_disk(folder, LARGE_DISK, MS_REMOUNT)


def shrink_shared_memory(
    workplace: Workplace, task: Task, folder: Path, rng: random.Random
) -> tuple[str, Callable[[], None]]:
    """Replace /dev/shm by a disk of at most 1 MB."""
    size = rng.choice(("4k", "64k", "1m"))
    mount_disk(Path("/dev/shm"), size)
    return f"/dev/shm of {size}", lambda: mount_disk(Path("/dev/shm"), LARGE_DISK, MS_REMOUNT)


DISK_PROBLEMS = {"full": fill_disk, "read-only": lock_disk, "shared memory": shrink_shared_memory}

DISKS = Family("disks", run_disk, 0.1, find_mount_obstacle)
