"""Saving and restoring the train state, with checks of its provenance."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from featgan import __version__
from featgan.errors import UserError
from featgan.features.space import FeatureSpace
from featgan.run.checkpoint import read_json, read_tensors, save_checkpoint
from featgan.run.model_card import ModelCard
from featgan.run.schedule import protected_steps, warn_of_given_up
from featgan.training.state import Game


def save(game: Game, run: Path, step: int) -> None:
    """The game after `step` steps, as a checkpoint; the main process writes. UserError when it has diverged."""
    moments = {"generator": game.generator.moments(), "discriminator": game.discriminator.moments()}
    if not game.engine.is_main:
        return
    if not all(
        torch.isfinite(each).all()
        for player in (game.generator, game.discriminator)
        for each in player.bare.parameters()
    ):
        raise UserError(
            f"step {step}: weights are no numbers any more; lower the learning rates; the last checkpoint is kept"
        )
    tensors = {
        "average": game.average.network.state_dict(),
        "discriminator": game.discriminator.bare.state_dict(),
    }
    tensors |= {f"optimizer-{name}": moment for name, moment in moments.items()}
    if game.average.half_life:
        tensors["generator"] = game.generator.bare.state_dict()
    space = game.conditions[0].space
    if space is not None:
        tensors["space"] = space.tensors()
    state = {"step": step, "featgan": __version__, "world_size": game.engine.world_size}
    state["fingerprints"] = fingerprints(game)
    documents = {"model": model_card(game, step).model_dump(mode="json"), "state": state}
    protected = protected_steps(run, game.config.evaluation)
    warn_of_given_up(run, game.config.evaluation, protected)
    save_checkpoint(run, step, tensors, documents, game.config.training.keep_checkpoints, protected)


def fingerprints(game: Game) -> dict[str, str]:
    """What decides the data: the shards, and the black box and layer of the features."""
    found = {"set of shards": " ".join(shards.fingerprint for shards in game.shards)}
    blackbox = game.conditions[0].blackbox
    return found | ({"black box": blackbox["sha256"], "layer": blackbox["layer"]} if blackbox else {})


def model_card(game: Game, step: int) -> ModelCard:
    """What the exported generator needs to be used elsewhere."""
    config, condition = game.config, game.conditions[0]
    features = condition.config.kind == "features"
    return ModelCard(
        step=step,
        image_size=game.image_size,
        condition_dim=game.layout.generator_dim,
        generator=config.generator,
        condition_kind=condition.config.kind,
        encoding=condition.config.encoding,
        names=tuple(name for each in game.conditions for name in each.names),
        class_names=tuple(game.shards[0].classes),
        attribute_names=condition.config.attributes,
        blackbox=condition.blackbox or None,
        dataset={
            "shards": str(config.dataset.shards.absolute()),
            "features": config.dataset.features if features else None,
            "fingerprint": game.shards[0].fingerprint,
        },
    )


def restore(game: Game, folder: Path | None, fresh_optimizer: bool = False) -> int:
    """Load a checkpoint folder into the game, its moments only unless these shall be fresh; returns its step, or 0.

    Raises UserError when the checkpoint belongs to other shards or its tensors do not fit the networks.
    """
    if folder is None:
        return 0
    state = read_json(folder / "state.json")
    check_origin(game, folder, state["fingerprints"])
    current = "generator" if game.average.half_life else "average"
    load_weights(game.generator.bare, folder / f"{current}.safetensors")
    load_weights(game.discriminator.bare, folder / "discriminator.safetensors")
    if game.average.half_life:
        load_weights(game.average.network, folder / "average.safetensors")
    for name, player in (("generator", game.generator), ("discriminator", game.discriminator)):
        player.restore(None if fresh_optimizer else read_tensors(folder / f"optimizer-{name}.safetensors"))
    return int(state["step"])


def check_origin(game: Game, folder: Path, saved: Mapping[str, str]) -> None:
    """UserError names what a checkpoint was trained on that is another now."""
    shards = game.config.dataset.shards
    for name, value in fingerprints(game).items():
        if saved.get(name) != value:
            raise UserError(f"{folder}: was trained on another {name} than {shards} has now; choose another run=...")
    condition = game.conditions[0]
    encoding = condition.config.encoding
    if condition.space is not None:
        space = FeatureSpace(**read_tensors(folder / "space.safetensors"))
        if not space.agrees(condition.space, encoding):
            raise UserError(
                f"{folder}: was trained on {space.condition_dim(encoding)} {encoding} features, {shards} has "
                f"{condition.space.condition_dim(encoding)} or others now; extract with the --components of then, "
                "or choose another run=..."
            )


def load_weights(network: nn.Module, path: Path) -> None:
    """A network's weights; UserError names the first that is of another architecture."""
    tensors, expected = read_tensors(path), network.state_dict()
    for name in expected | tensors:
        there, here = (list(group[name].shape) if name in group else "missing" for group in (tensors, expected))
        if there != here:
            misfit = f"{name} is {there} there and {here} here"
            raise UserError(f"{path}: does not fit the networks of this configuration: {misfit}")
    network.load_state_dict(tensors)
