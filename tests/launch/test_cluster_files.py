"""A cluster file means what SLURM's own notation means, whatever YAML would make of it; errors are one line."""

import math
from pathlib import Path

import pytest

from featgan.errors import UserError
from launch.cluster import ClusterConfig, load_cluster, load_stage
from launch.notation import parse_gpus, parse_megabytes, parse_minutes
from launch.submit import sbatch_script


def write_site(folder: Path, text: str) -> str:
    path = folder / "site.yaml"
    path.write_text(text)
    return str(path)


def site_script(folder: Path, text: str, **overrides: object) -> list[str]:
    """Return the lines of the job script for a cluster file."""
    cluster = load_cluster(write_site(folder, text), overrides)
    return sbatch_script(cluster, Path("/r"), "name").splitlines()


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("time: 24:00:00", "--time=24:00:00"),
        ("time: 30:00", "--time=30:00"),
        ("time: 1:30:00", "--time=1:30:00"),
        ("time: 08:00:00", "--time=08:00:00"),
        ("time: 90", "--time=90"),
        ("time: 090", "--time=090"),
        ("time: 1-0", "--time=1-0"),
        ("time: 1-12:00:00", "--time=1-12:00:00"),
        ("time: '24:00:00'", "--time=24:00:00"),
        ("time: UNLIMITED", "--time=UNLIMITED"),
        ("mem: 64000", "--mem=64000"),
        ("mem: 64000M", "--mem=64000M"),
        ("mem: 64G", "--mem=64G"),
        ("mem: 64 GB", "--mem=64GB"),
        ("mem: 0", "--mem=0"),
        ("mem: 0100", "--mem=0100"),
        ("gpus_per_node: 4", "--gpus-per-node=4"),
        ("gpus_per_node: a100:4", "--gpus-per-node=a100:4"),
        ("gpus_per_node: gpu:a100:4", "--gpus-per-node=a100:4"),
        ("gpus_per_node: gpu:4", "--gpus-per-node=4"),
        ("gpus_per_node: 4090:2", "--gpus-per-node=4090:2"),
        ("gpus_per_node: gpu:4090:2", "--gpus-per-node=4090:2"),
        ("gpus_per_node: 3g.20gb:2", "--gpus-per-node=3g.20gb:2"),
        ("gpus_per_node: a100:2,v100:1", "--gpus-per-node=a100:2,v100:1"),
        ("gpus_per_node: [a100:2, v100:1]", "--gpus-per-node=a100:2,v100:1"),
        ("exclude: node[01-04,07]", "--exclude='node[01-04,07]'"),
        ("exclude: n1, n[2-3]", "--exclude='n1,n[2-3]'"),
        ("exclude: [n01, n02]", "--exclude=n01,n02"),
        ("exclude:\n- 012\n- r[1-2]n[01-16]-ib", "--exclude='012,r[1-2]n[01-16]-ib'"),
        ("partition: no", "--partition=no"),
        ("partition: off", "--partition=off"),
        ("partition: [a100, h100]", "--partition=a100,h100"),
        ("account: 007", "--account=007"),
        ("account: 1234", "--account=1234"),
        ("account: 1e3", "--account=1e3"),
        ("qos: 2026-12-01", "--qos=2026-12-01"),
        ("constraint: [rack1|rack2]", "--constraint='[rack1|rack2]'"),
        ("constraint: a100&ib", "--constraint='a100&ib'"),
        ("parameters: {exclusive: true}", "--exclusive"),
        ("parameters: {exclusive: yes}", "--exclusive"),
        ("parameters: {kill-on-invalid-dep: no}", "--kill-on-invalid-dep=no"),
        ("parameters: {begin: 16:00:00}", "--begin=16:00:00"),
        ("parameters: {mail_type: END}", "--mail-type=END"),
        ("parameters: {nodelist: [n1, n2]}", "--nodelist=n1,n2"),
        ("requeue: no", "--no-requeue"),
        ("requeue: on", "--requeue"),
    ],
)
def test_values_reach_sbatch_as_they_are_written(tmp_path: Path, line: str, option: str) -> None:
    assert f"#SBATCH {option}" in site_script(tmp_path, f"executor: slurm\n{line}\n")


