"""A job in the background of this machine: two processes that train together on a copy of the code."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featgan.config import to_yaml
from featgan.schedule import committed_steps, step_folder
from tests.conftest import World

LAUNCH = [sys.executable, "-m", "launch"]


@pytest.mark.slow
def test_two_processes_train_in_the_background(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path / "run")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [*LAUNCH, "train", str(tmp_path / "config.yaml"), "--cluster", "local", "--tasks-per-node", "2"]
    start = time.monotonic()
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    submitting = time.monotonic() - start
    folder = tmp_path / "run" / "jobs" / "001-train"
    assert found.stdout.endswith(f"in {folder}\n")
    # featgan passes over what a launcher has put into the run's folder before the run began.
    while committed_steps(config.run)[-1:] != [4] or not list(folder.glob("*_result.pkl")):
        assert time.monotonic() - start < 120, "\n".join(log.read_text() for log in folder.glob("*_log.err"))
        time.sleep(0.1)
    assert json.loads((step_folder(config.run, 4) / "state.json").read_text())["world_size"] == 2
    shown = subprocess.run([*LAUNCH, "status", str(config.run)], capture_output=True, text=True).stdout
    assert "001-train" in shown and "4 of 4" in shown and "done" in shown and "last checkpoint: 4" in shown
    assert submitting < 30, "submitting starts no training by itself"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "nowhere"], "no such file, and no preset"),
        (["train", "debug", "--cluster", "nowhere"], "--cluster nowhere"),
        (["train", "debug", "--cluster", "local", "--after", "17"], "wait for no others"),
        (["train", "debug", "training.batch_size=6", "--nodes", "4"], "training.batch_size: 6 cannot be shared by 4"),
        (["pipeline", "debug", "--cluster", "local"], "local jobs cannot wait"),
        (["status", "nowhere"], "no run with jobs"),
        (["watch", "nowhere", "--once"], "no such folder"),
        (["render", "nowhere", "--time", "soon", "--cluster", "local"], "time: 'soon'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path: Path, arguments: list[str], said: str) -> None:
    root = Path(__file__).parent.parent.parent
    where = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    found = subprocess.run([*LAUNCH, *arguments], cwd=tmp_path, env=where, capture_output=True, text=True)
    assert found.returncode == 2, found.stderr
    assert found.stderr.startswith("featgan: ") and found.stderr.count("\n") == 1 and said in found.stderr
    assert list(tmp_path.iterdir()) == []
