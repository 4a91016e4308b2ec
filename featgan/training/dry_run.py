"""`featgan train --dry-run`: describe a training run without starting it."""

import os

import torch
from torch import nn

from featgan.config.loading import to_yaml
from featgan.config.schema import Config
from featgan.data.conditions import ConditionLayout
from featgan.distributed.rendezvous import init_env_from_slurm
from featgan.run.paths import check_run_folder
from featgan.system.device import uses_bf16
from featgan.training.state import build_networks, open_data, warn_without_validation


def describe_plan(config: Config) -> str:
    """Return the resolved configuration, data size, parameter counts, number of steps and estimated memory.

    Raises UserError if the run could not start, for example because the data are missing or have changed.
    """
    check_run_folder(config)
    init_env_from_slurm()
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    config.check_batch_split(num_processes)
    shard_sets, training_sets = open_data(config)
    warn_without_validation(shard_sets)
    for shard_set in shard_sets:
        shard_set.verify()
    image_size = shard_sets[0].image_size
    with torch.device("meta"):  # counted, not allocated
        generator, discriminator = build_networks(config, image_size, training_sets)
    num_images = sum(len(training_set) for training_set in training_sets)
    layout = ConditionLayout(tuple(training_set.condition.dim for training_set in training_sets))
    training = config.training
    generator_steps = training.steps // training.n_critic - training.discriminator_warmup_steps // training.n_critic
    lines = [
        to_yaml(config),
        f"images        {num_images} of {image_size} px; an epoch has {num_images / training.batch_size:.0f} steps",
        f"condition     {layout.embedded_dim} values",
        f"generator     {count_parameters(generator):,} parameters, {config.generator.conditioning}",
        f"discriminator {count_parameters(discriminator):,} parameters",
        f"steps         {training.steps}, of which {generator_steps} also train the generator",
        f"processes     {num_processes}, each with {training.batch_size // num_processes} of the "
        f"{training.batch_size} images per step; valid numbers of processes: {valid_process_counts(config)}",
        f"memory        about {estimate_memory(config, generator, discriminator, image_size) / 2**30:.1f} GiB",
    ]
    return "\n".join(lines)


def valid_process_counts(config: Config) -> str:
    """Return the numbers of processes that can split a batch equally, separated by commas."""
    microbatch_size = config.training.batch_size // config.distributed.gradient_accumulation_steps
    return ", ".join(
        str(num_processes) for num_processes in range(1, microbatch_size + 1) if microbatch_size % num_processes == 0
    )


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def estimate_memory(config: Config, generator: nn.Module, discriminator: nn.Module, image_size: int) -> float:
    """Estimate the peak memory of training, in bytes.

    It is the sum of the weights, the gradients, Adam's state and the activations stored for the generator update.
    G's activations dominate: two forward passes, each with about 10 maps of `dim` channels at full resolution and
    half of that at lower resolutions. Measured peaks are within a factor of 1.5 of the estimate.
    """
    generator_copies = 5 if config.training.ema_half_life_images else 4
    weights = 4.0 * (generator_copies * count_parameters(generator) + 4 * count_parameters(discriminator))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bytes_per_value = 2 if uses_bf16(config.training.precision, device) else 4
    num_maps = 2 * 15 * config.generator.dim + 6 * config.discriminator.dim
    return weights + bytes_per_value * num_maps * image_size**2 * config.training.batch_size
