"""The game of a run: its data, its two players and the average, built from the configuration, saved and restored."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featgan.config.schema import Config
from featgan.data.conditions import Condition, ConditionLayout, build_condition, phrase, phrase_dim
from featgan.data.loader import Source
from featgan.data.shards.shard_set import ShardSet
from featgan.distributed.context import Engine
from featgan.distributed.trainable import Player
from featgan.errors import UserError
from featgan.networks.discriminator import Discriminator
from featgan.networks.ema import Average
from featgan.networks.generator import Generator
from featgan.system.memory import keep_freed_memory


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
