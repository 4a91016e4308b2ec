"""Cluster options of every command that submits a job, generated from the fields of `launch.cluster.ClusterConfig`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from launch.cluster import ClusterConfig

METAVARS = {"parameters": "NAME[=VALUE]", "setup": "LINE"}
"""Placeholders of options that take something other than VALUE."""

MULTIPLE = tuple(METAVARS)
"""Options that may be repeated."""


@dataclass(frozen=True)
class SubmitOptions:
    """Options of every command that submits a job."""

    cluster: str
    after_job: str | None
    dry_run: bool
    fields: Mapping[str, Any]
    """Values of the options named after fields of ClusterConfig; None or an empty tuple if not given."""

    @property
    def given_fields(self) -> list[str]:
        """Names of the fields that were given on the command line."""
        return [name for name, value in self.fields.items() if value not in (None, ())]


class ClusterCommand(click.Command):
    """A command with cluster options, which its function receives as one argument `submit: SubmitOptions`.

    The options are generated when the command runs, so that the list of commands does not import pydantic.
    """

    def __init__(self, *args: Any, hidden_options: tuple[str, ...] = (), **kwargs: Any) -> None:
        """`hidden_options` are accepted, but not listed in the help: the command rejects them with an explanation."""
        super().__init__(*args, **kwargs)
        self.hidden_options = hidden_options
        self.cluster_options: list[click.Option] = []

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.cluster_options:
            self.cluster_options = cluster_options(self.hidden_options)
            self.params += self.cluster_options
        return super().get_params(ctx)

    def invoke(self, ctx: click.Context) -> Any:
        values = {str(option.name): ctx.params.pop(str(option.name)) for option in self.cluster_options}
        ctx.params["submit"] = SubmitOptions(
            values.pop("cluster"), values.pop("after_job"), values.pop("dry_run"), values
        )
        return super().invoke(ctx)


def cluster_options(hidden_options: tuple[str, ...]) -> list[click.Option]:
    """Return --cluster, --after-job, --dry-run and one option for each field of ClusterConfig."""
    from launch.cluster import ClusterConfig

    options = [
        click.Option(
            ["--cluster"],
            default="slurm",
            show_default=True,
            help="Cluster configuration: NAME of configs/cluster/NAME.yaml, or a file.",
        ),
        click.Option(
            ["--after-job"],
            metavar="ID",
            help="ID of a job that must succeed before this one starts.",
            hidden="after_job" in hidden_options,
        ),
        click.Option(
            ["--dry-run"],
            is_flag=True,
            help="Print the job script without submitting it.",
            hidden="dry_run" in hidden_options,
        ),
    ]
    for name, field in ClusterConfig.model_fields.items():
        if name == "executor":
            continue
        options.append(
            click.Option(
                [f"--{name.replace('_', '-')}", name],
                multiple=name in MULTIPLE,
                metavar=METAVARS.get(name, "VALUE"),
                help=" ".join((field.description or "").split()) + default_suffix(field.default),
            )
        )
    return options


def default_suffix(value: Any) -> str:
    """Return the default value for the end of a help text; empty if there is none worth showing."""
    from pydantic_core import PydanticUndefined

    is_shown = value not in (None, PydanticUndefined, (), {}, 0)
    return f"  [default: {value}]" if is_shown else ""


def read_cluster(options: SubmitOptions) -> "ClusterConfig":
    """Read the cluster configuration and apply the options of the command line."""
    from launch.cluster import load_cluster

    fields = dict(options.fields)
    pairs = [pair.partition("=") for pair in fields.pop("parameters", ())]
    # A parameter without a value is a flag, for example `exclusive`.
    parameters = {key: value if equals else True for key, equals, value in pairs}
    return load_cluster(options.cluster, fields | {"parameters": parameters})


def single_process_cluster(cluster: "ClusterConfig") -> "ClusterConfig":
    """Return the cluster for a job that runs as one process: one node and at most one GPU."""
    gpus = min(cluster.gpus_per_node, 1)
    return cluster.model_copy(update={"nodes": 1, "tasks_per_node": 1, "gpus_per_node": gpus})
