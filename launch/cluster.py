"""Cluster configuration of a job: configs/cluster/NAME.yaml, then the options of the command line."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from featgan.config.base import ConfigModel, PositiveInt
from featgan.errors import UserError


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
    """Time limit: minutes, H:MM:SS or D-HH:MM:SS."""
    nodes: PositiveInt = 1
    """Number of nodes."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    """Number of GPUs per node."""
    tasks_per_node: Annotated[int, Field(ge=0)] = 0
    """Number of processes per node; 0 starts one process per GPU, or one per node if there are no GPUs."""
    cpus_per_task: PositiveInt = 8
    """Number of CPU cores per process: one for each data worker and one for training."""
    mem: str | None = None
    """Memory per node, for example 64GB."""
    constraint: str | None = None
    """Node features that the job requires."""
    exclude: str | None = None
    """Nodes that the job must not use."""
    reservation: str | None = None
    """Reservation to run the job in."""
    dependency: str | None = None
    """Job dependency in sbatch syntax: afterany:ID, singleton, ..."""
    wckey: str | None = None
    """Workload characterization key, if the site requires one."""
    parameters: dict[str, str | int | bool] = Field(default_factory=dict)
    """Additional sbatch parameter, given by its long name; may be repeated."""
    setup: tuple[str, ...] = ()
    """Shell line to run before the job, for example to load modules; may be repeated."""
    python: str | None = None
    """Python interpreter on the nodes; the one that submits the job by default."""
    requeue: bool = True
    """Requeue the job after a signal or a crash; if false, run the same command again to resume."""
    signal_delay: Annotated[int, Field(ge=10)] = 300
    """Seconds before the time limit at which the job is signaled; must be long enough for one step and one
    checkpoint."""
    max_failures: PositiveInt = 3
    """Number of failures at the same step after which the job is not restarted."""

    @field_validator("time", mode="before")
    @classmethod
    def coerce_time_to_text(cls, value: Any) -> Any:
        """Accept integers: YAML parses minutes as an integer, and H:MM:SS as an integer in base 60."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("time")
    @classmethod
    def check_time(cls, value: str) -> str:
        """Reject an invalid time before the job folder is created; sbatch would reject it later."""
        parse_minutes(value)
        return value

    @property
    def num_tasks_per_node(self) -> int:
        """Number of processes per node."""
        return self.tasks_per_node or self.gpus_per_node or 1


def parse_minutes(time_limit: str) -> float:
    """Return a SLURM time limit (M, M:S, H:M:S, D-H, D-H:M or D-H:M:S) in minutes. Raises ValueError otherwise."""
    try:
        days, dash, clock = time_limit.rpartition("-")
        fields = [int(part) for part in clock.split(":")]
        if dash:
            hours, mins, seconds = [*fields, 0, 0][:3]
        elif len(fields) < 3:
            hours, (mins, seconds) = 0, [*fields, 0][:2]
        else:
            hours, mins, seconds = fields
        return int(days or 0) * 1440 + hours * 60 + mins + seconds / 60
    except ValueError:
        raise ValueError(f"{time_limit!r} is not a time limit; write minutes, H:MM:SS or D-HH:MM:SS") from None


def find_cluster_files() -> dict[str, Path]:
    """Return cluster configurations by name: those of the installed package and of a checkout's configs folder."""
    folders = [Path(str(resources.files("featgan"))) / "configs", Path(__file__).parent.parent / "configs"]
    return {path.stem: path for folder in folders for path in sorted((folder / "cluster").glob("*.yaml"))}


def load_cluster(name: str, overrides: Mapping[str, Any]) -> ClusterConfig:
    """Load a cluster configuration by name or path, and apply overrides.

    `parameters` and `setup` are added to those of the file; any other override replaces the file's value.
    Raises UserError if the file does not exist, or if a key or value is not allowed.
    """
    from featgan.config.error_messages import format_validation_error
    from featgan.system.yaml_files import read_yaml_mapping

    path = Path(name) if Path(name).is_file() else find_cluster_files().get(name)
    if path is None:
        known = ", ".join(sorted(find_cluster_files()))
        raise UserError(f"--cluster {name}: no such file, and no cluster of that name; the clusters are {known}")
    options = {key: value for key, value in overrides.items() if value not in (None, (), {})}
    settings = read_yaml_mapping(path)
    if isinstance(settings.get("parameters"), dict) and "parameters" in options:
        options["parameters"] = settings["parameters"] | options["parameters"]
    if isinstance(settings.get("setup"), list) and "setup" in options:
        options["setup"] = (*settings["setup"], *options["setup"])
    settings |= options
    try:
        return ClusterConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError(format_validation_error(error, ClusterConfig, str(path), option_texts(options))) from None


def option_texts(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options as they are written on the command line, by field."""
    return {name: f"--{name.replace('_', '-')} {value}" for name, value in options.items()}
