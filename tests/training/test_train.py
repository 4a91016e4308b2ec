"""Training: exact resuming, frozen networks, losses, every condition kind, and rejected runs."""

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
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from featgan.config.loading import parse_config, to_yaml
from featgan.data.loader import BatchDataset
from featgan.data.packing.pack import pack_shards
from featgan.errors import UserError
from featgan.inference.model import load_model
from featgan.inference.training_data import open_training_data
from featgan.run import checkpoint
from featgan.run.paths import checkpoint_steps, step_folder
from featgan.system.files import atomic_write, sha256_of
from featgan.system.yaml_files import read_yaml_mapping
from featgan.training.lr_schedule import lr_at_step
from featgan.training.objective import compute_d_loss, compute_g_loss, is_r1_step, split_microbatches
from featgan.training.state import build_train_state
from featgan.training.train import train
from tests.conftest import SELECTED_ATTRIBUTES, FakeLinearClassifier, World, read_checkpoint_tensors, write_features

WEIGHT_FILES = ("generator_ema", "discriminator", "optimizer-generator", "optimizer-discriminator")


def assert_checkpoints_equal(first: Path, second: Path, step: int) -> None:
    """Assert that weights and optimizer states are bitwise equal."""
    for name in WEIGHT_FILES:
        one, other = read_checkpoint_tensors(first, step, name), read_checkpoint_tensors(second, step, name)
        assert one.keys() == other.keys()
        for key in one:
            assert np.array_equal(one[key], other[key]), (name, key)


