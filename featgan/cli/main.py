"""The `featgan` command. Each subcommand imports its modules when it runs, so that `featgan --help` starts fast."""

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featgan import __version__
from featgan.bench.cli import bench
from featgan.cli.click_helpers import (
    CONTEXT_SETTINGS,
    LOCATION_TYPE,
    PATH_TYPE,
    OrderedGroup,
    choose_feature_cache,
    evaluator_options,
    extract_options,
    metric_options,
    parse_step,
    render_options,
    resume_options,
    run_command,
    split_names,
    trust_callables_option,
)
from featgan.config.choices import FITTED_TASKS
from featgan.config.trusted_callables import callable_names, trust_given_specs
from featgan.errors import UserError
from featgan.run.evaluation_options import EvaluationOptions
from featgan.system.locations import Location
from featgan.system.plain_text import print_line

if TYPE_CHECKING:
    from featgan.config.schema import DatasetConfig

logger = logging.getLogger(__name__)

LAYOUT_NAMES = (
    "affectnet-lists",
    "affectnet-csv",
    "affectnet",
    "affectnet-plus",
    "celeba",
    "folder",
    "csv",
    "webdataset",
)

step_option = click.option(
    "--step", default="latest", show_default=True, help="Training step of the checkpoint to use, or `latest`."
)
shards_help = "Path or URL of a folder written by `featgan pack` or `featgan index`."
image_size_help = "Width and height of the images in pixels."


@click.group(cls=OrderedGroup, context_settings=CONTEXT_SETTINGS)
@click.version_option(__version__, prog_name="featgan")
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
def cli(debug: bool) -> None:
    """Show what an image classifier responds to, by editing images toward target features.

    `featgan demo` runs the whole pipeline on synthetic faces.
    """


@cli.command()
@click.argument("out", type=PATH_TYPE)
@click.option(
    "--num-images", default=4000, show_default=True, type=click.IntRange(2), help="Number of faces to generate."
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Random seed; the same seed always produces the same files.",
)
@click.option("--image-size", default=112, show_default=True, type=click.IntRange(16, 1024), help=image_size_help)
def synthesize(out: Path, num_images: int, seed: int, image_size: int) -> None:
    """Generate synthetic faces with known factors.

    The images are written in the layout `affectnet` (see `featgan pack`). Their factors are written to factors.csv.
    """
    from featgan.data.synthetic.dataset import synthesize_faces

    synthesize_faces(out, num_images, seed, image_size)
    print_line(f"{out}: {num_images} faces")


@cli.command()
@click.argument("layout", type=click.Choice(LAYOUT_NAMES), metavar="LAYOUT")
@click.argument("source", nargs=-1, required=True)
@click.option("--out", required=True, type=PATH_TYPE, help="Folder to write the shards to.")
@click.option("--image-size", default=112, show_default=True, type=click.IntRange(8, 1024), help=image_size_help)
@click.option(
    "--crop",
    type=click.IntRange(8),
    help="Side of the center crop taken before resizing, in pixels (CelebA: 178).",
)
@click.option(
    "--margin",
    default=0.15,
    show_default=True,
    help="Margin added on each side of the face bounding box, as a fraction of its size.",
)
@click.option(
    "--validation-fraction",
    default="0.1",
    show_default=True,
    help="Fraction of the images of every class that are held out for validation if SOURCE has no validation images;"
    " `none` creates no validation split.",
)
@click.option("--quality", default=95, show_default=True, type=click.IntRange(50, 100), help="JPEG quality.")
@click.option(
    "--images-per-shard", default=1000, show_default=True, type=click.IntRange(1), help="Number of images per tar file."
)
@click.option("--workers", type=click.IntRange(1), help="Number of worker processes; uses all CPU cores by default.")
@click.option("--max-images", type=click.IntRange(1), help="Maximum number of images to pack.")
@click.option("--fail-on-unreadable", is_flag=True, help="Stop at the first unreadable image instead of skipping it.")
@click.option(
    "--layout-option",
    "layout_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the layout; may be repeated (see docs/data.md).",
)
def pack(
    layout: str,
    source: tuple[str, ...],
    out: Path,
    image_size: int,
    crop: int | None,
    margin: float,
    validation_fraction: str,
    quality: int,
    images_per_shard: int,
    workers: int | None,
    max_images: int | None,
    fail_on_unreadable: bool,
    layout_options: tuple[str, ...],
) -> None:
    """Pack a folder of images and labels into shards.

    The images are cropped, resized and JPEG-encoded. Labels, splits and a manifest are written with them.

    LAYOUT describes the files in the folder SOURCE (see docs/data.md): affectnet-lists, affectnet-csv, affectnet,
    affectnet-plus, celeba, folder or csv.

    The SOURCE of the layout webdataset is one or several folders, tars, patterns such as `a-{000..127}.tar`, or URLs.
    """
    from featgan.data.packing.pack import pack_shards, print_summary

    summary = pack_shards(
        layout,
        source,
        out,
        image_size=image_size,
        quality=quality,
        images_per_shard=images_per_shard,
        crop=crop,
        margin=margin,
        validation_fraction=parse_fraction(validation_fraction),
        workers=workers,
        fail_on_unreadable=fail_on_unreadable,
        max_images=max_images,
        layout_options=parse_layout_options(layout_options),
    )
    print_summary(summary)