@pytest.mark.parametrize("line", ["parameters: {exclusive: false}", "parameters: {exclusive: no}", "partition: null",
                                  "partition: ~", "partition:", "mem:"])  # fmt: skip
def test_options_that_are_off_are_left_out(tmp_path: Path, line: str) -> None:
    script = site_script(tmp_path, f"executor: slurm\n{line}\n")
    assert not [text for text in script if "--exclusive" in text or "--partition" in text or "--mem" in text]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("time: soon", "time: 'soon' is not a time limit"),
        ("time: 1:2:3:4", "time: '1:2:3:4' is not a time limit"),
        ("time: -5", "time: '-5' is not a time limit"),
        ("time: true", "time: Input should be a valid string (got True)"),
        ("mem: 64Q", "mem: '64Q' is not an amount of memory"),
        ("mem: 1.5G", "mem: '1.5G' is not an amount of memory"),
        ("gpus_per_node: many", "gpus_per_node: 'many' is not a number of GPUs"),
        ("gpus_per_node: -1", "gpus_per_node: '-1' is not a number of GPUs"),
        ("gpus_per_node: true", "gpus_per_node: 'True' is not a number of GPUs"),
        ("exclude: node[01-04", "exclude: 'node[01-04' is not a list of nodes"),
        ("exclude: node[a-c]", "exclude: 'node[a-c]' is not a list of nodes"),
        ("exclude: [node[01-04]]", "not valid YAML"),
        ("nodes: 2-4", "nodes: Input should be a valid integer"),
        ("setup: {a: b}", "setup: Input should be a valid tuple"),
        ("srun_args: --comment 'x", "srun_args: No closing quotation"),
        ("srun_args: --output=x", "srun_args: '--output=x' is not allowed: the logs must be in the job folder"),
        ("evaluate: fast", "evaluate: not a section of job options"),
        ("evaluate: {tim: 5}", "evaluate: unknown key 'tim'; did you mean 'time'?"),
        ("render: {time: soon}", "render: time: 'soon' is not a time limit"),
        ("evaluate: {nodes: 2}", "evaluate: runs as one process"),
        ("evaluate: {executor: local}", "evaluate: not a section of job options"),
    ],
)
def test_errors_are_one_line_and_name_the_file(tmp_path: Path, line: str, message: str) -> None:
    path = write_site(tmp_path, f"executor: slurm\n{line}\n")
    with pytest.raises(UserError) as error:
        load_cluster(path, {})
    assert str(error.value).startswith(path) and message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("parameter", "reason"),
    [
        ("array=0-3", "submit one job per run"),
        ("arr=0-3", "submit one job per run"),
        ("--array=0-3", "submit one job per run"),
        ("dependency=singleton", "use --dependency"),
        ("requeue", "use --requeue true"),
        ("no-requeue", "use --requeue false"),
        ("signal=USR1@60", "--signal-delay seconds before"),
        ("output=log", "where `status` reads them"),
        ("error=log", "where `status` reads them"),
        ("open_mode=truncate", "where `status` reads them"),
        ("gres=gpu:a100:2", "set the GPUs with --gpus-per-node"),
        ("gpus=2", "set the GPUs with --gpus-per-node"),
        ("ntasks=2", "with --tasks-per-node"),
        ("nodes=2", "use --nodes"),
        ("mem=2G", "use --mem"),
        ("time=5", "use --time"),
        ("wait", "--after-job"),
        ("test-only", "print the script with --dry-run"),
        ("wrap=hostname", "writes the job script"),
        ("parsable", "reads the job ID"),
        ("chdir=/tmp", "relative paths"),
        ("clusters=a", "SLURM_CLUSTERS"),
        ("p=gpu", "is not the long name"),
    ],
)
def test_parameters_that_break_the_launcher_are_rejected_with_the_reason(parameter: str, reason: str) -> None:
    name, equals, value = parameter.partition("=")
    with pytest.raises(UserError, match="parameters") as error:
        load_cluster("slurm", {"parameters": {name: value if equals else True}})
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_parameters_of_a_site_are_accepted() -> None:
    names = (
        "mem-per-cpu",
        "mem-per-gpu",
        "gres",
        "comment",
        "time-min",
        "wait-all-nodes",
        "export",
        "gres-flags",
        "nice",
    )
    parameters = dict.fromkeys(names, "1") | {"gres": "lscratch:200"}
    assert load_cluster("slurm", {"parameters": parameters}).parameters == parameters


