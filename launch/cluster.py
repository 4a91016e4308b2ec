"""Cluster configuration of a job: configs/cluster/NAME.yaml, then the options of the command line."""

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from featgan.config.base import ConfigModel, PositiveInt
from featgan.config.preset_folders import find_preset_folders
from featgan.errors import UserError
from featgan.system.yaml_files import TextLoader, read_yaml_mapping
from launch.notation import check_node_list, format_gpus, parse_gpus, parse_megabytes, parse_minutes
from launch.parameters import ONE_NODE_CONFLICTS, check_srun_arguments, clean_parameters

Stage = Literal["evaluate", "render"]
"""A job that runs as one process after a training; a cluster file can have a section for it."""

STAGES: tuple[Stage, ...] = ("evaluate", "render")

MAX_STAGE_TIME = "4:00:00"
"""Default time limit of an evaluation or a rendering, unless that of a training is shorter."""

ADDED_FIELDS = ("parameters", "setup", "srun_args")
"""Fields that are added to those of the file; the others replace them."""

TEXT_FIELDS = ("partition", "account", "qos", "time", "mem", "exclude", "reservation", "dependency", "wckey", "python")


class ClusterConfig(ConfigModel):
    """Resources and scheduler options of one job; options that are not set use the site's defaults."""

    executor: Literal["slurm", "local"] = "slurm"
    """`slurm`, or `local` for background processes on this machine."""
    partition: str | None = None
    """Partition (queue), or several separated by commas."""
    account: str | None = None
    """Account to charge the job to."""
    qos: str | None = None
    """Quality of service."""
    time: str = "24:00:00"
    """Time limit in SLURM's notation: minutes, H:MM:SS or D-HH:MM:SS; 0 for no limit."""
    nodes: PositiveInt = 1
    """Number of nodes."""
    gpus_per_node: int | str = 0
    """Number of GPUs per node, with their type if the site has several: 4 or a100:4."""
    tasks_per_node: Annotated[int, Field(ge=0)] = 0
    """Number of processes per node; 0 starts one process per GPU, or one per node if there are no GPUs."""
    cpus_per_task: PositiveInt = 8
    """Number of CPU cores per process: one for each data worker and one for training."""
    mem: str | None = None
    """Memory per node: a number of megabytes, 64000M or 64G."""
    constraint: str | None = None
    """Node features that the job requires."""
    exclude: str | None = None
    """Nodes that the job must not use, for example n[01-04,07]."""
    reservation: str | None = None
    """Reservation to run the job in."""
    dependency: str | None = None
    """Job dependency in sbatch syntax: afterany:ID, singleton, ..."""
    wckey: str | None = None
    """Workload characterization key, if the site requires one."""
    parameters: dict[str, str | bool] = Field(default_factory=dict)
    """Additional sbatch parameter, given by its long name; may be repeated."""
    setup: tuple[str, ...] = ()
    """Shell line to run before the job, for example to load modules; may be repeated."""
    python: str | None = None
    """Command that starts Python on the nodes, for example `apptainer exec image.sif python`; the Python that submits
    the job by default."""
    srun_args: tuple[str, ...] = ()
    """Additional arguments of srun, for example --container-image=IMAGE of pyxis; may be repeated."""
    requeue: bool = True
    """Requeue the job after a signal or a crash; if false, run the same command again to resume."""
    signal_delay: Annotated[int, Field(ge=10)] = 300
    """Seconds before the time limit at which the job is signaled; must be long enough for one step and one
    checkpoint."""
    max_failures: PositiveInt = 3
    """Number of failures at the same step after which the job is not restarted."""

    @field_validator(*TEXT_FIELDS, mode="before")
    @classmethod
    def join_text(cls, value: Any) -> Any:
        """Accept a list, and a number where a text is expected."""
        if isinstance(value, list | tuple):
            return ",".join(map(str, value))
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("constraint", mode="before")
    @classmethod
    def restore_brackets(cls, value: Any) -> Any:
        """Return `[rack1|rack2]` as SLURM expects it; YAML reads it as a list."""
        return f"[{','.join(map(str, value))}]" if isinstance(value, list) else value

    @field_validator("time", "mem", mode="after")
    @classmethod
    def remove_spaces(cls, value: str | None) -> str | None:
        """Remove spaces, as in `64 GB`, which sbatch does not accept."""
        return value and re.sub(r"\s+", "", value)

    @field_validator("time")
    @classmethod
    def check_time(cls, value: str) -> str:
        """Reject an invalid time before the job folder is created; sbatch would reject it later."""
        parse_minutes(value)
        return value

    @field_validator("mem")
    @classmethod
    def check_memory(cls, value: str | None) -> str | None:
        """Reject an invalid amount of memory before the job folder is created."""
        if value is not None:
            parse_megabytes(value)
        return value

    @field_validator("exclude")
    @classmethod
    def check_nodes(cls, value: str | None) -> str | None:
        """Reject an invalid list of nodes, and remove spaces."""
        return value and check_node_list(value)

    @field_validator("partition")
    @classmethod
    def remove_spaces_in_partition(cls, value: str | None) -> str | None:
        """Remove spaces after commas."""
        return value and re.sub(r"\s+", "", value)

    @field_validator("gpus_per_node", mode="before")
    @classmethod
    def read_gpus(cls, value: Any) -> Any:
        """Accept 4, `a100:4`, `gpu:a100:4` and lists of them."""
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        return format_gpus(parse_gpus(re.sub(r"\s+", "", text)))

    @field_validator("parameters", mode="before")
    @classmethod
    def read_parameters(cls, value: Any) -> Any:
        """Reject parameters that break the launcher."""
        return clean_parameters(value) if isinstance(value, Mapping) else value

    @field_validator("setup", mode="before")
    @classmethod
    def split_lines(cls, value: Any) -> Any:
        """Accept a text of several lines."""
        return tuple(value.splitlines()) if isinstance(value, str) else value

    @field_validator("srun_args", mode="before")
    @classmethod
    def split_srun_args(cls, value: Any) -> Any:
        """Accept texts of several arguments, and reject arguments that break the launcher."""
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple):
            return value
        return check_srun_arguments(tuple(word for text in texts for word in shlex.split(str(text))))

    @property
    def num_gpus_per_node(self) -> int:
        """Number of GPUs per node, of any type."""
        return sum(parse_gpus(str(self.gpus_per_node)).values())

    @property
    def num_tasks_per_node(self) -> int:
        """Number of processes per node."""
        return self.tasks_per_node or self.num_gpus_per_node or 1