@cli.command()
@click.argument("source", nargs=-1, required=True)
@click.option("--out", required=True, type=PATH_TYPE, help="Folder to write the index and the manifest to.")
@click.option("--image-size", default=112, show_default=True, type=click.IntRange(8, 1024), help=image_size_help)
@click.option(
    "--crop",
    type=click.IntRange(8),
    help="Side of the center crop taken before resizing, in pixels; the largest square by default.",
)
@click.option(
    "--validation-fraction",
    default="0.1",
    show_default=True,
    help="Fraction of the images of every class that are held out for validation if SOURCE has no validation images;"
    " `none` creates no validation split.",
)
@click.option("--check-images", is_flag=True, help="Decode every image, to find each one that is damaged.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Number of worker processes, which read one tar each; uses all CPU cores by default.",
)
@click.option(
    "--layout-option",
    "layout_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the layout webdataset; may be repeated (see docs/data.md).",
)
def index(
    source: tuple[str, ...],
    out: Path,
    image_size: int,
    crop: int | None,
    validation_fraction: str,
    check_images: bool,
    workers: int | None,
    layout_options: tuple[str, ...],
) -> None:
    """Index WebDataset tars that stay where they are.

    Only an index and a manifest are written. The images are cropped and resized each time that they are read, which is
    slower than reading images that `featgan pack webdataset` has packed.

    SOURCE is one or several folders, tars, patterns such as `a-{000..127}.tar`, or URLs. An interrupted command can be
    run again; it continues after the last complete tar.
    """
    from featgan.data.packing.indexing import index_shards
    from featgan.data.packing.pack import print_summary

    summary = index_shards(
        source,
        out,
        image_size=image_size,
        crop=crop,
        validation_fraction=parse_fraction(validation_fraction),
        check_images=check_images,
        workers=workers,
        layout_options=parse_layout_options(layout_options),
    )
    print_summary(summary)


def parse_fraction(text: str) -> float:
    """Return the value of `--validation-fraction`; 0 for `none`. Raises UserError if it is not a number."""
    try:
        return 0.0 if text.strip().lower() == "none" else float(text)
    except ValueError:
        raise UserError(f"--validation-fraction {text}: must be between 0 and 0.9, or `none`") from None


def parse_layout_options(options: tuple[str, ...]) -> dict[str, str]:
    """Return `NAME=VALUE` pairs as a dictionary; names may be written with dashes."""
    pairs = [option.partition("=") for option in options]
    for name, equals, _ in pairs:
        if not equals:
            raise UserError(f"--layout-option {name!r}: expected NAME=VALUE")
    return {name.replace("-", "_"): value for name, _, value in pairs}


@cli.group(cls=OrderedGroup)
def blackbox() -> None:
    """Train a classifier that featgan can then explain."""


@blackbox.command("fit")
@click.option("--shards", required=True, type=LOCATION_TYPE, help=shards_help)
@click.option(
    "--task",
    default="expression",
    show_default=True,
    type=click.Choice(FITTED_TASKS),
    help="What the classifier predicts; `factors` is available for synthetic faces only.",
)
@click.option("--out", required=True, type=PATH_TYPE, help="Folder to write the classifier to.")
@click.option("--network", default="vgg", show_default=True, help="Architecture: `vgg` or `torchvision:NAME`.")
@click.option("--weights", type=PATH_TYPE, help="File with pretrained weights for a torchvision network.")
@click.option(
    "--epochs",
    default=10,
    show_default=True,
    type=click.IntRange(1),
    help="Number of passes over the training images.",
)
@click.option(
    "--width",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.125, 8),
    help="Multiplier for the number of channels of the vgg network.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Random seed for the initial weights and the data order.",
)
def fit(
    shards: Location, task: str, out: Path, network: str, weights: Path | None, epochs: int, width: float, seed: int
) -> None:
    """Train a classifier on packed images.

    The last hidden layer has 64 features. Rare classes have a larger weight in the loss. The scores on the validation
    images are printed.
    """
    from featgan.blackbox.fitting.fit import fit_blackbox
    from featgan.blackbox.fitting.scores import build_scores_table
    from featgan.system.console import PlainConsole

    scores = fit_blackbox(shards, task, out, network=network, weights=weights, epochs=epochs, seed=seed, width=width)
    PlainConsole().print(build_scores_table(scores))


