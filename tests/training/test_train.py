"""Training: exact resume, a frozen opponent, the game's scalars, and runs that cannot be."""

import errno
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from featgan.config.loading import read_yaml, to_yaml, validate
from featgan.data.loader import BatchStream
from featgan.errors import UserError
from featgan.inference.model import load_model
from featgan.run import checkpoint
from featgan.run.paths import committed_steps, step_folder
from featgan.system.files import sha256_of
from featgan.training.lr_schedule import learning_rate
from featgan.training.objective import discriminator_loss, generator_loss, is_penalised, split
from featgan.training.state import build_game
from featgan.training.train import train
from tests.conftest import CHOSEN, World, tensors_of

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


def test_the_discriminator_learns_to_read_before_the_generator_starts(world: World, tmp_path: Path) -> None:
    training = {"steps": 4, "head_start": 3, "critic_steps": 1, "save_every": 1, "keep_checkpoints": 4}
    config = world.config(tmp_path / "run", training=training)
    train(config)
    before, ahead, after = build_game(config), *(tensors_of(config.run, step, "average") for step in (3, 4))
    weights = before.generator.bare.state_dict()
    assert all(np.array_equal(ahead[name], value.numpy()) for name, value in weights.items())
    assert any(not np.array_equal(ahead[name], value) for name, value in after.items())
    critic = tensors_of(config.run, 3, "discriminator")
    moved = {
        name for name, value in before.discriminator.bare.state_dict().items() if (critic[name] != value.numpy()).any()
    }
    # The head of realness waits for edited images; all else reads.
    assert set(critic) - moved == {"to_logits.weight"}
    lines = [json.loads(line) for line in (config.run / "metrics.jsonl").read_text().splitlines()]
    assert ["generator/loss" in line for line in lines] == [False, False, False, True]


def test_after_its_head_start_every_weight_of_the_discriminator_takes_steps_of_one_rate(
    world: World, tmp_path: Path
) -> None:
    training = {"steps": 31, "head_start": 30, "critic_steps": 1, "save_every": 1}
    train(world.config(tmp_path / "run", training=training))
    before, after = (tensors_of(tmp_path / "run", step, "discriminator") for step in (30, 31))
    # Adam's first step is the rate, whatever the gradient; a moment kept at zero until then would let it be far longer.
    assert np.abs(after["to_logits.weight"] - before["to_logits.weight"]).max() < 1.1e-4


