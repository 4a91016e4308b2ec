"""Job folders are private: others can neither read the pickles and the code of a job nor replace them."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from featgan.config.loading import parse_config
from featgan.errors import UserError
from launch import sbatch_entry, submit
from launch.cluster import load_cluster
from launch.job_folder import make_job_folder
from launch.jobs import EvaluateJob
from launch.private_folders import check_owner

OTHER_USER = 12345


@pytest.fixture(params=[0o002, 0o022, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    previous = os.umask(request.param)
    yield request.param
    os.umask(previous)


def list_open_paths(folder: Path) -> list[str]:
    """Return the files and folders that the group or others can access."""
    return [str(path) for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077]


def test_submitted_job_is_private(tmp_path: Path, umask: int) -> None:
    jobs = tmp_path / "run" / "jobs"
    _, folder = submit.submit_job(EvaluateJob("missing"), load_cluster("local", {}), jobs, "evaluate", "test")
    assert folder.stat().st_mode & 0o777 == jobs.stat().st_mode & 0o777 == 0o700
    pickles = list(folder.glob("*.pkl"))
    assert pickles and all(path.stat().st_mode & 0o777 == 0o600 for path in pickles)
    assert not [path for path in list_open_paths(jobs) if not path.endswith((".out", ".err"))]
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o777 & ~umask, "the run has the usual permissions"
    assert os.umask(umask) == umask, "files that the job writes into the run have the usual permissions"


def test_existing_job_folders_become_private(tmp_path: Path, umask: int) -> None:
    old = tmp_path / "jobs" / "001-train" / "code"
    old.mkdir(parents=True)
    (old / "job.pkl").touch()
    (old / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").touch(mode=0o666)
    mode = (tmp_path / "outside").stat().st_mode
    assert make_job_folder(tmp_path / "jobs", "train").name == "002-train"
    (old / "link").unlink()
    assert not list_open_paths(tmp_path / "jobs")
    assert (tmp_path / "outside").stat().st_mode == mode, "a link does not change what it points to"


def test_job_folder_of_an_sbatch_job_is_private(tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    config = parse_config({"run_dir": str(tmp_path / "run")}, "test")
    monkeypatch.setattr(sbatch_entry, "load_config", lambda name, overrides: config)
    folder = sbatch_entry.find_or_create_job_folder("debug")
    assert (folder / "job.json").is_file() and not list_open_paths(tmp_path / "run" / "jobs")


def run_as_other_user(tmp_path: Path, function: str, path: Path) -> str:
    """Call a function of `launch.private_folders` in a child with another user ID; return its error or nothing."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(OTHER_USER)
            os.setuid(OTHER_USER)
            check_owner(path) if function == "check_owner" else make_job_folder(path, "train")
        except UserError as error:
            os.write(write_end, str(error).encode())
        except BaseException as error:
            os.write(write_end, repr(error).encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end) as file:
        return file.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user requires root")
def test_job_folder_of_another_user_is_rejected(tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o777)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs").chmod(0o777)
    assert "jobs: belongs to another user" in run_as_other_user(tmp_path, "make", tmp_path / "jobs")
    own = tmp_path / "own"
    own.mkdir()
    os.chown(own, OTHER_USER, OTHER_USER)
    assert run_as_other_user(tmp_path, "make", own) == ""
    (tmp_path / "link").symlink_to(own)
    assert "belongs to another user" in run_as_other_user(tmp_path, "check_owner", tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the owner of a folder requires root")
def test_job_does_not_run_a_folder_that_another_user_has_put_in_its_place(tmp_path: Path) -> None:
    folder = make_job_folder(tmp_path / "run" / "jobs", "train")
    (folder / "requeue.sh").write_text("echo ran")
    lines = "\n".join(submit.requeue_lines(load_cluster("slurm", {}), folder))
    assert subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=True).stdout == "ran\n"
    os.chown(folder, OTHER_USER, OTHER_USER)
    result = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "belongs to another user" in result.stderr and not result.stdout
