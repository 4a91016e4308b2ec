"""`featgan demo`: the whole job on drawn faces; a step that is done already says so, one cut off goes on."""

from pathlib import Path
from typing import Any

from rich.console import Console

from featgan.config.loading import load_config
from featgan.evaluation.document import print_evaluation
from featgan.evaluation.evaluate import evaluate_run, find_evaluation
from featgan.system.progress import console
from featgan.system.signals import StopRequest

COUNT, DRAWN_SIZE, IMAGE_SIZE, SEED = 4000, 80, 40, 0
COMPONENTS, EPOCHS = 8, 8
SUITE, PAIRS = "quick", 256


def run_demo(run: Path) -> None:
    """Draw, pack, fit, extract, train, evaluate and render; data beside the run in RUN-data."""
    run = run.absolute()
    data = run.with_name(f"{run.name}-data")
    box, probe = data / "blackbox", data / "probe"
    preset = load_config("demo")
    dataset = preset.dataset.model_copy(update={"shards": data / "shards"})
    config = preset.model_copy(update={"run": run, "dataset": dataset})
    prepare_data(data)
    fit_boxes(data / "shards", box, probe)

    from featgan.blackbox.extraction import extract
    from featgan.report.render import render_run
    from featgan.training.train import train

    announce(4, "cache what the box says of every image, and of its mirror image")
    extract(config.dataset.shards, str(box), config.dataset.features, components=COMPONENTS)
    announce(5, "train the generator to edit an image until the box would see other features in it")
    with StopRequest() as request:
        train(config, request=request)
    announce(6, "measure what the box and the probe see in edited images")
    document: dict[str, Any] | None = find_evaluation(run, config.training.steps, SUITE, PAIRS)
    page = run / "report.html"
    if document is None or not page.exists():
        document = evaluate_run(run, suite=SUITE, probe=str(probe), num_components=COMPONENTS, count=PAIRS)
        announce(7, "render pictures, animations and the report")
        render_run(run, num_components=COMPONENTS)
    out = Console()
    print_evaluation(document, out)
    out.print(f"\nThe report: [bold]{page}[/]  (open it in a browser)")


def prepare_data(data: Path) -> None:
    """Drawn faces in AffectNet's layout, and shards of them."""
    from featgan.data.packing.pack import pack
    from featgan.data.synthetic.dataset import synthesize

    announce(1, "draw faces whose factors are known")
    synthesize(data / "faces", COUNT, SEED, DRAWN_SIZE)
    announce(2, "pack them into shards")
    pack("affectnet", data / "faces", data / "shards", image_size=IMAGE_SIZE)


def fit_boxes(shards: Path, box: Path, probe: Path) -> None:
    """The box to study tells expressions; the probe reads true factors, and takes no part in training the GAN."""
    from featgan.blackbox.fitting.fit import fit_blackbox

    announce(3, "fit the black box to study, and a probe of the true factors to check the edits with")
    fit_blackbox(shards, "expression", box, epochs=EPOCHS)
    fit_blackbox(shards, "factors", probe, epochs=EPOCHS, seed=1)


def announce(number: int, what: str) -> None:
    """A step's title."""
    console.print(f"[bold]{number}/7[/] {what}")
