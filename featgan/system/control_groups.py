"""Limits of Linux control groups: the memory and the cores that a container or a job may use."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED_BYTES = 1 << 62
"""Control groups v1 write a number near 2 ** 63 if the memory is not limited."""


@dataclass(frozen=True)
class CgroupMount:
    """A mounted hierarchy of control groups."""

    root: str
    """The group that is mounted, for example /docker/ID in a container that sees the hierarchy of its host."""
    folder: Path
    controllers: frozenset[str]
    """Controllers of a hierarchy of version 1; empty for version 2."""


def read_cgroup_memory(system_root: Path = Path("/")) -> int | None:
    """Return the smallest memory limit of the groups of this process and their parents, in bytes; None if unlimited."""
    limits = []
    for folder in find_cgroup_folders("memory", system_root):
        texts = [read_text_file(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        limits += [int(text) for text in texts if text.isdecimal()]
    return min((limit for limit in limits if 0 < limit < UNLIMITED_BYTES), default=None)


def read_cgroup_cores(system_root: Path = Path("/")) -> float | None:
    """Return the smallest CPU quota of the groups of this process and their parents, in cores; None if unlimited."""
    quotas = []
    for folder in find_cgroup_folders("cpu", system_root):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        for text in (read_text_file(folder / "cpu.max"), " ".join(read_text_file(folder / name) for name in names)):
            if match := re.fullmatch(r"(\d+) (\d+)", text):
                quotas.append(int(match[1]) / max(int(match[2]), 1))
    return min((quota for quota in quotas if quota > 0), default=None)


def find_cgroup_folders(controller: str, system_root: Path = Path("/")) -> Iterator[Path]:
    """Yield the folders of the groups of this process that have a controller, and of all their parents.

    A group that is outside of the mounted part of the hierarchy is not visible; its visible parents are yielded.
    """
    group_paths = dict(read_group_paths(system_root))
    for mount in read_mounts(system_root):
        if mount.controllers and controller not in mount.controllers:
            continue
        path = group_paths.get(controller if mount.controllers else "", "/")
        relative = path.removeprefix(mount.root) if mount.root != "/" else path
        parts = [part for part in relative.split("/") if part]
        if ".." in parts or not f"{path}/".startswith(f"{mount.root.rstrip('/')}/"):
            parts = []
        for length in range(len(parts), -1, -1):
            yield mount.folder.joinpath(*parts[:length])


def read_group_paths(system_root: Path) -> Iterator[tuple[str, str]]:
    """Yield the path of this process's group for each controller of version 1, and for version 2 as controller ""."""
    for line in read_text_file(system_root / "proc/self/cgroup").splitlines():
        if line.count(":") >= 2:
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                yield controller, path


def read_mounts(system_root: Path) -> Iterator[CgroupMount]:
    """Yield the mounted hierarchies of control groups (see proc_pid_mountinfo(5))."""
    for line in read_text_file(system_root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, options = before.split(), after.split()
        if len(fields) < 5 or len(options) < 3 or options[0] not in ("cgroup", "cgroup2"):
            continue
        root, mount_point = (decode_octal(field) for field in fields[3:5])
        controllers = frozenset(options[2].split(",")) if options[0] == "cgroup" else frozenset()
        yield CgroupMount(root, system_root / mount_point.lstrip("/"), controllers)


def decode_octal(field: str) -> str:
    """Return a path of mountinfo, in which spaces and other special characters are octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def read_text_file(path: Path) -> str:
    """Return the content of a small text file without spaces around it; empty if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
