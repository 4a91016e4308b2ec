"""`featgan bench`: one sub-command for each benchmark, which imports its module only when it runs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from featgan.system.path_option import UserPath
from featgan.system.plain_text import print_line

if TYPE_CHECKING:
    from featgan.bench.results import BenchmarkResults

Command = TypeVar("Command", bound=Callable[..., Any])
positive_int = click.IntRange(1)
MAX_SCALE_IMAGES = 1_000_000_000
"""Largest index of `featgan bench scale`."""

image_size_option = click.option(
    "--image-size",
    default=112,
    show_default=True,
    type=click.IntRange(16, 1024),
    help="Width and height of the images in pixels.",
)
dim_option = click.option(
    "--dim", default=64, show_default=True, type=positive_int, help="Number of channels in the first layer of G."
)


@click.group()
def bench() -> None:
    """Benchmark featgan on this machine.

    Each benchmark compares featgan's code with a simple reference implementation, the maximum speed of this machine, or
    both.
    """


def add_common_options(command: Command) -> Command:
    """Add the options shared by all benchmarks."""
    for option in (
        click.option(
            "--markdown", is_flag=True, help="Print the results as Markdown table rows, as in docs/performance.md."
        ),
        click.option("--out", type=UserPath(path_type=Path, dir_okay=False), help="JSON file to write all results to."),
        click.option("--repeats", default=7, show_default=True, type=positive_int, help="Number of timed repetitions."),
    ):
        command = option(command)
    return command


def run_and_report(run_benchmark: "Callable[[], BenchmarkResults]", out: Path | None, markdown: bool) -> None:
    """Run a benchmark, print its results, and write them to `out` if given."""
    from featgan.bench import results
    from featgan.system.console import PlainConsole

    load, command = os.getloadavg()[0], format_command_line()
    benchmark = run_benchmark()
    if out is not None:
        results.write_json(benchmark, command, load, out)
    if markdown:
        print_line(results.to_markdown(benchmark, command))
        for note in (*benchmark.notes, results.format_machine(load)):
            print_line(note, err=True)
    else:
        results.print_results(benchmark, load, PlainConsole())


def format_command_line() -> str:
    """Return the command line, without the options that only choose the form of the output."""
    context = click.get_current_context()
    arguments = ["featgan", "bench", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE and name not in ("out", "markdown"):
            value = context.params[name]
            arguments += [parameter.opts[0]] if value is True else [parameter.opts[0], str(value)]
    return " ".join(arguments)


@bench.command()
@image_size_option
@click.option(
    "--dim",
    default=64,
    show_default=True,
    type=positive_int,
    help="Number of channels in the first layer of G and D.",
)
@click.option("--batch-size", default=16, show_default=True, type=positive_int, help="Number of images per step.")
@click.option(
    "--conditioning",
    default="concat",
    show_default=True,
    type=click.Choice(["concat", "tile", "adain"]),
    help="How the condition enters G.",
)
@click.option("--scaling", is_flag=True, help="Also measure how the cost grows with each size.")
@add_common_options
def step(
    image_size: int,
    dim: int,
    batch_size: int,
    conditioning: str,
    scaling: bool,
    repeats: int,
    out: Path | None,
    markdown: bool,
) -> None:
    """Benchmark the training step.

    Compares the code used in training with the reference step in eager fp32.
    """
    from featgan.bench.training_step import run_benchmark

    run_and_report(
        lambda: run_benchmark(image_size, dim, batch_size, conditioning, repeats, scaling=scaling), out, markdown
    )


@bench.command()
@image_size_option
@click.option("--num-images", default=2000, show_default=True, type=positive_int, help="Number of JPEG files.")
@click.option("--batch-size", default=16, show_default=True, type=positive_int, help="Number of images per batch.")
@click.option(
    "--training-steps",
    default=20,
    show_default=True,
    type=click.IntRange(0),
    help="Number of steps of the short training run.",
)
@click.option(
    "--peers",
    is_flag=True,
    help="Compare with webdataset's WebLoader, wids and torchvision's ImageFolder instead, without a training run.",
)
@click.option(
    "--remote",
    is_flag=True,
    help="Measure how long training waits for shards in simulated object storage instead: an HTTP server with a "
    "latency of 50 ms and a bandwidth of 200 MB/s.",
)
@click.option(
    "--num-workers",
    default=1,
    show_default=True,
    type=click.IntRange(0, 64),
    help="Number of data workers, with --peers.",
)
@add_common_options
def data(
    image_size: int,
    num_images: int,
    batch_size: int,
    training_steps: int,
    peers: bool,
    remote: bool,
    num_workers: int,
    repeats: int,
    out: Path | None,
    markdown: bool,
) -> None:
    """Benchmark data loading.

    Compares the loading of float batches from shards with PIL transforms on the same files, or with other libraries on
    the same images (--peers).
    """
    if remote:
        from featgan.bench.remote import run_benchmark as run_remote

        run_and_report(lambda: run_remote(image_size, num_images, batch_size), out, markdown)
        return
    if peers:
        from featgan.bench.peers import run_benchmark as run_peers

        run_and_report(lambda: run_peers(image_size, num_images, batch_size, num_workers, repeats), out, markdown)
        return
    from featgan.bench.data_loading import run_benchmark

    run_and_report(lambda: run_benchmark(image_size, num_images, batch_size, training_steps, repeats), out, markdown)


@bench.command()
@click.option(
    "--images",
    default="1000000,10000000,100000000",
    show_default=True,
    help="Comma-separated sizes of the index.",
)
@add_common_options
def scale(images: str, repeats: int, out: Path | None, markdown: bool) -> None:
    """Benchmark the start of training with indexes of millions of images.

    Writes synthetic indexes to a temporary folder, 36 bytes per image, and opens them as training does. The images
    themselves do not exist.
    """
    from featgan.bench.scale import run_benchmark

    try:
        counts = [int(word) for word in images.split(",")]
    except ValueError:
        raise click.BadParameter(f"{images!r} is not a list of numbers", param_hint="--images") from None
    if not all(0 < count <= MAX_SCALE_IMAGES for count in counts):
        raise click.BadParameter(f"choose sizes from 1 to {MAX_SCALE_IMAGES:,}", param_hint="--images")
    run_and_report(lambda: run_benchmark(counts, repeats), out, markdown)


@bench.command()
@click.option(
    "--num-images", default=300_000, show_default=True, type=positive_int, help="Number of rows in the feature cache."
)
@click.option("--feature-dim", default=64, show_default=True, type=positive_int, help="Number of features per image.")
@add_common_options
def start(num_images: int, feature_dim: int, repeats: int, out: Path | None, markdown: bool) -> None:
    """Benchmark start-up.

    Measures the time from the start of the process to the first batch, and compares it with reading the same data from
    text files.
    """
    from featgan.bench.startup import run_benchmark

    run_and_report(lambda: run_benchmark(num_images, feature_dim, repeats), out, markdown)


@bench.command()
@image_size_option
@click.option(
    "--num-images",
    default=1000,
    show_default=True,
    type=positive_int,
    help="Number of images to extract features from.",
)
@click.option(
    "--blackbox",
    metavar="SPEC",
    help="SPEC of a classifier; by default a network with a 64-dimensional hidden layer and random weights.",
)
@dim_option
@click.option(
    "--num-pairs",
    default=64,
    show_default=True,
    type=click.IntRange(0),
    help="Number of evaluation pairs; 0 skips the evaluation.",
)
@add_common_options
def extract(
    image_size: int,
    num_images: int,
    blackbox: str | None,
    dim: int,
    num_pairs: int,
    repeats: int,
    out: Path | None,
    markdown: bool,
) -> None:
    """Benchmark feature extraction and evaluation.

    Compares them with the forward passes of the networks alone.
    """
    from featgan.bench.extract import run_benchmark

    run_and_report(lambda: run_benchmark(image_size, num_images, blackbox, dim, num_pairs, repeats), out, markdown)


@bench.command()
@image_size_option
@click.option(
    "--num-images", default=16, show_default=True, type=click.IntRange(1, 64), help="Number of source images to show."
)
@click.option(
    "--num-components", default=10, show_default=True, type=positive_int, help="Number of components to sweep."
)
@dim_option
@add_common_options
def render(
    image_size: int,
    num_images: int,
    num_components: int,
    dim: int,
    repeats: int,
    out: Path | None,
    markdown: bool,
) -> None:
    """Benchmark the rendering of a report.

    Compares it with its forward passes alone.
    """
    from featgan.bench.render import run_benchmark

    run_and_report(lambda: run_benchmark(image_size, num_images, num_components, dim, repeats), out, markdown)


@bench.command()
@image_size_option
@dim_option
@add_common_options
def explore(image_size: int, dim: int, repeats: int, out: Path | None, markdown: bool) -> None:
    """Benchmark one slider update of the interactive page.

    Compares it with its forward passes alone.
    """
    from featgan.bench.explore import run_benchmark

    run_and_report(lambda: run_benchmark(image_size, dim, repeats), out, markdown)
