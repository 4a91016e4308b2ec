"""`train --dry-run`: what a configuration would do, without doing it."""

import os

import torch
from torch import nn

from featgan.config.loading import to_yaml
from featgan.config.schema import Config
from featgan.data.conditions import ConditionLayout
from featgan.distributed.context import is_half
from featgan.distributed.rendezvous import adopt_scheduler
from featgan.run.paths import check_folder
from featgan.training.state import build_networks, open_data


def describe_plan(config: Config) -> str:
    """The resolved configuration, the data, parameter counts, steps and an estimate of memory."""
    check_folder(config)
    adopt_scheduler()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    config.check_processes(processes)
    shards, sources = open_data(config)
    for each in shards:
        each.verify()
    size = shards[0].image_size
    with torch.device("cpu"):
        generator, discriminator = build_networks(config, size, sources)
    images = sum(len(source) for source in sources)
    layout = ConditionLayout(tuple(source.condition.dim for source in sources))
    training = config.training
    generator_steps = training.steps // training.critic_steps - training.head_start // training.critic_steps
    lines = [
        to_yaml(config),
        f"images        {images} of {size} px; an epoch is {images / training.batch_size:.0f} steps",
        f"condition     {layout.generator_dim} numbers",
        f"generator     {count(generator):,} parameters, {config.generator.conditioning}",
        f"discriminator {count(discriminator):,} parameters",
        f"steps         {training.steps}, of which {generator_steps} train the generator too",
        f"processes     {processes}, each with {training.batch_size // processes} images of a step's "
        f"{training.batch_size}; {shares(config)} can share it as well",
        f"memory        about {memory(config, generator, discriminator, size) / 2**30:.1f} GiB",
    ]
    return "\n".join(lines)


def shares(config: Config) -> str:
    """The numbers of processes that can share a step's batch."""
    whole = config.training.batch_size // config.distribution.accumulation
    return ", ".join(str(number) for number in range(1, whole + 1) if whole % number == 0)


def count(network: nn.Module) -> int:
    """Trainable numbers."""
    return sum(parameter.numel() for parameter in network.parameters())


def memory(config: Config, generator: nn.Module, discriminator: nn.Module, image_size: int) -> float:
    """Bytes: weights, gradients and Adam's moments, and the activations that the generator's step keeps.

    The activations of G at full resolution dominate: about 10 maps of `dim` channels there, half as much again below,
    for two passes; measured peaks lie within a factor of 1.5.
    """
    copies = 5 if config.training.ema_images else 4
    weights = 4.0 * (copies * count(generator) + 4 * count(discriminator))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width = 2 if is_half(config.training.precision, device) else 4
    maps = 2 * 15 * config.generator.dim + 6 * config.discriminator.dim
    return weights + width * maps * image_size**2 * config.training.batch_size