@cli.command()
@click.option("--shards", type=LOCATION_TYPE, help=shards_help)
@click.option(
    "--blackbox",
    "spec",
    required=True,
    metavar="SPEC",
    help="SPEC of the classifier to explain (see docs/blackbox.md).",
)
@extract_options
@click.option("--list-layers", is_flag=True, help="List the available layers and exit.")
def extract(
    shards: Location | None,
    spec: str,
    layer: str | None,
    cache_name: str,
    out: Location | None,
    num_components: int | None,
    task: str | None,
    batch_size: int,
    list_layers: bool,
) -> None:
    """Extract and cache a classifier's features and predictions.

    They are computed for every image and for its horizontal flip.
    """
    from featgan.blackbox import loading

    if list_layers:
        for name, width in loading.list_layers(spec, trusted=trust_given_specs([spec])):
            print_line(f"{name:<48} {width}")
        return
    if shards is None:
        raise UserError("extract: no shards given; name the folder with --shards")
    from featgan.blackbox.extraction import extract_features
    from featgan.distributed.work_group import open_work_group
    from featgan.run.approved_callables import record_callables

    cache_reference = choose_feature_cache(cache_name, out)
    folder = out or shards
    with open_work_group() as group:
        if group.is_main and not folder.is_remote:
            record_callables(folder.path, callable_names([spec]))
        cache = extract_features(
            shards,
            spec,
            cache_reference,
            layer=layer,
            num_components=num_components,
            batch_size=batch_size,
            task=task,
            trusted=trust_given_specs([spec]),
            group=group,
        )
    if not group.is_main:
        return
    components_note = f", {cache.num_components} components" if cache.num_components else ""
    print_line(f"{cache.path}: {cache.feature_dim} features of layer {cache.blackbox['layer']}{components_note}")


@cli.command()
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@resume_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="Validate the configuration, print it with network sizes, step counts and memory use, and exit.",
)
@click.option(
    "--profile",
    is_flag=True,
    help="Profile some steps, write the trace to RUN_DIR/profile and print the most expensive operations.",
)
def train(
    config: str,
    overrides: tuple[str, ...],
    init_from: Path | None,
    reset_optimizer: bool,
    dry_run: bool,
    profile: bool,
) -> None:
    """Train the GAN.

    CONFIG is a YAML file or the name of a preset. Running the same command again resumes the run.
    """
    from featgan.config.loading import load_config

    loaded_config = load_config(config, overrides)
    if dry_run:
        from featgan.training.dry_run import describe_plan

        print_line(describe_plan(loaded_config))
        return
    from featgan.run.approved_callables import record_callables
    from featgan.system.signals import StopSignal
    from featgan.training.train import train as train_run

    if os.environ.get("RANK", "0") == "0":
        record_callables(loaded_config.run_dir, callables_in_overrides(overrides))
    with StopSignal() as stop_signal:
        run_dir = train_run(loaded_config, init_from, stop_signal, reset_optimizer, profile)
    if os.environ.get("RANK", "0") == "0":
        print_line(run_dir)
        logger.info(f"next: {suggest_next_command(run_dir, loaded_config.dataset)}")


def suggest_next_command(run_dir: Path, dataset: "DatasetConfig") -> str:
    """Return the command that is useful after training; evaluation needs a validation split."""
    from featgan.data.remote.access import DataAccess
    from featgan.data.shards.shard_set import ShardSet

    access = replace(DataAccess.from_config(dataset), retry_seconds=0.0)  # a finished training waits for no server
    try:
        has_validation = ShardSet.open(dataset.shards, access).has_validation
    except UserError:
        has_validation = True
    return f"featgan evaluate {run_dir}" if has_validation else f"featgan render {run_dir} --images DIR"


def callables_in_overrides(overrides: tuple[str, ...]) -> list[str]:
    """Return the callables that overrides such as `evaluation.second_classifier=package.module:callable` name."""
    values = [
        value for key, _, value in (override.partition("=") for override in overrides) if key[:11] == "evaluation."
    ]
    return callable_names(spec.strip(" '\"") for value in values for spec in value.strip("[] ").split(","))


