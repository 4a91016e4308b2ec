"""The bench of the training step compares the same work, and a profile shows where a training's time goes."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from featgan.bench import training_step as bench
from featgan.bench.timing import Spent
from featgan.bench.training_step import Sizes
from featgan.cli.main import cli
from featgan.config.loading import to_yaml
from featgan.training import reference_step
from featgan.training.objective import discriminator_losses, edit, generator_losses, split
from featgan.training.train import train
from tests.conftest import World

TINY = Sizes(image_size=16, dim=4, batch_size=2, condition_dim=3)


@pytest.mark.parametrize("conditioning", ["concat", "tile", "modulation"])
def test_both_sides_do_the_same_work(conditioning: str) -> None:
    game = bench.build_game(Sizes(**asdict(TINY) | {"conditioning": conditioning}), "fp32")
    torch.manual_seed(1)
    batch = bench.random_batch(TINY, game.engine.device)
    (part,) = parts = split(game, batch)
    part.fake = edit(game, part)
    loss, _ = discriminator_losses(game, 0, parts)[0]()
    torch.testing.assert_close(loss, reference_step.discriminator_loss(game, 0, batch)[0], rtol=1e-4, atol=1e-4)
    loss, _ = generator_losses(game, parts)[0]()
    torch.testing.assert_close(loss, reference_step.generator_loss(game, batch)[0], rtol=1e-4, atol=1e-4)


def test_a_way_names_what_saves_memory_beside_its_precision() -> None:
    ways = ("fp32", "fp32 recompute", "bf16 recompute accumulation")
    found = [TINY.config(way) for way in ways]
    assert [each.training.precision for each in found] == ["fp32", "fp32", "bf16"]
    assert [(each.distribution.recompute, each.distribution.accumulation) for each in found] == [
        (False, 1), (True, 1), (True, 2),
    ]  # fmt: skip
    assert bench.named(ways[2]) == "bf16, distribution.recompute=true, distribution.accumulation=2"


def test_operations_grow_with_the_square_of_dims() -> None:
    small = bench.count_flops(Sizes(image_size=32, dim=8, batch_size=2))
    wide = bench.count_flops(Sizes(image_size=32, dim=16, batch_size=2))
    assert 3 < wide / small < 4.1
    assert bench.count_flops(Sizes(image_size=32, dim=8, batch_size=6)) == pytest.approx(3 * small)


def test_growth_is_beside_the_sizes_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(function: str, way: str, sizes: dict[str, int]) -> Spent:
        assert function == "featgan.bench.training_step:time_round" and way == "fp32"
        return Spent(0.0, 10.0 * sizes["batch_size"], 0.0, 1e-3 * sizes["dim"] ** 2 * sizes["condition_dim"])

    monkeypatch.setattr(bench, "in_new_process", cost)
    table = bench.scaling_table(TINY, "fp32")
    assert [(row[0], row[2], row[4]) for row in table.rows] == [
        ("as given", "x 1.00", "x 1.00"),
        ("batch_size 2 to 4", "x 1.00", "x 2.00"),
        ("dim 4 to 8", "x 4.00", "x 1.00"),
        ("image_size 16 to 32", "x 1.00", "x 1.00"),
        ("condition_dim 3 to 6", "x 2.00", "x 1.00"),
    ]
    assert table.rows[0][1:4:2] == ("48.0 ms", "20 MB")


def test_a_gpu_is_measured_by_its_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.Product, "SIDE", 64)
    ceiling = bench.ceiling_of(torch.device("cuda"))
    with FlopCounterMode(display=False) as counter:
        ceiling.of(TINY, "bf16", torch.device("cpu")).work()
    assert counter.get_total_flops() == ceiling.flops(TINY) and ceiling is bench.Product
    assert bench.ceiling_of(torch.device("cpu")) is bench.Convolution


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    words = ["bench", "step", "--image-size", "16", "--dim", "4", "--batch-size", "2", "--repeats", "1"]
    done = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "step.json")], catch_exceptions=False)
    assert "step, fp32" in done.output and "at least 2.00 x" in done.output
    found = json.loads((tmp_path / "step.json").read_text())
    assert found["rows"][0]["plain"]["median"] > 0 and found["rows"][0]["ceiling"]["median"] > 0
    assert any("convolution" in row[0] for row in found["tables"][0]["rows"])


def test_a_profile_is_a_trace_and_a_table(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = world.config(tmp_path / "run", training={"steps": 18, "save_every": 18})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    cli.main(["train", str(tmp_path / "config.yaml"), "--profile"], standalone_mode=False)
    trace = json.loads((config.run / "profile" / "trace.pt.trace.json").read_text())
    steps = {event["name"] for event in trace["traceEvents"] if str(event.get("name")).startswith("ProfilerStep#")}
    assert len(steps) == 10
    said = capsys.readouterr().err
    assert "mkldnn_convolution" in said and "10 steps." in said and "ProfilerStep" not in said
    shares = [float(share) for share in re.findall(r"(\d+\.\d)% +\d+\.\d ms +\d+ calls", said)]
    assert len(shares) == 10 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100.5


@pytest.mark.parametrize(("steps", "said"), [(9, "4 steps."), (5, "nothing was traced")])
def test_a_profile_of_a_short_training_says_how_short(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int, said: str
) -> None:
    config = world.config(tmp_path / "run", training={"steps": steps})
    train(config, profile=True)
    assert said in capsys.readouterr().err
    assert (config.run / "profile").exists() == (steps > 5)
