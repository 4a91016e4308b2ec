"""Tests of the training step benchmark and of `featgan train --profile`."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from featgan.bench import training_step as bench
from featgan.bench.timing import ResourceUsage
from featgan.bench.training_step import StepSizes
from featgan.cli.main import cli
from featgan.config.loading import to_yaml
from featgan.training import reference_step
from featgan.training.objective import d_loss_closures, g_loss_closures, generate_fake, split_microbatches
from featgan.training.train import train
from tests.conftest import World

TINY_SIZES = StepSizes(image_size=16, dim=4, batch_size=2, condition_dim=3)


@pytest.mark.parametrize("conditioning", ["concat", "tile", "adain"])
def test_naive_and_fast_steps_compute_the_same_losses(conditioning: str) -> None:
    state = bench.build_state(StepSizes(**asdict(TINY_SIZES) | {"conditioning": conditioning}), "fp32")
    torch.manual_seed(1)
    batch = bench.random_batch(TINY_SIZES, state.context.device)
    (microbatch,) = microbatches = split_microbatches(state, batch)
    x_fake = generate_fake(state, microbatch)
    loss, _ = d_loss_closures(state, 0, microbatches, x_fake)[0]()
    torch.testing.assert_close(loss, reference_step.reference_d_loss(state, 0, batch)[0], rtol=1e-4, atol=1e-4)
    loss, _ = g_loss_closures(state, microbatches, x_fake)[0]()
    torch.testing.assert_close(loss, reference_step.reference_g_loss(state, batch)[0], rtol=1e-4, atol=1e-4)


def test_variant_sets_precision_and_memory_savings() -> None:
    variants = (
        "fp32",
        "fp32 activation_checkpointing",
        "bf16 activation_checkpointing gradient_accumulation_steps",
    )
    configs = [TINY_SIZES.build_config(variant) for variant in variants]
    assert [config.training.precision for config in configs] == ["fp32", "fp32", "bf16"]
    assert [config.distributed.activation_checkpointing for config in configs] == [False, True, True]
    assert [config.distributed.gradient_accumulation_steps for config in configs] == [1, 1, 2]
    assert (
        bench.format_variant(variants[2])
        == "bf16, distributed.activation_checkpointing=true, distributed.gradient_accumulation_steps=2"
    )


def test_operations_grow_with_the_square_of_dim() -> None:
    small = bench.count_flops(StepSizes(image_size=32, dim=8, batch_size=2))
    wide = bench.count_flops(StepSizes(image_size=32, dim=16, batch_size=2))
    assert 3 < wide / small < 4.1
    assert bench.count_flops(StepSizes(image_size=32, dim=8, batch_size=6)) == pytest.approx(3 * small)


def test_growth_is_relative_to_the_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_usage(function: str, variant: str, sizes: dict[str, int]) -> ResourceUsage:
        assert function == "featgan.bench.training_step:time_round" and variant == "fp32"
        return ResourceUsage(0.0, 10.0 * sizes["batch_size"], 0.0, 1e-3 * sizes["dim"] ** 2 * sizes["condition_dim"])

    monkeypatch.setattr(bench, "run_in_new_process", fake_usage)
    table = bench.build_scaling_table(TINY_SIZES, "fp32")
    assert [(row[0], row[2], row[4]) for row in table.rows] == [
        ("baseline", "x 1.00", "x 1.00"),
        ("batch_size 2 to 4", "x 1.00", "x 2.00"),
        ("dim 4 to 8", "x 4.00", "x 1.00"),
        ("image_size 16 to 32", "x 1.00", "x 1.00"),
        ("condition_dim 3 to 6", "x 2.00", "x 1.00"),
    ]
    assert table.rows[0][1:4:2] == ("48.0 ms", "20 MB")


def test_upper_bound_of_a_gpu_is_a_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.MatrixProductBound, "SIDE", 64)
    bound_type = bench.upper_bound_type(torch.device("cuda"))
    with FlopCounterMode(display=False) as counter:
        bound_type.create(TINY_SIZES, "bf16", torch.device("cpu")).run_calls()
    assert counter.get_total_flops() == bound_type.flops(TINY_SIZES) and bound_type is bench.MatrixProductBound
    assert bench.upper_bound_type(torch.device("cpu")) is bench.ConvolutionBound


@pytest.mark.slow
def test_command_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    arguments = ["bench", "step", "--image-size", "16", "--dim", "4", "--batch-size", "2", "--repeats", "1"]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "step.json")], catch_exceptions=False)
    assert "step, fp32" in result.output and "at least 2.00 x" in result.output
    document = json.loads((tmp_path / "step.json").read_text())
    assert document["rows"][0]["naive"]["median"] > 0 and document["rows"][0]["upper_bound"]["median"] > 0
    assert any("convolution" in row[0] for row in document["tables"][0]["rows"])


def test_profile_writes_a_trace_and_prints_a_table(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = world.make_config(tmp_path / "run", training={"steps": 18, "checkpoint_every": 18})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    cli.main(["train", str(tmp_path / "config.yaml"), "--profile"], standalone_mode=False)
    trace = json.loads((config.run_dir / "profile" / "trace.pt.trace.json").read_text())
    steps = {event["name"] for event in trace["traceEvents"] if str(event.get("name")).startswith("ProfilerStep#")}
    assert len(steps) == 10
    output = capsys.readouterr().err
    assert "mkldnn_convolution" in output and "10 steps." in output and "ProfilerStep" not in output
    shares = [float(share) for share in re.findall(r"(\d+\.\d)% +\d+\.\d ms +\d+ calls", output)]
    assert len(shares) == 10 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100.5


@pytest.mark.parametrize(("steps", "message"), [(9, "4 steps."), (5, "no trace was written")])
def test_profile_of_a_short_training_run_reports_its_length(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int, message: str
) -> None:
    config = world.make_config(tmp_path / "run", training={"steps": steps})
    train(config, profile=True)
    assert message in capsys.readouterr().err
    assert (config.run_dir / "profile").exists() == (steps > 5)
