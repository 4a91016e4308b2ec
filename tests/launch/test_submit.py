"""Scripts as submitit writes them, against recorded ones; FEATGAN_RECORD=1 pytest tests/launch records them anew."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from featgan.config.loading import load_config
from featgan.errors import UserError
from launch import submit
from launch.__main__ import cli
from launch.cli_options import read_cluster
from launch.cluster import Cluster, load_cluster
from launch.cluster import minutes as minutes_of
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
FOLDER = Path("/runs/one/jobs/001-train")
SITES = {"plain": Cluster(), "site": SITE, "practice": load_cluster("practice", {})}


@pytest.mark.parametrize("name", SITES)
def test_scripts_are_as_recorded(name: str) -> None:
    dependency = "afterok:17" if name == "site" else None
    check_recorded(name, submit.sbatch_script(SITES[name], FOLDER, "featgan-train-one", dependency))


def check_recorded(name: str, script: str) -> None:
    script = script.strip().replace(sys.executable, "PYTHON") + "\n"
    path = GOLDEN / f"{name}.sh"
    if os.environ.get("FEATGAN_RECORD"):
        path.write_text(script)
    assert script == path.read_text()
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("plain", ("--cluster", "slurm", "--gpus-per-node", "0")),
        ("practice", ("--cluster", "practice")),
        ("local", ("--cluster", "local", "--tasks-per-node", "2")),
    ],
)
def test_a_dry_run_prints_them_and_leaves_nothing(tmp_path: Path, name: str, arguments: tuple[str, ...]) -> None:
    command = ["train", "debug", f"run={tmp_path / 'runs' / 'one'}", "training.batch_size=16", *arguments, "--dry-run"]
    found = CliRunner().invoke(cli, command, catch_exceptions=False)
    check_recorded(name, found.output.replace(str(tmp_path), "").replace("NNN-train", "001-train"))
    assert list(tmp_path.iterdir()) == []


def test_the_walk_through_of_the_docs_is_what_the_commands_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (GOLDEN.parent.parent.parent / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    python -m launch ")]
    submitting = [line for line in lines if line.split()[3] in ("extract", "pipeline", "train", "evaluate", "render")]
    assert {line.split()[3] for line in submitting} >= {"extract", "pipeline"}
    monkeypatch.chdir(tmp_path)
    for line in submitting:
        found = CliRunner().invoke(cli, [*shlex.split(line)[3:], "--dry-run"])
        assert found.exit_code == 0 and "#SBATCH" in found.output, (line, found.output, found.exception)
    whole = next(line for line in lines if " pipeline " in line)
    printed = CliRunner().invoke(cli, [*shlex.split(whole)[3:], "--dry-run"])
    assert "afterok:4710" in printed.output and "#SBATCH --nodes=4" in printed.output
    reg = load_config("affectnet_64d_reg").dataset
    named = next(shlex.split(line) for line in lines if " extract " in line)
    assert (named[named.index("--shards") + 1], named[named.index("--name") + 1]) == (str(reg.shards), reg.features)
    assert list(tmp_path.iterdir()) == []


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
        assert (tmp_path / "called").read_text() == f"-m launch.requeue {tmp_path}/a job {code}\n"


def test_jobs_are_numbered_and_two_at_once_get_different_folders(tmp_path: Path) -> None:
    assert [make_job_folder(tmp_path, kind).name for kind in ("train", "render", "train")] == [
        "001-train",
        "002-render",
        "003-train",
    ]


def test_a_job_runs_the_code_as_it_was(tmp_path: Path) -> None:
    code = copy_code(tmp_path)
    assert (code / "configs" / "cluster" / "slurm.yaml").is_file() and not list(code.rglob("__pycache__"))
    look = "import featgan.config.schema, launch; print(featgan.config.schema.__file__); print(launch.__file__)"
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
    assert minutes_of(text) == minutes


def test_a_time_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="time: 'soon'; write minutes"):
        load_cluster("slurm", {"time": "soon"})


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
    path.write_text("executor: slurm\nparameters: {mail-type: END, comment: site}\ndependency: singleton\n"
                    "setup: [module load cuda]\n")  # fmt: skip
    given = {"parameters": ("exclusive", "comment=mine"), "requeue": "false", "setup": ("export MASTER_ADDR=n1",)}
    cluster = read_cluster(str(path), given)
    script = submit.sbatch_script(cluster, Path("/r"), "name", "afterok:17")
    lines = script.splitlines()
    assert lines.index("module load cuda") + 1 == lines.index("export MASTER_ADDR=n1")
    for wish in ("--mail-type=END", "--comment=mine", "--exclusive", "--no-requeue"):
        assert f"#SBATCH {wish}" in lines
    assert "#SBATCH --dependency=afterok:17,singleton" in lines and "#SBATCH --requeue" not in lines
