"""Job scripts are equal to the recorded ones; `FEATGAN_RECORD=1 pytest tests/launch` records them again."""

import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from featgan.config.loading import load_config
from featgan.errors import UserError
from launch import submit
from launch.__main__ import cli
from launch.cli_options import SubmitOptions, read_cluster
from launch.cluster import ClusterConfig, load_cluster
from launch.job_folder import copy_code, make_job_folder
from launch.jobs import TrainJob
from launch.notation import parse_minutes
from tests.conftest import World

GOLDEN_FOLDER = Path(__file__).parent / "golden"
ROOT = GOLDEN_FOLDER.parent.parent.parent

SITE_CLUSTER = ClusterConfig(
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
CONTAINER_CLUSTER = ClusterConfig(
    gpus_per_node="gpu:a100:4", mem="64000", python="python", srun_args=("--container-image=featgan.sqsh",)
)
JOB_FOLDER = Path("/runs/one/jobs/001-train")
CLUSTERS = {
    "plain": ClusterConfig(),
    "site": SITE_CLUSTER,
    "practice": load_cluster("practice", {}),
    "container": CONTAINER_CLUSTER,
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_scripts_are_equal_to_the_recorded_ones(name: str) -> None:
    dependency = "afterok:17" if name == "site" else None
    assert_matches_golden(name, submit.sbatch_script(CLUSTERS[name], JOB_FOLDER, "featgan-train-one", dependency))


def assert_matches_golden(name: str, script: str) -> None:
    script = script.strip().replace(sys.executable, "PYTHON") + "\n"
    path = GOLDEN_FOLDER / f"{name}.sh"
    if os.environ.get("FEATGAN_RECORD"):
        path.write_text(script)
    assert script == path.read_text()
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("plain", ("--cluster", "slurm", "--gpus-per-node", "0")),
        ("practice", ("--cluster", "practice")),
        ("local", ("--cluster", "local", "--tasks-per-node", "2")),
    ],
)
def test_dry_run_prints_the_script_and_writes_nothing(tmp_path: Path, name: str, arguments: tuple[str, ...]) -> None:
    command = [
        "train",
        "debug",
        f"run_dir={tmp_path / 'runs' / 'one'}",
        "training.batch_size=16",
        *arguments,
        "--dry-run",
    ]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert_matches_golden(name, result.output.replace(str(tmp_path), "").replace("NNN-train", "001-train"))
    assert list(tmp_path.iterdir()) == []


def test_commands_in_the_docs_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (GOLDEN_FOLDER.parent.parent.parent / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("python -m launch ")]
    kinds = ("extract", "pipeline", "train", "evaluate", "render")
    submissions = [line for line in lines if line.split()[3] in kinds]
    assert {line.split()[3] for line in submissions} >= {"extract", "pipeline"}
    monkeypatch.chdir(tmp_path)
    for line in submissions:
        result = CliRunner().invoke(cli, [*shlex.split(line)[3:], "--dry-run"])
        assert result.exit_code == 0 and "#SBATCH" in result.output, (line, result.output, result.exception)
    pipeline = next(line for line in lines if " pipeline " in line)
    result = CliRunner().invoke(cli, [*shlex.split(pipeline)[3:], "--dry-run"])
    assert "afterok:4710" in result.output and "#SBATCH --nodes=4" in result.output
    dataset = load_config("affectnet_64d_reg").dataset
    words = next(shlex.split(line) for line in lines if " extract " in line)
    assert words[words.index("--shards") + 1] == str(dataset.shards)
    assert words[words.index("--cache-name") + 1] == dataset.feature_cache
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shards", "out", "problem"),
    [
        ("https://a.org/shards", "own", ""),
        ("https://a.org/shards", "", "features cannot be written to a URL; choose a local folder with --out"),
        ("https://you:secret@a.org/shards", "own", "https://a.org/shards: contains a password or a query"),
    ],
)
def test_extraction_from_a_url_needs_a_folder_for_the_features(
    tmp_path: Path, shards: str, out: str, problem: str
) -> None:
    options = ["--out", str(tmp_path / out)] if out else []
    result = CliRunner().invoke(cli, ["extract", "--shards", shards, "--blackbox", "x", *options, "--dry-run"])
    assert "secret" not in f"{result.output}{result.exception}"
    if problem:
        assert problem in str(result.exception)
    else:
        assert f"{tmp_path}/own/jobs/NNN-extract" in result.output


