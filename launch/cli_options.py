"""Cluster options of every command that submits a job, generated from the fields of `launch.cluster.ClusterConfig`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

from featgan.errors import UserError

if TYPE_CHECKING:
    from launch.cluster import ClusterConfig, Stage

METAVARS = {"parameters": "NAME[=VALUE]", "setup": "LINE", "srun_args": "ARGUMENTS"}
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

    def __init__(self, *args: Any, hidden_options: tuple[str, ...] = (), is_stage: bool = False, **kwargs: Any) -> None:
        """`hidden_options` are accepted, but not listed in the help: the command rejects them with an explanation.

        A command that `is_stage` submits evaluations or renderings, which have a time limit of their own.
        """
        super().__init__(*args, **kwargs)
        self.hidden_options = hidden_options
        self.is_stage = is_stage
        self.cluster_options: list[click.Option] = []

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.cluster_options:
            self.cluster_options = cluster_options(self.hidden_options, self.is_stage)
            self.params += self.cluster_options
        return super().get_params(ctx)

    def invoke(self, ctx: click.Context) -> Any:
        values = {str(option.name): ctx.params.pop(str(option.name)) for option in self.cluster_options}
        ctx.params["submit"] = SubmitOptions(
            values.pop("cluster"), values.pop("after_job"), values.pop("dry_run"), values
        )
        return super().invoke(ctx)


def cluster_options(hidden_options: tuple[str, ...], is_stage: bool) -> list[click.Option]:
    """Return --cluster, --after-job, --dry-run and one option for each field of ClusterConfig."""
    from launch.cluster import MAX_STAGE_TIME, ClusterConfig

    stage_defaults = {"time": MAX_STAGE_TIME} if is_stage else {}
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
        default = stage_defaults.get(name, field.default)
        options.append(
            click.Option(
                [f"--{name.replace('_', '-')}", name],
                multiple=name in MULTIPLE,
                metavar=METAVARS.get(name, "VALUE"),
                help=" ".join((field.description or "").split()) + default_suffix(default),
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

    return load_cluster(options.cluster, cluster_overrides(options))


def read_stage(options: SubmitOptions, stage: "Stage") -> "ClusterConfig":
    """Read the cluster configuration of an evaluation or a rendering that the command submits."""
    from launch.cluster import load_stage

    return load_stage(options.cluster, stage, {}, cluster_overrides(options))


def read_pipeline_stage(options: SubmitOptions, stage: "Stage", stage_options: tuple[str, ...]) -> "ClusterConfig":
    """Read the cluster configuration of a stage of a pipeline: `options` apply to all stages."""
    from launch.cluster import load_stage

    overrides = parse_stage_options(stage, stage_options)
    cluster = load_stage(options.cluster, stage, cluster_overrides(options), overrides, f"--{stage}-option")
    # Only the first job waits for --dependency; the others wait for the job before them.
    return cluster if "dependency" in overrides else cluster.model_copy(update={"dependency": None})


def cluster_overrides(options: SubmitOptions) -> dict[str, Any]:
    """Return the options of the command line as values of ClusterConfig."""
    fields = dict(options.fields)
    return fields | {"parameters": parse_parameters(fields.pop("parameters", ()))}


def parse_parameters(pairs: Iterable[str]) -> dict[str, str | bool]:
    """Return parameters written as NAME=VALUE. One without a value is a flag, for example `exclusive`."""
    parts = [pair.partition("=") for pair in pairs]
    return {key: value if equals else True for key, equals, value in parts}


def parse_stage_options(stage: str, pairs: Iterable[str]) -> dict[str, Any]:
    """Return the options of a stage, written as NAME=VALUE. Raises UserError for an unknown option."""
    from launch.cluster import ClusterConfig

    overrides: dict[str, Any] = {}
    names = [name for name in ClusterConfig.model_fields if name != "executor"]
    for pair in pairs:
        given_name, equals, value = pair.partition("=")
        name = given_name.removeprefix("--").replace("-", "_")
        if not equals or name not in names:
            matches = get_close_matches(name, names, 1)
            remedy = f"did you mean {matches[0]}=VALUE?" if matches else f"the options are {', '.join(names)}"
            raise UserError(f"--{stage}-option {pair}: not NAME=VALUE of a job option; {remedy}")
        if name == "parameters":
            overrides[name] = overrides.get(name, {}) | parse_parameters([value])
        elif name in MULTIPLE:
            overrides[name] = (*overrides.get(name, ()), value)
        else:
            overrides[name] = value
    return overrides
