"""What TensorBoard is shown of a run: read back from its files."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from featgan.config.loading import to_yaml
from featgan.config.schema import Config
from featgan.evaluation.document import HEADLINES as FOUND
from featgan.evaluation.evaluate import write_board
from featgan.evaluation.results import Findings
from featgan.metrics.bootstrap import Measure
from featgan.training.logger import HEADLINES
from featgan.training.train import train
from tests.conftest import World


@pytest.fixture(scope="module")
def config(world: World, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of four steps, with the generator trained in each second one."""
    config = world.config(tmp_path_factory.mktemp("board") / "run", training={"preview_every": 2})
    train(config)
    return config


@pytest.fixture(scope="module")
def board(config: Config) -> EventAccumulator:
    return EventAccumulator(str(config.run / "tensorboard")).Reload()


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *((f"discriminator/{name}", [1, 2, 3, 4]) for name in ("loss", "adversarial", "penalty", "condition")),
        *((f"generator/{name}", [2, 4]) for name in ("loss", "adversarial", "cycle", "condition")),
        ("discriminator/learning_rate", [1, 2, 3, 4]),
        ("generator/learning_rate", [2, 4]),
        ("discriminator/gradient_norm", [1, 2, 3, 4]),
        ("generator/gradient_norm", [2, 4]),
        ("speed/images_per_second", [1, 2, 3, 4]),
        ("speed/data_wait_share", [1, 2, 3, 4]),
    ],
)
def test_scalars(board: EventAccumulator, name: str, steps: list[int]) -> None:
    points = board.Scalars(name)
    assert [point.step for point in points] == steps
    if "learning_rate" in name:
        assert [point.value for point in points] == pytest.approx([1e-4] * len(steps))
    if name.endswith(("norm", "second")):
        assert all(point.value > 0 for point in points)


def test_grids_of_samples(board: EventAccumulator) -> None:
    pictures = board.Images("samples")
    assert [picture.step for picture in pictures] == [2, 4]
    # A batch of four images of 16 pixels: sources, edits, reconstructions and returns, with a pixel in between.
    assert (pictures[0].width, pictures[0].height) == (4 * 17 + 1, 4 * 17 + 1)
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string


def test_the_configuration_as_text(config: Config, board: EventAccumulator) -> None:
    (event,) = board.Tensors("configuration/text_summary")
    assert event.tensor_proto.string_val[0].decode() == f"```\n{to_yaml(config)}\n```"


def read_plugin(board: EventAccumulator, tag: str) -> HParamsPluginData:
    return HParamsPluginData.FromString(board.SummaryMetadata(tag).plugin_data.content)


def test_hyper_parameters_are_the_whole_configuration(config: Config, board: EventAccumulator) -> None:
    row = read_plugin(board, SESSION_START_INFO_TAG).session_start_info.hparams
    assert row["losses.cycle_weight"].number_value == 10
    assert row["training.steps"].number_value == 4
    assert row["dataset.condition.kind"].string_value == "features"
    assert row["dataset.mirror"].string_value == "True"
    assert row["second_dataset"].string_value == "None"
    columns = {info.name for info in read_plugin(board, EXPERIMENT_TAG).experiment.hparam_infos}
    assert columns == set(row) and len(columns) > 40
    assert [path.name for path in (config.run / "tensorboard").iterdir() if path.is_dir()] == []


def test_hyper_parameters_stand_beside_what_evaluations_write(config: Config, board: EventAccumulator) -> None:
    assert set(HEADLINES) <= set(FOUND)
    columns = read_plugin(board, EXPERIMENT_TAG).experiment.metric_infos
    assert [column.display_name for column in columns] == list(HEADLINES)
    measures = {name: Measure(place / 10, 0, 1, 5) for place, name in enumerate(HEADLINES)}
    write_board(config.run, Findings({"faithfulness": {"generator": measures}}), 4)
    for place, column in enumerate(columns):
        written = EventAccumulator(str(config.run / "tensorboard" / column.name.group)).Reload()
        assert [point.value for point in written.Scalars(column.name.tag)] == pytest.approx([place / 10])