def find_cluster_files() -> dict[str, Path]:
    """Return cluster configurations by name: those of the installed package and of a checkout's configs folder."""
    return {path.stem: path for folder in find_preset_folders() for path in sorted((folder / "cluster").glob("*.yaml"))}


def load_cluster(name: str, overrides: Mapping[str, Any]) -> ClusterConfig:
    """Load a cluster configuration by name or path, and apply overrides.

    `parameters`, `setup` and `srun_args` are added to those of the file; any other override replaces the file's value.
    Raises UserError if the file does not exist, or if a key or value is not allowed.
    """
    path = find_cluster_file(name)
    settings, sections = read_cluster_file(path)
    cluster = validate_cluster(settings, overrides, str(path))
    for stage, section in sections.items():
        validate_stage(cluster, stage, section, str(path))
    return cluster


def load_stage(
    name: str, stage: Stage, overrides: Mapping[str, Any], stage_overrides: Mapping[str, Any], prefix: str = ""
) -> ClusterConfig:
    """Load the cluster configuration of an evaluation or a rendering, which runs as one process.

    Its resources are derived from those of a training (the file with `overrides`), unless the section of the stage in
    the file or `stage_overrides` sets them. `prefix` is the command-line option of `stage_overrides`, if there is one.
    """
    path = find_cluster_file(name)
    settings, sections = read_cluster_file(path)
    training = validate_cluster(settings, overrides, str(path))
    section = validate_stage(training, stage, sections.get(stage, {}), str(path))
    given = option_texts(stage_overrides, prefix)
    cluster = validate_cluster(section.model_dump(), stage_overrides, str(path), given)
    check_single_process(cluster, stage)
    return cluster