def test_gpus_of_every_notation_are_counted() -> None:
    assert ClusterConfig(gpus_per_node="a100:4").num_tasks_per_node == 4
    assert ClusterConfig(gpus_per_node="a100:2,v100:1").num_tasks_per_node == 3
    assert ClusterConfig(gpus_per_node=2).gpus_per_node == 2
    assert parse_gpus("gpu") == {"": 1} and parse_gpus("gpu:a100") == {"a100": 1} and parse_gpus("0") == {"": 0}


def test_times_and_memory_are_converted() -> None:
    assert parse_minutes("0") == parse_minutes("UNLIMITED") == math.inf
    assert [parse_megabytes(text) for text in ("64000", "64000M", "64g", "1TB", "1K")] == [
        64000,
        64000,
        65536,
        2**20,
        1,
    ]


def test_setup_may_be_a_text_of_several_lines(tmp_path: Path) -> None:
    path = write_site(tmp_path, "executor: slurm\nsetup: |\n  module load cuda\n  export A=1\n")
    assert load_cluster(path, {"setup": ("export B=2",)}).setup == ("module load cuda", "export A=1", "export B=2")


def test_srun_arguments_are_added_to_those_of_the_file(tmp_path: Path) -> None:
    path = write_site(tmp_path, "executor: slurm\nsrun_args: --mpi pmix\n")
    arguments = load_cluster(path, {"srun_args": ("--container-image='a b' --x",)}).srun_args
    assert arguments == ("--mpi", "pmix", "--container-image=a b", "--x")


SITE = """
executor: slurm
partition: gpu
nodes: 4
gpus_per_node: a100:8
mem: 400G
time: 2-00:00:00
parameters: {nodelist: "n[1-4]", exclusive: true, mail-type: END}
evaluate: {time: 1:00:00, mem: 64000, parameters: {exclusive: false}}
render: {gpus_per_node: 0, partition: cpu}
"""


def test_evaluation_and_rendering_have_resources_of_their_own(tmp_path: Path) -> None:
    path = write_site(tmp_path, SITE)
    training = load_cluster(path, {})
    evaluation, rendering = load_stage(path, "evaluate", {}, {}), load_stage(path, "render", {}, {})
    assert (training.nodes, training.num_tasks_per_node, training.time, training.mem) == (4, 8, "2-00:00:00", "400G")
    assert (evaluation.nodes, evaluation.num_tasks_per_node, evaluation.gpus_per_node) == (1, 1, "a100:1")
    assert (evaluation.time, evaluation.mem, evaluation.partition) == ("1:00:00", "64000", "gpu")
    assert evaluation.parameters == {"mail-type": "END"}
    assert (rendering.gpus_per_node, rendering.partition) == (0, "cpu")
    assert (rendering.time, rendering.mem) == ("4:00:00", "51200M"), "the defaults: a share of the memory, and 4 hours"
    assert rendering.parameters == {"exclusive": True, "mail-type": "END"}


def test_options_of_a_stage_take_precedence_over_its_section(tmp_path: Path) -> None:
    path = write_site(tmp_path, SITE)
    cluster = load_stage(path, "evaluate", {"partition": "big", "time": "30"}, {"mem": "1G", "gpus_per_node": "2"})
    assert (cluster.partition, cluster.time, cluster.mem, cluster.gpus_per_node) == ("big", "1:00:00", "1G", 2)
    assert load_stage("slurm", "render", {"time": "30"}, {}).time == "30", "not longer than the training"
