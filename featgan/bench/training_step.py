"""The training step: fp32 and eager as the equations have it, beside what a training uses."""

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

from featgan.bench.results import Bench, Goal, Row, Table, three_digits
from featgan.bench.timing import Costs, Elsewhere, in_new_process, in_turn, scaled
from featgan.config.loading import validate
from featgan.config.schema import ConditionConfig, Config
from featgan.data.conditions import Condition, ConditionLayout
from featgan.data.loader import Batch
from featgan.distributed.context import Engine, has_fast_bf16
from featgan.networks.discriminator import Discriminator
from featgan.networks.ema import Average
from featgan.networks.generator import Generator
from featgan.system.memory import keep_freed_memory
from featgan.system.profiling import activities, top_operations
from featgan.training import reference_step
from featgan.training.objective import discriminator_losses, edit, generator_losses, split
from featgan.training.state import Game

CRITIC_STEPS = 5
"""n_critic: a round of so many steps holds everything that a training repeats."""

CALLS = 10
"""Of the product that is the ceiling: one alone would be measured cold."""

MOST_NAMED = 5
"""Operations that a row names."""

SAVINGS = {"recompute": True, "accumulation": 2}
"""Settings that save memory for time, each beside those before it."""

RATE = 1e-4
Round = Callable[[], None]


@dataclass(frozen=True)
class Sizes:
    """What a step's cost depends on."""

    image_size: int = 112
    dim: int = 64
    batch_size: int = 16
    condition_dim: int = 64
    conditioning: str = "concat"

    def config(self, way: str) -> Config:
        """The ancestor's objective and networks in these sizes; the way is a precision and what saves memory."""
        precision, *savings = way.split()
        layers = min(6, self.image_size.bit_length() - 1)
        tree = {
            "generator": {"dim": self.dim, "conditioning": self.conditioning},
            "discriminator": {"dim": self.dim, "num_layers": layers},
            "losses": {"condition_weight": 10},
            "distribution": {name: value for name, value in SAVINGS.items() if name in savings},
            "training": {"precision": precision, "batch_size": self.batch_size, "critic_steps": CRITIC_STEPS},
        }
        return validate(tree, "featgan bench step")


def run(image_size: int, dim: int, batch_size: int, conditioning: str, repeats: int, scaling: bool = False) -> Bench:
    """Plain and fast in turn, each a round of steps; the ceiling is a product's rate, measured between."""
    sizes = Sizes(image_size, dim, batch_size, conditioning=conditioning)
    device = Engine("fp32", sizes.config("fp32").distribution).device
    precisions = ["fp32", "bf16"] if has_fast_bf16(device) else ["fp32"]
    # All sides live at once, which a GPU has no room for where each keeps the memory that it has freed.
    most = len(SAVINGS) if device.type == "cpu" else 0
    ways = [" ".join([precision, *list(SAVINGS)[:count]]) for precision in precisions for count in range(most + 1)]
    names = ["plain", *ways, *(f"ceiling {precision}" for precision in precisions)]
    with ExitStack() as open_sides:
        sides = {
            name: open_sides.enter_context(Elsewhere(f"{__name__}:prepare", name, asdict(sizes))) for name in names
        }
        seconds = in_turn(sides, repeats)
        megabytes = {name: Costs((side.megabytes,)) for name, side in sides.items()}
    flops = count_flops(sizes)
    where = {precision: operations(sizes, precision) for precision in precisions}
    rows = [step_row(sizes, way, seconds, flops, device, where) for way in ways]
    rows += [memory_row(way, megabytes) for way in ways] if device.type == "cpu" else []
    tables = [*where.values(), *([scaling_table(sizes, precisions[-1])] if scaling else [])]
    remarks = [f"a step is the mean of {CRITIC_STEPS}, of which one trains the generator: {flops / 1e9:.0f} GFLOP"]
    if "bf16" not in precisions:
        remarks.append("bf16 is not measured: this machine multiplies it in software")
    return Bench("step", rows, asdict(sizes), tables, remarks)


