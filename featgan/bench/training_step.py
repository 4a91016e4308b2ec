"""`featgan bench step`: the training step as used in training against the reference step in eager fp32."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from featgan.bench.results import BenchmarkResults, BenchmarkRow, Goal, ResultTable, format_3_digits
from featgan.bench.timing import CostSamples, SubprocessWorker, run_in_new_process, scale_samples, time_interleaved
from featgan.config.loading import parse_config
from featgan.config.schema import ConditionConfig, Config
from featgan.data.conditions import Condition, ConditionLayout
from featgan.data.loader import Batch
from featgan.data.row_selection import AllRows
from featgan.distributed.context import DistributedContext
from featgan.networks.discriminator import Discriminator
from featgan.networks.ema import EMA
from featgan.networks.generator import Generator
from featgan.system.device import has_fast_bf16
from featgan.system.memory import keep_freed_memory
from featgan.system.profiling import profiler_activities, top_operations
from featgan.training import reference_step
from featgan.training.objective import d_loss_closures, g_loss_closures, generate_fake, split_microbatches
from featgan.training.state import TrainState

N_CRITIC = 5
"""Steps per round: a round of n_critic steps contains every computation that training repeats."""

NUM_CALLS = 10
"""Number of operations per measurement of the upper bound; a single one would be measured with cold caches."""

MAX_NAMED_OPERATIONS = 5
"""Number of operations that a note lists."""

MEMORY_SAVINGS = {"activation_checkpointing": True, "gradient_accumulation_steps": 2}
"""Settings of `distributed` that save memory and cost time; each is added to those before it."""

LEARNING_RATE = 1e-4
Workload = Callable[[], None]


@dataclass(frozen=True)
class StepSizes:
    """The sizes that determine the cost of a step."""

    image_size: int = 112
    dim: int = 64
    batch_size: int = 16
    condition_dim: int = 64
    conditioning: str = "concat"

    def build_config(self, variant: str) -> Config:
        """Return the configuration of the original objective and networks with these sizes.

        `variant` is a precision, followed by names of MEMORY_SAVINGS, separated by spaces.
        """
        precision, *savings = variant.split()
        layers = min(6, self.image_size.bit_length() - 1)
        tree = {
            "generator": {"dim": self.dim, "conditioning": self.conditioning},
            "discriminator": {"dim": self.dim, "num_layers": layers},
            "losses": {"condition_weight": 10},
            "distributed": {name: value for name, value in MEMORY_SAVINGS.items() if name in savings},
            "training": {"precision": precision, "batch_size": self.batch_size, "n_critic": N_CRITIC},
        }
        return parse_config(tree, "featgan bench step")


def run_benchmark(
    image_size: int, dim: int, batch_size: int, conditioning: str, repeats: int, scaling: bool = False
) -> BenchmarkResults:
    """Time rounds of the reference step, the step in training, and the operation of the upper bound, in turn."""
    sizes = StepSizes(image_size, dim, batch_size, conditioning=conditioning)
    device = DistributedContext("fp32", sizes.build_config("fp32").distributed).device
    precisions = ["fp32", "bf16"] if has_fast_bf16(device) else ["fp32"]
    # All variants are in memory at the same time, which a GPU has no room for, since each keeps its freed memory.
    max_savings = len(MEMORY_SAVINGS) if device.type == "cpu" else 0
    variants = [
        " ".join([precision, *list(MEMORY_SAVINGS)[:count]])
        for precision in precisions
        for count in range(max_savings + 1)
    ]
    names = ["naive", *variants, *(f"upper bound {precision}" for precision in precisions)]
    with ExitStack() as open_workers:
        workers = {
            name: open_workers.enter_context(SubprocessWorker(f"{__name__}:prepare_variant", name, asdict(sizes)))
            for name in names
        }
        seconds = time_interleaved(workers, repeats)
        megabytes = {name: CostSamples((worker.megabytes,)) for name, worker in workers.items()}
    flops = count_flops(sizes)
    operation_tables = {precision: profile_operations(sizes, precision) for precision in precisions}
    rows = [build_step_row(sizes, variant, seconds, flops, device, operation_tables) for variant in variants]
    rows += [build_memory_row(variant, megabytes) for variant in variants] if device.type == "cpu" else []
    tables = [*operation_tables.values(), *([build_scaling_table(sizes, precisions[-1])] if scaling else [])]
    notes = [f"a step is the mean of {N_CRITIC} steps, one of which trains the generator: {flops / 1e9:.0f} GFLOP"]
    if "bf16" not in precisions:
        notes.append("bf16 is not measured, since this machine has no bf16 instructions")
    return BenchmarkResults("step", rows, asdict(sizes), tables, notes)


def build_state(sizes: StepSizes, variant: str) -> TrainState:
    """Return a train state without data; `random_batch` makes its batches."""
    config = sizes.build_config(variant)
    context = DistributedContext(config.training.precision, config.distributed)
    names = tuple(str(index) for index in range(sizes.condition_dim))
    condition = Condition(ConditionConfig(), names, AllRows(sizes.batch_size), raise_no_values)
    discriminator_config = config.discriminator
    torch.manual_seed(0)
    generator = Generator(
        sizes.image_size,
        sizes.condition_dim,
        **config.generator.architecture,
        activation_checkpointing=config.distributed.activation_checkpointing,
    )
    discriminator = Discriminator(
        sizes.image_size, sizes.condition_dim, discriminator_config.dim, discriminator_config.num_layers
    )
    networks = {
        "generator": context.prepare(generator, LEARNING_RATE, config.optimizer),
        "discriminator": context.prepare(discriminator, LEARNING_RATE, config.optimizer),
    }
    layout = ConditionLayout((sizes.condition_dim,))
    return TrainState(config, context, [], [condition], layout, [], **networks, ema=EMA(generator, 0))


def raise_no_values(rows: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """Condition values that must not be read."""
    raise AssertionError("the benchmark uses random batches")


def random_batch(sizes: StepSizes, device: torch.device) -> Batch:
    """Return a batch of noise; the content of the images does not change the cost of a step."""
    count, size = sizes.batch_size, sizes.image_size
    condition = torch.randn(count, sizes.condition_dim)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    no_labels = torch.empty(count, 0)
    return Batch(images, condition, condition.roll(1, 0), no_labels, no_labels, torch.rand(count), 0).to(device)


def prepare_fast_round(sizes: StepSizes, variant: str) -> Workload:
    """Return a round of n_critic steps as in `featgan.training.train`; the last one also trains the generator."""
    state = build_state(sizes, variant)
    batch = random_batch(sizes, state.context.device)

    def run_round() -> None:
        for step in range(N_CRITIC):
            microbatches = split_microbatches(state, batch)
            update_generator = step + 1 == N_CRITIC
            x_fake = generate_fake(state, microbatches[0]) if update_generator and len(microbatches) == 1 else None
            state.discriminator.step(d_loss_closures(state, step, microbatches, x_fake), LEARNING_RATE)
        with state.discriminator.frozen():
            state.generator.step(g_loss_closures(state, microbatches, x_fake), LEARNING_RATE)

    return run_round


def prepare_naive_round(sizes: StepSizes) -> Workload:
    """Return a round of the same steps with the reference losses in fp32 and unfused Adam."""
    state = build_state(sizes, "fp32")
    batch = random_batch(sizes, state.context.device)
    modules = (state.generator.module, state.discriminator.module)
    g_optimizer, d_optimizer = (
        torch.optim.Adam(module.parameters(), LEARNING_RATE, (0.5, 0.999), foreach=False, fused=False)
        for module in modules
    )

    def update_weights(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        loss.backward()
        optimizer.step()
        g_optimizer.zero_grad()
        d_optimizer.zero_grad()

    def run_round() -> None:
        for step in range(N_CRITIC):
            update_weights(d_optimizer, reference_step.reference_d_loss(state, step, batch)[0])
        update_weights(g_optimizer, reference_step.reference_g_loss(state, batch)[0])

    return run_round


def prepare_variant(variant: str, values: dict[str, Any]) -> Workload:
    """Return the work of a variant; only featgan's step keeps freed memory, as in training."""
    sizes = StepSizes(**values)
    device = DistributedContext("fp32", sizes.build_config("fp32").distributed).device
    if variant == "naive":
        workload = prepare_naive_round(sizes)
    elif variant.startswith("upper bound"):
        workload = upper_bound_type(device).create(sizes, variant.rsplit(maxsplit=1)[-1], device).run_calls
    else:
        keep_freed_memory()
        workload = prepare_fast_round(sizes, variant)

    def run_synchronized() -> None:
        workload()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run_synchronized


