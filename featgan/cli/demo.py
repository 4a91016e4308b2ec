"""`featgan demo`: the whole pipeline on synthetic faces. Each step is skipped if it is complete, and resumed if not."""

import logging
from pathlib import Path

from featgan.config.loading import load_config
from featgan.evaluation.console import print_evaluation
from featgan.evaluation.evaluate import evaluate_run, find_evaluation
from featgan.system.console import PlainConsole
from featgan.system.plain_text import print_line
from featgan.system.signals import StopSignal

logger = logging.getLogger(__name__)

NUM_FACES, FACE_SIZE, IMAGE_SIZE, SEED = 4000, 80, 40, 0
NUM_COMPONENTS, NUM_EPOCHS = 8, 8
SUITE, MAX_PAIRS = "quick", 256


def run_demo(run_dir: Path) -> None:
    """Generate and pack faces, train the classifiers, extract features, train the GAN, evaluate and render.

    The data are stored in RUN_DIR-data.
    """
    run_dir = run_dir.absolute()
    data_dir = run_dir.with_name(f"{run_dir.name}-data")
    blackbox, factor_probe = data_dir / "blackbox", data_dir / "factor_probe"
    preset = load_config("demo")
    dataset = preset.dataset.model_copy(update={"shards": data_dir / "shards"})
    config = preset.model_copy(update={"run_dir": run_dir, "dataset": dataset})
    prepare_data(data_dir)
    fit_classifiers(data_dir / "shards", blackbox, factor_probe)

    from featgan.blackbox.extraction import extract_features
    from featgan.report.render import render_run
    from featgan.training.train import train

    log_step(4, "extract the classifier's features of every image and of its horizontal flip")
    extract_features(
        config.dataset.shards.path, str(blackbox), config.dataset.feature_cache, num_components=NUM_COMPONENTS
    )
    log_step(5, "train the generator to edit images toward target features")
    with StopSignal() as stop_signal:
        train(config, stop_signal=stop_signal)
    log_step(6, "evaluate the edits with the classifier and the factor probe")
    document = find_evaluation(run_dir, config.training.steps, SUITE, MAX_PAIRS)
    report_path = run_dir / "report.html"
    if document is None or not report_path.exists():
        document = evaluate_run(
            run_dir, suite=SUITE, factor_probe=str(factor_probe), num_components=NUM_COMPONENTS, max_pairs=MAX_PAIRS
        )
        log_step(7, "render images, animations and the report")
        render_run(run_dir, num_components=NUM_COMPONENTS)
    print_evaluation(document, PlainConsole())
    print_line(f"\nReport: {report_path} (open it in a browser)")


def prepare_data(data_dir: Path) -> None:
    """Generate synthetic faces in the layout `affectnet` and pack them into shards."""
    from featgan.data.packing.pack import pack_shards
    from featgan.data.synthetic.dataset import synthesize_faces

    log_step(1, "generate synthetic faces with known factors")
    synthesize_faces(data_dir / "faces", NUM_FACES, SEED, FACE_SIZE)
    log_step(2, "pack them into shards")
    pack_shards("affectnet", data_dir / "faces", data_dir / "shards", image_size=IMAGE_SIZE)


def fit_classifiers(shards: Path, blackbox: Path, factor_probe: Path) -> None:
    """Train the classifier to explain and the factor probe.

    The classifier predicts expressions. The factor probe predicts true factors and is not used to train the GAN.
    """
    from featgan.blackbox.fitting.fit import fit_blackbox

    log_step(3, "train the classifier to explain, and a factor probe that checks the edits")
    fit_blackbox(shards, "expression", blackbox, epochs=NUM_EPOCHS)
    fit_blackbox(shards, "factors", factor_probe, epochs=NUM_EPOCHS, seed=1)


def log_step(number: int, title: str) -> None:
    """Log the number and the title of a step."""
    logger.info(f"{number}/7 {title}")
