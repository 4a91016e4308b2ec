"""The TensorBoard logs of a run, read from its files."""

import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from featgan.config.loading import to_yaml
from featgan.config.metric_specs import HPARAM_METRICS, METRICS
from featgan.config.schema import Config
from featgan.evaluation.evaluate import log_metrics
from featgan.evaluation.results import EvaluationResults
from featgan.metrics.bootstrap import Estimate
from featgan.run.metrics_log import defer_writer_errors
from featgan.training.train import train
from tests.conftest import World


@pytest.fixture(scope="module")
def config(world: World, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Train for four steps; every second step trains the generator."""
    config = world.make_config(tmp_path_factory.mktemp("tensorboard") / "run", training={"sample_every": 2})
    train(config)
    return config


@pytest.fixture(scope="module")
def events(config: Config) -> EventAccumulator:
    """Return the TensorBoard events of the run."""
    return EventAccumulator(str(config.run_dir / "tensorboard")).Reload()


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *((f"discriminator/{name}", [1, 2, 3, 4]) for name in ("loss", "adversarial", "gradient_penalty", "condition")),
        *((f"generator/{name}", [2, 4]) for name in ("loss", "adversarial", "cycle", "condition")),
        ("discriminator/learning_rate", [1, 2, 3, 4]),
        ("generator/learning_rate", [2, 4]),
        ("discriminator/gradient_norm", [1, 2, 3, 4]),
        ("generator/gradient_norm", [2, 4]),
        ("speed/images_per_second", [1, 2, 3, 4]),
        ("speed/data_wait_share", [1, 2, 3, 4]),
    ],
)
def test_scalars_are_logged_at_their_steps(events: EventAccumulator, name: str, steps: list[int]) -> None:
    points = events.Scalars(name)
    assert [point.step for point in points] == steps
    if "learning_rate" in name:
        assert [point.value for point in points] == pytest.approx([1e-4] * len(steps))
    if name.endswith(("norm", "second")):
        assert all(point.value > 0 for point in points)


def test_sample_grids_are_logged(events: EventAccumulator) -> None:
    images = events.Images("samples")
    assert [image.step for image in images] == [2, 4]
    # Four rows of four images of 16 pixels, separated by one pixel.
    assert (images[0].width, images[0].height) == (4 * 17 + 1, 4 * 17 + 1)
    assert images[0].encoded_image_string != images[1].encoded_image_string


def test_configuration_is_logged_as_text(config: Config, events: EventAccumulator) -> None:
    (event,) = events.Tensors("configuration/text_summary")
    assert event.tensor_proto.string_val[0].decode() == f"```\n{to_yaml(config)}\n```"


def read_hparams(events: EventAccumulator, tag: str) -> HParamsPluginData:
    """Return the data of the hyperparameter plugin."""
    return HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)


def test_hyperparameters_are_the_complete_configuration(config: Config, events: EventAccumulator) -> None:
    row = read_hparams(events, SESSION_START_INFO_TAG).session_start_info.hparams
    assert row["losses.cycle_weight"].number_value == 10
    assert row["training.steps"].number_value == 4
    assert row["dataset.condition.kind"].string_value == "features"
    assert row["dataset.horizontal_flip"].string_value == "True"
    assert row["second_dataset"].string_value == "None"
    columns = {info.name for info in read_hparams(events, EXPERIMENT_TAG).experiment.hparam_infos}
    assert columns == set(row) and len(columns) > 40
    assert [path.name for path in (config.run_dir / "tensorboard").iterdir() if path.is_dir()] == []


def test_hyperparameter_table_has_columns_for_evaluation_metrics(config: Config, events: EventAccumulator) -> None:
    assert all(METRICS[name].headline for name in HPARAM_METRICS)
    columns = read_hparams(events, EXPERIMENT_TAG).experiment.metric_infos
    assert [column.display_name for column in columns] == list(HPARAM_METRICS)
    metrics = {name: Estimate(index / 10, 0, 1, 5) for index, name in enumerate(HPARAM_METRICS)}
    log_metrics(config.run_dir, EvaluationResults({"faithfulness": {"generator": metrics}}), 4)
    for index, column in enumerate(columns):
        evaluation_events = EventAccumulator(str(config.run_dir / "tensorboard" / column.name.group)).Reload()
        assert [point.value for point in evaluation_events.Scalars(column.name.tag)] == pytest.approx([index / 10])


def test_error_of_a_writer_thread_is_raised_and_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tensorboard"
    with pytest.raises(FileNotFoundError), defer_writer_errors(), SummaryWriter(str(folder)) as writer:
        writer.flush()
        shutil.rmtree(folder)
        for step in range(3):
            writer.add_scalar("x", 1.0, step)
    assert "Traceback" not in capfd.readouterr().err
