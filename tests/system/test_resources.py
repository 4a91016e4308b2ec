"""Memory and cores of a process: control groups, SLURM, and the processes that share a node."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featgan.system import resources
from featgan.system.control_groups import read_cgroup_cores, read_cgroup_memory
from featgan.system.resources import (
    count_cores,
    count_local_processes,
    count_slurm_cores,
    count_workers,
    parse_memory,
    parse_task_counts,
    read_node_memory,
    read_slurm_memory,
    share_of_memory,
)

GIB = 2**30
MEMINFO = "MemTotal: 536870912 kB\nMemAvailable: 524288000 kB\n"
AVAILABLE = 524288000 * 1024
V2_MOUNT = "30 23 0:26 {root} {folder} rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "36 31 0:32 {root} {folder} rw,relatime - cgroup cgroup rw,{controllers}\n"


def write_tree(root: Path, files: dict[str, str]) -> Path:
    """Write a fake file system below `root` and return `root`."""
    for name, text in ({"proc/meminfo": MEMINFO} | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2_tree(root: Path, files: dict[str, str], group: str = "/system.slice/slurmstepd.scope/job_17/step_0") -> Path:
    """Write a tree with control groups v2, mounted at the usual folder."""
    mount = V2_MOUNT.format(root="/", folder="/sys/fs/cgroup")
    return write_tree(root, {"proc/self/cgroup": f"0::{group}\n", "proc/self/mountinfo": mount} | files)


def test_smallest_limit_of_the_group_and_its_parents_applies(tmp_path: Path) -> None:
    job = "sys/fs/cgroup/system.slice/slurmstepd.scope/job_17"
    root = v2_tree(tmp_path, {
        f"{job}/memory.max": f"{64 * GIB}\n", f"{job}/step_0/memory.max": "max\n", f"{job}/cpu.max": "max 100000\n",
        "sys/fs/cgroup/system.slice/cpu.max": "1250000 100000\n", f"{job}/step_0/memory.high": f"{80 * GIB}\n",
    })  # fmt: skip
    assert read_cgroup_memory(root) == 64 * GIB and read_cgroup_cores(root) == 12.5
    (root / job / "step_0" / "memory.max").write_text(f"{5 * GIB}\n")
    assert read_cgroup_memory(root) == 5 * GIB == read_node_memory({}, root)


def test_group_without_limits_has_none(tmp_path: Path) -> None:
    assert read_cgroup_memory(v2_tree(tmp_path, {})) is None and read_cgroup_cores(tmp_path) is None
    assert read_node_memory({}, tmp_path) == AVAILABLE


def test_limits_of_control_groups_v1(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {
        "proc/self/cgroup": "9:cpu,cpuacct:/slurm/job_17\n4:memory:/slurm/job_17/step_0\n0::/\n",
        "proc/self/mountinfo": V1_MOUNT.format(root="/", folder="/sys/fs/cgroup/memory", controllers="memory")
        + V1_MOUNT.format(root="/", folder="/sys/fs/cgroup/cpu,cpuacct", controllers="cpu,cpuacct")
        + V2_MOUNT.format(root="/", folder="/sys/fs/cgroup/unified"),
        "sys/fs/cgroup/memory/slurm/job_17/memory.limit_in_bytes": f"{32 * GIB}\n",
        "sys/fs/cgroup/memory/slurm/job_17/step_0/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu,cpuacct/slurm/job_17/cpu.cfs_quota_us": "400000\n",
        "sys/fs/cgroup/cpu,cpuacct/slurm/job_17/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/slurm/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/slurm/cpu.cfs_period_us": "100000\n",
    })  # fmt: skip
    assert read_cgroup_memory(root) == 32 * GIB and read_cgroup_cores(root) == 4


@pytest.mark.parametrize(
    ("mount_root", "group"),
    [
        ("/", "/"),  # a container with its own namespace
        ("/docker/ab", "/docker/ab"),  # a container that sees the paths of its host
        ("/docker/ab", "/docker/ab/job"),  # a group inside of such a container
        ("/", "/docker/ab"),  # only the group of the container is mounted, but not marked so
        ("/", "/../other"),  # a group outside of the namespace
        ("/../..", "/../.."),
    ],
)
def test_limit_of_a_container_applies_in_every_kind_of_namespace(tmp_path: Path, mount_root: str, group: str) -> None:
    root = write_tree(tmp_path, {
        "proc/self/cgroup": f"0::{group}\n",
        "proc/self/mountinfo": V2_MOUNT.format(root=mount_root, folder=r"/sys/fs/my\040groups"),
        "sys/fs/my groups/memory.max": f"{2 * GIB}\n", "sys/fs/my groups/cpu.max": "150000 100000\n",
    })  # fmt: skip
    assert read_cgroup_memory(root) == 2 * GIB and read_cgroup_cores(root) == 1.5


def test_damaged_files_give_no_limit(tmp_path: Path) -> None:
    texts = {"proc/self/mountinfo": "30\n - cgroup2\n1 2 3 4 5 - cgroup2 x\n", "proc/self/cgroup": "\n0:\n::::\n"}
    root = write_tree(tmp_path, texts)
    assert read_cgroup_memory(root) is None and read_cgroup_cores(root) is None
    root = v2_tree(tmp_path / "b", {"sys/fs/cgroup/memory.max": "-5\n", "sys/fs/cgroup/cpu.max": "many 0\n"}, "/")
    assert read_cgroup_memory(root) is None and read_cgroup_cores(root) is None


def test_memory_is_unknown_without_meminfo(tmp_path: Path) -> None:
    assert read_node_memory({}, tmp_path) is None and share_of_memory({}, tmp_path) is None


SLURM_TASK = {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_NODEID": "0"}


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "8"}, 8),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 4),
        ({"SUBMITIT_LOCAL_NTASKS": "2"}, 2),
        ({"SLURM_NTASKS_PER_NODE": "8"}, 1),  # the batch script of a job
        (SLURM_TASK | {"SLURM_STEP_TASKS_PER_NODE": "8(x2),4"}, 8),
        (SLURM_TASK | {"SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_NODEID": "2"}, 4),
        (SLURM_TASK | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_TASKS_PER_NODE": "8"}, 2),
        (SLURM_TASK | {"SLURM_NTASKS_PER_NODE": "8"}, 8),
        (SLURM_TASK | {"SLURM_STEP_TASKS_PER_NODE": "1", "LOCAL_WORLD_SIZE": "4"}, 4),  # torchrun started by srun
        (SLURM_TASK | {"SLURM_STEP_TASKS_PER_NODE": "many", "SLURM_NODEID": "x"}, 1),
        ({"LOCAL_WORLD_SIZE": "0"}, 1),
    ],
)
def test_processes_of_a_node_are_counted(variables: dict[str, str], count: int) -> None:
    assert count_local_processes(variables) == count


def test_task_lists_are_parsed() -> None:
    assert parse_task_counts("8(x2),4,1(x3)") == [8, 8, 4, 1, 1, 1]
    assert parse_task_counts("8(y2)") == parse_task_counts("") == []


@pytest.mark.parametrize(
    ("variables", "memory"),
    [
        ({"SLURM_MEM_PER_NODE": "65536"}, 64 * GIB),
        ({"SLURM_MEM_PER_NODE": "64G"}, 64 * GIB),
        ({"SLURM_MEM_PER_NODE": "0"}, None),  # all memory of the node
        ({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "16"}, 32 * GIB),
        ({"SLURM_MEM_PER_GPU": "16384", "SLURM_GPUS_ON_NODE": "4"}, 64 * GIB),
        ({"SLURM_MEM_PER_GPU": "16384", "SLURM_JOB_GPUS": "0,3"}, 32 * GIB),
        ({"SLURM_MEM_PER_CPU": "2048"}, None),
        ({}, None),
    ],
)
def test_memory_of_a_slurm_job(tmp_path: Path, variables: dict[str, str], memory: int | None) -> None:
    assert read_slurm_memory(SLURM_TASK | variables) == memory
    assert read_slurm_memory(variables) is None, "outside of a job"
    root = write_tree(tmp_path, {})
    assert read_node_memory(SLURM_TASK | variables, root) == (memory or AVAILABLE)


def test_memory_notation_of_slurm() -> None:
    assert [parse_memory(text) for text in ("1", "512K", "2g", "1T", "4GB", "half", "")] == [
        2**20, 2**19, 2 * GIB, 2**40, 4 * GIB, 0, 0
    ]  # fmt: skip


def test_each_of_eight_ranks_gets_an_eighth_of_the_job(tmp_path: Path) -> None:
    variables = SLURM_TASK | {
        "SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_MEM_PER_CPU": "4096", "SLURM_CPUS_ON_NODE": "64",
        "SLURM_CPUS_PER_TASK": "8",
    }  # fmt: skip
    assert share_of_memory(variables, write_tree(tmp_path, {})) == 64 * 4 * GIB // 8


@pytest.mark.parametrize(
    ("variables", "allowed", "quota", "cores"),
    [
        ({}, 64, "max", 64),
        ({}, 64, "150000", 1),
        ({}, 64, "50000", 1),
        ({"LOCAL_WORLD_SIZE": "4"}, 64, "max", 16),
        ({"LOCAL_WORLD_SIZE": "4"}, 64, "800000", 2),
        ({"LOCAL_WORLD_SIZE": "128"}, 64, "max", 1),
        # Tasks that are not bound to cores, with and without a number of cores per task.
        (SLURM_TASK | {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_CPUS_ON_NODE": "32"}, 64, "max", 4),
        (SLURM_TASK | {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "2"}, 64, "max", 2),
        # Tasks that are bound to their own cores.
        (SLURM_TASK | {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_CPUS_ON_NODE": "32"}, 4, "max", 4),
        # One task that starts torchrun, and the batch script of a job.
        (
            SLURM_TASK
            | {"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_CPUS_PER_TASK": "32", "LOCAL_WORLD_SIZE": "8"},
            64, "max", 4,
        ),
        ({"SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "16"}, 64, "max", 16),
    ],
)  # fmt: skip
def test_cores_of_a_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    allowed: int,
    quota: str,
    cores: int,
) -> None:
    monkeypatch.setattr(resources, "count_allowed_cores", lambda: allowed)
    root = v2_tree(tmp_path, {"sys/fs/cgroup/job/cpu.max": f"{quota} 100000\n"}, "/job")
    assert count_cores(variables, root) == cores


def test_interactive_shell_of_a_step_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 0)
    variables = SLURM_TASK | {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_CPUS_ON_NODE": "32", "SLURM_CPUS_PER_TASK": "4"}
    assert count_local_processes(variables) == 1 and count_slurm_cores(variables) == 32


@pytest.mark.parametrize(("memory", "workers"), [(None, 16), (64 * GIB, 16), (3 * GIB, 6), (2**20, 1)])
def test_number_of_workers_is_limited_by_memory(
    monkeypatch: pytest.MonkeyPatch, memory: int | None, workers: int
) -> None:
    monkeypatch.setattr(resources, "count_cores", lambda: 16)
    monkeypatch.setattr(resources, "share_of_memory", lambda: memory)
    assert count_workers() == workers


THREAD_PROGRAM = """
import os, torch
from featgan.system import device
before = torch.get_num_threads()
device.count_cores = lambda: {cores}
device.limit_torch_threads()
print(before, torch.get_num_threads())
"""


@pytest.mark.parametrize("threads", ["", "3"])
def test_threads_are_limited_unless_the_user_sets_their_number(threads: str) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    environment |= {"OMP_NUM_THREADS": threads} if threads else {}
    for cores in (1, 1000):
        command = [sys.executable, "-c", THREAD_PROGRAM.format(cores=cores)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        before, after = map(int, result.stdout.split())
        assert after == (1 if cores == 1 and not threads else before), "more cores change nothing"
