"""The `featgan` command: one sub-command a job, thin; a job's modules are imported only when it runs."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import click

from featgan import __version__
from featgan.bench.cli import bench
from featgan.errors import Stopped, UserError

LAYOUT_NAMES = ("affectnet-lists", "affectnet-csv", "affectnet", "affectnet-plus", "celeba", "folder", "csv")

SUITES = ("quick", "standard", "full")

OUTPUT_KINDS = ("expression", "valence_arousal", "attributes", "other")

existing = click.Path(path_type=Path)


class InOrder(click.Group):
    """Lists its commands in the order of work, not of the alphabet."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="featgan")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """See what an image classifier looks at: edit images until its features change.

    `featgan demo` runs every step on drawn faces.
    """


@cli.command()
@click.argument("out", type=existing)
@click.option("--count", default=4000, show_default=True, type=click.IntRange(2), help="Faces.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Same seed, same bytes.")
@click.option("--image-size", default=112, show_default=True, type=click.IntRange(16, 1024), help="Pixels a side.")
def synthesize(out: Path, count: int, seed: int, image_size: int) -> None:
    """Draw faces whose factors are known, in AffectNet's 8-label layout, with factors.csv."""
    from featgan.data.synthetic.dataset import synthesize as draw

    draw(out, count, seed, image_size)
    click.echo(f"{out}: {count} faces")


@cli.command()
@click.argument("layout", type=click.Choice(LAYOUT_NAMES))
@click.argument("source", type=existing)
@click.option("--out", required=True, type=existing, help="The folder of shards to make.")
@click.option("--image-size", default=112, show_default=True, type=click.IntRange(8, 1024), help="Pixels a side.")
@click.option("--crop", type=click.IntRange(8), help="Side of a centre crop before resizing (CelebA: 178).")
@click.option("--margin", default=0.15, show_default=True, help="Added around a face box, of its size.")
@click.option("--validation-fraction", default=0.1, show_default=True, help="For layouts without a split.")
@click.option("--quality", default=95, show_default=True, type=click.IntRange(50, 100), help="Of the JPEGs.")
@click.option("--images-per-shard", default=1000, show_default=True, type=click.IntRange(1), help="Images of a tar.")
@click.option("--workers", type=click.IntRange(1), help="Processes; all cores by default.")
@click.option("--limit", type=click.IntRange(1), help="Take only so many images.")
@click.option("--strict", is_flag=True, help="The first unreadable image is an error.")
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the layout (docs/data.md)."
)
def pack(layout: str, source: Path, out: Path, options: tuple[str, ...], **settings: Any) -> None:
    """Pack a folder of images and labels into shards: crop, resize, JPEG, labels, splits, manifest."""
    from featgan.data.packing.pack import pack as pack_shards
    from featgan.data.packing.pack import print_summary

    print_summary(pack_shards(layout, source, out, **settings, **named_options(options)))


def named_options(options: tuple[str, ...]) -> dict[str, Any]:
    """`NAME=VALUE` pairs; names may be written with dashes."""
    pairs = [option.partition("=") for option in options]
    for name, equals, _ in pairs:
        if not equals:
            raise UserError(f"--option {name!r}: is written NAME=VALUE")
    return {name.replace("-", "_"): value for name, _, value in pairs}


@cli.group(cls=InOrder)
def blackbox() -> None:
    """Train a black box to study."""


@blackbox.command("fit")
@click.option("--shards", required=True, type=existing, help="Folder made by `featgan pack`.")
@click.option(
    "--target",
    default="expression",
    show_default=True,
    type=click.Choice(["expression", "valence_arousal", "attributes", "factors"]),
    help="What it learns; factors are those of drawn faces.",
)
@click.option("--out", required=True, type=existing, help="The box's folder to make.")
@click.option("--network", default="vgg", show_default=True, help="vgg, or torchvision:NAME.")
@click.option("--weights", type=existing, help="Pretrained weights of a torchvision network.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training images.")
@click.option("--width", type=click.FloatRange(0.125, 8), help="Factor on the channels of vgg.")
@click.option("--seed", type=click.IntRange(0), help="Initial weights and order.")
def fit(shards: Path, target: str, out: Path, **settings: Any) -> None:
    """Fit a network with a 64-d last hidden layer, class-balanced; report accuracy or CCC."""
    from rich.console import Console

    from featgan.blackbox.fitting.fit import fit_blackbox
    from featgan.blackbox.fitting.scores import scores_table

    given = {name: value for name, value in settings.items() if value is not None}
    Console().print(scores_table(fit_blackbox(shards, target, out, **given)))


