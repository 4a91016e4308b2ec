"""The game of a run: its data, its two players and the average, built from the configuration, saved and restored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from featgan import __version__
from featgan.allocation import keep_freed_memory
from featgan.checkpoint import read_json, read_tensors, save_checkpoint
from featgan.conditions import Condition, ConditionLayout, build_condition, phrase, phrase_dim
from featgan.config import Config
from featgan.data.loader import Source
from featgan.data.shards import ShardSet
from featgan.directions import FeatureSpace
from featgan.ema import Average
from featgan.engine import Engine, Player
from featgan.errors import UserError
from featgan.model import ModelCard
from featgan.networks.discriminator import Discriminator
from featgan.networks.generator import Generator
from featgan.schedule import protected_steps, warn_of_given_up


@dataclass
class Game:
    """Everything a run holds: the data, the players, the average."""

    config: Config
    engine: Engine
    sources: list[Source]
    conditions: list[Condition]
    layout: ConditionLayout
    shards: list[ShardSet]
    generator: Player
    discriminator: Player
    average: Average

    def ask(self, wanted: Tensor, own: Tensor) -> Tensor:
        """What G takes, from what is wanted of images and what they are."""
        return phrase(self.config.generator.request, wanted, own)

    @property
    def image_size(self) -> int:
        return self.shards[0].image_size


def open_data(config: Config) -> tuple[list[ShardSet], list[Source]]:
    """The data sets of a configuration; UserError when one is missing or does not fit the other."""
    datasets = [dataset for dataset in (config.dataset, config.second_dataset) if dataset]
    shards = [ShardSet.open(dataset.shards) for dataset in datasets]
    sizes = {shard.image_size for shard in shards}
    if len(sizes) > 1:
        raise UserError(f"second_dataset.shards: images of {sizes} px; pack both data sets at one --image-size")
    sources = []
    for dataset, shard in zip(datasets, shards, strict=True):
        condition = build_condition(dataset, shard, "train")
        sources.append(Source(shard.split("train"), condition, dataset.mirror))
    return shards, sources


def verify_data(shards: Sequence[ShardSet], sources: Sequence[Source], engine: Engine) -> None:
    """Compare contents with the manifests: the main process does, all end with a UserError when something changed."""
    problem: UserError | None = None
    if engine.is_main:
        try:
            for shard in shards:
                shard.verify()
            for cache in (source.condition.cache for source in sources):
                if cache is not None:
                    cache.verify()
        except UserError as error:
            problem = error
    if engine.any_process(problem is not None):
        raise problem or UserError(f"{shards[0].path}: the data changed; the main process says which file")


def build_networks(config: Config, image_size: int, sources: list[Source]) -> tuple[Generator, Discriminator]:
    """G and D with their initial weights, which the seed fixes; UserError for a size they cannot take."""
    layout = ConditionLayout(tuple(source.condition.dim for source in sources))
    width = phrase_dim(config.generator.request, layout.generator_dim)
    torch.manual_seed(config.training.seed)
    critic = config.discriminator
    try:
        generator = Generator(image_size, width, **config.generator.architecture)
        discriminator = Discriminator(
            image_size,
            layout.estimate_dim,
            critic.dim,
            critic.num_layers,
            critic.max_dim,
            sources[0].condition.output_dim,
            layout.generator_dim if critic.projection else 0,
        )
    except ValueError as error:
        raise UserError(f"{config.dataset.shards}: {error}") from None
    generator.recomputes = config.distribution.recompute
    return generator, discriminator


def build_game(config: Config) -> Game:
    """Open the data, build the networks, hand them to the engine."""
    engine = Engine(config.training.precision, config.distribution)
    if engine.device.type == "cpu":
        keep_freed_memory()
    config.check_processes(engine.world_size)
    shards, sources = open_data(config)
    verify_data(shards, sources, engine)
    generator, discriminator = build_networks(config, shards[0].image_size, sources)
    conditions = [source.condition for source in sources]
    layout = ConditionLayout(tuple(condition.dim for condition in conditions))
    generator_player = engine.player(generator, config.optimizer.generator_rate, config.optimizer)
    discriminator_player = engine.player(discriminator, config.optimizer.discriminator_rate, config.optimizer)
    average = Average(generator, config.training.ema_images)
    return Game(config, engine, sources, conditions, layout, shards, generator_player, discriminator_player, average)


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