@cli.command()
@click.argument("run", type=PATH_TYPE)
@step_option
@evaluator_options
@metric_options
def evaluate(
    run: Path,
    step: str,
    suite: str,
    classifiers: tuple[str, ...],
    factor_probe: str | None,
    second_classifier: str | None,
    trust_callables: bool,
    inception: Path | None,
    lpips: Path | None,
    max_pairs: int | None,
    num_components: int,
) -> None:
    """Evaluate a checkpoint against the classifier.

    RUN is the output folder of `featgan train`. The metrics have confidence intervals and are compared with baselines.
    They are printed and written to RUN/evaluations.
    """
    from featgan.distributed.work_group import open_work_group
    from featgan.evaluation.console import print_evaluation
    from featgan.evaluation.evaluate import evaluate_in_group
    from featgan.system.console import PlainConsole

    trusted = trust_given_specs([*classifiers, factor_probe, second_classifier], trust_callables)
    options = EvaluationOptions(
        classifiers, factor_probe, second_classifier, inception, lpips, max_pairs, num_components, trusted
    )
    with open_work_group() as group:
        document = evaluate_in_group(run, parse_step(step), suite, options, group)
    if not group.is_main:
        return
    print_evaluation(document, PlainConsole())
    print_line(document.path)
    logger.info(f"next: featgan render {run}")


@cli.command()
@click.argument("run", type=PATH_TYPE)
@step_option
@render_options
def render(
    run: Path,
    step: str,
    blackbox: str | None,
    trust_callables: bool,
    images: Path | None,
    directions: str,
    num_images: int,
    num_components: int,
    component_names: tuple[str, ...],
    video: tuple[str, ...],
) -> None:
    """Render image grids, animations and report.html.

    RUN is the output folder of `featgan train`. The report is one self-contained file, RUN/report.html.

    \b
    Directions by condition:
    features          quantiles, projections, class, head, interpolation, transfer
    expression        expression
    valence_arousal   valence_arousal
    attributes        attributes
    """
    from featgan.distributed.rendezvous import is_superfluous_process

    if is_superfluous_process():
        return
    from featgan.report.render import DEFAULT_VIDEO_KINDS, render_run

    report_path = render_run(
        run,
        parse_step(step),
        images,
        split_names(directions),
        num_images=num_images,
        num_components=num_components,
        component_names=component_names,
        video=[kind for kind in video or DEFAULT_VIDEO_KINDS if kind != "none"],
        blackbox=blackbox,
        trusted=trust_given_specs([blackbox], trust_callables),
    )
    print_line(report_path)


@cli.command()
@click.argument("run", type=PATH_TYPE)
@click.argument("second_run", type=PATH_TYPE, required=False)
@click.option(
    "--step",
    "steps",
    multiple=True,
    help="Training step of the checkpoint to use, or `latest`. If given twice, the second value applies to SECOND_RUN.",
)
@click.option(
    "--classifier",
    "--blackbox",
    "classifiers",
    multiple=True,
    metavar="SPEC",
    help="New SPEC of the classifier, if its file has moved. For a label-conditioned run: SPEC of the evaluation"
    " classifier. If given twice, the second value applies to SECOND_RUN.",
)
@trust_callables_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; an access token is required unless it is a loopback address.",
)
@click.option(
    "--port",
    default=8765,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 selects a free port.",
)
@click.option(
    "--require-token", is_flag=True, help="Require an access token on localhost as well (for shared machines)."
)
def explore(
    run: Path,
    second_run: Path | None,
    steps: tuple[str, ...],
    classifiers: tuple[str, ...],
    trust_callables: bool,
    host: str,
    port: int,
    require_token: bool,
) -> None:
    """Open an interactive page to edit images with sliders.

    RUN is the output folder of `featgan train`. Move the slider of a component; the page shows the edited image and the
    classifier's prediction for it. If SECOND_RUN is given, both runs are shown side by side. By default, the page is
    served on this machine only. Press Ctrl-C to stop.
    """
    from featgan.explore.serve import explore_runs

    runs = [run, *([second_run] if second_run else [])]
    trusted = trust_given_specs(classifiers, trust_callables)
    explore_runs(runs, [parse_step(step) for step in steps], classifiers, host, port, require_token, trusted)


@cli.command()
@click.argument("path", type=LOCATION_TYPE)
def info(path: Location) -> None:
    """Describe the contents of a folder.

    PATH is a shard folder, feature cache, classifier, run or checkpoint. It may be the URL of a shard folder.
    """
    from featgan.cli.info import describe_location
    from featgan.system.console import PlainConsole

    PlainConsole().print(describe_location(path))


@cli.command()
@click.option(
    "--run-dir",
    default="runs/demo",
    show_default=True,
    type=PATH_TYPE,
    help="Output folder of the run; the data are stored beside it in RUN_DIR-data.",
)
def demo(run_dir: Path) -> None:
    """Run the whole pipeline on synthetic faces.

    The demo takes minutes on a laptop. Running it again resumes it, or reports that it is complete.
    """
    from featgan.cli.demo import run_demo

    run_demo(run_dir)


cli.add_command(bench)


def main() -> None:
    """Run the console command."""
    run_command(cli, "featgan", sys.argv[1:])
