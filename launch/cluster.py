"""What a site's scheduler wants to know: options from configs/cluster/NAME.yaml, then from the command line."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from featgan.config.base import Positive, Section
from featgan.errors import UserError


class Cluster(Section):
    """Options of one job; what is left out is left to the site's defaults."""

    executor: Literal["slurm", "local"] = "slurm"
    """`slurm`, or `local`: processes in the background of this machine."""
    partition: str | None = None
    """Partition (queue), or several separated by commas."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    time: str = "24:00:00"
    """Time limit: minutes, H:MM:SS or D-HH:MM:SS."""
    nodes: Positive = 1
    """Machines."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    """GPUs of each machine."""
    tasks_per_node: Annotated[int, Field(ge=0)] = 0
    """Processes of each machine; 0: one a GPU, or one."""
    cpus_per_task: Positive = 8
    """Cores of each process: data workers, and one more."""
    mem: str | None = None
    """Memory of each machine, for example 64GB."""
    constraint: str | None = None
    """Features that the machines must have."""
    exclude: str | None = None
    """Machines to stay away from."""
    reservation: str | None = None
    """Reservation to run in."""
    dependency: str | None = None
    """What the job waits for, as sbatch knows it: afterany:ID, singleton, ..."""
    wckey: str | None = None
    """Workload characterisation key, where a site asks for one."""
    parameters: dict[str, str | int | bool] = {}
    """Any other sbatch parameters, by their long names."""
    setup: tuple[str, ...] = ()
    """Shell lines before the job: modules, conda, a container."""
    python: str | None = None
    """The interpreter on the machines; by default the one that submits."""
    requeue: bool = True
    """Queue the job again after a signal or a crash; without, it ends and the same command goes on."""
    signal_delay: Annotated[int, Field(ge=10)] = 300
    """Seconds between the warning and the end of the time limit: a step and a checkpoint must fit in."""
    max_failures: Positive = 3
    """A job that ends so many times at the same step is not started again."""

    @field_validator("time", mode="before")
    @classmethod
    def as_text(cls, value: Any) -> Any:
        """YAML reads minutes as a number, and H:MM:SS as one in base 60."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("time")
    @classmethod
    def check_time(cls, value: str) -> str:
        """sbatch would refuse it too, but after a snapshot was made."""
        minutes(value)
        return value

    @property
    def tasks(self) -> int:
        """Processes of each machine."""
        return self.tasks_per_node or self.gpus_per_node or 1


def minutes(time_limit: str) -> float:
    """SLURM's time formats in minutes: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; ValueError for anything else."""
    try:
        days, dash, rest = time_limit.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if dash:
            hours, mins, seconds = [*parts, 0, 0][:3]
        elif len(parts) < 3:
            hours, (mins, seconds) = 0, [*parts, 0][:2]
        else:
            hours, mins, seconds = parts
        return int(days or 0) * 1440 + hours * 60 + mins + seconds / 60
    except ValueError:
        raise ValueError(f"{time_limit!r}; write minutes, H:MM:SS or D-HH:MM:SS") from None


def known_clusters() -> dict[str, Path]:
    """Files by bare name: those of the package, and of a checkout's configs folder."""
    folders = [Path(str(resources.files("featgan"))) / "configs", Path(__file__).parent.parent / "configs"]
    return {path.stem: path for folder in folders for path in sorted((folder / "cluster").glob("*.yaml"))}


def load_cluster(name: str, overrides: Mapping[str, Any]) -> Cluster:
    """A cluster by bare name or path, with the command line's options on top; UserError in one line."""
    from featgan.config.loading import read_yaml  # the help does not wait for it

    path = Path(name) if Path(name).is_file() else known_clusters().get(name)
    if path is None:
        raise UserError(f"--cluster {name}: no such file, and none of {', '.join(sorted(known_clusters()))}")
    given = {key: value for key, value in overrides.items() if value not in (None, (), {})}
    tree = read_yaml(path)
    if isinstance(tree.get("parameters"), dict) and "parameters" in given:
        given["parameters"] = tree["parameters"] | given["parameters"]  # the site's others still hold
    if isinstance(tree.get("setup"), list) and "setup" in given:
        given["setup"] = (*tree["setup"], *given["setup"])
    tree |= given
    try:
        return Cluster.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{path}: unknown key {key!r}; known are {', '.join(Cluster.model_fields)}") from None
        if first["type"] == "value_error":
            raise UserError(f"{path}: {key}: {first['msg'].removeprefix('Value error, ')}") from None
        raise UserError(f"{path}: {key}: {first['msg']} (got {first['input']!r:.80})") from None