def test_resuming_is_bitwise_exact(world: World, tmp_path: Path) -> None:
    sections: dict[str, dict[str, Any]] = {
        "generator": {"conditioning": "adain"},
        "training": {"ema_half_life_images": 20, "num_workers": 1},
    }
    uninterrupted, resumed = (world.make_config(tmp_path / name, **sections) for name in ("uninterrupted", "resumed"))
    train(uninterrupted)
    train(resumed)
    # Remove the last checkpoint, as if the run had been stopped after step 2, and train again.
    shutil.rmtree(step_folder(resumed.run_dir, 4))
    train(resumed)
    assert_checkpoints_equal(uninterrupted.run_dir, resumed.run_dir, 4)
    lines = [json.loads(line)["step"] for line in (resumed.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]


def test_warmup_trains_the_discriminator_only(world: World, tmp_path: Path) -> None:
    training = {"steps": 4, "discriminator_warmup_steps": 3, "n_critic": 1, "checkpoint_every": 1, "max_checkpoints": 4}
    config = world.make_config(tmp_path / "run", training=training)
    train(config)
    initial = build_train_state(config)
    after_warmup, final = (read_checkpoint_tensors(config.run_dir, step, "generator_ema") for step in (3, 4))
    initial_weights = initial.generator.module.state_dict()
    assert all(np.array_equal(after_warmup[name], value.numpy()) for name, value in initial_weights.items())
    assert any(not np.array_equal(after_warmup[name], value) for name, value in final.items())
    discriminator = read_checkpoint_tensors(config.run_dir, 3, "discriminator")
    changed = {
        name
        for name, value in initial.discriminator.module.state_dict().items()
        if (discriminator[name] != value.numpy()).any()
    }
    # The warm-up loss does not depend on the logits of real and generated images.
    assert set(discriminator) - changed == {"to_logits.weight"}
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert ["generator/loss" in line for line in lines] == [False, False, False, True]


def test_first_step_after_warmup_is_at_most_the_lr_for_every_weight(world: World, tmp_path: Path) -> None:
    training = {"steps": 31, "discriminator_warmup_steps": 30, "n_critic": 1, "checkpoint_every": 1}
    train(world.make_config(tmp_path / "run", training=training))
    before, after = (read_checkpoint_tensors(tmp_path / "run", step, "discriminator") for step in (30, 31))
    # Adam's first step has the size of the lr. With an average of squared gradients of zero it would be far larger.
    assert np.abs(after["to_logits.weight"] - before["to_logits.weight"]).max() < 1.1e-4


def test_warmup_must_end_before_the_last_step(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training.steps: 40 leaves no step to train the generator"):
        world.make_config(tmp_path / "run", training={"steps": 40, "discriminator_warmup_steps": 40})


def test_r1_interval_counts_the_steps_of_each_data_set(world: World, tmp_path: Path) -> None:
    dataset: dict[str, Any] = {"shards": str(world.shards.path), "condition": {"kind": "expression"}}
    losses: dict[str, Any] = {"adversarial": "non_saturating", "r1_interval": 2}
    sections: dict[str, dict[str, Any]] = {"dataset": dataset, "losses": losses}
    one = build_train_state(world.make_config(tmp_path / "one", **sections))
    two = build_train_state(world.make_config(tmp_path / "two", **sections, second_dataset=dataset))
    assert [is_r1_step(one, step) for step in range(4)] == [True, False, True, False]
    assert [is_r1_step(two, step) for step in range(6)] == [True, True, False, False, True, True]


LONG_RUN = {"training": {"steps": 60, "checkpoint_every": 1000, "log_every": 1000, "num_workers": 1}}


@pytest.fixture(scope="module")
def uninterrupted_run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train for 60 steps without a signal, in a separate process."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "config.yaml").write_text(to_yaml(world.make_config(folder / "run", **LONG_RUN)))
    subprocess.run([sys.executable, "-m", "featgan", "train", str(folder / "config.yaml")], check=True)
    return folder / "run"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_signal_to_the_process_group_saves_a_checkpoint(
    world: World, tmp_path: Path, uninterrupted_run: Path, number: signal.Signals
) -> None:
    stopped = world.make_config(tmp_path / "stopped", **LONG_RUN)
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
    output = process.stderr.read()
    assert process.wait() == 128 + number, output
    (step,) = checkpoint_steps(stopped.run_dir)
    assert 0 < step < 60 and f"saved at step {step} of 60 and stopped" in output
    assert "Traceback" not in output
    subprocess.run(command, check=True, capture_output=True)
    assert_checkpoints_equal(uninterrupted_run, stopped.run_dir, 60)


@pytest.mark.slow
def test_resuming_after_sigkill_is_bitwise_exact(world: World, tmp_path: Path) -> None:
    sections = {"training": {"steps": 30, "checkpoint_every": 3, "num_workers": 1, "max_checkpoints": 2}}
    uninterrupted, killed = (world.make_config(tmp_path / name, **sections) for name in ("uninterrupted", "killed"))
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(killed))
    command = [sys.executable, "-m", "featgan", "train", str(config)]
    # Both runs use the same command, since sums over another number of threads are rounded differently.
    subprocess.run([*command, f"run_dir={uninterrupted.run_dir}"], check=True, capture_output=True)
    kills = 0
    for kill_step in (3, 21):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        while max(checkpoint_steps(killed.run_dir), default=0) < kill_step and process.poll() is None:
            time.sleep(0.005)
        if process.poll() is None:
            kills += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert kills
    subprocess.run(command, check=True, capture_output=True)
    assert_checkpoints_equal(uninterrupted.run_dir, killed.run_dir, 30)


def test_complete_run_is_left_unchanged(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path / "run")
    train(config)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    train(config)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_corrupted_checkpoint_is_skipped(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    intact, corrupted = world.make_config(tmp_path / "intact"), world.make_config(tmp_path / "corrupted")
    train(intact)
    train(corrupted)
    path = step_folder(corrupted.run_dir, 4) / "discriminator.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    train(corrupted)
    assert "discriminator.safetensors is missing or truncated" in " ".join(capsys.readouterr().err.split())
    assert_checkpoints_equal(intact.run_dir, corrupted.run_dir, 4)


def test_run_with_another_configuration_or_other_files_is_rejected(world: World, tmp_path: Path) -> None:
    train(world.make_config(tmp_path / "run"))
    with pytest.raises(UserError, match=r"another configuration \(losses.cycle_weight: 10.0 -> 5.0\)"):
        train(world.make_config(tmp_path / "run", losses={"cycle_weight": 5}))
    train(world.make_config(tmp_path / "run", training={"log_every": 2}))  # does not change the results
    train(world.make_config(tmp_path / "run", training={"steps": 6}))  # trains longer
    assert checkpoint_steps(tmp_path / "run")[-1] == 6
    with pytest.raises(UserError, match="training.steps: 4 -> 6"):
        for steps in (4, 6):  # the learning rates would have been different
            train(world.make_config(tmp_path / "decay", training={"steps": steps}, optimizer={"lr_decay_steps": 2}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        train(world.make_config(tmp_path / "other"))
    assert (tmp_path / "other" / "thesis.tex").exists()
    with pytest.raises(UserError, match="not empty"):
        train(world.make_config(tmp_path / "other" / "thesis.tex"))
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".config.yaml.7.partial").write_text("ru")  # killed while config.yaml was written
    train(world.make_config(tmp_path / "killed"))


def test_run_without_a_checkpoint_accepts_another_configuration(world: World, tmp_path: Path) -> None:
    first = world.make_config(tmp_path / "run", optimizer={"generator_lr": 0.9, "discriminator_lr": 0.9})
    first.run_dir.mkdir()
    (first.run_dir / "config.yaml").write_text(to_yaml(first))
    other = world.make_config(tmp_path / "run")
    train(other)
    assert parse_config(read_yaml_mapping(other.run_dir / "config.yaml"), "written") == other


def simulate_full_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let checkpoint writes fail after `free` more files, as on a full disk."""
    written: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) > free:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        atomic_write(path, data)

    monkeypatch.setattr(checkpoint, "atomic_write", write)


def test_run_can_restart_after_a_full_disk(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intact, same, other = (world.make_config(tmp_path / name) for name in ("intact", "same", "other"))
    train(intact)
    for config in (same, other):
        with monkeypatch.context() as patch:
            simulate_full_disk(patch, free=3)
            with pytest.raises(UserError, match=r"step-00000002: cannot be written: the disk is full; free some space"):
                train(config)
        assert list((config.run_dir / "checkpoints").iterdir()) == []
    train(same)
    assert_checkpoints_equal(intact.run_dir, same.run_dir, 4)
    changed = world.make_config(other.run_dir, losses={"cycle_weight": 3}, generator={"dim": 8})
    train(changed)
    assert parse_config(read_yaml_mapping(other.run_dir / "config.yaml"), "written") == changed
    assert checkpoint_steps(other.run_dir) == [2, 4]
    lines = [json.loads(line)["step"] for line in (other.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]
    # TensorBoard shows nothing of the first start and its settings.
    events = EventAccumulator(str(other.run_dir / "tensorboard")).Reload()
    assert [point.step for point in events.Scalars("discriminator/loss")] == [1, 2, 3, 4]
    start = HParamsPluginData.FromString(events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content)
    assert start.session_start_info.hparams["losses.cycle_weight"].number_value == 3


def test_run_resumes_with_the_same_images_in_another_place(world: World, tmp_path: Path) -> None:
    dataset = {"condition": {"kind": "expression"}}
    run, moved, other = (tmp_path / name for name in ("run", "moved", "other"))
    train(world.make_config(run, dataset=dataset))
    shutil.copytree(world.shards.path, moved)
    pack_shards("affectnet", world.source, other, image_size=16, quality=80, workers=1)
    with pytest.raises(UserError, match="the set of shards has changed since this checkpoint was saved"):
        train(world.make_config(run, dataset=dataset | {"shards": str(other)}, training={"steps": 6}))
    train(world.make_config(run, dataset=dataset | {"shards": str(moved)}, training={"steps": 6}))
    assert checkpoint_steps(run)[-1] == 6
    assert load_model(run, 6).metadata.dataset["shards"] == str(moved)


def test_run_resumes_with_the_same_features_in_another_place(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(world.make_config(tmp_path / "run"))
    shutil.copytree(world.cache.path, "moved")
    train(world.make_config(tmp_path / "run", dataset={"feature_cache": "./moved"}, training={"steps": 6}))
    model = load_model(tmp_path / "run", 6)
    assert model.metadata.dataset["features"] == str(tmp_path / "moved")
    monkeypatch.chdir("/")
    data = open_training_data(model, is_required=True)
    assert data.cache is not None and data.cache.path == tmp_path / "moved"
    write_features(world.shards, OtherClassifier(), str(tmp_path / "other"))
    with pytest.raises(UserError, match="the black box has changed since this checkpoint was saved"):
        train(world.make_config(tmp_path / "run", dataset={"feature_cache": f"{tmp_path}/other"}))


class OtherClassifier(FakeLinearClassifier):
    sha256 = "2" * 64


def test_run_can_restart_after_an_invalid_image(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.shards.path, tmp_path / "shards", ignore=shutil.ignore_patterns("features"))
    dataset = {"shards": str(tmp_path / "shards"), "condition": {"kind": "expression"}}
    training = {"num_workers": 1, "batch_size": 16, "steps": 8, "checkpoint_every": 8}
    config = world.make_config(tmp_path / "run", dataset=dataset, training=training)
    intact = world.make_config(tmp_path / "intact", dataset=dataset, training=training)
    train(intact)
    tar, manifest = tmp_path / "shards" / "train-00000.tar", tmp_path / "shards" / "manifest.json"
    tar_content, manifest_text = tar.read_bytes(), manifest.read_text()
    # The manifest has the hash of the invalid images, so that only decoding detects them.
    tar.write_bytes(tar_content.replace(b"\xff\xd8\xff", b"GIF"))
    manifest.write_text(manifest_text.replace(hashlib.sha256(tar_content).hexdigest(), sha256_of(tar)))
    with pytest.raises(Exception, match=r"train-00000\.tar: .*not a JPEG, but 16 x 16 pixels were packed"):
        train(config)
    assert not checkpoint_steps(config.run_dir)
    tar.write_bytes(tar_content)
    manifest.write_text(manifest_text)
    train(config)
    assert_checkpoints_equal(intact.run_dir, config.run_dir, 8)


def test_resume_from_another_runs_checkpoint(world: World, tmp_path: Path) -> None:
    train(world.make_config(tmp_path / "first"))
    train(world.make_config(tmp_path / "second", training={"steps": 6}), step_folder(tmp_path / "first", 4))
    assert checkpoint_steps(tmp_path / "second") == [6]
    with pytest.raises(UserError, match=r"is at step 4; set training.steps to a larger number"):
        train(world.make_config(tmp_path / "fourth"), step_folder(tmp_path / "first", 4))
    wider = world.make_config(tmp_path / "third", generator={"dim": 8})
    with pytest.raises(
        UserError,
        match=r"does not fit the networks .*: \S+\.weight is \[4, .* in the file but \[8, .* in the network; train",
    ):
        train(wider, step_folder(tmp_path / "first", 4))
    other = world.make_config(tmp_path / "third", generator={"conditioning": "adain"})
    with pytest.raises(
        UserError, match=r"does not fit the networks of this configuration: \S+ is .* in the network; "
    ) as caught:
        train(other, step_folder(tmp_path / "first", 4))
    assert len(str(caught.value).partition("configuration: ")[2].partition(";")[0]) < 80
    assert not (tmp_path / "third").exists()


def test_invalid_checkpoint_folder_suggests_a_valid_one(world: World, tmp_path: Path) -> None:
    run = tmp_path / "first"
    train(world.make_config(run))
    (step_folder(run, 2) / "generator_ema.safetensors").unlink()
    suggestion = f"use {step_folder(run, 4)}"
    for folder, message in {
        run: f"(it has no manifest.json); {suggestion}",
        run / "checkpoints": f"(it has no manifest.json); {suggestion}",
        step_folder(run, 2): f"(generator_ema.safetensors is missing or truncated); {suggestion}",
        run / "config.yaml": f"(no such folder); {suggestion}",
        tmp_path / "elsewhere": "(no such folder); use a checkpoint folder, for example RUN/checkpoints/step-00001000",
    }.items():
        with pytest.raises(UserError) as caught:
            train(world.make_config(tmp_path / "second", training={"steps": 6}), folder)
        assert str(caught.value) == f"{folder}: not a valid checkpoint {message}"
    assert not (tmp_path / "second").exists()


def test_images_too_small_for_the_discriminator_are_rejected(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image size 16.*num_layers up to 4"):
        train(world.make_config(tmp_path / "run", discriminator={"num_layers": 6}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("adversarial", ["wgan_gp", "non_saturating"])
def test_frozen_network_gets_no_gradient(world: World, tmp_path: Path, adversarial: str) -> None:
    state = build_train_state(world.make_config(tmp_path, losses={"adversarial": adversarial, "identity_weight": 1}))
    batch = BatchDataset(state.training_sets, 4, 2, 0)[0]
    (microbatch,) = split_microbatches(state, batch)
    loss, _ = compute_d_loss(state, 0, microbatch)
    loss.backward()
    assert all(parameter.grad is None for parameter in state.generator.module.parameters())
    state.discriminator.module.zero_grad()
    with state.discriminator.frozen():
        loss, _ = compute_g_loss(state, microbatch)
        loss.backward()
    assert all(parameter.grad is None for parameter in state.discriminator.module.parameters())
    assert all(parameter.grad is not None for parameter in state.generator.module.parameters())


def test_losses_are_weighted_sums_of_their_terms(world: World, tmp_path: Path) -> None:
    weights = {"gp_weight": 3.0, "cycle_weight": 5.0, "condition_weight": 7.0}
    state = build_train_state(world.make_config(tmp_path, losses=weights))
    batch = BatchDataset(state.training_sets, 4, 2, 0)[0]
    (microbatch,) = split_microbatches(state, batch)
    total, terms = compute_d_loss(state, 0, microbatch)
    torch.testing.assert_close(total, terms["adversarial"] + 3 * terms["gradient_penalty"] + 7 * terms["condition"])
    total, terms = compute_g_loss(state, microbatch)
    torch.testing.assert_close(total, terms["adversarial"] + 5 * terms["cycle"] + 7 * terms["condition"])


def test_classifier_outputs_are_computed_from_the_estimate(world: World, tmp_path: Path) -> None:
    dataset = {"condition": {"loss_on": "both"}, "feature_cache": "linear", "shards": str(world.shards.path)}
    state = build_train_state(
        world.make_config(tmp_path, dataset=dataset, losses={"output_weight": 2, "condition_weight": 4})
    )
    batch = BatchDataset(state.training_sets, 4, 2, 0)[0]
    assert batch.outputs.shape == (4, 8) and state.discriminator.module.to_outputs is not None
    (microbatch,) = split_microbatches(state, batch)
    loss, terms = compute_g_loss(state, microbatch)
    assert {"condition", "output"} <= terms.keys()
    loss.backward()
    assert state.discriminator.module.get_parameter("to_outputs.weight").grad is not None


@pytest.mark.parametrize(
    "dataset",
    [
        {"condition": {"kind": "expression"}},
        {"condition": {"kind": "valence_arousal", "regression_loss": "mse"}},
        {"condition": {"kind": "features", "encoding": "standardized"}},
        {"condition": {"kind": "features", "encoding": "components"}, "feature_cache": "linear-3"},
    ],
)
def test_every_condition_kind_trains_and_exports(world: World, tmp_path: Path, dataset: dict[str, object]) -> None:
    shards = {"shards": str(world.shards.path), "feature_cache": "linear"}
    train(world.make_config(tmp_path / "run", dataset=shards | dataset, training={"precision": "bf16"}))
    model = load_model(tmp_path / "run")
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    assert model.edit_images(images, torch.randn(3, model.metadata.condition_dim)).shape == images.shape


def test_two_data_sets_alternate_with_a_mask(world: World, tmp_path: Path) -> None:
    shards = str(world.shards.path)
    config = world.make_config(
        tmp_path / "run",
        dataset={"shards": shards, "condition": {"kind": "expression"}},
        second_dataset={"shards": shards, "condition": {"kind": "valence_arousal"}},
    )
    train(config)
    assert load_model(tmp_path / "run").metadata.condition_dim == 8 + 2 + 2


def test_attributes_train_and_export(world: World, celeba: Path, tmp_path: Path) -> None:
    condition = {"kind": "attributes", "attributes": list(SELECTED_ATTRIBUTES)}
    config = world.make_config(tmp_path / "run", dataset={"shards": str(celeba), "condition": condition})
    state = build_train_state(config)
    batch = BatchDataset(state.training_sets, 4, 2, 0)[0]
    assert batch.condition.shape == (4, 2) and set(batch.condition.flatten().tolist()) <= {0, 1}
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # The cross-entropy is summed over two attributes; with random weights, each has a loss of about ln 2.
    assert lines[0]["discriminator/condition"] == pytest.approx(2 * math.log(2), abs=0.3)
    assert "generator/condition" in lines[1]
    model = load_model(tmp_path / "run")
    assert (model.metadata.names, model.metadata.attribute_names, model.metadata.condition_dim) == (
        SELECTED_ATTRIBUTES,
        SELECTED_ATTRIBUTES,
        2,
    )
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    assert model.edit_images(images, torch.tensor([[1.0, 0.0]] * 3)).shape == images.shape


def test_attributes_and_expressions_train_together(world: World, celeba: Path, tmp_path: Path) -> None:
    """As in the preset `celeba_rafd`: the condition has the attributes, the expressions and the mask."""
    config = world.make_config(
        tmp_path / "run",
        dataset={"shards": str(celeba), "condition": {"kind": "attributes", "attributes": list(SELECTED_ATTRIBUTES)}},
        second_dataset={"shards": str(world.shards.path), "condition": {"kind": "expression"}},
    )
    state = build_train_state(config)
    batches = BatchDataset(state.training_sets, 4, 2, 0)
    head = state.discriminator.module.get_parameter("to_condition.weight")
    for step, columns, mask in ((0, slice(0, 2), [1, 0]), (1, slice(2, 10), [0, 1])):
        batch = batches[step]
        assert batch.dataset == step
        assert state.condition_layout.embed(batch.condition, batch.dataset)[:, 10:].tolist() == [mask] * 4
        state.discriminator.module.zero_grad()
        compute_d_loss(state, step, split_microbatches(state, batch)[0])[0].backward()
        # Each data set trains its own columns of the estimate only.
        assert head.grad is not None
        has_gradient = head.grad.flatten(1).abs().sum(1) > 0
        assert has_gradient[columns].all() and has_gradient.sum() == len(has_gradient[columns])
    train(config)
    model = load_model(tmp_path / "run")
    assert model.metadata.condition_dim == 2 + 8 + 2 and model.metadata.names == SELECTED_ATTRIBUTES + tuple(
        world.shards.classes
    )
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4


def test_lr_is_constant_and_then_decays_to_zero() -> None:
    lrs = [lr_at_step(1.0, step, 10, 4) for step in range(10)]
    assert lrs == [1.0] * 7 + [0.75, 0.5, 0.25]
    assert lr_at_step(0.5, 9, 10, 0) == 0.5
