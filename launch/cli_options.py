"""The cluster's options of every command that submits jobs, from the fields of launch.cluster."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from launch.cluster import Cluster

Command = TypeVar("Command", bound=Callable[..., Any])


class ClusterCommand(click.Command):
    """A command that takes the cluster's options too; they are known when it is called, the list need not wait."""

    def __init__(self, *given: Any, explained: tuple[str, ...] = (), **named: Any) -> None:
        """`explained` options are not offered, since the command tells who gives them what to do in their place."""
        super().__init__(*given, **named)
        self.explained = explained
        self.has_all = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.has_all:
            self.params += cluster_options(self.explained)
            self.has_all = True
        return super().get_params(ctx)


def cluster_options(hidden: tuple[str, ...]) -> list[click.Parameter]:
    """--after, --cluster, --dry-run, and one option for each field of a cluster."""
    from launch.cluster import Cluster

    after, script = "after" in hidden, "dry_run" in hidden
    options: list[click.Parameter] = [
        click.Option(["--cluster"], default="slurm", show_default=True, help="configs/cluster/NAME.yaml, or a file."),
        click.Option(["--after"], help="Id of a job that must have succeeded before.", hidden=after),
        click.Option(["--dry-run"], is_flag=True, help="Print the script; submit nothing.", hidden=script),
    ]
    for name, field in Cluster.model_fields.items():
        if name == "executor":
            continue
        options.append(
            click.Option(
                [f"--{name.replace('_', '-')}", name],
                multiple=name in ("setup", "parameters"),
                metavar={"parameters": "NAME[=VALUE]", "setup": "LINE"}.get(name, "VALUE"),
                help=(field.description or "").split("\n")[0] + default_of(field.default),
            )
        )
    return options


def default_of(value: Any) -> str:
    from pydantic_core import PydanticUndefined

    shown = value not in (None, PydanticUndefined, (), {}, 0)
    return f"  [default: {value}]" if shown else ""


def read_cluster(cluster: str, given: dict[str, Any]) -> "Cluster":
    """The cluster with the command line's options on top."""
    from launch.cluster import Cluster, load_cluster

    fields = {name: value for name, value in given.items() if name in Cluster.model_fields}
    pairs = [pair.partition("=") for pair in fields.pop("parameters", ())]
    # One without a value is a flag, as `exclusive`.
    return load_cluster(cluster, fields | {"parameters": {key: value if sign else True for key, sign, value in pairs}})


def alone(cluster: "Cluster") -> "Cluster":
    """For jobs of one process."""
    gpus = min(cluster.gpus_per_node, 1)
    return cluster.model_copy(update={"nodes": 1, "tasks_per_node": 1, "gpus_per_node": gpus})


def taking(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order of the help."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
