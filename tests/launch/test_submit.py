"""Scripts as submitit writes them, against recorded ones; FEATGAN_RECORD=1 pytest tests/launch records them anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featgan.errors import UserError
from launch import submit
from launch.__main__ import read_cluster
from launch.cluster import Cluster, load_cluster
from launch.jobs import TrainJob
from launch.snapshot import copy_code, make_job_folder

GOLDEN = Path(__file__).parent / "golden"

SITE = Cluster(
    partition="a100,h100",
    account="vision",
    qos="low",
    time="2-00:00:00",
    nodes=4,
    gpus_per_node=8,
    cpus_per_task=12,
    mem="400GB",
    constraint="ib",
    exclude="n[7-8]",
    reservation="maintenance",
    wckey="featgan",
    parameters={"mail-type": "END", "comment": "a run"},
    setup=("module load cuda", "source env.sh"),
    python="python3",
)
SITES = {"plain": Cluster(), "site": SITE, "practice": load_cluster("practice", {})}


@pytest.mark.parametrize("name", SITES)
def test_scripts_are_as_recorded(name: str) -> None:
    dependency = "afterok:17" if name == "site" else None
    script = submit.sbatch_script(SITES[name], Path("/runs/one/jobs/001-train"), "featgan-train-one", dependency)
    script = script.replace(sys.executable, "PYTHON") + "\n"
    path = GOLDEN / f"{name}.sh"
    if os.environ.get("FEATGAN_RECORD"):
        path.write_text(script)
    assert script == path.read_text()
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_what_is_not_wished_is_not_mentioned() -> None:
    script = submit.sbatch_script(Cluster(), Path("/r"), "name")
    for word in ("wckey", "partition", "account", "gpus", "mem", "dependency"):
        assert f"--{word}" not in script


@pytest.mark.parametrize(("code", "called"), [(0, False), (75, True), (137, True)])
def test_the_script_looks_at_how_the_processes_ended_and_keeps_their_code(
    tmp_path: Path, code: int, called: bool
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n')
    python.chmod(0o755)
    lines = submit.setup_lines(Cluster(python=str(python)), tmp_path / "a job")
    found = subprocess.run(["bash", "-c", "\n".join([*lines, f"(exit {code})"])])
    assert found.returncode == code
    assert (tmp_path / "called").exists() == called
    if called:
        assert (tmp_path / "called").read_text() == f"-m launch.after {tmp_path}/a job {code}\n"


def test_jobs_are_numbered_and_two_at_once_get_different_folders(tmp_path: Path) -> None:
    assert [make_job_folder(tmp_path, kind).name for kind in ("train", "render", "train")] == [
        "001-train",
        "002-render",
        "003-train",
    ]


def test_a_job_runs_the_code_as_it_was(tmp_path: Path) -> None:
    code = copy_code(tmp_path)
    assert (code / "configs" / "cluster" / "slurm.yaml").is_file() and not list(code.rglob("__pycache__"))
    look = "import featgan.config, launch; print(featgan.config.__file__); print(launch.__file__)"
    environment = os.environ | {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    found = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, check=True)
    assert all(line.startswith(str(code)) for line in found.stdout.split())


def test_a_refused_submission_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="slurm: cannot submit"):
        submit.submit(TrainJob({}), Cluster(), tmp_path / "run" / "jobs", "train", "name")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30", 30), ("90:30", 90.5), ("1:00:00", 60), ("2-12", 3600), ("1-00:30", 1470), ("1-00:30:30", 1470.5)],
)
def test_time_limits_in_every_form(text: str, minutes: float) -> None:
    assert submit.minutes(text) == minutes


def test_a_time_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="time: 'soon'"):
        submit.minutes("soon")


def test_mistakes_in_a_cluster_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("executor: slurm\npartitions: gpu\n")
    with pytest.raises(UserError, match="unknown key 'partitions'"):
        load_cluster(str(path), {})
    with pytest.raises(UserError, match="--cluster nowhere: no such file"):
        load_cluster("nowhere", {})
    with pytest.raises(UserError, match="nodes: Input should be greater"):
        load_cluster("slurm", {"nodes": "0"})
    assert load_cluster("slurm", {"nodes": "3", "time": None}).nodes == 3


def test_wishes_of_the_command_line_add_to_those_of_the_site(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("executor: slurm\nparameters: {mail-type: END, comment: site}\ndependency: singleton\n")
    cluster = read_cluster(str(path), {"parameters": ("exclusive", "comment=mine"), "requeue": "false"})
    script = submit.sbatch_script(cluster, Path("/r"), "name", "afterok:17")
    lines = script.splitlines()
    for wish in ("--mail-type=END", "--comment=mine", "--exclusive", "--no-requeue"):
        assert f"#SBATCH {wish}" in lines
    assert "#SBATCH --dependency=afterok:17,singleton" in lines and "#SBATCH --requeue" not in lines