def test_jobs_of_an_extraction_to_another_folder_are_in_this_folder(world: World, tmp_path: Path) -> None:
    command = ["extract", "--shards", str(world.shards.path), "--blackbox", "x", "--out", str(tmp_path / "own")]
    result = CliRunner().invoke(cli, [*command, "--dry-run"], catch_exceptions=False)
    assert f"{tmp_path}/own/jobs/NNN-extract" in result.output
    assert not (tmp_path / "own").exists()


def test_stages_of_a_pipeline_have_options_of_their_own(tmp_path: Path) -> None:
    command = ["pipeline", "debug", f"run_dir={tmp_path / 'run'}", "training.batch_size=32", "--dry-run",
               "--nodes", "2", "--gpus-per-node", "a100:8", "--mem", "400G", "--time", "2-0",
               "--dependency", "singleton",
               "--evaluate-option", "time=30:00", "--evaluate-option", "parameters=mail-type=END",
               "--render-option", "gpus-per-node=0"]  # fmt: skip
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    _, training, evaluation, rendering = result.output.split("#!/bin/bash")
    for option in (
        "nodes=2",
        "gpus-per-node=a100:8",
        "ntasks-per-node=8",
        "mem=400G",
        "time=2-0",
        "dependency=singleton",
    ):
        assert f"#SBATCH --{option}\n" in training, option
    for option in ("nodes=1", "gpus-per-node=a100:1", "ntasks-per-node=1", "mem=51200M", "time=30:00", "mail-type=END"):
        assert f"#SBATCH --{option}\n" in evaluation, option
    assert "#SBATCH --dependency=afterok:TRAIN_ID\n" in evaluation
    assert "#SBATCH --time=4:00:00\n" in rendering and "--gpus" not in rendering and "mail-type" not in rendering


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("tim=5", "--evaluate-option tim=5: not NAME=VALUE of a job option; did you mean time=VALUE?"),
        ("time", "--evaluate-option time: not NAME=VALUE of a job option"),
        ("time=soon", "'--evaluate-option time=soon': time: 'soon' is not a time limit"),
        ("nodes=2", "evaluate: runs as one process"),
        ("parameters=array=0-3", "'array' is not allowed"),
    ],
)
def test_wrong_options_of_a_stage_are_one_line(tmp_path: Path, option: str, message: str) -> None:
    command = ["pipeline", "debug", f"run_dir={tmp_path / 'run'}", "--evaluate-option", option]
    with pytest.raises(UserError) as error:
        CliRunner().invoke(cli, command, catch_exceptions=False)
    assert message in str(error.value) and "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_script_leaves_out_unset_options() -> None:
    script = submit.sbatch_script(ClusterConfig(), Path("/r"), "name")
    for word in ("wckey", "partition", "account", "gpus", "mem", "dependency"):
        assert f"--{word}" not in script


def test_job_folders_are_numbered(tmp_path: Path) -> None:
    assert [make_job_folder(tmp_path, kind).name for kind in ("train", "render", "train")] == [
        "001-train",
        "002-render",
        "003-train",
    ]


def test_job_folders_are_private(tmp_path: Path) -> None:
    previous_mask = os.umask(0o002)
    try:
        folder = make_job_folder(tmp_path / "jobs", "train")
        archive = copy_code(folder)
    finally:
        os.umask(previous_mask)
    assert folder.stat().st_mode & 0o777 == 0o700 and archive.stat().st_mode & 0o777 == 0o600


