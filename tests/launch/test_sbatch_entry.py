"""A training by hand has a folder as the launcher's have: one for all starts of the job, with its configuration."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featgan.config.loading import load_config
from featgan.errors import UserError
from launch.sbatch_entry import find_folder
from launch.snapshot import read_card

ROOT = Path(__file__).parent.parent.parent


def test_a_job_has_one_folder_for_all_its_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    arguments = ["debug", f"run={tmp_path / 'run'}", "training.steps=7", "--resume-from", "there", "--fresh-optimizer"]
    folder = find_folder(arguments)
    assert folder == tmp_path / "run" / "jobs" / "001-train" and find_folder(arguments) == folder
    assert load_config(str(folder / "config.yaml")).training.steps == 7
    card = read_card(folder)
    assert (card["id"], card["resume_from"], card["fresh_optimizer"]) == ("17", str(tmp_path / "there"), True)
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    assert find_folder(arguments).name == "002-train"


def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    where = os.environ | {"PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "17"}
    command = [sys.executable, "-m", "launch.sbatch_entry", "nowhere"]
    found = subprocess.run(command, cwd=tmp_path, env=where, capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.startswith("featgan: nowhere: no such file") and not found.stdout
    assert found.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--dry-run", "--profile"])
def test_what_is_no_training_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(UserError, match=f"{option}: not in a job"):
        find_folder(["debug", f"run={tmp_path / 'run'}", option])


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="no run of featgan"):
        find_folder(["debug", f"run={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
@pytest.mark.parametrize(("needed", "outcome"), [("1", "1 failed"), ("", "1 skipped")])
def test_where_slurm_is_needed_its_tests_fail_without_it(needed: str, outcome: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "tests/cluster/test_slurm.py::test_two_nodes_answer"]
    where = os.environ | {"PATH": "/nowhere", "FEATGAN_NEEDS_SLURM": needed}
    assert outcome in subprocess.run(command, cwd=ROOT, env=where, capture_output=True, text=True).stdout