@dataclass(frozen=True)
class ConvolutionBound:
    """Upper bound on a CPU: the 3x3 convolution of a residual block, which is most of a step's operations."""

    images: Tensor
    weight: Tensor

    NAME = "the step's operations at the speed of a residual block's convolution"

    @classmethod
    def create(cls, sizes: StepSizes, precision: str, device: torch.device) -> "ConvolutionBound":
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        channels, side = 4 * sizes.dim, sizes.image_size // 4
        images = torch.randn(sizes.batch_size, channels, side, side, device=device, dtype=kind)
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=kind)
        return cls(images.to(memory_format=torch.channels_last), weight.to(memory_format=torch.channels_last))

    @torch.no_grad()
    def run_calls(self) -> None:
        for _ in range(NUM_CALLS):
            F.conv2d(self.images, self.weight, padding=1)

    @staticmethod
    def flops(sizes: StepSizes) -> float:
        return NUM_CALLS * 2.0 * 9 * (4 * sizes.dim) ** 2 * (sizes.image_size // 4) ** 2 * sizes.batch_size


@dataclass(frozen=True)
class MatrixProductBound:
    """Upper bound on a GPU: a matrix product that is large enough to reach the GPU's full speed."""

    left: Tensor
    right: Tensor

    SIDE = 8192
    NAME = "the step's operations at the speed of a matrix product"

    @classmethod
    def create(cls, sizes: StepSizes, precision: str, device: torch.device) -> "MatrixProductBound":
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        return cls(*(torch.randn(cls.SIDE, cls.SIDE, device=device, dtype=kind) for _ in range(2)))

    @torch.no_grad()
    def run_calls(self) -> None:
        for _ in range(NUM_CALLS):
            torch.mm(self.left, self.right)

    @classmethod
    def flops(cls, sizes: StepSizes) -> float:
        return NUM_CALLS * 2.0 * cls.SIDE**3


def upper_bound_type(device: torch.device) -> type[ConvolutionBound] | type[MatrixProductBound]:
    """Return the type of upper bound: on a CPU, convolutions are as fast as matrix products; on a GPU they are not."""
    return ConvolutionBound if device.type == "cpu" else MatrixProductBound


def count_flops(sizes: StepSizes) -> float:
    """Count the floating-point operations of a step on one image and scale them to the batch size.

    Counted in bf16, where every convolution is direct: the Winograd convolutions of fp32 use fewer multiplications.
    """
    run_round = prepare_fast_round(replace(sizes, batch_size=1), "bf16")
    with FlopCounterMode(display=False) as counter:
        run_round()
    return float(counter.get_total_flops()) / N_CRITIC * sizes.batch_size


def build_step_row(
    sizes: StepSizes,
    variant: str,
    seconds: Mapping[str, CostSamples],
    flops: float,
    device: torch.device,
    operation_tables: Mapping[str, ResultTable],
) -> BenchmarkRow:
    """Return the row of a variant in seconds per step; `operation_tables` contains the operations by precision."""
    on_cpu, (precision, *savings) = device.type == "cpu", variant.split()
    speedup = {"fp32": 2.0, "bf16": 10.0 if on_cpu else 5.0}[precision]
    goals = [Goal("speedup", speedup)]
    if precision == "bf16":
        goals.append(Goal("efficiency", 0.4 if on_cpu else 0.45))
    bound_type = upper_bound_type(device)
    upper_bound = scale_samples(seconds[f"upper bound {precision}"], flops / bound_type.flops(sizes))
    return BenchmarkRow(
        f"step, {format_variant(variant)}",
        scale_samples(seconds[variant], 1 / N_CRITIC),
        scale_samples(seconds["naive"], 1 / N_CRITIC),
        upper_bound,
        () if savings else tuple(goals),
        upper_bound_name=bound_type.NAME,
        note=""
        if savings
        else ", ".join(f"{name} {share}" for name, share, _ in operation_tables[precision].rows[:MAX_NAMED_OPERATIONS]),
    )


def format_variant(variant: str) -> str:
    """Format a variant as configuration settings."""
    precision, *savings = variant.split()
    return ", ".join([precision, *(f"distributed.{name}={MEMORY_SAVINGS[name]}".lower() for name in savings)])


def build_memory_row(variant: str, megabytes: Mapping[str, CostSamples]) -> BenchmarkRow:
    """Return the row of the peak memory of all rounds of a variant."""
    goals = (Goal("cost_ratio", 0.6),)
    return BenchmarkRow(
        f"peak memory of a step, {format_variant(variant)}",
        megabytes[variant],
        megabytes["naive"],
        goals=goals,
        unit="MB",
    )


def profile_operations(sizes: StepSizes, precision: str) -> ResultTable:
    """Return the time per operation of a step."""
    run_round = prepare_fast_round(sizes, precision)
    run_round()
    with profile(activities=profiler_activities()) as trace:
        run_round()
    rows = tuple(
        (name.removeprefix("aten::"), f"{100 * share:.1f} %", f"{format_3_digits(milliseconds)} ms")
        for name, share, milliseconds, _ in top_operations(trace, N_CRITIC)
    )
    return ResultTable(f"Operations of a step, {precision}", ("operation", "share", "per step"), rows)


def build_scaling_table(sizes: StepSizes, precision: str) -> ResultTable:
    """Return how the time and memory of a step grow when one size is doubled."""
    changes: dict[str, StepSizes] = {"baseline": sizes} | {
        f"{name} {getattr(sizes, name)} to {2 * getattr(sizes, name)}": replace(
            sizes, **{name: 2 * getattr(sizes, name)}
        )
        for name in ("batch_size", "dim", "image_size", "condition_dim")
    }
    rows, base_cost = [], (0.0, 0.0)
    for name, changed_sizes in changes.items():
        usage = run_in_new_process("featgan.bench.training_step:time_round", precision, asdict(changed_sizes))
        cost = (float(usage.result), usage.megabytes)
        base_cost = cost if name == "baseline" else base_cost
        growth = [f"x {value / base_value:.2f}" for value, base_value in zip(cost, base_cost, strict=True)]
        rows.append((name, f"{format_3_digits(1000 * cost[0])} ms", growth[0], f"{cost[1]:,.0f} MB", growth[1]))
    columns = ("size", "per step", "growth", "memory", "growth")
    return ResultTable(f"Cost of a step, {precision}, {sizes.conditioning}", columns, tuple(rows))


def time_round(variant: str, sizes: dict[str, Any]) -> float:
    """Return the median seconds of a step."""
    return time_interleaved({variant: prepare_variant(variant, sizes)}, repeats=3)[variant].median / N_CRITIC
