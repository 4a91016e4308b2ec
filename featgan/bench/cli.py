"""`featgan bench`: one sub-command a bench; what it measures is imported only when it runs."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

Command = TypeVar("Command", bound=Callable[..., Any])
positive = click.IntRange(1)


@click.group()
def bench() -> None:
    """Measure the fast paths beside the plain ones on this machine."""


def common_options(command: Command) -> Command:
    """How often, and where to."""
    for option in (
        click.option("--markdown", is_flag=True, help="Print Markdown rows, as in docs/performance.md."),
        click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write everything as JSON."),
        click.option("--repeats", default=7, show_default=True, type=positive, help="Turns that count."),
    ):
        command = option(command)
    return command


def run_bench(name: str, repeats: int, out: Path | None, markdown: bool, **options: Any) -> None:
    """Run `featgan.bench.NAME`, print what it found, write it where that is asked."""
    from rich.console import Console

    from featgan.bench import results

    load, command = os.getloadavg()[0], command_line()
    found = importlib.import_module(f"featgan.bench.{name}").run(repeats=repeats, **options)
    if out is not None:
        results.write_json(found, command, load, out)
    if markdown:
        click.echo(results.markdown(found, command))
        for remark in (*found.remarks, results.machine_line(load)):
            click.echo(remark, err=True)
    else:
        results.print_bench(found, load, Console())


def command_line() -> str:
    """What was typed, without where the results go."""
    context = click.get_current_context()
    words = ["featgan", "bench", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE and name not in ("out", "markdown"):
            value = context.params[name]
            words += [parameter.opts[0]] if value is True else [parameter.opts[0], str(value)]
    return " ".join(words)


@bench.command()
@click.option("--image-size", default=112, show_default=True, type=click.IntRange(16, 1024), help="Pixels a side.")
@click.option("--dim", default=64, show_default=True, type=positive, help="Channels of G's and D's first layer.")
@click.option("--batch-size", default=16, show_default=True, type=positive, help="Images of a step.")
@click.option(
    "--conditioning",
    default="concat",
    show_default=True,
    type=click.Choice(["concat", "tile", "modulation"]),
    help="How the condition enters G.",
)
@click.option("--scaling", is_flag=True, help="Also how the cost grows with each size.")
@common_options
def step(**options: Any) -> None:
    """The training step: fp32 and eager, against what a training uses."""
    run_bench("training_step", **options)


@bench.command()
@click.option("--image-size", default=112, show_default=True, type=click.IntRange(16, 1024), help="Pixels a side.")
@click.option("--num-images", default=2000, show_default=True, type=positive, help="JPEG files.")
@click.option("--batch-size", default=16, show_default=True, type=positive, help="Images of a batch.")
@click.option("--training-steps", default=20, show_default=True, type=click.IntRange(0), help="Of the short training.")
@common_options
def data(**options: Any) -> None:
    """Shards to a batch of floats, against PIL's transforms on the same files."""
    run_bench("data_loading", **options)


@bench.command()
@click.option("--num-images", default=300_000, show_default=True, type=positive, help="Rows of the feature cache.")
@click.option("--feature-dim", default=64, show_default=True, type=positive, help="Features of an image.")
@common_options
def start(**options: Any) -> None:
    """From nothing to the first batch's numbers, against text files; the start of a process."""
    run_bench("startup", **options)


@bench.command()
@click.option("--image-size", default=112, show_default=True, type=click.IntRange(16, 1024), help="Pixels a side.")
@click.option("--num-images", default=1000, show_default=True, type=positive, help="Images to extract from.")
@click.option("--blackbox", help="SPEC of a box; a network with a 64-d hidden layer and random weights by default.")
@click.option("--dim", default=64, show_default=True, type=positive, help="Channels of G's first layer.")
@click.option("--pairs", default=64, show_default=True, type=click.IntRange(0), help="Pairs of the evaluation, if any.")
@common_options
def extract(**options: Any) -> None:
    """Feature extraction and evaluation, against the networks' own forward passes."""
    run_bench("extract", **options)


@bench.command()
@click.option("--image-size", default=112, show_default=True, type=click.IntRange(16, 1024), help="Pixels a side.")
@click.option("--num-images", default=16, show_default=True, type=click.IntRange(1, 64), help="Source images.")
@click.option("--components", "num_components", default=10, show_default=True, type=positive, help="Swept.")
@click.option("--dim", default=64, show_default=True, type=positive, help="Channels of G's first layer.")
@common_options
def render(**options: Any) -> None:
    """A report, against its forward passes alone."""
    run_bench("render", **options)


@bench.command()
@click.option("--image-size", default=112, show_default=True, type=click.IntRange(16, 1024), help="Pixels a side.")
@click.option("--dim", default=64, show_default=True, type=positive, help="Channels of G's first layer.")
@common_options
def explore(**options: Any) -> None:
    """A step of a slider of the live page, against its forward passes alone."""
    run_bench("explore", **options)