def build_game(sizes: Sizes, way: str) -> Game:
    """A game without data; its batches are drawn by `random_batch`."""
    config = sizes.config(way)
    engine = Engine(config.training.precision, config.distribution)
    names = tuple(str(index) for index in range(sizes.condition_dim))
    condition = Condition(ConditionConfig(), names, np.arange(sizes.batch_size), no_values)
    critic = config.discriminator
    torch.manual_seed(0)
    generator = Generator(sizes.image_size, sizes.condition_dim, **config.generator.architecture)
    generator.recomputes = config.distribution.recompute
    discriminator = Discriminator(sizes.image_size, sizes.condition_dim, critic.dim, critic.num_layers)
    players = {
        "generator": engine.player(generator, RATE, config.optimizer),
        "discriminator": engine.player(discriminator, RATE, config.optimizer),
    }
    layout = ConditionLayout((sizes.condition_dim,))
    return Game(config, engine, [], [condition], layout, [], **players, average=Average(generator, 0))


def no_values(rows: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    raise AssertionError("batches are drawn at random")


def random_batch(sizes: Sizes, device: torch.device) -> Batch:
    """Noise in the form of a batch: what an image shows does not change the cost of a step."""
    count, size = sizes.batch_size, sizes.image_size
    condition = torch.randn(count, sizes.condition_dim)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    nothing = torch.empty(count, 0)
    return Batch(images, condition, condition.roll(1, 0), nothing, nothing, torch.rand(count), 0).to(device)


def fast_round(sizes: Sizes, way: str) -> Round:
    """n_critic steps as `featgan.training.train` does them, of which the last trains the generator too."""
    game = build_game(sizes, way)
    batch = random_batch(sizes, game.engine.device)

    def work() -> None:
        for step in range(CRITIC_STEPS):
            parts = split(game, batch)
            if step + 1 == CRITIC_STEPS and len(parts) == 1:
                parts[0].fake = edit(game, parts[0])
            game.discriminator.step(discriminator_losses(game, step, parts), RATE)
        with game.discriminator.frozen():
            game.generator.step(generator_losses(game, parts), RATE)

    return work


def plain_round(sizes: Sizes) -> Round:
    """The same steps from the plain scalars in fp32, with Adam weight by weight."""
    game = build_game(sizes, "fp32")
    batch = random_batch(sizes, game.engine.device)
    networks = (game.generator.bare, game.discriminator.bare)
    generator, discriminator = (
        torch.optim.Adam(each.parameters(), RATE, (0.5, 0.999), foreach=False, fused=False) for each in networks
    )

    def follow(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        loss.backward()
        optimizer.step()
        for each in (generator, discriminator):
            each.zero_grad()

    def work() -> None:
        for step in range(CRITIC_STEPS):
            follow(discriminator, reference_step.discriminator_loss(game, step, batch)[0])
        follow(generator, reference_step.generator_loss(game, batch)[0])

    return work


def prepare(side: str, values: dict[str, Any]) -> Round:
    """One side, in its own process, which only featgan's way tells to keep freed memory, as a training does."""
    sizes = Sizes(**values)
    device = Engine("fp32", sizes.config("fp32").distribution).device
    if side == "plain":
        work = plain_round(sizes)
    elif side.startswith("ceiling"):
        work = ceiling_of(device).of(sizes, side.split()[1], device).work
    else:
        keep_freed_memory()
        work = fast_round(sizes, side)

    def whole() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return whole


@dataclass(frozen=True)
class Convolution:
    """The 3x3 convolution of a residual block, most of a step's operations: its rate bounds the step."""

    images: Tensor
    weight: Tensor

    NAME = "its operations at the rate of a residual block's convolution"

    @classmethod
    def of(cls, sizes: Sizes, precision: str, device: torch.device) -> "Convolution":
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        channels, side = 4 * sizes.dim, sizes.image_size // 4
        images = torch.randn(sizes.batch_size, channels, side, side, device=device, dtype=kind)
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=kind)
        return cls(images.to(memory_format=torch.channels_last), weight.to(memory_format=torch.channels_last))

    @torch.no_grad()
    def work(self) -> None:
        for _ in range(CALLS):
            F.conv2d(self.images, self.weight, padding=1)

    @staticmethod
    def flops(sizes: Sizes) -> float:
        return CALLS * 2.0 * 9 * (4 * sizes.dim) ** 2 * (sizes.image_size // 4) ** 2 * sizes.batch_size


@dataclass(frozen=True)
class Product:
    """A matrix product that is large enough for a GPU's full rate."""

    left: Tensor
    right: Tensor

    SIDE = 8192
    NAME = "its operations at the rate of a matrix product"

    @classmethod
    def of(cls, sizes: Sizes, precision: str, device: torch.device) -> "Product":
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        return cls(*(torch.randn(cls.SIDE, cls.SIDE, device=device, dtype=kind) for _ in range(2)))

    @torch.no_grad()
    def work(self) -> None:
        for _ in range(CALLS):
            torch.mm(self.left, self.right)

    @classmethod
    def flops(cls, sizes: Sizes) -> float:
        return CALLS * 2.0 * cls.SIDE**3


def ceiling_of(device: torch.device) -> type[Convolution] | type[Product]:
    """What bounds a step: a CPU's convolutions are as fast as its products, a GPU is measured by what it could do."""
    return Convolution if device.type == "cpu" else Product


def count_flops(sizes: Sizes) -> float:
    """Operations of a fast step, counted on one image: all of them grow with the images.

    In bf16, where every convolution is done as one, so that a product saved does not count as a lower bound.
    """
    work = fast_round(replace(sizes, batch_size=1), "bf16")
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / CRITIC_STEPS * sizes.batch_size


def step_row(
    sizes: Sizes, way: str, seconds: Mapping[str, Costs], flops: float, device: torch.device, where: Mapping[str, Table]
) -> Row:
    """A step's seconds: a round's divided by its steps; `where` by precision is its time by operation."""
    on_cpu, (precision, *savings) = device.type == "cpu", way.split()
    ratio = {"fp32": 2.0, "bf16": 10.0 if on_cpu else 5.0}[precision]
    goals = [Goal("ratio", ratio)]
    if precision == "bf16":
        goals.append(Goal("share", 0.4 if on_cpu else 0.45))
    ceiling = ceiling_of(device)
    bound = scaled(seconds[f"ceiling {precision}"], flops / ceiling.flops(sizes))
    return Row(
        f"step, {named(way)}",
        scaled(seconds[way], 1 / CRITIC_STEPS),
        scaled(seconds["plain"], 1 / CRITIC_STEPS),
        bound,
        () if savings else tuple(goals),
        ceiling_name=ceiling.NAME,
        rest="" if savings else ", ".join(f"{name} {share}" for name, share, _ in where[precision].rows[:MOST_NAMED]),
    )


def named(way: str) -> str:
    """A way as its setting is called."""
    precision, *savings = way.split()
    return ", ".join([precision, *(f"distribution.{name}={SAVINGS[name]}".lower() for name in savings)])


def memory_row(way: str, megabytes: Mapping[str, Costs]) -> Row:
    """Peak memory of all rounds, each side in its own process."""
    goals = (Goal("part", 0.6),)
    return Row(f"peak memory of a step, {named(way)}", megabytes[way], megabytes["plain"], goals=goals, unit="MB")


def operations(sizes: Sizes, precision: str) -> Table:
    """Where a fast step's time goes."""
    work = fast_round(sizes, precision)
    work()
    with profile(activities=activities()) as trace:
        work()
    rows = tuple(
        (name.removeprefix("aten::"), f"{100 * share:.1f} %", f"{three_digits(milliseconds)} ms")
        for name, share, milliseconds, _ in top_operations(trace, CRITIC_STEPS)
    )
    return Table(f"a step's operations, {precision}", ("operation", "share", "a step"), rows)


def scaling_table(sizes: Sizes, precision: str) -> Table:
    """How a step's time and memory grow when one size is doubled, the others as given."""
    changes: dict[str, Sizes] = {"as given": sizes} | {
        f"{name} {getattr(sizes, name)} to {2 * getattr(sizes, name)}": replace(
            sizes, **{name: 2 * getattr(sizes, name)}
        )
        for name in ("batch_size", "dim", "image_size", "condition_dim")
    }
    rows, base = [], (0.0, 0.0)
    for name, each in changes.items():
        spent = in_new_process("featgan.bench.training_step:time_round", precision, asdict(each))
        found = (float(spent.result), spent.megabytes)
        base = found if name == "as given" else base
        growth = [f"x {mine / its:.2f}" for mine, its in zip(found, base, strict=True)]
        rows.append((name, f"{three_digits(1000 * found[0])} ms", growth[0], f"{found[1]:,.0f} MB", growth[1]))
    columns = ("size", "a step", "growth", "memory", "growth")
    return Table(f"what a step costs, {precision}, {sizes.conditioning}", columns, tuple(rows))


def time_round(side: str, sizes: dict[str, Any]) -> float:
    """Median seconds of a step."""
    return in_turn({side: prepare(side, sizes)}, repeats=3)[side].median / CRITIC_STEPS