def test_rejection_of_sbatch_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = ("sbatch: error: choose one of your accounts", "sbatch: error: Batch job submission failed")
    lines = "\n".join(f"echo '{message}' >&2" for message in messages)
    for name, text in {"sbatch": f"{lines}\nexit 1", "srun": "", "squeue": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "launch", "train", "debug", f"run_dir={tmp_path / 'run'}"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert all(message in result.stderr for message in messages) and not (tmp_path / "run").exists()


def test_help_shows_the_time_limit_of_each_command() -> None:
    for name, limit in (("train", "24:00:00"), ("evaluate", "4:00:00"), ("render", "4:00:00"), ("watch", "4:00:00")):
        text = " ".join(CliRunner().invoke(cli, [name, "--help"]).output.split())
        assert f"[default: {limit}]" in text, name


ARCHIVE_PROGRAM = """
import importlib, pkgutil, sys
from pathlib import Path
import featgan, launch
from featgan.report.html.page import build_environment
from launch.job_folder import copy_code, write_requeue_script
from launch.leaderboard import write_leaderboard

for package in (featgan, launch):
    names = [info.name for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
    assert len(names) > 10, names
    for name in names:
        if not name.endswith("__main__") and "deepspeed" not in name:
            print(importlib.import_module(name).__file__)
for name in ("report.html.j2", "report.css"):
    assert build_environment().get_template(name)
folder = Path(sys.argv[1])
write_leaderboard(folder, [])
write_requeue_script(folder)
copy_code(folder)
"""


def test_job_imports_the_code_from_one_archive(tmp_path: Path) -> None:
    archive, copies = copy_code(tmp_path), tmp_path / "copies"
    copies.mkdir()
    assert [path.name for path in tmp_path.iterdir() if path != copies] == ["code.zip"]
    environment = os.environ | {"PYTHONPATH": str(archive), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", ARCHIVE_PROGRAM, str(copies)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert all(line.startswith(f"{archive}/") for line in result.stdout.split())
    assert (copies / "leaderboard.html").stat().st_size and (copies / "requeue.sh").stat().st_size
    assert (copies / "code.zip").read_bytes() == archive.read_bytes(), "a job can submit another job"
    command = [sys.executable, "-m", "launch", "train", "debug", "run_dir=run", "--dry-run"]
    result = subprocess.run(command, cwd=copies, env=environment, capture_output=True, text=True, check=False)
    assert "#SBATCH --time=24:00:00" in result.stdout, f"the presets are in the archive: {result.stderr}"
    with zipfile.ZipFile(archive) as archive_file:
        assert "configs/cluster/slurm.yaml" in archive_file.namelist()
        assert not [name for name in archive_file.namelist() if "__pycache__" in name]


def test_rejected_submission_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="slurm: cannot submit"):
        submit.submit_job(TrainJob({}), ClusterConfig(), tmp_path / "run" / "jobs", "train", "name")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30", 30), ("90:30", 90.5), ("1:00:00", 60), ("2-12", 3600), ("1-00:30", 1470), ("1-00:30:30", 1470.5)],
)
def test_time_limits_are_parsed_in_every_format(text: str, minutes: float) -> None:
    assert parse_minutes(text) == minutes


def test_invalid_time_limit_is_rejected() -> None:
    with pytest.raises(UserError, match="time: 'soon' is not a time limit; write minutes"):
        load_cluster("slurm", {"time": "soon"})


def test_errors_in_a_cluster_file_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("executor: slurm\npartitions: gpu\n")
    with pytest.raises(UserError, match="unknown key 'partitions'; did you mean 'partition'"):
        load_cluster(str(path), {})
    with pytest.raises(UserError, match="--cluster nowhere: no such file"):
        load_cluster("nowhere", {})
    with pytest.raises(UserError, match="nodes: Input should be greater"):
        load_cluster("slurm", {"nodes": "0"})
    assert load_cluster("slurm", {"nodes": "3", "time": None}).nodes == 3


def test_parameters_and_setup_are_added_to_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("executor: slurm\nparameters: {mail-type: END, comment: site}\ndependency: singleton\n"
                    "setup: [module load cuda]\n")  # fmt: skip
    fields = {"parameters": ("exclusive", "comment=mine"), "requeue": "false", "setup": ("export MASTER_ADDR=n1",)}
    cluster = read_cluster(SubmitOptions(str(path), None, False, fields))
    script = submit.sbatch_script(cluster, Path("/r"), "name", "afterok:17")
    lines = script.splitlines()
    assert lines.index("module load cuda") + 1 == lines.index("export MASTER_ADDR=n1")
    for option in ("--mail-type=END", "--comment=mine", "--exclusive", "--no-requeue"):
        assert f"#SBATCH {option}" in lines
    assert "#SBATCH --dependency=afterok:17,singleton" in lines and "#SBATCH --requeue" not in lines
