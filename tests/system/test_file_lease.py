"""File leases: exclusive acquisition, stale owners, heartbeats, transfer and release."""

import errno
import json
import multiprocessing
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featgan.errors import UserError
from featgan.system import file_lease as module
from featgan.system.file_lease import OWNER_TIMEOUT, FileLease, LeaseOwner, serialize_owner
from featgan.system.slurm import job_state, run_slurm_command


@pytest.fixture
def lease(tmp_path: Path) -> FileLease:
    """Return a lease that nobody owns."""
    return FileLease(tmp_path / "lease")


def use_fake_squeue(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a shell script named squeue first on the PATH."""
    path = folder / "bin" / "squeue"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")


SQUEUE_WITH_JOB_17 = """case "$*" in *"--jobs 17") echo RUNNING; exit 0 ;; esac
echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1"""


def test_lease_has_one_owner_until_it_is_released(lease: FileLease, tmp_path: Path) -> None:
    first, second = LeaseOwner.current_process(), LeaseOwner.current_process()
    assert lease.acquire(first) and not lease.acquire(second) and lease.live_owner() == first
    lease.release(second.token)
    assert lease.live_owner() == first, "only the owner can release the lease"
    lease.release(first.token)
    assert lease.live_owner() is None and list(tmp_path.iterdir()) == []
    assert lease.acquire(second)


def race_for_lease(path: str, results: Any, start: Any, end: Any) -> None:
    """Try to acquire 200 leases, and report the number of successes."""
    start.wait()
    results.put(sum(FileLease(Path(path) / str(index)).acquire(LeaseOwner.current_process()) for index in range(200)))
    end.wait()


def test_one_of_several_simultaneous_processes_acquires_the_lease(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results, start, end = context.Queue(), context.Event(), context.Event()
    processes = [context.Process(target=race_for_lease, args=(str(tmp_path), results, start, end)) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    assert sum(results.get(timeout=60) for _ in processes) == 200
    end.set()
    for process in processes:
        process.join()
    assert len(list(tmp_path.iterdir())) == 200


def test_ended_process_or_reused_process_id_is_stale(lease: FileLease) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    current = LeaseOwner.current_process()
    for stale in (replace(current, pid=dead.pid), replace(current, started="1"), replace(current, boot="previous")):
        lease.path.write_bytes(serialize_owner(stale))
        assert lease.live_owner() is None
        assert lease.acquire(current), stale
        lease.release(current.token)


def test_process_on_another_machine_is_alive_until_its_heartbeats_stop(lease: FileLease) -> None:
    remote = replace(LeaseOwner.current_process(), host="elsewhere")
    lease.path.write_bytes(serialize_owner(remote))
    assert not lease.acquire(LeaseOwner.current_process())
    os.utime(lease.path, (1, 1))
    assert lease.heartbeat_age() > OWNER_TIMEOUT and lease.acquire(LeaseOwner.current_process())


def test_owner_sends_heartbeats(lease: FileLease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_INTERVAL", 0.01)
    assert lease.acquire(LeaseOwner.current_process())
    os.utime(lease.path, (1, 1))
    with lease.keep_alive():
        while lease.heartbeat_age() > 100:
            pass
    os.utime(lease.path, (1, 1))
    assert lease.heartbeat_age() > 100, "no heartbeats after the context is left"


def test_state_of_a_job_is_queried(lease: FileLease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_squeue(tmp_path, SQUEUE_WITH_JOB_17, monkeypatch)
    lease.path.write_bytes(serialize_owner(LeaseOwner.for_job("17", "t")))
    assert str(lease.live_owner()) == "job 17"
    lease.path.write_bytes(serialize_owner(replace(LeaseOwner.current_process(), job="18", restart="0")))
    assert lease.live_owner() is None, "the process is alive, but its job has ended"
    os.utime(lease.path, (1, 1))
    use_fake_squeue(tmp_path, 'echo "Unable to contact slurm controller" >&2; exit 1', monkeypatch)
    assert lease.live_owner() is not None, "without a response, the job may still run"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lease.live_owner() is None, "without SLURM, the last heartbeat is too old"


def test_requeued_job_replaces_its_earlier_start(lease: FileLease, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier_start = replace(LeaseOwner.current_process(), host="n7", job="17", restart="0")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    lease.path.write_bytes(serialize_owner(earlier_start))
    assert not lease.acquire(LeaseOwner.current_process()), "two steps of one job on two nodes are two owners"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert lease.acquire(LeaseOwner.current_process())


def test_transfer_requires_the_token_and_never_creates_a_lease(lease: FileLease) -> None:
    first = LeaseOwner.current_process()
    assert lease.acquire(first)
    assert not lease.transfer_to(LeaseOwner.for_job("17", "another token"))
    assert lease.transfer_to(LeaseOwner.for_job("17", first.token)) and str(lease.read_owner()) == "job 17"
    lease.release(first.token)
    assert not lease.transfer_to(LeaseOwner.for_job("17", first.token)) and not lease.path.exists()


def test_new_owner_of_a_stale_lease_is_kept(lease: FileLease, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, alive = replace(LeaseOwner.current_process(), started="1"), LeaseOwner.current_process()
    lease.path.write_bytes(serialize_owner(alive))
    reads = iter([dead, dead])  # the owner read before another process replaced it
    monkeypatch.setattr(FileLease, "read_owner", lambda self: next(reads))
    assert not lease.remove_if_stale()
    assert json.loads(lease.path.read_text())["token"] == alive.token


def test_unreadable_lease_is_stale_once_it_is_old(lease: FileLease) -> None:
    lease.path.write_text("")
    assert not lease.acquire(LeaseOwner.current_process()), "it may be in creation"
    os.utime(lease.path, (1, 1))
    assert lease.acquire(LeaseOwner.current_process())


def test_lease_has_one_owner_without_hard_links(lease: FileLease, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    first = LeaseOwner.current_process()
    assert lease.acquire(first) and not lease.acquire(LeaseOwner.current_process()) and lease.live_owner() == first


def test_query_to_a_hanging_controller_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_squeue(tmp_path, f"echo x >> {tmp_path}/calls; exec sleep 60", monkeypatch)
    monkeypatch.setattr("featgan.system.slurm.COMMAND_TIMEOUT", 0.2)
    assert run_slurm_command("squeue") is None and job_state("17") is None
    assert (tmp_path / "calls").read_text().count("x") == 2


DAMAGED_CONTENTS = (
    b"",
    b"\xff\xfe{",
    b"[" * 100_000,
    b'{"token": 1}',
    b'{"token": "t", "pid": "one"}',
    b'{"token": "t", "pid": ' + b"9" * 5000 + b"}",
    b" " * (1 << 20),
)


@pytest.mark.parametrize("content", DAMAGED_CONTENTS, ids=range(len(DAMAGED_CONTENTS)))
@pytest.mark.parametrize("modified", [1.0, 4e9])
def test_damaged_lease_of_the_past_or_future_is_replaced(lease: FileLease, content: bytes, modified: float) -> None:
    lease.path.write_bytes(content)
    os.utime(lease.path, (modified, modified))
    owner = LeaseOwner.current_process()
    assert lease.read_owner() is None and lease.acquire(owner) and lease.live_owner() == owner


def test_pipe_in_place_of_a_lease_does_not_block(lease: FileLease) -> None:
    os.mkfifo(lease.path)
    assert lease.read_owner() is None and lease.live_owner() is None


@pytest.mark.parametrize("kind", ["a folder", "a pipe, a socket or a device"])
def test_special_file_in_place_of_a_lease_is_one_line(lease: FileLease, kind: str) -> None:
    lease.path.mkdir() if kind == "a folder" else os.mkfifo(lease.path)
    with pytest.raises(UserError, match=f"is {kind}, not the lock file of featgan; remove it"):
        lease.acquire(LeaseOwner.current_process())


def test_heartbeat_is_compared_with_the_clock_of_the_file_system(
    lease: FileLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease.path.write_bytes(serialize_owner(replace(LeaseOwner.current_process(), host="elsewhere")))
    for skew in (-10 * OWNER_TIMEOUT, 10 * OWNER_TIMEOUT):
        with monkeypatch.context() as patches:
            now = time.time() + skew
            patches.setattr(time, "time", lambda now=now: now)
            assert lease.heartbeat_age() < OWNER_TIMEOUT and lease.live_owner() is not None
            assert not lease.acquire(LeaseOwner.current_process())
    os.utime(lease.path, (4e9, 4e9))
    assert lease.live_owner() is None, "no heartbeat sets a time that far in the future"
