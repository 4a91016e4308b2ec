"""Training: exact resume, a frozen opponent, the game's scalars, and runs that cannot be."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from featgan.config import to_yaml
from featgan.data.loader import BatchStream
from featgan.engine import learning_rate
from featgan.errors import UserError
from featgan.game import build_game
from featgan.model import load_model
from featgan.objective import discriminator_loss, generator_loss, split
from featgan.schedule import committed_steps, step_folder
from featgan.train import train
from tests.conftest import World, tensors_of

WEIGHTS = ("average", "discriminator", "optimizer-generator", "optimizer-discriminator")


def assert_same(first: Path, second: Path, step: int) -> None:
    """Bitwise equal weights and moments."""
    for name in WEIGHTS:
        one, other = tensors_of(first, step, name), tensors_of(second, step, name)
        assert one.keys() == other.keys()
        for key in one:
            assert np.array_equal(one[key], other[key]), (name, key)


def test_four_steps_are_two_and_two_bitwise(world: World, tmp_path: Path) -> None:
    sections = {"generator": {"conditioning": "modulation"}, "training": {"ema_images": 20, "num_workers": 1}}
    whole, parts = world.config(tmp_path / "whole", **sections), world.config(tmp_path / "parts", **sections)
    train(whole)
    train(parts)
    # As if the run had been stopped after step 2: what came later is gone, and the same command goes on.
    for path in step_folder(parts.run, 4).iterdir():
        path.unlink()
    step_folder(parts.run, 4).rmdir()
    train(parts)
    assert_same(whole.run, parts.run, 4)
    lines = [json.loads(line)["step"] for line in (parts.run / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]


SIGNALLED = {"training": {"steps": 60, "save_every": 1000, "report_every": 1000, "num_workers": 1}}


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 steps without a signal, in a process of their own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "config.yaml").write_text(to_yaml(world.config(folder / "run", **SIGNALLED)))
    subprocess.run([sys.executable, "-m", "featgan", "train", str(folder / "config.yaml")], check=True)
    return folder / "run"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_to_the_group_loses_no_step(
    world: World, tmp_path: Path, undisturbed: Path, number: signal.Signals
) -> None:
    stopped = world.config(tmp_path / "stopped", **SIGNALLED)
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(stopped))
    command = [sys.executable, "-m", "featgan", "train", str(config)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "from step 0" in line:
            break
    time.sleep(0.2)
    os.killpg(process.pid, number)
    said = process.stderr.read()
    assert process.wait() == 128 + number, said
    (step,) = committed_steps(stopped.run)
    assert 0 < step < 60 and f"saved at step {step} of 60 and stopped" in said
    assert "Traceback" not in said
    subprocess.run(command, check=True, capture_output=True)
    assert_same(undisturbed, stopped.run, 60)


@pytest.mark.slow
def test_kill_minus_nine_at_any_moment_changes_nothing(world: World, tmp_path: Path) -> None:
    sections = {"training": {"steps": 30, "save_every": 3, "num_workers": 1, "keep_checkpoints": 2}}
    whole, killed = world.config(tmp_path / "whole", **sections), world.config(tmp_path / "killed", **sections)
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(killed))
    command = [sys.executable, "-m", "featgan", "train", str(config)]
    # Both runs are processes of the same command: sums over another number of threads round differently.
    subprocess.run([*command, f"run={whole.run}"], check=True, capture_output=True)
    kills = 0
    for wanted in (3, 21):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        while max(committed_steps(killed.run), default=0) < wanted and process.poll() is None:
            time.sleep(0.005)
        if process.poll() is None:
            kills += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert kills
    subprocess.run(command, check=True, capture_output=True)
    assert_same(whole.run, killed.run, 30)


def test_a_finished_run_says_so_and_is_left_alone(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path / "run")
    train(config)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    train(config)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, damaged = world.config(tmp_path / "whole"), world.config(tmp_path / "damaged")
    train(whole)
    train(damaged)
    path = step_folder(damaged.run, 4) / "discriminator.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    train(damaged)
    assert "damaged" in capsys.readouterr().err
    assert_same(whole.run, damaged.run, 4)


def test_another_configuration_or_folder_is_refused(world: World, tmp_path: Path) -> None:
    train(world.config(tmp_path / "run"))
    with pytest.raises(UserError, match=r"another configuration \(losses.cycle_weight: 10.0 -> 5.0\)"):
        train(world.config(tmp_path / "run", losses={"cycle_weight": 5}))
    train(world.config(tmp_path / "run", training={"report_every": 2}))  # changes nothing that is computed
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        train(world.config(tmp_path / "other"))
    assert (tmp_path / "other" / "thesis.tex").exists()
    with pytest.raises(UserError, match="not empty"):
        train(world.config(tmp_path / "other" / "thesis.tex"))
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".config.yaml.7.partial").write_text("ru")  # killed while the folder was made
    train(world.config(tmp_path / "killed"))


def test_resume_from_another_runs_checkpoint(world: World, tmp_path: Path) -> None:
    train(world.config(tmp_path / "first"))
    train(world.config(tmp_path / "second", training={"steps": 6}), step_folder(tmp_path / "first", 4))
    assert committed_steps(tmp_path / "second") == [6]
    with pytest.raises(UserError, match=r"is at step 4; raise training.steps"):
        train(world.config(tmp_path / "fourth"), step_folder(tmp_path / "first", 4))
    with pytest.raises(UserError, match="no checkpoint to go on from"):
        train(world.config(tmp_path / "fourth", training={"steps": 6}), tmp_path / "first")
    assert not (tmp_path / "fourth").exists()
    wider = world.config(tmp_path / "third", generator={"dim": 8})
    with pytest.raises(UserError, match="does not fit the networks"):
        train(wider, step_folder(tmp_path / "first", 4))
    assert not (tmp_path / "third").exists()


def test_images_the_discriminator_cannot_take(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image size 16.*num_layers up to 4"):
        train(world.config(tmp_path / "run", discriminator={"num_layers": 6}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("adversarial", ["wgan_gp", "logistic"])
def test_a_frozen_opponent_gets_no_gradient(world: World, tmp_path: Path, adversarial: str) -> None:
    game = build_game(world.config(tmp_path, losses={"adversarial": adversarial, "identity_weight": 1}))
    batch = BatchStream(game.sources, 4, 2, game.config.targets, 0)[0]
    (part,) = split(game, batch)
    loss, _ = discriminator_loss(game, 0, part)
    loss.backward()
    assert all(parameter.grad is None for parameter in game.generator.bare.parameters())
    game.discriminator.bare.zero_grad()
    with game.discriminator.frozen():
        loss, _ = generator_loss(game, part)
        loss.backward()
    assert all(parameter.grad is None for parameter in game.discriminator.bare.parameters())
    assert all(parameter.grad is not None for parameter in game.generator.bare.parameters())


def test_the_scalars_are_the_weighted_sums_of_their_parts(world: World, tmp_path: Path) -> None:
    weights = {"penalty_weight": 3.0, "cycle_weight": 5.0, "condition_weight": 7.0}
    game = build_game(world.config(tmp_path, losses=weights))
    batch = BatchStream(game.sources, 4, 2, game.config.targets, 0)[0]
    (part,) = split(game, batch)
    total, terms = discriminator_loss(game, 0, part)
    torch.testing.assert_close(total, terms["adversarial"] + 3 * terms["penalty"] + 7 * terms["condition"])
    total, terms = generator_loss(game, part)
    torch.testing.assert_close(total, terms["adversarial"] + 5 * terms["cycle"] + 7 * terms["condition"])


def test_predictions_are_read_off_the_estimate(world: World, tmp_path: Path) -> None:
    dataset = {"condition": {"objective": "both"}, "features": "stand-in", "shards": str(world.shards.path)}
    game = build_game(world.config(tmp_path, dataset=dataset, losses={"prediction_weight": 2, "condition_weight": 4}))
    batch = BatchStream(game.sources, 4, 2, game.config.targets, 0)[0]
    assert batch.outputs.shape == (4, 8) and game.discriminator.bare.to_outputs is not None
    (part,) = split(game, batch)
    loss, terms = generator_loss(game, part)
    assert {"condition", "prediction"} <= terms.keys()
    loss.backward()
    assert game.discriminator.bare.to_outputs.weight.grad is not None


@pytest.mark.parametrize(
    "dataset",
    [
        {"condition": {"kind": "expression"}},
        {"condition": {"kind": "valence_arousal", "regression": "mse"}},
        {"condition": {"kind": "features", "encoding": "standardized"}},
        {"condition": {"kind": "features", "encoding": "components"}, "features": "stand-in-3"},
    ],
)
def test_every_condition_trains_and_exports(world: World, tmp_path: Path, dataset: dict[str, object]) -> None:
    shards = {"shards": str(world.shards.path), "features": "stand-in"}
    train(world.config(tmp_path / "run", dataset=shards | dataset, training={"precision": "bf16"}))
    model = load_model(tmp_path / "run")
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    assert model.edit(images, torch.randn(3, model.condition_dim)).shape == images.shape


def test_two_data_sets_alternate_with_a_mask(world: World, tmp_path: Path) -> None:
    shards = str(world.shards.path)
    config = world.config(
        tmp_path / "run",
        dataset={"shards": shards, "condition": {"kind": "expression"}},
        second_dataset={"shards": shards, "condition": {"kind": "valence_arousal"}},
    )
    train(config)
    assert load_model(tmp_path / "run").condition_dim == 8 + 2 + 2


def test_the_rate_is_constant_then_falls_to_zero() -> None:
    rates = [learning_rate(1.0, step, 10, 4) for step in range(10)]
    assert rates == [1.0] * 7 + [0.75, 0.5, 0.25]
    assert learning_rate(0.5, 9, 10, 0) == 0.5