@cli.command()
@click.option("--shards", type=existing, help="Folder made by `featgan pack`.")
@click.option("--blackbox", "spec", required=True, help="SPEC of the box (docs/blackbox.md).")
@click.option("--layer", help="Where the features are taken; the input of the last linear layer by default.")
@click.option("--name", default="blackbox", show_default=True, help="The cache's name beside the shards.")
@click.option("--components", type=click.IntRange(1), help="Keep so many whitened principal components.")
@click.option("--output-kind", type=click.Choice(OUTPUT_KINDS), help="Of a foreign box.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Images at once.")
@click.option("--list-layers", is_flag=True, help="Name the layers that can be taken, and stop.")
def extract(shards: Path | None, spec: str, name: str, list_layers: bool, **settings: Any) -> None:
    """Cache what a black box says of every image and of its mirror image."""
    from featgan.blackbox import loading

    if list_layers:
        for layer, width in loading.list_layers(spec):
            click.echo(f"{layer:<48} {width}")
        return
    if shards is None:
        raise UserError("extract: name the shards with --shards")
    from featgan.blackbox.extraction import extract as extract_features

    cache = extract_features(shards, spec, name, **settings)
    kept = f", {cache.num_components} components" if cache.num_components else ""
    click.echo(f"{cache.path}: {cache.feature_dim} features of layer {cache.blackbox['layer']}{kept}")


@cli.command()
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--resume-from", type=existing, help="A checkpoint folder to start a new run from.")
@click.option("--fresh-optimizer", is_flag=True, help="Take the checkpoint's weights, not its optimisers' moments.")
@click.option("--dry-run", is_flag=True, help="Validate, print the configuration, sizes, steps and memory.")
@click.option("--profile", is_flag=True, help="Write RUN/profile, a trace of some steps, and print what costs most.")
def train(config: str, overrides: tuple[str, ...], dry_run: bool, **settings: Any) -> None:
    """Train the GAN; CONFIG is a file or a preset's bare name. Run again, it resumes."""
    from featgan.config.loading import load_config

    loaded = load_config(config, overrides)
    if dry_run:
        from featgan.training.dry_run import describe_plan

        click.echo(describe_plan(loaded))
        return
    from featgan.system.signals import StopRequest
    from featgan.training.train import train as train_run

    with StopRequest() as request:
        run = train_run(loaded, request=request, **settings)
    if os.environ.get("RANK", "0") == "0":
        click.echo(run)
        click.echo(f"next: featgan evaluate {run}", err=True)


@cli.command()
@click.argument("run", type=existing)
@click.option("--step", default="latest", show_default=True, help="A step with a checkpoint, or latest.")
@click.option("--suite", default="standard", show_default=True, type=click.Choice(SUITES))
@click.option(
    "--blackbox",
    "blackboxes",
    multiple=True,
    help="SPEC of the box, where it has moved; for a run on labels a judge, one for each data set.",
)
@click.option("--probe", help="A box fitted on the true factors of drawn faces.")
@click.option("--witness", help="SPEC of a second box, that took no part in training: does it see the change as well?")
@click.option("--inception", type=existing, help="Weights of Inception-v3, for FID and KID in its space.")
@click.option("--lpips", type=existing, help="Weights of torchvision's alexnet or vgg16, for LPIPS.")
@click.option("--count", type=click.IntRange(2), help="At most so many pairs, and an eighth as many images swept.")
@click.option("--components", "num_components", default=10, show_default=True, type=click.IntRange(1), help="Swept.")
def evaluate(run: Path, step: str, **settings: Any) -> None:
    """Measure a checkpoint against the black box, with controls and intervals."""
    from rich.console import Console

    from featgan.evaluation.document import print_evaluation
    from featgan.evaluation.evaluate import evaluate_run
    from featgan.run.checkpoint import newest_step
    from featgan.run.evaluation_claims import claimed
    from featgan.run.schedule import with_judges

    wanted = step_number(step)
    with claimed(run, newest_step(run) if wanted is None else wanted, settings["suite"]) as number:
        document = evaluate_run(run, number, **with_judges(run, settings))
    print_evaluation(document, Console())
    click.echo(document["path"])
    click.echo(f"next: featgan render {run}", err=True)


def step_number(step: str) -> int | None:
    """`latest` or a number."""
    if step == "latest":
        return None
    if not step.isdecimal():
        raise UserError(f"--step {step}: a number or latest")
    return int(step)


