"""The train state of a run: data, networks, optimizers and EMA, built from the configuration."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from featgan.config.schema import Config
from featgan.data.conditions import (
    Condition,
    ConditionLayout,
    build_condition,
    build_condition_input,
    condition_input_dim,
)
from featgan.data.loader import TrainingSet
from featgan.data.remote.access import DataAccess
from featgan.data.shards.shard_set import NO_VALIDATION_PROBLEM, NO_VALIDATION_REMEDY, ShardSet
from featgan.data.training_files import check_cache_size
from featgan.distributed.context import DistributedContext
from featgan.distributed.trainable import TrainableNetwork
from featgan.errors import UserError
from featgan.networks.discriminator import Discriminator
from featgan.networks.ema import EMA
from featgan.networks.generator import Generator
from featgan.networks.parameter_count import check_parameter_count
from featgan.system.memory import keep_freed_memory

logger = logging.getLogger(__name__)


@dataclass
class TrainState:
    """The data, the two networks with their optimizers, and the EMA of the generator."""

    config: Config
    context: DistributedContext
    training_sets: list[TrainingSet]
    conditions: list[Condition]
    condition_layout: ConditionLayout
    shard_sets: list[ShardSet]
    generator: TrainableNetwork
    discriminator: TrainableNetwork
    ema: EMA

    def condition_input(self, target: Tensor, source: Tensor) -> Tensor:
        """Return G's condition input [N, P] from the embedded target and source conditions, both [N, E]."""
        return build_condition_input(self.config.generator.condition_input, target, source)

    @property
    def image_size(self) -> int:
        return self.shard_sets[0].image_size


def open_data(config: Config) -> tuple[list[ShardSet], list[TrainingSet]]:
    """Open the data sets of a configuration.

    Raises UserError if one is missing, if the two have different image sizes, or if they do not fit into the cache of
    the node.
    """
    datasets = [dataset for dataset in (config.dataset, config.second_dataset) if dataset]
    hang_timeout = config.distributed.hang_timeout
    shard_sets = [ShardSet.open(dataset.shards, DataAccess.from_config(dataset, hang_timeout)) for dataset in datasets]
    image_sizes = {shard_set.image_size for shard_set in shard_sets}
    if len(image_sizes) > 1:
        sizes = " and ".join(f"{size} px" for size in sorted(image_sizes))
        raise UserError(f"second_dataset.shards: the images have {sizes}; pack both data sets with one --image-size")
    training_sets = []
    for dataset, shard_set in zip(datasets, shard_sets, strict=True):
        condition = build_condition(dataset, shard_set, "train")
        split, flip, window = shard_set.get_split("train"), dataset.horizontal_flip, dataset.shuffle_window
        training_sets.append(TrainingSet(split, condition, flip, window))
    check_cache_size(training_sets)
    return shard_sets, training_sets


def warn_without_validation(shard_sets: Sequence[ShardSet]) -> None:
    """Log one warning for each data set without a validation split, before a long training."""
    for shard_set in shard_sets:
        if not shard_set.has_validation:
            logger.warning(f"{shard_set.location}: {NO_VALIDATION_PROBLEM}; {NO_VALIDATION_REMEDY}")


def verify_data(
    shard_sets: Sequence[ShardSet], training_sets: Sequence[TrainingSet], context: DistributedContext
) -> None:
    """Compare the data with the hashes in the manifests, on the main process.

    Raises UserError in every process if a file has changed.
    """
    main_error: UserError | None = None
    if context.is_main:
        warn_without_validation(shard_sets)
        try:
            for shard_set in shard_sets:
                shard_set.verify()
            for cache in (training_set.condition.cache for training_set in training_sets):
                if cache is not None:
                    cache.verify()
        except UserError as error:
            main_error = error
    if context.any_rank(main_error is not None):
        raise main_error or UserError(
            f"{shard_sets[0].location}: the data have changed; see the message of the main process"
        )


def build_networks(
    config: Config, image_size: int, training_sets: list[TrainingSet]
) -> tuple[Generator, Discriminator]:
    """Build G and D with initial weights that depend on the seed only.

    Raises UserError if they do not support the image size.
    """
    layout = ConditionLayout(tuple(training_set.condition.dim for training_set in training_sets))
    condition_dim = condition_input_dim(config.generator.condition_input, layout.embedded_dim)
    discriminator_config = config.discriminator
    build_generator = partial(
        Generator,
        image_size,
        condition_dim,
        **config.generator.architecture,
        activation_checkpointing=config.distributed.activation_checkpointing,
    )
    build_discriminator = partial(
        Discriminator,
        image_size,
        layout.estimate_dim,
        discriminator_config.dim,
        discriminator_config.num_layers,
        discriminator_config.max_dim,
        training_sets[0].condition.output_dim,
        layout.embedded_dim if discriminator_config.projection else 0,
    )
    try:
        check_parameter_count(build_generator, "generator")
        check_parameter_count(build_discriminator, "discriminator")
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{config.dataset.shards}: {error}") from None
    torch.manual_seed(config.training.seed)
    return build_generator(), build_discriminator()


def build_train_state(config: Config) -> TrainState:
    """Open the data, build the networks, and prepare them for (distributed) training."""
    context = DistributedContext(config.training.precision, config.distributed)
    if context.device.type == "cpu":
        keep_freed_memory()
    config.check_batch_split(context.world_size)
    shard_sets, training_sets = open_data(config)
    verify_data(shard_sets, training_sets, context)
    generator, discriminator = build_networks(config, shard_sets[0].image_size, training_sets)
    conditions = [training_set.condition for training_set in training_sets]
    layout = ConditionLayout(tuple(condition.dim for condition in conditions))
    trainable_generator = context.prepare(generator, config.optimizer.generator_lr, config.optimizer)
    trainable_discriminator = context.prepare(discriminator, config.optimizer.discriminator_lr, config.optimizer)
    ema = EMA(generator, config.training.ema_half_life_images)
    return TrainState(
        config,
        context,
        training_sets,
        conditions,
        layout,
        shard_sets,
        trainable_generator,
        trainable_discriminator,
        ema,
    )