def find_cluster_file(name: str) -> Path:
    """Return the path of a cluster configuration. Raises UserError if it does not exist."""
    path = Path(name) if Path(name).is_file() else find_cluster_files().get(name)
    if path is None:
        known = ", ".join(sorted(find_cluster_files()))
        raise UserError(f"--cluster {name}: no such file, and no cluster of that name; the clusters are {known}")
    return path


def read_cluster_file(path: Path) -> tuple[dict[str, Any], dict[Stage, dict[str, Any]]]:
    """Return the settings of a cluster file, and its sections for evaluations and renderings. Values are texts."""
    settings = read_yaml_mapping(path, loader_class=TextLoader)
    sections: dict[Stage, dict[str, Any]] = {}
    for stage in STAGES:
        section = settings.pop(stage, None) or {}
        if not isinstance(section, dict) or "executor" in section:
            raise UserError(f"{path}: {stage}: not a section of job options; write `{stage}: {{time: 1:00:00}}`")
        sections[stage] = section
    return settings, sections


def validate_cluster(
    settings: Mapping[str, Any],
    overrides: Mapping[str, Any],
    location: str,
    override_texts: Mapping[str, str] | None = None,
) -> ClusterConfig:
    """Return the settings with overrides as a ClusterConfig. Raises UserError for the first error."""
    from featgan.config.error_messages import format_validation_error

    options = {key: value for key, value in overrides.items() if value not in (None, (), {})}
    texts = option_texts(options) if override_texts is None else override_texts
    try:
        return ClusterConfig.model_validate(merge_settings(settings, options))
    except ValidationError as error:
        raise UserError(format_validation_error(error, ClusterConfig, location, texts)) from None


def merge_settings(settings: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the options: added to those of ADDED_FIELDS, and in place of the others."""
    merged = dict(settings) | dict(options)
    for name in ADDED_FIELDS:
        first, second = settings.get(name), options.get(name)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            merged[name] = {**first, **second}
        elif first and second and not isinstance(second, Mapping):
            merged[name] = (*as_tuple(first), *as_tuple(second))
    return merged


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return the lines or values of a text or a list."""
    return tuple(value.splitlines() if isinstance(value, str) else value)


def validate_stage(cluster: ClusterConfig, stage: Stage, section: Mapping[str, Any], location: str) -> ClusterConfig:
    """Return the cluster of a stage: one process, with the options of its section in the cluster file."""
    settings = cluster.model_dump() | single_process_settings(cluster)
    settings["time"] = min(cluster.time, MAX_STAGE_TIME, key=parse_minutes)
    stage_cluster = validate_cluster(settings, section, f"{location}: {stage}", {})
    check_single_process(stage_cluster, f"{location}: {stage}")
    return stage_cluster


def check_single_process(cluster: ClusterConfig, location: str) -> None:
    """Raise UserError if the job of a stage would run as several processes."""
    if cluster.nodes > 1 or cluster.num_tasks_per_node > 1:
        raise UserError(f"{location}: runs as one process; remove `nodes` and `tasks_per_node` from its options")


def single_process_settings(cluster: ClusterConfig) -> dict[str, Any]:
    """Return the fields of a job that runs as one process: one node, at most one GPU, the memory of one process."""
    gpus = parse_gpus(str(cluster.gpus_per_node))
    one_gpu = format_gpus({next((name for name in gpus if gpus[name]), ""): min(cluster.num_gpus_per_node, 1)})
    parameters = {key: value for key, value in cluster.parameters.items() if key not in ONE_NODE_CONFLICTS}
    memory = share_memory(cluster.mem, cluster.num_tasks_per_node)
    return {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": one_gpu, "mem": memory, "parameters": parameters}


def share_memory(memory: str | None, num_tasks: int) -> str | None:
    """Return the memory of one of the processes of a node; None, the default of the site, for a whole node."""
    if memory is None or num_tasks == 1:
        return memory
    megabytes = math.ceil(parse_megabytes(memory) / num_tasks)
    return f"{megabytes}M" if megabytes else None


def option_texts(options: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the options as they are written on the command line, by field."""
    texts = {}
    for name, value in options.items():
        text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if isinstance(value, Mapping):
            text = " ".join(key if entry is True else f"{key}={entry}" for key, entry in value.items())
        texts[name] = f"{prefix} {name}={text}" if prefix else f"--{name.replace('_', '-')} {text}"
    return texts