@cli.command()
@click.argument("run", type=existing)
@click.option("--step", default="latest", show_default=True, help="A step with a checkpoint, or latest.")
@click.option("--images", type=existing, help="A folder of any images; the report is then report-NAME.html.")
@click.option("--directions", help="Names, separated by commas; all that fit the condition by default.")
@click.option("--num-images", default=6, show_default=True, type=click.IntRange(1, 64), help="Source images.")
@click.option("--components", "num_components", default=10, show_default=True, type=click.IntRange(1), help="Swept.")
@click.option("--name", "names", multiple=True, metavar="NUMBER=NAME", help="Name a component; kept in RUN/names.yaml.")
@click.option(
    "--video",
    multiple=True,
    type=click.Choice(("gif", "webp", "mp4", "none")),
    help="Animations of the sweeps, gif and webp by default; mp4 needs pip install 'featgan[video]'.",
)
def render(
    run: Path, step: str, images: Path | None, directions: str | None, video: tuple[str, ...], **settings: Any
) -> None:
    """Render grids, animations and report.html, one self-contained page.

    \b
    Directions by condition:
    features          quantiles, projections, class, head, interpolation, transfer
    expression        expression
    valence_arousal   valence_arousal
    attributes        attributes
    """
    from featgan.report.render import VIDEO, render_run

    wanted = [name.strip() for name in directions.split(",")] if directions else []
    kinds = [kind for kind in video or VIDEO if kind != "none"]
    click.echo(render_run(run, step_number(step), images, wanted, video=kinds, **settings))


@cli.command()
@click.argument("run", type=existing)
@click.argument("other", type=existing, required=False)
@click.option("--step", "steps", multiple=True, help="A step with a checkpoint; given twice, the second is OTHER's.")
@click.option(
    "--blackbox",
    "blackboxes",
    multiple=True,
    help="SPEC of the box, where it has moved, or a judge for a run on labels; given twice, the second is OTHER's.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; elsewhere a token is asked for.")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--token", "ask_token", is_flag=True, help="Ask for a token on this machine too: others use it.")
def explore(run: Path, other: Path | None, steps: tuple[str, ...], **settings: Any) -> None:
    """Open a live page: move a component of an image, see the picture and the box's answer change.

    With OTHER two runs are compared side by side. The page is served on this machine alone, until Ctrl-C.
    """
    from featgan.explore.serve import explore as serve_page

    serve_page([run, *([other] if other else [])], [step_number(step) for step in steps], **settings)


@cli.command()
@click.argument("path", type=existing)
def info(path: Path) -> None:
    """Say what a shard folder, a feature cache, a box, a run or a checkpoint is."""
    from rich.console import Console

    from featgan.cli.info import describe

    Console().print(describe(path))


@cli.command()
@click.option("--run", default="runs/demo", show_default=True, type=existing, help="Where everything is made.")
def demo(run: Path) -> None:
    """Run the whole job on drawn faces, in minutes on a laptop. Run again, it resumes or says that it is done."""
    from featgan.cli.demo import run_demo

    run_demo(run)


cli.add_command(bench)


def explain(error: BaseException) -> str | None:
    """The one line for an error that a user can mend; None for a defect of ours."""
    if isinstance(error, UserError):
        # A data worker's error arrives with its traceback as the message; the cause is its last line.
        return str(error).strip().splitlines()[-1].removeprefix("featgan.errors.UserError: ")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'the disk'}: no space left; free some and run the command again"
    if isinstance(error, OSError) and error.errno in (errno.ESTALE, errno.EIO, errno.ETIMEDOUT):
        return f"{error.filename or 'the file system'}: {(error.strerror or '').lower()}; run the command again"
    if isinstance(error, PermissionError):
        return f"{error.filename}: permission denied; make it readable or writable, or choose another place"
    if isinstance(error, NotADirectoryError | IsADirectoryError | FileExistsError):
        return f"{error.filename}: {(error.strerror or 'is in the way').lower()}; choose another place"
    return None


def run_command(group: click.Group, name: str, arguments: list[str]) -> None:
    """Run a command line; 2 for what the user can mend, 128 + N when stopped by signal N."""
    debug = "--debug" in arguments
    try:
        group.main([word for word in arguments if word != "--debug"], prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("featgan: stopped; the same command goes on where it can", err=True)
        sys.exit(130)
    except Stopped as stopped:
        click.echo(f"featgan: {stopped}", err=True)
        sys.exit(stopped.exit_code)
    except Exception as error:
        line = explain(error)
        if debug or line is None:
            raise
        click.echo(f"featgan: {line}", err=True)
        sys.exit(2)


def main() -> None:
    """The console command."""
    run_command(cli, "featgan", sys.argv[1:])