def test_a_head_start_must_end_before_the_run(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training.steps: 40 leave no step to the generator"):
        world.config(tmp_path / "run", training={"steps": 40, "head_start": 40})


def test_each_data_set_is_penalised_in_its_own_turns(world: World, tmp_path: Path) -> None:
    dataset = {"shards": str(world.shards.path), "condition": {"kind": "expression"}}
    sections = {"dataset": dataset, "losses": {"adversarial": "logistic", "r1_every": 2}}
    one = build_game(world.config(tmp_path / "one", **sections))
    two = build_game(world.config(tmp_path / "two", **sections, second_dataset=dataset))
    assert [is_penalised(one, step) for step in range(4)] == [True, False, True, False]
    assert [is_penalised(two, step) for step in range(6)] == [True, True, False, False, True, True]


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
    train(world.config(tmp_path / "run", training={"steps": 6}))  # a longer look
    assert committed_steps(tmp_path / "run")[-1] == 6
    with pytest.raises(UserError, match="training.steps: 4 -> 6"):
        for steps in (4, 6):  # the rates would have been others
            train(world.config(tmp_path / "decay", training={"steps": steps}, optimizer={"decay_steps": 2}))
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


def test_a_run_without_a_checkpoint_may_be_started_otherwise(world: World, tmp_path: Path) -> None:
    first = world.config(tmp_path / "run", optimizer={"generator_rate": 0.9, "discriminator_rate": 0.9})
    first.run.mkdir()
    (first.run / "config.yaml").write_text(to_yaml(first))
    other = world.config(tmp_path / "run")
    train(other)
    assert validate(read_yaml(other.run / "config.yaml"), "written") == other


def fill_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """As if the disk were full after so many more files of checkpoints."""
    whole, written = checkpoint.write_whole, []

    def write(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) > free:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        whole(path, data)

    monkeypatch.setattr(checkpoint, "write_whole", write)


def test_a_full_disk_before_the_first_checkpoint_is_no_dead_end(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut, other = (world.config(tmp_path / name) for name in ("whole", "cut", "other"))
    train(whole)
    for config in (cut, other):
        with monkeypatch.context() as patch:
            fill_disk(patch, free=3)
            with pytest.raises(UserError, match=r"step-00000002: cannot be written: the disk is full; free some space"):
                train(config)
        assert list((config.run / "checkpoints").iterdir()) == []
    train(cut)
    assert_same(whole.run, cut.run, 4)
    changed = world.config(other.run, losses={"cycle_weight": 3}, generator={"dim": 8})
    train(changed)
    assert validate(read_yaml(other.run / "config.yaml"), "written") == changed
    assert committed_steps(other.run) == [2, 4]
    lines = [json.loads(line)["step"] for line in (other.run / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]
    # Nothing is left on the board of the first beginning and its settings.
    board = EventAccumulator(str(other.run / "tensorboard")).Reload()
    assert [point.step for point in board.Scalars("discriminator/loss")] == [1, 2, 3, 4]
    start = HParamsPluginData.FromString(board.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content)
    assert start.session_start_info.hparams["losses.cycle_weight"].number_value == 3


def test_an_image_refused_at_the_first_batch_is_no_dead_end(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.shards.path, tmp_path / "shards", ignore=shutil.ignore_patterns("features"))
    dataset = {"shards": str(tmp_path / "shards"), "condition": {"kind": "expression"}}
    training = {"num_workers": 1, "batch_size": 16, "steps": 8, "save_every": 8}
    config = world.config(tmp_path / "run", dataset=dataset, training=training)
    whole = world.config(tmp_path / "whole", dataset=dataset, training=training)
    train(whole)
    tar, manifest = tmp_path / "shards" / "train-00000.tar", tmp_path / "shards" / "manifest.json"
    before, described = tar.read_bytes(), manifest.read_text()
    # Images that were bad when they were packed: the manifest is theirs, and only decoding finds them.
    tar.write_bytes(before.replace(b"\xff\xd8\xff", b"GIF"))
    manifest.write_text(described.replace(hashlib.sha256(before).hexdigest(), sha256_of(tar)))
    with pytest.raises(Exception, match=r"train-00000\.tar: .*no JPEG where 16 x 16 was packed"):
        train(config)
    assert not committed_steps(config.run)
    tar.write_bytes(before)
    manifest.write_text(described)
    train(config)
    assert_same(whole.run, config.run, 8)


def test_resume_from_another_runs_checkpoint(world: World, tmp_path: Path) -> None:
    train(world.config(tmp_path / "first"))
    train(world.config(tmp_path / "second", training={"steps": 6}), step_folder(tmp_path / "first", 4))
    assert committed_steps(tmp_path / "second") == [6]
    with pytest.raises(UserError, match=r"is at step 4; raise training.steps"):
        train(world.config(tmp_path / "fourth"), step_folder(tmp_path / "first", 4))
    wider = world.config(tmp_path / "third", generator={"dim": 8})
    with pytest.raises(
        UserError, match=r"does not fit the networks .*: \S+\.weight is \[4, .* there and \[8, .* here$"
    ):
        train(wider, step_folder(tmp_path / "first", 4))
    other = world.config(tmp_path / "third", generator={"conditioning": "modulation"})
    with pytest.raises(UserError, match=r"does not fit the networks of this configuration: \S+ is .* here$") as caught:
        train(other, step_folder(tmp_path / "first", 4))
    assert len(str(caught.value).partition("configuration: ")[2]) < 80
    assert not (tmp_path / "third").exists()


def test_what_is_no_checkpoint_names_one(world: World, tmp_path: Path) -> None:
    run = tmp_path / "first"
    train(world.config(run))
    (step_folder(run, 2) / "average.safetensors").unlink()
    newest = f"name {step_folder(run, 4)}"
    for place, said in {
        run: f"it is none itself; {newest}",
        run / "checkpoints": f"it is none itself; {newest}",
        step_folder(run, 2): f"average.safetensors is missing or cut off; {newest}",
        run / "config.yaml": f"no such folder; {newest}",
        tmp_path / "elsewhere": "no such folder; name one, such as RUN/checkpoints/step-00001000",
    }.items():
        with pytest.raises(UserError) as caught:
            train(world.config(tmp_path / "second", training={"steps": 6}), place)
        assert str(caught.value) == f"{place}: no checkpoint to go on from: {said}"
    assert not (tmp_path / "second").exists()


def test_images_the_discriminator_cannot_take(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image size 16.*num_layers up to 4"):
        train(world.config(tmp_path / "run", discriminator={"num_layers": 6}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("adversarial", ["wgan_gp", "logistic"])
def test_a_frozen_opponent_gets_no_gradient(world: World, tmp_path: Path, adversarial: str) -> None:
    game = build_game(world.config(tmp_path, losses={"adversarial": adversarial, "identity_weight": 1}))
    batch = BatchStream(game.sources, 4, 2, 0)[0]
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
    batch = BatchStream(game.sources, 4, 2, 0)[0]
    (part,) = split(game, batch)
    total, terms = discriminator_loss(game, 0, part)
    torch.testing.assert_close(total, terms["adversarial"] + 3 * terms["penalty"] + 7 * terms["condition"])
    total, terms = generator_loss(game, part)
    torch.testing.assert_close(total, terms["adversarial"] + 5 * terms["cycle"] + 7 * terms["condition"])


def test_predictions_are_read_off_the_estimate(world: World, tmp_path: Path) -> None:
    dataset = {"condition": {"objective": "both"}, "features": "stand-in", "shards": str(world.shards.path)}
    game = build_game(world.config(tmp_path, dataset=dataset, losses={"prediction_weight": 2, "condition_weight": 4}))
    batch = BatchStream(game.sources, 4, 2, 0)[0]
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


def test_attributes_train_and_export(world: World, celeba: Path, tmp_path: Path) -> None:
    condition = {"kind": "attributes", "attributes": list(CHOSEN)}
    config = world.config(tmp_path / "run", dataset={"shards": str(celeba), "condition": condition})
    game = build_game(config)
    batch = BatchStream(game.sources, 4, 2, 0)[0]
    assert batch.condition.shape == (4, 2) and set(batch.condition.flatten().tolist()) <= {0, 1}
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # Cross-entropy is summed over the attributes: a network that knows nothing yet pays ln 2 for each of the two.
    assert lines[0]["discriminator/condition"] == pytest.approx(2 * math.log(2), abs=0.3)
    assert "generator/condition" in lines[1]
    model = load_model(tmp_path / "run")
    assert (model.card.names, model.card.attribute_names, model.condition_dim) == (CHOSEN, CHOSEN, 2)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    assert model.edit(images, torch.tensor([[1.0, 0.0]] * 3)).shape == images.shape


def test_attributes_and_expressions_train_together(world: World, celeba: Path, tmp_path: Path) -> None:
    """What the preset `celeba_rafd` does: c is the attributes, the expressions and the mask."""
    config = world.config(
        tmp_path / "run",
        dataset={"shards": str(celeba), "condition": {"kind": "attributes", "attributes": list(CHOSEN)}},
        second_dataset={"shards": str(world.shards.path), "condition": {"kind": "expression"}},
    )
    game = build_game(config)
    batches = BatchStream(game.sources, 4, 2, 0)
    head = game.discriminator.bare.to_condition.weight
    for step, own, mask in ((0, slice(0, 2), [1, 0]), (1, slice(2, 10), [0, 1])):
        batch = batches[step]
        assert batch.dataset == step
        assert game.layout.embed(batch.condition, batch.dataset)[:, 10:].tolist() == [mask] * 4
        game.discriminator.bare.zero_grad()
        discriminator_loss(game, step, split(game, batch)[0])[0].backward()
        # Each data set teaches its own part of the estimate and leaves the other's alone.
        heard = head.grad.flatten(1).abs().sum(1) > 0
        assert heard[own].all() and heard.sum() == len(heard[own])
    train(config)
    model = load_model(tmp_path / "run")
    assert model.condition_dim == 2 + 8 + 2 and model.card.names == CHOSEN + tuple(world.shards.classes)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4


def test_the_rate_is_constant_then_falls_to_zero() -> None:
    rates = [learning_rate(1.0, step, 10, 4) for step in range(10)]
    assert rates == [1.0] * 7 + [0.75, 0.5, 0.25]
    assert learning_rate(0.5, 9, 10, 0) == 0.5
